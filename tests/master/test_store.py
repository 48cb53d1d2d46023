"""The log on disk: what was durable is there, and what is not as it was written is found."""

import errno
import gc
import os
import shutil
import sqlite3
from enum import StrEnum
from pathlib import Path

import pytest

from pistage import raft
from pistage.errors import PistageError
from pistage.master.checksums import DamagedError, PageSums
from pistage.master.store import DurableLog
from tests.master.fakes import a_log, write


def entries(first: int, last: int, term: int = 1) -> list[raft.Entry]:
    return [raft.Entry(index=n, term=term, payload=b"payload %d" % n) for n in range(first, last + 1)]


def reopened(directory: Path) -> DurableLog:
    return DurableLog(directory / "raft.db")


def test_everything_that_was_written_is_there_again(tmp_path: Path) -> None:
    store = a_log(tmp_path)
    write(store, entries(1, 5), hard_state=raft.HardState(term=3, vote="m2"))
    write(store, entries(4, 6, term=3), truncate_from=4)
    store.close()
    store = reopened(tmp_path)
    assert store.hard_state == raft.HardState(term=3, vote="m2")
    assert [(entry.index, entry.term) for entry in store.entries] == [(1, 1), (2, 1), (3, 1), (4, 3), (5, 3), (6, 3)]
    store.close()


def test_a_base_takes_the_entries_that_it_covers_and_keeps_the_chain(tmp_path: Path) -> None:
    store = a_log(tmp_path)
    write(store, entries(1, 10))
    write(store, [], base=raft.Base(index=7, term=1, config=raft.Config(voters=("m1", "m2"))))
    write(store, entries(11, 11))
    store.close()
    store = reopened(tmp_path)
    assert [entry.index for entry in store.entries] == [8, 9, 10, 11]
    assert store.base == raft.Base(index=7, term=1, config=raft.Config(voters=("m1", "m2")))
    store.close()


def test_an_installed_snapshot_empties_the_log_and_moves_to_the_next_generation(tmp_path: Path) -> None:
    store = a_log(tmp_path)
    write(store, entries(1, 3))
    write(store, [], install=raft.Base(index=50, term=4, config=raft.Config(voters=("m2",))))
    write(store, entries(51, 52, term=4))
    store.close()
    store = reopened(tmp_path)
    assert (store.generation, store.base.index, [entry.index for entry in store.entries]) == (2, 50, [51, 52])
    store.close()


