"""The driver of the consensus core: its actions carried out on this master's disk, state and links, in their order.

The order, and what may wait for what, is in the docstring of `pistage.raft`. One loop owns the node; `step` is the only
way to it. The log and the state have a thread each: while one batch is synced or applied, the next one gathers.
"""

from __future__ import annotations

import asyncio
import logging
import random
import shutil
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, TypeVar, assert_never

from pistage import raft
from pistage.core import limits
from pistage.core.machine import Outcome
from pistage.errors import Code, PistageError
from pistage.master.checksums import REPLACE_HINT
from pistage.master.snapshots import contents_of
from pistage.master.state import Applied, Reader, State
from pistage.master.store import DurableLog
from pistage.owning import running

log = logging.getLogger(__name__)
T = TypeVar("T")

_SPACE_RETRY_S = 0.5
_FETCH_RETRY_S = 1.0
_LATE_TICKS = 4  # a tick that comes later than this was not merely waiting for its turn
_ELECTION_TICKS = 16


class Carrier(Protocol):
    """Who carries messages to the other masters, and fetches their snapshots."""

    def send(self, message: raft.Message) -> None:
        """Take a message over; it may be lost. Must not wait."""

    async def fetch_snapshot(self, source: str, index: int, path: Path) -> None:
        """Lay a verified state at `index` or later at `path`; PistageError or OSError if that cannot be."""


class Observer(Protocol):
    """Who is told what came of it. Called on the loop; must not call `step`."""

    def replied(self, reply: raft.Reply) -> None:
        """The answer to a request."""

    def read_ready(self, ready: raft.ReadReady) -> None:
        """A read may be served."""

    def applied(self, entries: Sequence[raft.Entry], outcomes: Sequence[Outcome]) -> None:
        """These are in the state."""

    def installed(self, index: int) -> None:
        """The state was replaced by another's snapshot, and is at `index` now."""

    def role_changed(self) -> None:
        """Role, term or leader changed, or the state of a new leader has caught up with its log."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How time passes: a tick's length in seconds, and the core's settings, which count in ticks."""

    tick_s: float = 0.6 / _ELECTION_TICKS
    settings: raft.Settings = field(
        default_factory=lambda: raft.Settings(heartbeat_ticks=2, election_ticks=_ELECTION_TICKS)
    )

    @staticmethod
    def of(*, election_timeout_s: float) -> Pace:
        """An election begins after one to two times this without a leader; heartbeats come eight times as often."""
        return Pace(tick_s=election_timeout_s / _ELECTION_TICKS)


