"""The driver: what is read is never older than what is said of it, and no failure of it goes unnoticed."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from pistage import raft
from pistage.core.machine import Outcome
from pistage.errors import Code, PistageError
from pistage.master.replica import Replica
from pistage.master.state import Reader, State
from tests.master.fakes import a_replica
from tests.master.test_group import Group, a_group, a_run, eventually, outcome_of


@asynccontextmanager
async def a_group_that_sends_its_state(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[tuple[Group, str]]:
    """A group, and the name of a member that is away and has missed too much."""
    monkeypatch.setattr("pistage.master.state._CHECKPOINT_ENTRIES", 5)
    async with a_group(directory, entries_kept=10) as group:
        leader = await group.leader()
        away = next(one.node_id for one in group.replicas if one is not leader)
        await group.stop(away)
        for n in range(60):
            await leader.propose(a_run(f"r{n:02}"))
        yield group, away


async def fresh_index(replica: Replica) -> int:
    async with replica.reader.snapshot() as snapshot:
        return await snapshot.applied_index()


@pytest.mark.slow
async def test_what_is_read_while_a_snapshot_is_installed_is_not_older_than_what_is_said_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, int]] = []
    move = Reader.move

    async def observed(reader: Reader, path: Path) -> None:
        replica = group.links.replicas[away]
        seen.append((replica.applied_index, await fresh_index(replica)))
        await move(reader, path)
        seen.append((replica.applied_index, await fresh_index(replica)))

    async with a_group_that_sends_its_state(tmp_path, monkeypatch) as (group, away):
        monkeypatch.setattr(Reader, "move", observed)
        await group.start(away)
        await group.settle()
        assert seen
        assert all(said <= read for said, read in seen), seen


async def test_a_step_that_is_broken_off_ends_the_master_though_nobody_waits_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = raft.Node.step

    def broken(node: raft.Node, event: raft.Event) -> list[raft.Action]:
        if isinstance(event, raft.Durable) and node.leadership is not None:
            raise AssertionError("half-way")
        return step(node, event)

    monkeypatch.setattr(raft.Node, "step", broken)
    with pytest.raises(AssertionError, match="half-way"):
        async with asyncio.timeout(10), a_replica(tmp_path):
            await asyncio.Event().wait()


async def test_news_of_the_state_that_somebody_cannot_take_end_the_master(tmp_path: Path) -> None:
    def confused(outcome: Outcome) -> None:
        raise AssertionError("confused")

    with pytest.raises(AssertionError, match="confused"):
        async with asyncio.timeout(10), a_replica(tmp_path) as replica:
            replica.on_applied(confused)
            await replica.propose(a_run("r1"))


async def test_a_master_whose_state_is_damaged_ends_though_that_cannot_be_written_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = raft.Node.step

    def fatal(node: raft.Node, event: raft.Event) -> list[raft.Action]:
        step(node, event)
        return [raft.Fatal(reason="it differs", is_state_damaged=True)]

    with pytest.raises(PistageError, match="it differs"):
        async with asyncio.timeout(10), a_replica(tmp_path):
            (tmp_path / "state" / "1" / "refused").mkdir()  # no file can be written there
            monkeypatch.setattr(raft.Node, "step", fatal)
            await asyncio.Event().wait()


async def test_a_master_that_has_failed_refuses_at_once_what_its_core_will_not_answer(tmp_path: Path) -> None:
    refusal: object = None
    with pytest.raises(PistageError, match="unfit"):
        async with a_replica(tmp_path) as replica:
            replica.stop(PistageError(Code.STORAGE, "unfit"))
            refusal = await outcome_of(replica.transfer("m2"))
            await asyncio.Event().wait()
    assert isinstance(refusal, PistageError) and refusal.code is Code.UNAVAILABLE


async def test_a_master_stops_while_its_state_waits_for_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    is_full = False
    apply = State._apply_unless_full

    def full(state: State, entries: list[raft.Entry]) -> object:
        nonlocal is_full
        is_full = True
        return None

    async with a_replica(tmp_path) as replica:
        monkeypatch.setattr(State, "_apply_unless_full", full)
        async with asyncio.TaskGroup() as tasks:
            asking = tasks.create_task(replica.propose(a_run("r1")))
            await eventually(lambda: is_full)
            asking.cancel()
    monkeypatch.setattr(State, "_apply_unless_full", apply)
    async with a_replica(tmp_path) as replica:
        assert await fresh_index(replica) > 1  # it was committed


async def test_a_reader_that_was_stopped_on_its_way_to_another_state_can_be_closed(tmp_path: Path) -> None:
    async with a_replica(tmp_path) as replica:
        reader = Reader(replica.reader.path)
        await reader.open()
        async with reader.snapshot(), asyncio.TaskGroup() as tasks:
            moving = tasks.create_task(reader.move(reader.path))
            await eventually(reader._free.empty)
            moving.cancel()
        async with asyncio.timeout(5):
            await reader.close()


@pytest.mark.slow
async def test_a_leader_whose_state_does_not_get_on_hands_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pistage.master.replica._APPLY_WAIT_S", 0.5)
    async with a_group(tmp_path) as group:
        stuck = await group.leader()
        await group.settle()
        state, apply = stuck._driver.state, stuck._driver.state._apply_unless_full
        state._apply_unless_full = lambda entries: None  # type: ignore[method-assign]
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(outcome_of(stuck.propose(a_run("r1"))))
            other = await group.leader(but=stuck.node_id)
        await other.propose(a_run("r2"))
        state._apply_unless_full = apply  # type: ignore[method-assign]
        await group.settle()