@pytest.fixture
def killed(tmp_path: Path) -> Path:
    """The directory of a master that was killed: what it wrote last stands in the write-ahead log."""
    (tmp_path / "alive").mkdir()
    store = a_log(tmp_path / "alive")
    write(store, entries(1, 10))
    write(store, entries(11, 50))
    shutil.copytree(tmp_path / "alive", tmp_path / "killed")
    store.close()
    assert (tmp_path / "killed" / "raft.db-wal").stat().st_size > 0
    return tmp_path / "killed"


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError, MemoryError])
def test_a_start_that_ends_in_the_middle_leaves_the_log_as_it_was(
    killed: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    before = {path.name: path.read_bytes() for path in killed.iterdir() if path.suffix != ".db-shm"}

    def stumble(store: DurableLog, db: sqlite3.Connection) -> list[raft.Entry]:
        raise error("in the middle")

    with monkeypatch.context() as patched, pytest.raises((error, PistageError)):
        patched.setattr(DurableLog, "_verified", stumble)
        reopened(killed)
    gc.collect()
    assert {name: (killed / name).read_bytes() for name in before} == before
    store = reopened(killed)
    assert store.last_index == 50
    store.close()


def test_a_log_that_is_let_go_of_without_being_closed_is_whole_at_the_next_start(killed: Path) -> None:
    store = reopened(killed)
    os.close(store._mark_fd)
    del store
    gc.collect()  # the connection ends here, and SQLite moves its own log into the file
    assert (killed / "raft.db-wal").exists() is False
    for _ in range(2):
        store = reopened(killed)
        assert store.last_index == 50
        store.close()
    assert (killed / "raft.db-sums").exists()


def test_one_that_was_closed_on_a_full_disk_takes_no_sums_that_are_made_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    former = a_log(tmp_path)
    write(former, entries(1, 3))

    def is_full(sums: PageSums, db: sqlite3.Connection, mark: int) -> bool:
        raise OSError(errno.ENOSPC, "no space left")

    with monkeypatch.context() as patched:
        patched.setattr(PageSums, "checkpoint", is_full)
        former.close()
    assert not (tmp_path / "raft.db-sums").exists()
    reopened(tmp_path).close()
    del former
    gc.collect()
    assert (tmp_path / "raft.db-sums").exists()


def test_what_another_version_has_written_is_no_damage(killed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(raft, "Kind", StrEnum("Kind", ["other"]))
    with pytest.raises(PistageError, match="what this version does not know") as refusal:
        reopened(killed)
    assert not isinstance(refusal.value, DamagedError)


def test_a_write_that_does_not_fit_changes_nothing(tmp_path: Path) -> None:
    store = a_log(tmp_path)
    write(store, entries(1, 3))
    pages = store._db.execute("PRAGMA page_count").fetchone()[0]
    store._db.execute(f"PRAGMA max_page_count = {pages}")
    big = raft.Entry(index=4, term=1, payload=os.urandom(1 << 20))
    with pytest.raises(PistageError, match="disk is full"):
        write(store, [big], hard_state=raft.HardState(term=9))
    store._db.execute("PRAGMA max_page_count = 1000000")
    assert (store.last_index, store.generation) == (3, 1)
    write(store, [big])
    store.close()
    assert reopened(tmp_path).hard_state.term == 0


def test_an_entry_that_was_changed_is_found(tmp_path: Path) -> None:
    store = a_log(tmp_path)
    write(store, entries(1, 5))
    store.close()
    db = sqlite3.connect(tmp_path / "raft.db")
    db.execute("UPDATE entries SET payload = x'00' WHERE idx = 3")
    db.commit()
    db.close()
    (tmp_path / "raft.db-sums").unlink()  # the file's own sums would say it before the chain does
    with pytest.raises(PistageError, match="entry 3 does not match"):
        reopened(tmp_path)


@pytest.mark.parametrize("is_killed", [False, True])
def test_a_byte_that_changes_on_the_disk_is_found_wherever_it_lies(tmp_path: Path, is_killed: bool) -> None:
    store = a_log(tmp_path)
    store._unmoved_bytes = 0
    write(store, entries(1, 50))
    killed = {path: path.read_bytes() for path in tmp_path.glob("raft.*")}
    store.close()
    if is_killed:  # the entries are in the write-ahead log
        for one, content in killed.items():
            one.write_bytes(content)
    path = tmp_path / ("raft.db-wal" if is_killed else "raft.db")
    clean = path.read_bytes()
    others = {one: one.read_bytes() for one in tmp_path.glob("raft.*")}
    for at in range(100, len(clean), len(clean) // 40):
        for one, content in others.items():
            one.write_bytes(content)
        path.write_bytes(clean[:at] + bytes([clean[at] ^ 1]) + clean[at + 1 :])
        with pytest.raises(PistageError, match="is damaged"):
            reopened(tmp_path)


def test_an_end_that_was_cut_off_is_found(tmp_path: Path) -> None:
    store = a_log(tmp_path)
    store._unmoved_bytes = 0
    for n in range(1, 20):
        write(store, entries(n, n))
    wal = (tmp_path / "raft.db-wal").read_bytes()
    others = {path: path.read_bytes() for path in tmp_path.glob("raft.*")}
    store.close()
    for path, content in others.items():
        path.write_bytes(content)
    (tmp_path / "raft.db-wal").write_bytes(wal[: len(wal) // 2])
    with pytest.raises(PistageError, match="writes are gone"):
        reopened(tmp_path)
