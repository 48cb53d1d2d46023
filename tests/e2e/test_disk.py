"""Damaged disks: the master says what is damaged and what to run, the others go on, and it comes back whole."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.e2e.masters import Asking, Masters, asking
from tests.e2e.processes import until

pytestmark = pytest.mark.slow


def flip(path: Path) -> None:
    """Change one byte, anywhere."""
    at = random.Random(str(path)).randrange(path.stat().st_size)
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 0x01]))


def halve(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)


def state_of(data: Path) -> Path:
    return next(data.glob("state/*/state.db"))


#: What is done to the directory of a master that was stopped, or killed, and what it names then.
DAMAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "a byte of raft.db": (lambda data: flip(data / "raft.db"), "raft.db is damaged"),
    "a byte of state.db": (lambda data: flip(state_of(data)), "state.db is damaged"),
    "half of raft.db": (lambda data: halve(data / "raft.db"), "raft.db is damaged"),
    "half of state.db": (lambda data: halve(state_of(data)), "state.db is damaged"),
    "the state": (lambda data: shutil.rmtree(data / "state"), "state.db is gone"),
    "raft.db": (lambda data: (data / "raft.db").unlink(), "raft.db is damaged: it is gone"),
    "everything": (shutil.rmtree, "belongs to a group already"),
    "a byte of raft.db-wal": (lambda data: flip(data / "raft.db-wal"), "raft.db is damaged: its last "),
    "raft.db-wal": (lambda data: (data / "raft.db-wal").unlink(), "raft.db is damaged: its last "),
}


@pytest.fixture(scope="module")
def group(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Masters]:
    """Three masters that serve all tests here, each of which leaves them whole."""
    masters = Masters(tmp_path_factory.mktemp("group"))
    for name in masters.founders:
        masters.serve(name)
    yield masters
    masters.stop_all()


async def comes_back(masters: Masters, ask: Asking, name: str) -> None:
    """One command, and the master is a learner, then a voter, under another id."""
    code, said = await masters.offline("join", name)
    assert code == 0, said
    assert "now start it" in said
    masters.serve(name)
    view = await ask.voting(3)
    ids = {master["url"]: master["id"] for master in view["masters"]}

    def is_told(what: str) -> bool:
        line = f"master={ids[masters.urls[name]]} {what}"
        return any(line in masters.log_of(one) for one in masters.founders)

    await until(lambda: is_told(f"at {masters.urls[name]} comes in"))
    await until(lambda: is_told("has caught up and votes from now on"))


@pytest.mark.parametrize("damage", DAMAGES)
async def test_a_damaged_master_says_so_and_comes_back_by_one_command(group: Masters, damage: str) -> None:
    spoil, named = DAMAGES[damage]
    async with asking(group) as ask:
        await ask.settled(3)
        await ask.submit(20)
        name = group.founders[list(DAMAGES).index(damage) % 3]  # each in turn, whether it leads or not
        others = [one for one in group.founders if one != name]
        if "wal" in damage:
            group.kill(name)
        else:
            assert group.stop(name) == 0
        spoil(group.data(name))
        async with ask.steady_load(*others):
            said = await group.refused(name)
            assert named in said
            assert str(group.data(name)) in said
            assert "pistage cluster join" in said
            await comes_back(group, ask, name)
        await ask.all_is_there()


async def test_the_end_of_the_write_ahead_log_of_the_state_may_be_lost(group: Masters) -> None:
    """As a loss of power does it: the state is an older one then, and raft.db brings it up again."""
    async with asking(group) as ask:
        for spoil in (flip, halve, Path.unlink):
            for _ in range(10):
                await ask.settled(3)
                await ask.submit(20)
                name = await ask.leader()
                group.kill(name)
                wal = state_of(group.data(name)).with_name("state.db-wal")
                if wal.stat().st_size > 0:
                    break
                group.serve(name)  # all of it had just been made durable, and the file emptied
            else:
                raise AssertionError("it was empty each time")
            spoil(wal)
            group.serve(name)
            await ask.all_is_there()
