"""The replica: `propose` is the only way to change the state. One loop owns log and state.

A proposal becomes a durable entry of the log, is committed, is applied to the state in the same order on every
master, and only then answered. This is a group of one: an entry is committed once it is durable here.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from pistage import wire
from pistage.core import limits
from pistage.core.commands import Command
from pistage.core.machine import Outcome
from pistage.errors import Code, PistageError
from pistage.master.owning import running
from pistage.master.state import Reader, State
from pistage.master.store import Entry, LogStore

log = logging.getLogger(__name__)

_TRIM_EVERY = limits.LOG_ENTRIES_KEPT // 2
Listener = Callable[[Outcome], None]


@dataclass(slots=True)
class _Proposal:
    payload: bytes
    answer: asyncio.Future[Outcome]


class Replica:
    """Use as `async with Replica(data_dir).running() as replica`; leaving it loses nothing that was answered."""

    def __init__(self, data_dir: Path) -> None:
        self._data_dir = data_dir
        self._queue: asyncio.Queue[_Proposal] = asyncio.Queue()
        self._waiting_bytes = 0
        self._listeners: list[Listener] = []
        self._failure: BaseException | None = None
        self.term = 1

    @property
    def applied_index(self) -> int:
        return self._state.applied_index

    @property
    def is_serving(self) -> bool:
        return self._failure is None

    @property
    def state_path(self) -> Path:
        return self._state.path

    def on_applied(self, listener: Listener) -> None:
        """Call `listener` with each outcome, on the loop, in order; it must not block."""
        self._listeners.append(listener)

    async def propose(self, command: Command) -> Outcome:
        """Change the state; returns once that is durable and applied.

        PistageError: the command's refusal; `unavailable` when too much waits (64 MiB); `storage` when the disk is
        full.
        """
        if self._failure is not None:
            raise PistageError(Code.UNAVAILABLE, "this master is stopping: its disk or its state failed")
        payload = wire.pack_command(command)
        if self._waiting_bytes + len(payload) > limits.UNCOMMITTED_BYTES_MAX:
            raise PistageError(Code.UNAVAILABLE, "too many changes wait for the disk", hint="try again in a second")
        proposal = _Proposal(payload, asyncio.get_running_loop().create_future())
        self._waiting_bytes += len(payload)
        self._queue.put_nowait(proposal)
        # When it is answered, not when its proposer goes away: until then it waits in the queue.
        proposal.answer.add_done_callback(lambda _: self._make_room(len(payload)))
        outcome = await asyncio.shield(proposal.answer)
        if outcome.error is not None:
            raise outcome.error
        return outcome

    def _make_room(self, size: int) -> None:
        self._waiting_bytes -= size

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Replica]:
        """Open the files, bring the state up to the log, and serve proposals until left."""
        with (
            ThreadPoolExecutor(1, "log") as log_thread,
            ThreadPoolExecutor(1, "apply") as apply_thread,
            ExitStack() as files,
        ):
            self._log_thread, self._apply_thread = log_thread, apply_thread
            loop = asyncio.get_running_loop()
            self._store = await loop.run_in_executor(log_thread, LogStore, self._data_dir / "raft.db")
            # Closed by the thread that may still be at work in it, once it is through; leaving waits for that.
            files.callback(log_thread.submit, self._store.close)
            state_dir = self._data_dir / "state" / "1"
            state_dir.mkdir(parents=True, exist_ok=True)
            self._state = await loop.run_in_executor(apply_thread, State, state_dir / "state.db")
            files.callback(apply_thread.submit, self._state.close)
            await self._replay()
            self.reader = Reader(self._state.path)
            await self.reader.open()
            try:
                async with running(self._serve()):
                    yield self
            finally:
                self._refuse_rest()
                await self.reader.close()

    async def _replay(self) -> None:
        loop = asyncio.get_running_loop()
        if self._state.applied_index > self._store.last_index:
            raise PistageError(
                Code.STORAGE,
                f"the state is at index {self._state.applied_index}, but the log ends at {self._store.last_index}",
                hint="raft.db and state/ belong together: restore both from one copy",
            )
        entries = await loop.run_in_executor(
            self._log_thread, lambda: list(self._store.entries_after(self._state.applied_index))
        )
        if entries:
            log.info("replaying %d entries from index=%d", len(entries), entries[0].index)
        for start in range(0, len(entries), limits.APPLY_BATCH_MAX):
            batch = entries[start : start + limits.APPLY_BATCH_MAX]
            await loop.run_in_executor(self._apply_thread, self._state.apply, batch)

    async def _serve(self) -> None:
        while True:
            batch = [await self._queue.get()]
            while len(batch) < limits.APPLY_BATCH_MAX and not self._queue.empty():
                batch.append(self._queue.get_nowait())
            try:
                await self._commit(batch)
            except BaseException as failure:
                self._failure = failure
                _answer(batch, PistageError(Code.UNAVAILABLE, "this master stopped before it knew the outcome"))
                raise

    async def _commit(self, batch: list[_Proposal]) -> None:
        loop = asyncio.get_running_loop()
        first = self._store.last_index + 1
        entries = [Entry(first + n, self.term, proposal.payload) for n, proposal in enumerate(batch)]
        try:
            await loop.run_in_executor(self._log_thread, self._store.append, entries)
        except PistageError as refusal:
            _answer(batch, refusal)
            return
        outcomes = await loop.run_in_executor(self._apply_thread, self._state.apply, entries)
        for proposal, outcome in zip(batch, outcomes, strict=True):
            if not proposal.answer.done():
                proposal.answer.set_result(outcome)
            for listener in self._listeners:
                listener(outcome)
        if self._store.last_index - self._store.base_index > limits.LOG_ENTRIES_KEPT + _TRIM_EVERY:
            await self._trim_if_there_is_space()

    async def _trim_if_there_is_space(self) -> None:
        try:
            await self._trim()
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_FULL:
                raise
            # Trimming writes before it frees. Everything is answered already, and the next batch tries again.
            log.warning("the disk is full: the log keeps its old entries for now")

    async def _trim(self) -> None:
        loop = asyncio.get_running_loop()
        covered = await loop.run_in_executor(self._apply_thread, self._state.checkpoint)
        if covered > limits.LOG_ENTRIES_KEPT:
            await loop.run_in_executor(self._log_thread, self._store.trim, covered - limits.LOG_ENTRIES_KEPT)

    def _refuse_rest(self) -> None:
        rest = [self._queue.get_nowait() for _ in range(self._queue.qsize())]
        _answer(rest, PistageError(Code.UNAVAILABLE, "this master is stopping", hint="try again"))


def _answer(batch: list[_Proposal], refusal: PistageError) -> None:
    for proposal in batch:
        if not proposal.answer.done():
            proposal.answer.set_exception(refusal)
            proposal.answer.exception()  # its proposer may be gone; that is no news to anybody
