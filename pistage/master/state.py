"""The replicated state on disk, `state.db`: applied to by one thread, read by many through `Reader`."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sqlite3
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any

import aiosqlite

from pistage import raft, wire
from pistage.core import machine
from pistage.core.commands import Command
from pistage.core.machine import Outcome
from pistage.errors import Code, PistageError
from pistage.master.checksums import PageSums, damaged, is_full, opened_to_look, unopened
from pistage.master.directories import sync_directory

log = logging.getLogger(__name__)

_CHECKPOINT_BYTES = 8 << 20  # of the write-ahead log
_CHECKPOINT_ENTRIES = 2_000
_SPACE_RETRY_S = 1.0
_READERS = 4  # reads of the API wait for a connection rather than pile up threads


@dataclass(frozen=True, slots=True)
class Applied:
    """What came of a batch: an outcome an entry, and the digest of the state after each."""

    outcomes: list[Outcome]
    digests: tuple[bytes, ...]


class State:
    """The writer. Not thread-safe: every call comes from one thread at a time."""

    def __init__(self, path: Path, *, membership: str = "") -> None:
        """Open the state, or begin one with that `membership`. PistageError `storage`, DamagedError if the file is."""
        self.path = path
        self._is_leaving = threading.Event()
        self._sums = PageSums(path)
        if (refusal := _refusal_path(path)).exists():
            raise damaged(path, refusal.read_text(encoding="utf-8").strip())
        try:
            if mark := self._sums.verify():
                with closing(opened_to_look(path)) as db:
                    if (known := machine.position(db).index) < mark:
                        raise damaged(path.with_name(f"{path.name}-wal"), f"it has lost what came after {known}")
            # Nobody else writes, and a checkpoint must not wait for a reader: no timeout.
            self._db = self._sums.opened(timeout_s=0, cached_statements=512)
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = NORMAL")  # power loss gives an older state; the log mends it
            self._db.execute("PRAGMA wal_autocheckpoint = 0")
            self._db.execute("BEGIN IMMEDIATE")
            machine.create_tables(self._db)
            self._db.execute("COMMIT")
            self.position = machine.position(self._db)
        except sqlite3.DatabaseError as error:
            raise unopened(path, error) from None
        self.durable_index = 0  # up to here the log is not needed to bring the state up
        if not self.position.membership:
            self.position = replace(self.position, membership=membership)
        self.command_version = machine.command_version(self._db)
        self._checkpoint_at = self._checkpoint_after = 0
        self.checkpoint()

    @classmethod
    def fetched(cls, path: Path) -> State:
        """Open what another master sent; DamagedError where it is gone: none begins there."""
        if not path.exists():
            raise damaged(path, "it was fetched, and is gone")
        return cls(path)

    def apply(self, entries: Sequence[raft.Entry]) -> Applied:
        """Apply committed entries and their place in the log in one transaction.

        A full disk is waited out: the entries are committed, so there is no way but forward. PistageError `storage`
        once nobody waits any more.
        """
        while (applied := self._apply_unless_full(entries)) is None:
            log.error("the disk is full: state.db waits for space at index=%d", entries[0].index)
            if self._is_leaving.wait(_SPACE_RETRY_S):
                raise PistageError(Code.STORAGE, "the master's disk is full", hint="free some space on it")
        self._checkpoint_if_due()
        return applied

    def _apply_unless_full(self, entries: Sequence[raft.Entry]) -> Applied | None:
        try:
            return self._apply(entries)
        except sqlite3.OperationalError as error:
            if not is_full(error):
                raise
            return None

    def _apply(self, entries: Sequence[raft.Entry]) -> Applied:
        position = self.position
        outcomes, digests = [], []
        self._db.execute("BEGIN IMMEDIATE")
        try:
            for entry in entries:
                if entry.index != position.index + 1:
                    raise AssertionError(f"entry {entry.index} is not the one after {position.index}")
                position, outcome = self._apply_one(position, entry)
                outcomes.append(outcome)
                digests.append(position.digest)
            machine.set_position(self._db, position)
            self._db.execute("COMMIT")
        finally:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
        self.position = position
        self.command_version = machine.command_version(self._db)
        return Applied(outcomes, tuple(digests))

    def _apply_one(self, position: machine.Position, entry: raft.Entry) -> tuple[machine.Position, Outcome]:
        outcome, at, membership = Outcome(), position.at, position.membership
        match entry.kind:
            case raft.Kind.NORMAL:
                command = _command_in(entry)
                outcome, at = machine.apply(self._db, entry.index, command), max(at, command.at)
            case raft.Kind.CONFIG:
                membership = entry.payload.decode()
                machine.forget_all_but(self._db, raft.Config.decode(entry.payload).members)
            case raft.Kind.NOOP:
                pass
        digest = _digest(position.digest, entry, outcome)
        position = machine.Position(
            index=entry.index, term=entry.term, digest=digest, at=at, membership=membership
        )  # fmt: skip
        return position, outcome

    def checkpoint(self) -> None:
        """Make the state durable as far as it goes, and `durable_index` say so; a reader may hold that up."""
        try:
            if self._sums.checkpoint(self._db, self.position.index):
                self.durable_index = self.position.index
        except (OSError, sqlite3.OperationalError) as error:
            if not is_full(error):
                raise
            log.warning("the disk is full: the state stays in its write-ahead log for now")

    def _checkpoint_if_due(self) -> None:
        if self._sums.log_bytes >= self._checkpoint_at or self.position.index >= self._checkpoint_after:
            self.checkpoint()
            # One that a reader held up is not tried again with every batch.
            self._checkpoint_at = self._sums.log_bytes + _CHECKPOINT_BYTES
            self._checkpoint_after = self.position.index + _CHECKPOINT_ENTRIES

    def refuse_from_now_on(self, reason: str) -> None:
        """The others have found that this state is not theirs: no master starts on it again."""
        try:
            with _refusal_path(self.path).open("w", encoding="utf-8") as file:
                file.write(reason + "\n")
                file.flush()
                os.fsync(file.fileno())
            sync_directory(self.path.parent)
        except OSError as error:  # this master ends all the same, and the others will find it again
            log.error("that %s is damaged could not be written down beside it: %s", self.path, error)

    def stop_waiting(self) -> None:
        """Let an `apply` that waits for space end without it. From any thread."""
        self._is_leaving.set()

    def close(self) -> None:
        """Close the file, after every reader of it."""
        self._sums.close(self._db, self.position.index)


def _refusal_path(path: Path) -> Path:
    return path.with_name("refused")


def _command_in(entry: raft.Entry) -> Command:
    try:
        return wire.unpack_command(entry.payload)
    except PistageError as error:
        # Skipping it would part this master from the others; it must stop here and be upgraded.
        raise RuntimeError(f"entry {entry.index} holds a command that this version does not know: {error}") from None


def _digest(before: bytes, entry: raft.Entry, outcome: Outcome) -> bytes:
    """Of everything that went into the state and came out of it (I5: equal at equal indexes on every master)."""
    said = [dict(outcome.value), outcome.error and [outcome.error.code, outcome.error.message]]
    head = b"%d.%d." % (entry.index, entry.term)
    told = json.dumps(said, sort_keys=True, separators=(",", ":")).encode()
    return blake2b(b"".join((before, head, entry.payload, told)), digest_size=16).digest()


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
        self.path = path
        self._free: asyncio.Queue[aiosqlite.Connection] = asyncio.Queue()
        self._open = 0
        self._left_open: set[aiosqlite.Connection] = set()
        self._moving = asyncio.Lock()

    async def open(self) -> None:
        """Open the connections; to be called once, on the loop that reads."""
        for _ in range(_READERS):
            db = await aiosqlite.connect(f"file:{self.path}?mode=ro", uri=True, isolation_level=None)
            db.row_factory = sqlite3.Row
            self._free.put_nowait(db)
            self._open += 1
            await db.execute("PRAGMA wal_autocheckpoint = 0")

    @asynccontextmanager
    async def snapshot(self) -> AsyncIterator[Snapshot]:
        """A view of everything applied before this call."""
        db = await self._free.get()
        was_left_open = db in self._left_open
        self._left_open.add(db)
        try:
            # A reader that was cancelled, because its client hung up, leaves its transaction open: the thread of
            # the connection may still be at its last query, and nobody is there to wait for the end of it.
            if was_left_open:
                await db.rollback()
            await db.execute("BEGIN")
            yield Snapshot(db)
            await db.rollback()
            self._left_open.discard(db)
        finally:
            self._free.put_nowait(db)

    @asynccontextmanager
    async def single(self) -> AsyncIterator[Snapshot]:
        """The same for one query, which is consistent by itself: two turns of the connection's thread less."""
        db = await self._free.get()
        try:
            if db in self._left_open:
                await db.rollback()
                self._left_open.discard(db)
            yield Snapshot(db)
        finally:
            self._free.put_nowait(db)

    async def move(self, path: Path) -> None:
        """Read another state from now on; waits for those who read the one before."""
        async with self._moving:
            await self.close()
            self.path = path
            await self.open()

    async def close(self) -> None:
        """Close the connections that are open, each when its reader is through: a `move` may have been broken off."""
        while self._open:
            db = await self._free.get()
            self._open -= 1
            self._left_open.discard(db)
            await db.close()
