"""The log on disk, `raft.db`: entries with a chained CRC and the hard state, one fsync a batch."""

from __future__ import annotations

import sqlite3
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pistage.errors import Code, PistageError

_SCHEMA = """
CREATE TABLE IF NOT EXISTS hard_state (
  only INTEGER PRIMARY KEY CHECK (only = 1),
  term INTEGER NOT NULL,
  vote TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS entries (
  idx INTEGER PRIMARY KEY,
  term INTEGER NOT NULL,
  payload BLOB NOT NULL,
  crc INTEGER NOT NULL -- of the previous entry's crc, idx, term and payload
);
-- The entry before the first one kept: where the chain of CRCs begins.
CREATE TABLE IF NOT EXISTS base (
  only INTEGER PRIMARY KEY CHECK (only = 1),
  idx INTEGER NOT NULL,
  term INTEGER NOT NULL,
  crc INTEGER NOT NULL
);
INSERT OR IGNORE INTO hard_state (only, term, vote) VALUES (1, 0, '');
INSERT OR IGNORE INTO base (only, idx, term, crc) VALUES (1, 0, 0, 0);
"""


@dataclass(frozen=True, slots=True)
class Entry:
    """One command in the log; `payload` is opaque here."""

    index: int
    term: int
    payload: bytes


class LogStore:
    """The log. Not thread-safe: every call comes from one thread at a time.

    A full disk is PistageError `storage` and nothing has changed; any other failure of the disk is
    sqlite3.OperationalError, after which the process must end: what the kernel has kept is unknown (ATC '20,
    "Can Applications Recover from fsync Failures?").
    """

    def __init__(self, path: Path) -> None:
        self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        self._db.execute("PRAGMA locking_mode = EXCLUSIVE")
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = FULL")
        self._db.executescript(_SCHEMA)
        self.base_index, self._base_crc = self._db.execute("SELECT idx, crc FROM base").fetchone()
        self.last_index, self._last_crc = self._verify()

    def append(self, entries: Sequence[Entry]) -> None:
        """Make the entries durable in one transaction and one fsync; the first follows the last one here."""
        if entries[0].index != self.last_index + 1:
            raise AssertionError(f"entry {entries[0].index} does not follow {self.last_index}")
        crc = self._last_crc
        rows = []
        for entry in entries:
            crc = _chained(crc, entry)
            rows.append((entry.index, entry.term, entry.payload, crc))
        self._transact("INSERT INTO entries (idx, term, payload, crc) VALUES (?, ?, ?, ?)", rows)
        self.last_index, self._last_crc = entries[-1].index, crc

    def entries_after(self, index: int) -> Iterator[Entry]:
        """Every entry with a higher index, in order."""
        if index < self.base_index:
            raise AssertionError(f"entries up to {self.base_index} are gone, asked for those after {index}")
        for row in self._db.execute("SELECT idx, term, payload FROM entries WHERE idx > ? ORDER BY idx", (index,)):
            yield Entry(*row)

    def trim(self, index: int) -> None:
        """Forget entries up to and including `index`, which a durable state must cover."""
        row = self._db.execute("SELECT term, crc FROM entries WHERE idx = ?", (index,)).fetchone()
        if row is None:
            return
        with self._db:
            self._db.execute("BEGIN IMMEDIATE")
            self._db.execute("UPDATE base SET idx = ?, term = ?, crc = ?", (index, *row))
            self._db.execute("DELETE FROM entries WHERE idx <= ?", (index,))
        self.base_index = index

    def close(self) -> None:
        """Close the file; everything appended is durable already."""
        self._db.close()

    def _transact(self, statement: str, rows: list[tuple[int, int, bytes, int]]) -> None:
        try:
            self._db.execute("BEGIN IMMEDIATE")
            self._db.executemany(statement, rows)
            self._db.execute("COMMIT")
        except sqlite3.OperationalError as error:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            if error.sqlite_errorcode == sqlite3.SQLITE_FULL:
                raise PistageError(
                    Code.STORAGE, "the master's disk is full", hint="free some space; nothing was changed"
                ) from None
            raise

    def _verify(self) -> tuple[int, int]:
        index, crc = self.base_index, self._base_crc
        for row in self._db.execute("SELECT idx, term, payload, crc FROM entries ORDER BY idx"):
            entry = Entry(*row[:3])
            crc = _chained(crc, entry)
            if entry.index != index + 1 or crc != row[3]:
                raise PistageError(
                    Code.STORAGE,
                    f"the log is damaged at entry {entry.index}: its check sum does not match",
                    hint="restore this master's data directory from a copy; it was not touched",
                )
            index = entry.index
        return index, crc


def _chained(previous: int, entry: Entry) -> int:
    head = b"%d.%d.%d." % (previous, entry.index, entry.term)
    return zlib.crc32(entry.payload, zlib.crc32(head))