class Driver:
    """Use as `async with driver.running()`; if disk or state fail, that block is cancelled and the error raised."""

    def __init__(
        self,
        durable_log: DurableLog,
        data_dir: Path,
        *,
        carrier: Carrier,
        observer: Observer,
        pace: Pace,
        entries_kept: int,
    ) -> None:
        self._log, self._data_dir = durable_log, data_dir
        self._carrier, self._observer = carrier, observer
        self._pace, self._entries_kept = pace, entries_kept
        self._writes: deque[raft.Persist] = deque()
        self._writing = 0  # how many of them are with the log's thread
        self._when_written: list[Callable[[], None]] = []
        self._held: deque[raft.Send] = deque()
        self._applies: deque[raft.Entry] = deque()
        self._is_applying = self._is_installing = False
        self._applying_since = 0.0
        self._resting = asyncio.Event()  # no batch is with the state's thread
        self._resting.set()
        self._durable_seq = 0
        self._durable = asyncio.Event()  # set, and made anew, with each write
        self._wanted: raft.InstallSnap | None = None
        self._wants = asyncio.Event()
        self.is_closed = False
        self.lag_s = 0.0

    # --- its life ------------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Open the state, bring it up to the log, and take part in the group until left."""
        self._failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        with (
            ThreadPoolExecutor(1, "log") as self._log_thread,
            ThreadPoolExecutor(1, "apply") as self._apply_thread,
            ExitStack() as files,
        ):
            # Closed by the thread that may still be at work in it, once it is through; leaving waits for that.
            files.callback(self._log_thread.submit, self._log.close)
            self.state = await self._in(self._apply_thread, self._open_state)
            files.callback(lambda: self._apply_thread.submit(self.state.close))
            self._remove_other_generations()
            self.node = self._new_node()
            self.reader = Reader(self.state.path)
            await self.reader.open()
            try:
                async with running(self._tick(), self._fetch_snapshots(), self._watch_for_failure()):
                    self._campaign_if_alone()
                    yield
            finally:
                self.is_closed = True
                self.state.stop_waiting()
                self._observer.role_changed()
                await self.reader.close()

    def _open_state(self) -> State:
        path = self._state_path(self._log.generation)
        if self._log.last_index > 0 and not path.exists():
            raise PistageError(Code.STORAGE, f"{path} is gone", hint=REPLACE_HINT)
        path.parent.mkdir(parents=True, exist_ok=True)
        return State(path, membership=self._log.base.config.encode().decode())

    def _state_path(self, generation: int) -> Path:
        return self._data_dir / "state" / str(generation) / "state.db"

    def _remove_other_generations(self) -> None:
        """A snapshot that was not installed in the end, or the state that one has replaced."""
        for directory in self._data_dir.joinpath("state").iterdir():
            if directory != self.state.path.parent:
                shutil.rmtree(directory, ignore_errors=True)

    def _new_node(self) -> raft.Node:
        durable, applied = self._log, self.state.position.index
        if not durable.base.index <= applied <= durable.last_index:
            raise PistageError(
                Code.STORAGE,
                f"{self.state.path} is at index {applied}, but raft.db covers {durable.base.index} to"
                f" {durable.last_index}: they do not belong together",
                hint=REPLACE_HINT,
            )
        node = raft.Node(
            node_id=durable.identity.node_id,
            rng=random.Random(),
            hard_state=durable.hard_state,
            base=durable.base,
            entries=durable.entries,
            applied=applied,
            digest=self.state.position.digest,
            settings=self._pace.settings,
        )
        durable.forget_entries()
        return node

    def _campaign_if_alone(self) -> None:
        """The only voter need not wait for a leader that it might hear."""
        while self.node.log.config.voters == (self.node.id,) and self.node.role is raft.RoleName.FOLLOWER:
            self.step(raft.Tick())

    async def _tick(self) -> None:
        worst_s, forget_at = 0.0, 0.0
        due = time.monotonic()
        while True:
            due = max(due, time.monotonic() - self._pace.tick_s) + self._pace.tick_s  # what was missed stays missed
            await asyncio.sleep(due - time.monotonic())
            late_s = time.monotonic() - due
            if late_s > _LATE_TICKS * self._pace.tick_s:
                log.warning("the loop was late by %.2f s", late_s)
                # The answers that came meanwhile lie in the sockets: to be read before anybody is blamed for silence.
                for _ in range(3):
                    await asyncio.sleep(0)
            if due > forget_at:
                worst_s, forget_at = 0.0, due + 10
            self.lag_s = worst_s = max(worst_s, late_s)
            self.step(raft.Tick())

    async def _watch_for_failure(self) -> None:
        await self._failed

    def _stop_as_told(self, fatal: raft.Fatal) -> None:
        log.critical("this master stops: %s", fatal.reason)
        self.fail(PistageError(Code.STORAGE, fatal.reason, hint=REPLACE_HINT))
        if fatal.is_state_damaged:
            self.state.refuse_from_now_on(fatal.reason)

    def fail(self, error: BaseException) -> None:
        """Stop taking part; whoever is inside `running` is left with this error."""
        self.is_closed = True
        if not self._failed.done():
            self._failed.set_exception(error)

    async def _in(self, thread: ThreadPoolExecutor, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(thread, work)

    @property
    def tick_s(self) -> float:
        return self._pace.tick_s

    @property
    def leader_contact_s(self) -> float | None:
        """How long ago a leader was heard; None if none was since the start."""
        if self.node.leadership is not None:
            return 0.0
        if self.node.heard_tick < 0:
            return None
        return (self.node.now - self.node.heard_tick) * self.tick_s

    @property
    def apply_s(self) -> float:
        """For how long the batch that is being applied has been."""
        return time.monotonic() - self._applying_since if self._is_applying else 0.0

    # --- events in, actions out ----------------------------------------------------------------------------------

    def step(self, event: raft.Event) -> None:
        """Tell the node what happened, and do what follows."""
        if self.is_closed:
            return
        with self._failing_with_whatever_is_raised():
            self._carry_out(self.node.step(event))
            self._write_next()
            self._apply_next()

    @contextmanager
    def _failing_with_whatever_is_raised(self) -> Iterator[None]:
        """A step, or the news of one, that was broken off half-way is not to be gone on from, whoever has called."""
        try:
            yield
        except Exception as error:
            log.critical("this master stops: a bug of ours", exc_info=error)
            self.fail(error)

    def _carry_out(self, actions: Iterable[raft.Action]) -> None:
        for action in actions:
            match action:
                case raft.Persist():
                    self._writes.append(action)
                case raft.Send(message=message, after_seq=None):
                    self._carrier.send(message)
                case raft.Send():
                    self._held.append(action)
                case raft.Apply(entries=entries):
                    self._applies.extend(entries)
                case raft.Reply():
                    self._observer.replied(action)
                case raft.ReadReady():
                    self._observer.read_ready(action)
                case raft.InstallSnap():
                    self._wanted = action
                    self._wants.set()
                case raft.Role(role=role, term=term, leader=leader):
                    log.info("role=%s term=%d leader=%s", role, term, leader)
                    self._let_gathered_go()
                    self._observer.role_changed()
                case raft.Fatal():
                    self._stop_as_told(action)
                case _:
                    assert_never(action)

    def when_written(self, call: Callable[[], None]) -> None:
        """Call it soon; while this master leads, not before the log's thread is free: more gathers meanwhile."""
        self._when_written.append(call)
        if not self._writing or self.node.leadership is None:
            self._let_gathered_go()

    def _let_gathered_go(self) -> None:
        calls, self._when_written = self._when_written, []
        for call in calls:
            asyncio.get_running_loop().call_soon(call)

    # --- the log -------------------------------------------------------------------------------------------------

    def _write_next(self) -> None:
        if self._writing or not self._writes or self.is_closed:
            return
        batch = tuple(self._writes)
        self._writing = len(batch)
        writing = asyncio.get_running_loop().run_in_executor(self._log_thread, self._log.write, batch)
        writing.add_done_callback(lambda done: self._on_written(batch, done.exception()))

    def _on_written(self, batch: Sequence[raft.Persist], error: BaseException | None) -> None:
        with self._failing_with_whatever_is_raised():
            self._written(batch, error)

    def _written(self, batch: Sequence[raft.Persist], error: BaseException | None) -> None:
        self._writing = 0
        self._let_gathered_go()
        if isinstance(error, PistageError):
            # The same write is tried again: the log in memory holds it, and another must not take its place.
            if not self.node.writes.is_disk_full:
                log.error("the disk is full: raft.db waits for space")
            self._writing = len(batch)
            self.step(raft.DiskFault(fault=raft.Fault.FULL))
            asyncio.get_running_loop().call_later(_SPACE_RETRY_S, self._try_again)
            return
        if error is not None:
            log.critical("raft.db cannot be written: %s", error)
            self.step(raft.DiskFault(fault=raft.Fault.FAILED))
            self.fail(error)
            return
        for _ in batch:
            self._writes.popleft()
        newest = batch[-1]
        self._durable_seq = newest.seq
        self._durable.set()
        self._durable = asyncio.Event()
        while self._held and (self._held[0].after_seq or 0) <= newest.seq:
            self._carrier.send(self._held.popleft().message)
        self.step(raft.Durable(seq=newest.seq, term=newest.term, last_index=newest.last_index))

    def _try_again(self) -> None:
        self._writing = 0
        self._write_next()

    # --- the state -----------------------------------------------------------------------------------------------

    def _apply_next(self) -> None:
        if self._is_applying or self._is_installing or not self._applies or self.is_closed:
            return
        batch = [self._applies.popleft() for _ in range(min(len(self._applies), limits.APPLY_BATCH_MAX))]
        self._is_applying = True
        self._applying_since = time.monotonic()
        self._resting.clear()
        applying = asyncio.get_running_loop().run_in_executor(self._apply_thread, self.state.apply, batch)
        applying.add_done_callback(lambda done: self._on_applied(batch, done))

    def _on_applied(self, batch: Sequence[raft.Entry], done: asyncio.Future[Applied]) -> None:
        with self._failing_with_whatever_is_raised():
            self._applied(batch, done)

    def _applied(self, batch: Sequence[raft.Entry], done: asyncio.Future[Applied]) -> None:
        self._is_applying = False
        self._resting.set()
        if (error := done.exception()) is not None:
            if self.is_closed:
                return
            log.critical("entries %d to %d cannot be applied: %s", batch[0].index, batch[-1].index, error)
            self.fail(error)
            return
        applied = done.result()
        self._observer.applied(batch, applied.outcomes)
        leadership = self.node.leadership
        if leadership is not None and batch[0].index <= leadership.first_index <= batch[-1].index:
            self._observer.role_changed()
        self.step(raft.Applied(index=batch[-1].index, digests=applied.digests))
        self._compact()

    def _compact(self) -> None:
        """Let the log go as far as the state is durable without it, less what a follower may need yet."""
        base = self.node.log.base.index
        through = self.state.durable_index - self._entries_kept
        if through - base >= self._entries_kept // 2:
            self.step(raft.Compact(index=through))

    # --- snapshots -----------------------------------------------------------------------------------------------

    async def _fetch_snapshots(self) -> None:
        while True:
            await self._wants.wait()
            self._wants.clear()
            wanted, path = self._wanted, self._state_path(self._log.generation + 1)
            assert wanted is not None, "set before the event"
            async with asyncio.TaskGroup() as group:
                fetching = group.create_task(self._fetch(wanted, path))
                replaced = group.create_task(self._wants.wait())
                await asyncio.wait((fetching, replaced), return_when=asyncio.FIRST_COMPLETED)
                fetching.cancel()
                replaced.cancel()
            if not fetching.cancelled() and (fetched := fetching.result()) is not None:
                await self._install(path, fetched)

    async def _fetch(self, wanted: raft.InstallSnap, path: Path) -> raft.SnapInstalled | None:
        log.info("fetching a snapshot at index=%d or later from master=%s", wanted.index, wanted.source)
        try:
            await asyncio.to_thread(_empty, path.parent)
            await self._carrier.fetch_snapshot(wanted.source, wanted.index, path)
            return await asyncio.to_thread(contents_of, path)
        except (PistageError, OSError) as error:
            log.warning("no snapshot from master=%s: %s", wanted.source, error)
            await asyncio.to_thread(shutil.rmtree, path.parent, ignore_errors=True)  # the disk may be full of it
            await asyncio.sleep(_FETCH_RETRY_S)
            self.step(raft.SnapFailed())
            return None

    async def _install(self, path: Path, fetched: raft.SnapInstalled) -> None:
        """Offer it to the node; where it is taken, the log's transaction has made it the state: go over to it."""
        self._is_installing = True
        try:
            await self._resting.wait()
            before = self.node.writes.last_seq
            self.step(fetched)
            taken = [write.seq for write in self._writes if write.install is not None and write.seq > before]
            if not taken:
                await asyncio.to_thread(shutil.rmtree, path.parent, ignore_errors=True)
                return
            self._applies.clear()  # all of it is in the snapshot, or follows once this is durable
            while self._durable_seq < taken[0]:
                await self._durable.wait()
            state = await self._in(self._apply_thread, lambda: State.fetched(path))
            await self.reader.move(path)
            # Only now: where the state says that it is, whoever reads must find it.
            former, self.state = self.state, state
            await self._in(self._apply_thread, former.close)
            await asyncio.to_thread(shutil.rmtree, former.path.parent, ignore_errors=True)
            log.info("installed a snapshot at index=%d", fetched.base.index)
            self._observer.installed(fetched.base.index)
        finally:
            self._is_installing = False
        self._apply_next()


def _empty(directory: Path) -> None:
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
