"""A byte that changes on the disk is found at the next start, or changes nothing that anybody could notice."""

import errno
import random
import shutil
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pistage import raft, wire
from pistage.core import commands as c
from pistage.errors import PistageError
from pistage.master.checksums import DamagedError, PageSums
from pistage.master.snapshots import Snapshots, copy_state
from pistage.master.state import State
from pistage.master.store import DurableLog
from tests.core.plans import a_plan
from tests.master.fakes import a_log

FLIPS = 25  # of each file, at random places, besides its first and last bytes


def places(path: Path, seed: int) -> list[int]:
    size, rng = path.stat().st_size, random.Random(seed)
    return sorted({*range(0, min(40, size), 3), size - 1, *(rng.randrange(size) for _ in range(FLIPS))})


def flip(path: Path, at: int) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 0x10]))


def submitted(index: int) -> raft.Entry:
    run = c.SubmitRun(at=index, run_id=f"r{index:04}", project="default", owner="o", plan=a_plan(), source="x" * 300)
    return raft.Entry(index=index, term=1, payload=wire.pack_command(run))


def crashed(directory: Path, name: str) -> Path:
    """What a process that is killed now leaves behind."""
    return Path(shutil.copytree(directory, directory.with_name(name)))


def persist(log: DurableLog, entries: list[raft.Entry]) -> None:
    log.write([raft.Persist(seq=1, term=1, last_index=entries[-1].index, entries=tuple(entries))])


def a_crashed_log(tmp_path: Path) -> Path:
    """Some of it is in the file, some in its write-ahead log, and pages of the file are superseded there."""
    log = a_log(tmp_path / "live")
    for first in range(1, 40, 3):
        persist(log, [submitted(n) for n in range(first, first + 3)])
    log.close()
    log = DurableLog(tmp_path / "live" / "raft.db")
    log._checkpoint()
    for n in range(40, 60):
        persist(log, [submitted(n)])
    left = crashed(tmp_path / "live", "left")
    log.close()
    return left


@pytest.mark.slow
@pytest.mark.parametrize("name", ["raft.db", "raft.db-wal", "raft.db-sums"])
def test_no_byte_of_the_log_changes_unnoticed(tmp_path: Path, name: str) -> None:
    (tmp_path / "live").mkdir()
    left = a_crashed_log(tmp_path)
    whole = DurableLog(crashed(left, "whole") / "raft.db")
    found = 0
    for at in places(left / name, 1):
        shutil.rmtree(tmp_path / "damaged", ignore_errors=True)
        damaged = crashed(left, "damaged")
        flip(damaged / name, at)
        try:
            log = DurableLog(damaged / "raft.db")
        except PistageError as error:
            assert "raft.db" in error.message and "pistage cluster join" in (error.hint or ""), at
            found += 1
            continue
        assert (log.entries, log.hard_state, log.base, log.identity) == (
            whole.entries, whole.hard_state, whole.base, whole.identity,
        ), at  # fmt: skip
        log.close()
    whole.close()
    assert found


@pytest.mark.parametrize("cut", [0.0, 0.5, 0.99])
@pytest.mark.parametrize("name", ["raft.db", "raft.db-wal", "raft.db-sums"])
def test_a_log_that_was_cut_off_is_refused(tmp_path: Path, name: str, cut: float) -> None:
    (tmp_path / "live").mkdir()
    left = a_crashed_log(tmp_path)
    with (left / name).open("r+b") as file:
        file.truncate(int((left / name).stat().st_size * cut))
    with pytest.raises(PistageError, match=r"raft\.db") as caught:
        DurableLog(left / "raft.db")
    assert "pistage cluster join" in (caught.value.hint or "")


def dump(path: Path) -> list[str]:
    db = sqlite3.connect(path)
    rows = list(db.iterdump())
    db.close()
    return rows


def a_crashed_state(tmp_path: Path, *, while_checkpointed: bool) -> tuple[Path, int]:
    """Applied to 60, checkpointed at 40; or in the middle of a later checkpoint, that a reader held up at 50."""
    (tmp_path / "live").mkdir()
    state = State(tmp_path / "live" / "state.db")
    state.apply([submitted(n) for n in range(1, 41)])
    state.checkpoint()
    state.apply([submitted(n) for n in range(41, 51)])
    reader = sqlite3.connect(f"file:{state.path}?mode=ro", uri=True, isolation_level=None)
    reader.execute("BEGIN")
    reader.execute("SELECT COUNT(*) FROM run").fetchone()
    state.apply([submitted(n) for n in range(51, 61)])
    if while_checkpointed:
        state.checkpoint()
    assert state.durable_index == 40
    left = crashed(tmp_path / "live", "left")
    (left / "state.db-shm").unlink()
    reader.close()
    state.close()
    return left, 40


def brought_up(path: Path, least: int) -> list[str]:
    """What the state holds once the log, which has the entries after `least`, was applied to it."""
    state = State(path)
    assert least <= state.position.index <= 60
    for n in range(state.position.index + 1, 61):
        state.apply([submitted(n)])
    state.close()
    return [*dump(path), state.position.digest.hex()]


