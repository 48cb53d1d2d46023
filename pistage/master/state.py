"""The replicated state on disk, `state.db`: applied to by one thread, read by many through `Reader`."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiosqlite

from pistage import wire
from pistage.core import machine
from pistage.core.commands import Command
from pistage.core.machine import Outcome
from pistage.errors import PistageError
from pistage.master.store import Entry

log = logging.getLogger(__name__)

_READERS = 4  # reads of the API wait for a connection rather than pile up threads


class State:
    """The writer. Not thread-safe: every call comes from one thread at a time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = NORMAL")  # power loss gives an older state; the log brings it up again
        self._db.execute("BEGIN IMMEDIATE")
        machine.create_tables(self._db)
        self._db.execute("COMMIT")
        self.applied_index = machine.applied_index(self._db)

    def apply(self, entries: Sequence[Entry]) -> list[Outcome]:
        """Apply committed entries and their index in one transaction.

        A full disk is waited out: the entries are committed, so there is no way but forward.
        """
        while True:
            try:
                return self._apply(entries)
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode != sqlite3.SQLITE_FULL:
                    raise
                log.error("the disk is full: state.db waits for space at index=%d", entries[0].index)
                time.sleep(1.0)

    def _apply(self, entries: Sequence[Entry]) -> list[Outcome]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            outcomes = [machine.apply(self._db, entry.index, _command_in(entry)) for entry in entries]
            machine.set_position(self._db, machine.Position(index=entries[-1].index, term=entries[-1].term))
            self._db.execute("COMMIT")
        finally:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
        self.applied_index = entries[-1].index
        return outcomes

    def checkpoint(self) -> int:
        """Make the state durable as far as it goes; returns the index up to which the log is not needed for it."""
        self._db.execute("PRAGMA wal_checkpoint(PASSIVE)")
        busy, wal_frames, done_frames = self._db.execute("PRAGMA wal_checkpoint(FULL)").fetchone()
        return self.applied_index if not busy and wal_frames == done_frames else 0

    def close(self) -> None:
        """Close the file."""
        self._db.close()


def _command_in(entry: Entry) -> Command:
    try:
        return wire.unpack_command(entry.payload)
    except PistageError as error:
        # Skipping it would part this master from the others; it must stop here and be upgraded.
        raise RuntimeError(f"entry {entry.index} holds a command that this version does not know: {error}") from None


class Snapshot:
    """A consistent view of the state, for as long as its `async with` lasts."""

    def __init__(self, db: aiosqlite.Connection) -> None:
        self._db = db

    async def rows(self, sql: str, parameters: Sequence[object] = ()) -> list[sqlite3.Row]:
        """Every row of a query; the query bounds itself."""
        return list(await self._db.execute_fetchall(sql, parameters))

    async def row(self, sql: str, parameters: Sequence[object] = ()) -> sqlite3.Row | None:
        """The first row of a query, or None."""
        rows = await self.rows(sql, parameters)
        return rows[0] if rows else None

    async def value(self, sql: str, parameters: Sequence[object] = ()) -> Any:
        """The first column of the first row, or None."""
        row = await self.row(sql, parameters)
        return None if row is None else row[0]

    async def applied_index(self) -> int:
        """How fresh this view is."""
        return int(await self.value("SELECT value FROM meta WHERE key = 'applied_index'") or 0)


class Reader:
    """Read-only connections to the state; they never checkpoint (SQLite before 3.51.3 could lose data by that)."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._free: asyncio.Queue[aiosqlite.Connection] = asyncio.Queue()
        self._all: list[aiosqlite.Connection] = []

    async def open(self) -> None:
        """Open the connections; to be called once, on the loop that reads."""
        for _ in range(_READERS):
            db = await aiosqlite.connect(f"file:{self._path}?mode=ro", uri=True, isolation_level=None)
            db.row_factory = sqlite3.Row
            await db.execute("PRAGMA wal_autocheckpoint = 0")
            self._all.append(db)
            self._free.put_nowait(db)

    @asynccontextmanager
    async def snapshot(self) -> AsyncIterator[Snapshot]:
        """A view of everything applied before this call."""
        db = await self._free.get()
        try:
            # A reader that was cancelled, because its client hung up, leaves its transaction open: the thread of
            # the connection may still be at its last query, and nobody is there to wait for the end of it.
            await db.rollback()
            await db.execute("BEGIN")
            yield Snapshot(db)
            await db.rollback()
        finally:
            self._free.put_nowait(db)

    async def close(self) -> None:
        """Close the connections."""
        for db in self._all:
            await db.close()
