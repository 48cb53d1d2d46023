"""The log on disk, `raft.db`: who this master is, its term and vote, and the entries, one fsync a batch.

Beside it `raft.mark` counts the writes that were durable: SQLite silently drops the end of its own write-ahead log from
the first damaged byte on, and a vote or an entry that is lost so must not be forgotten in silence.
"""

from __future__ import annotations

import json
import os
import sqlite3
import zlib
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from pistage import raft
from pistage.errors import Code, PistageError
from pistage.master.checksums import PageSums, damaged, is_full, opened_to_look, unopened
from pistage.master.directories import sync_directory

_SCHEMA = """
CREATE TABLE IF NOT EXISTS node (
  only INTEGER PRIMARY KEY CHECK (only = 1),
  node_id TEXT NOT NULL,
  group_id TEXT NOT NULL,
  founders TEXT NOT NULL, -- JSON: node id -> URL
  term INTEGER NOT NULL,
  vote TEXT,
  base_index INTEGER NOT NULL, -- the entry before the first one kept, the membership as of there
  base_term INTEGER NOT NULL,
  base_config TEXT NOT NULL,
  base_crc INTEGER NOT NULL, -- where the chain of CRCs begins
  generation INTEGER NOT NULL, -- which state/<generation> belongs to this log
  writes INTEGER NOT NULL -- how many transactions there have been
);
CREATE TABLE IF NOT EXISTS entries (
  idx INTEGER PRIMARY KEY,
  term INTEGER NOT NULL,
  kind TEXT NOT NULL,
  payload BLOB NOT NULL,
  crc INTEGER NOT NULL -- of the previous entry's crc, and of all of this one
);
"""
_CHECKPOINT_BYTES = 4 << 20  # of the write-ahead log; what is written over and over again stays in memory until then


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Who this master is: its own id, never used twice; its group; and who founded it, at which URLs."""

    node_id: str
    group_id: str
    founders: dict[str, str]


class DurableLog:
    """Not thread-safe: every call comes from one thread at a time.

    A full disk is PistageError `storage` and nothing has changed; any other failure of the disk is
    sqlite3.OperationalError, after which the process must end: what the kernel has kept is unknown (ATC '20,
    "Can Applications Recover from fsync Failures?").
    """

    def __init__(self, path: Path) -> None:
        """Open what `create` made. PistageError `storage`: DamagedError for a log that is, or has lost its end."""
        self._sums = PageSums(path)
        self._mark_path = path.with_name("raft.mark")
        self._sums.verify()
        try:
            with closing(opened_to_look(path)) as db:
                self._load(db)
            self._db = _opened(self._sums)
        except sqlite3.DatabaseError as error:
            raise unopened(path, error) from None
        except ValueError as error:
            raise PistageError(
                Code.STORAGE, f"{path} holds what this version does not know: {error}",
                hint="start the version that wrote it, or a later one",
            ) from None  # fmt: skip
        self._mark_fd = os.open(self._mark_path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o640)
        self._unmoved_bytes = _CHECKPOINT_BYTES  # unknown: the first write finds out

    @staticmethod
    def create(path: Path, identity: Identity, base: raft.Base, *, term: int = 0, generation: int = 1) -> None:
        """Make the log of a master that has none; it appears whole, or not at all."""
        fresh = path.with_name("raft.new")
        for leftover in path.parent.glob("raft.new*"):
            leftover.unlink()
        sums = PageSums(fresh)
        db = _opened(sums)
        db.executescript(_SCHEMA)
        founders = json.dumps(identity.founders, sort_keys=True)
        config = base.config.encode().decode()
        db.execute(
            "INSERT INTO node (only, node_id, group_id, founders, term, vote, base_index, base_term, base_config,"
            " base_crc, generation, writes) VALUES (1, ?, ?, ?, ?, NULL, ?, ?, ?, 0, ?, 0)",
            (identity.node_id, identity.group_id, founders, term, base.index, base.term, config, generation),
        )
        sums.close(db, 0)
        path.with_name("raft.mark").unlink(missing_ok=True)
        fresh.with_name("raft.new-sums").replace(path.with_name(f"{path.name}-sums"))
        fresh.replace(path)
        sync_directory(path.parent)

    def _load(self, db: sqlite3.Connection) -> None:
        row = db.execute(
            "SELECT node_id, group_id, founders, term, vote, base_index, base_term, base_config, base_crc, generation,"
            " writes FROM node"
        ).fetchone()
        self.identity = Identity(node_id=row[0], group_id=row[1], founders=json.loads(row[2]))
        self.hard_state = raft.HardState(term=row[3], vote=row[4])
        self.base = raft.Base(index=row[5], term=row[6], config=raft.Config.decode(row[7].encode()))
        self._base_crc, self.generation, self._writes = row[8], row[9], row[10]
        self.entries = self._verified(db)
        self.last_index = self.entries[-1].index if self.entries else self.base.index
        if self._mark_path.exists() and self._writes < (known := _number_in(self._mark_path)):
            gone = known - self._writes
            raise damaged(self._path, f"its last {gone} writes are gone: {self._mark_path.name} counts {known}")

    @property
    def _path(self) -> Path:
        return self._sums.path

    def _verified(self, db: sqlite3.Connection) -> list[raft.Entry]:
        index, crc = self.base.index, self._base_crc
        entries = []
        for row in db.execute("SELECT idx, term, kind, payload, crc FROM entries ORDER BY idx"):
            entry = raft.Entry(index=row[0], term=row[1], kind=raft.Kind(row[2]), payload=row[3])
            crc = _chained(crc, entry)
            if entry.index != index + 1 or crc != row[4]:
                raise damaged(self._path, f"the check sum of its entry {entry.index} does not match")
            index = entry.index
            entries.append(entry)
        self._last_crc = crc
        return entries

    def forget_entries(self) -> None:
        """Let go of `entries`, once whoever needs them has them."""
        self.entries = []

    def write(self, writes: Sequence[raft.Persist]) -> None:
        """Make all of them durable, in order, in one transaction and one fsync."""
        try:
            self._db.execute("BEGIN IMMEDIATE")
            last_index, last_crc, generation = self.last_index, self._last_crc, self.generation
            size = 0
            for write in writes:
                size += self._carry_out(write)
            self._db.execute("UPDATE node SET writes = writes + 1, generation = ?", (self.generation,))
            self._db.execute("COMMIT")
        except sqlite3.OperationalError as error:
            self.last_index, self._last_crc, self.generation = last_index, last_crc, generation
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise _as_refusal(error) from None
        self._writes += 1
        self._mark()
        self._unmoved_bytes += size + 16384
        if self._unmoved_bytes > _CHECKPOINT_BYTES:
            self._checkpoint()

    def _mark(self) -> None:
        try:
            os.pwrite(self._mark_fd, self._writes.to_bytes(8, "little"), 0)
        except OSError as error:
            # What was written is durable. A mark that is behind finds less, and never too much.
            if not is_full(error):
                raise

    def _carry_out(self, write: raft.Persist) -> int:
        db = self._db
        if write.hard_state is not None:
            db.execute("UPDATE node SET term = ?, vote = ?", (write.hard_state.term, write.hard_state.vote))
        if write.install is not None:
            db.execute("DELETE FROM entries")
            self._set_base(write.install, 0)
            self.last_index, self._last_crc = write.install.index, 0
            self.generation += 1
        if write.base is not None:
            row = db.execute("SELECT crc FROM entries WHERE idx = ?", (write.base.index,)).fetchone()
            self._set_base(write.base, row[0])
            db.execute("DELETE FROM entries WHERE idx <= ?", (write.base.index,))
        if write.truncate_from is not None:
            db.execute("DELETE FROM entries WHERE idx >= ?", (write.truncate_from,))
            self.last_index = write.truncate_from - 1
            self._last_crc = self._crc_at(self.last_index)
        crc, rows, size = self._last_crc, [], 0
        for entry in write.entries:
            crc = _chained(crc, entry)
            rows.append((entry.index, entry.term, entry.kind, entry.payload, crc))
            size += len(entry.payload)
        if rows:
            if rows[0][0] != self.last_index + 1:
                raise AssertionError(f"entry {rows[0][0]} does not follow {self.last_index}")
            db.executemany("INSERT INTO entries (idx, term, kind, payload, crc) VALUES (?, ?, ?, ?, ?)", rows)
            self.last_index, self._last_crc = rows[-1][0], crc
        return size

    def _set_base(self, base: raft.Base, crc: int) -> None:
        self._db.execute(
            "UPDATE node SET base_index = ?, base_term = ?, base_config = ?, base_crc = ?",
            (base.index, base.term, base.config.encode().decode(), crc),
        )

    def _crc_at(self, index: int) -> int:
        row = self._db.execute("SELECT crc FROM entries WHERE idx = ?", (index,)).fetchone()
        row = row or self._db.execute("SELECT base_crc FROM node WHERE base_index = ?", (index,)).fetchone()
        return int(row[0])

    def _checkpoint(self) -> None:
        try:
            self._sums.checkpoint(self._db, 0)
        except (OSError, sqlite3.OperationalError) as error:
            # Everything is durable where it is. Moving it needs space, and comes back with the next write.
            if not is_full(error):
                raise
            return
        self._unmoved_bytes = 0

    def close(self) -> None:
        """Close the file; everything written is durable already."""
        self._sums.close(self._db, 0)
        os.close(self._mark_fd)


def _opened(sums: PageSums) -> sqlite3.Connection:
    db = sums.opened()
    db.execute("PRAGMA locking_mode = EXCLUSIVE")
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("PRAGMA synchronous = FULL")
    db.execute("PRAGMA wal_autocheckpoint = 0")
    return db


def _chained(previous: int, entry: raft.Entry) -> int:
    head = b"%d.%d.%d.%b." % (previous, entry.index, entry.term, entry.kind.encode())
    return zlib.crc32(entry.payload, zlib.crc32(head))


def _number_in(path: Path) -> int:
    return int.from_bytes(path.read_bytes()[:8], "little")


def _as_refusal(error: sqlite3.OperationalError) -> Exception:
    if not is_full(error):
        return error
    return PistageError(Code.STORAGE, "the master's disk is full", hint="free some space on it")