@pytest.mark.slow
@pytest.mark.parametrize("while_checkpointed", [False, True])
@pytest.mark.parametrize("name", ["state.db", "state.db-wal", "state.db-sums"])
def test_no_byte_of_the_state_changes_unnoticed(tmp_path: Path, name: str, while_checkpointed: bool) -> None:
    left, durable = a_crashed_state(tmp_path, while_checkpointed=while_checkpointed)
    whole = brought_up(crashed(left, "whole") / "state.db", durable)
    found = 0
    for at in places(left / name, 2):
        shutil.rmtree(tmp_path / "damaged", ignore_errors=True)
        damaged = crashed(left, "damaged")
        flip(damaged / name, at)
        try:
            assert brought_up(damaged / "state.db", durable) == whole, at
        except PistageError as error:
            assert "state.db" in error.message and "pistage cluster join" in (error.hint or ""), at
            found += 1
    # The write-ahead log of the state may lose its end: that is what a power loss does, and raft.db mends it.
    assert found or (name, while_checkpointed) == ("state.db-wal", False)


def test_a_checkpoint_does_not_wait_for_a_reader(tmp_path: Path) -> None:
    state = State(tmp_path / "state.db")
    state.apply([submitted(1)])
    reader = sqlite3.connect(f"file:{state.path}?mode=ro", uri=True, isolation_level=None)
    reader.execute("BEGIN")
    reader.execute("SELECT COUNT(*) FROM run").fetchone()
    state.apply([submitted(2)])
    started, durable = time.monotonic(), state.durable_index
    state.checkpoint()
    assert time.monotonic() - started < 1.0
    assert state.durable_index == durable < 2
    reader.close()
    state.checkpoint()
    assert state.durable_index == 2
    state.close()


def killed_in(step: str, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Makes the next checkpoint end where `step` begins, as a kill would."""

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    return lambda: monkeypatch.setattr(f"pistage.master.checksums.PageSums.{step}", die)


def test_a_snapshot_whose_first_checkpoint_was_killed_is_no_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "live").mkdir()
    state = State(tmp_path / "live" / "state.db")
    state.apply([submitted(n) for n in range(1, 10)])
    copy_state(state.path, tmp_path / "installed.db")
    state.close()
    with monkeypatch.context() as patch:
        killed_in("_write", patch)()
        with pytest.raises(KeyboardInterrupt):
            State(tmp_path / "installed.db")
    again = State(tmp_path / "installed.db")
    assert again.position.index == 9
    again.close()


def test_a_checkpoint_that_could_not_write_its_sums_is_no_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk, while the log goes on, then a kill."""
    (tmp_path / "live").mkdir()
    log = a_log(tmp_path / "live")
    persist(log, [submitted(1)])
    persist(log, [submitted(n) for n in range(2, 400)])
    write, written = PageSums._write, 0

    def full(sums: PageSums, mark: int) -> None:
        nonlocal written
        written += 1
        if written > 1:
            raise OSError(errno.ENOSPC, "full")
        write(sums, mark)

    with monkeypatch.context() as patch:
        patch.setattr(PageSums, "_write", full)
        log._checkpoint()
    assert written == 2
    persist(log, [submitted(400)])
    again = DurableLog(crashed(tmp_path / "live", "left") / "raft.db")
    assert again.last_index == 400
    again.close()
    log._checkpoint()
    persist(log, [submitted(401)])
    left = crashed(tmp_path / "live", "later")
    flip(left / "raft.db", (left / "raft.db").stat().st_size // 2)
    with pytest.raises(DamagedError):
        DurableLog(left / "raft.db")
    log.close()


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (sqlite3.SQLITE_FULL, "its disk is full"),
        (sqlite3.SQLITE_CANTOPEN, "cannot be opened"),
        (sqlite3.SQLITE_READONLY_DIRECTORY, "cannot be opened"),
        (sqlite3.SQLITE_IOERR_SHMSIZE, "cannot be opened"),
    ],
)
def test_what_the_disk_or_its_rights_refuse_is_no_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, said: str
) -> None:
    def refuse(*given: object, **named: object) -> sqlite3.Connection:
        error = sqlite3.OperationalError("refused")
        error.sqlite_errorcode = code
        raise error

    a_log(tmp_path).close()
    State(tmp_path / "state.db").close()
    monkeypatch.setattr("pistage.master.store.sqlite3.connect", refuse)
    for opened in (lambda: DurableLog(tmp_path / "raft.db"), lambda: State(tmp_path / "state.db")):
        with pytest.raises(PistageError, match=said) as caught:
            opened()
        assert not isinstance(caught.value, DamagedError)
        assert caught.value.hint and "pistage cluster join" not in caught.value.hint


def test_a_mark_that_finds_no_space_stops_no_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "full")

    log = a_log(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr("pistage.master.store.os.pwrite", full)
        persist(log, [submitted(1)])
    persist(log, [submitted(2)])
    log.close()
    log = DurableLog(tmp_path / "raft.db")
    assert log.last_index == 2
    log.close()


def test_a_snapshot_that_finds_no_space_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(state_path: Path, to: Path) -> None:
        to.write_bytes(b"a part of it")
        error = sqlite3.OperationalError("database or disk is full")
        error.sqlite_errorcode = sqlite3.SQLITE_FULL
        raise error

    monkeypatch.setattr("pistage.master.snapshots.copy_state", full)
    with pytest.raises(PistageError, match="no snapshot can be made"):
        Snapshots(tmp_path / "snapshots").offer(tmp_path / "state.db", 1)
    assert not any((tmp_path / "snapshots").iterdir())
