"""The agent: holds its directory, its runtime, its attempts and its session together."""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import platform
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

from pistage import __version__
from pistage.agent import runtimes
from pistage.agent.attempt.runner import Runner
from pistage.agent.capacity import capacity_of
from pistage.agent.journal import Entry, Journal
from pistage.agent.outbox import Outbox
from pistage.agent.reports import Reports
from pistage.agent.runtimes.base import ExecutionError, Runtime
from pistage.agent.session import Send, Session
from pistage.config import AgentConfig
from pistage.core import ids
from pistage.core.commands import Finished
from pistage.core.model import AgentInfo, Capacity
from pistage.errors import Code, PistageError
from pistage.wire import (
    Assign,
    Cancel,
    Held,
    Hello,
    LogAck,
    LogRefused,
    Release,
    Reported,
    ToAgent,
    Welcome,
    new_id,
)

log = logging.getLogger(__name__)

_CHORE_RETRY_MIN_S = 0.1
_CHORE_RETRY_MAX_S = 5.0
_TIDY_S = 3.0  # at a stop, for the networks and volumes of runs that have just ended


class Agent:
    """Runs what the masters assign until it is cancelled or asked to stop.

    Stopping ends sandboxed and plain processes; containers run on and are found again by the next start.
    """

    def __init__(self, settings: AgentConfig, *, token: str | None) -> None:
        self._settings = settings
        self._name = settings.name or platform.node() or "agent"
        self._incarnation = new_id()
        self._id = ""
        self._capacity = Capacity(cpus_milli=0, memory_bytes=0)
        self._runtime: Runtime = runtimes.create(settings, lambda: self._id)
        self._outbox = Outbox(wait_s=settings.output_wait)
        self._reports = Reports()
        self._session = Session(settings.masters, self, token=token)
        self._runners: dict[str, Runner] = {}
        self._entries: dict[str, Entry] = {}
        self._beginning: set[str] = set()
        self._runs: set[str] = set()
        self._chores: asyncio.TaskGroup | None = None
        self._stopping = asyncio.Event()
        self._released = asyncio.Event()
        self._is_resumed = False
        self._journal: Journal | None = None

    @property
    def agent_id(self) -> str:
        """The agent's id, made at its first start; "" before `run` has read it."""
        return self._id

    @property
    def session(self) -> Session:
        """The session with the leading master."""
        return self._session

    def request_stop(self) -> None:
        """Make `run` return soon."""
        self._stopping.set()

    async def run(self) -> None:
        """Until cancelled or `request_stop`; PistageError `conflict` if another agent holds the directory."""
        with _held(self._settings) as agent_id:
            self._id = agent_id
            log.info("agent=%s name=%s runtime=%s starts", self._id, self._name, self._runtime.name)
            async with asyncio.TaskGroup() as group:
                work = group.create_task(self._work(), name="agent")
                stop = group.create_task(self._stopping.wait(), name="stop")
                await asyncio.wait([work, stop], return_when=asyncio.FIRST_COMPLETED)
                if not work.done():
                    await self._tidied()
                work.cancel()
                stop.cancel()

    async def _tidied(self) -> None:
        """Wait a little for the end of what is being removed; with work under way, that is left to the next start."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_TIDY_S):
                while self._runs and all(entry.is_over for entry in self._entries.values()):
                    self._released.clear()
                    await self._released.wait()

    async def _work(self) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                self._chores = group
                await self._runtime.open(group)
                self._capacity = capacity_of(self._settings, gpus_found=await self._runtime.gpus())
                self._journal = Journal(self._settings.data_dir / "journal")
                self._entries = {entry.attempt_id: entry for entry in self._journal.load()}
                await self._session.run()
        finally:
            await self._runtime.close()
            for entry in self._entries.values():
                entry.release()

    # --- what the session asks ------------------------------------------------------------------------------

    def hello(self) -> Hello:
        """Who this is, and every attempt in the journal."""
        info = AgentInfo(
            id=self._id,
            name=self._name,
            incarnation=self._incarnation,
            version=__version__,
            runtimes=(self._runtime.name,),
            capacity=self._capacity,
            labels=self._settings.labels,
            ignores_images=self._settings.ignore_images and self._settings.runtime != "docker",
        )
        held = (
            Held(attempt_id=entry.attempt_id, run_id=entry.assign.run_id, fence=entry.assign.fence)
            for entry in self._entries.values()
        )
        return Hello(info=info, held=tuple(held))

    async def welcomed(self, welcome: Welcome) -> None:
        """Give up what is not wanted any more, take up what an earlier process left, say again what was not heard."""
        self._reports.begin_session()
        self._outbox.begin_session()
        verdicts = {verdict.attempt_id: verdict for verdict in welcome.verdicts}
        for attempt_id, entry in list(self._entries.items()):
            verdict = verdicts.get(attempt_id)
            if attempt_id not in self._runners:
                self._take_up(entry)
            if verdict is not None and not verdict.is_kept:
                self._abandon(attempt_id, verdict.reason or "the masters do not know it any more")
        if not self._is_resumed:
            self._is_resumed = True
            self._runs |= set(welcome.live_runs)
            self._begin_chore(self._sweep(welcome.cluster_id))
            return
        # A release can be lost with the master that was to send it, or while this agent was away.
        held = {entry.assign.run_id for entry in self._entries.values()}
        for run_id in self._runs - held - set(welcome.live_runs):
            self._begin_chore(self._release(run_id))

    async def received(self, message: ToAgent) -> None:
        """One message of the master's."""
        match message:
            case Assign():
                await self._assigned(message)
            case Cancel(attempt_id=attempt_id, reason=reason):
                if runner := self._runners.get(attempt_id):
                    runner.cancel(reason)
            case Reported(number=number, refused=refused):
                self._reported(number, refused)
            case LogAck():
                self._outbox.on_ack(message)
            case LogRefused():
                self._outbox.on_refused(message)
            case Release(run_id=run_id):
                self._begin_chore(self._release(run_id))
            case _:
                pass  # Welcome, HeartbeatAck and Goodbye are the session's own

    def pumps(self, send: Send) -> Sequence[Awaitable[None]]:
        """What sends reports and output."""
        return [self._reports.pump(send), self._outbox.pump(send)]

    # --- attempts -------------------------------------------------------------------------------------------

    async def _assigned(self, assign: Assign) -> None:
        attempt_id = assign.attempt_id
        if attempt_id in self._entries or attempt_id in self._beginning:
            return  # a repeat: its events are on their way, or come with the next session
        if not (ids.is_id(attempt_id) and ids.is_id(assign.run_id)):
            raise PistageError(Code.INVALID, "an assignment whose ids are not ours")
        assert self._journal is not None, "assignments come over a session, and that begins after the journal"
        self._beginning.add(attempt_id)
        self._runs.add(assign.run_id)
        try:
            self._entries[attempt_id] = entry = await self._journal.begin(assign)
        finally:
            self._beginning.discard(attempt_id)
        self._take_up(entry)

    def _take_up(self, entry: Entry) -> None:
        runner = Runner(
            entry,
            self._runtime,
            self._outbox,
            agent_name=self._name,
            grace_s=self._settings.stop_grace,
            publish=self._reports.add,
        )
        for event in entry.events:
            self._reports.add(event)
        self._runners[entry.attempt_id] = runner
        self._begin_chore(self._see_through(runner, entry))

    async def _see_through(self, runner: Runner, entry: Entry) -> None:
        try:
            await runner.run()
        except Exception as bug:
            # One attempt that meets a bug of ours must not take the others on this machine with it.
            log.exception("attempt=%s ends by an error inside the agent", entry.attempt_id)
            await runner.give_up(f"an error inside the agent: {bug!r}")
        if runner.is_abandoned:
            self._forget(entry)
        else:
            runner.is_done = True
            if runner.is_acknowledged:
                self._forget(entry)

    def _abandon(self, attempt_id: str, reason: str) -> None:
        runner = self._runners.get(attempt_id)
        if runner is None:
            return
        log.info("attempt=%s is given up: %s", attempt_id, reason)
        self._reports.forget(attempt_id)
        runner.abandon(reason)
        if runner.is_done:
            self._forget(self._entries[attempt_id])

    def _reported(self, number: int, refused: Sequence[str]) -> None:
        for event in self._reports.on_reported(number):
            runner = self._runners.get(event.attempt_id)
            if runner is None or not isinstance(event, Finished) or event.attempt_id in refused:
                continue
            runner.is_acknowledged = True
            if runner.is_done:
                self._forget(self._entries[event.attempt_id])
        for attempt_id in refused:
            self._abandon(attempt_id, "its fence is stale")

    def _forget(self, entry: Entry) -> None:
        if self._entries.pop(entry.attempt_id, None):
            del self._runners[entry.attempt_id]
            entry.drop()

    # --- what is left of runs -------------------------------------------------------------------------------

    def _begin_chore(self, chore: Awaitable[None]) -> None:
        assert self._chores is not None, "there is no chore before there is a session"
        self._chores.create_task(_as_coroutine(chore))

    async def _sweep(self, cluster_id: str) -> None:
        # Views of what there is when it is looked at: work that comes in meanwhile is not taken for a leftover.
        attempts, runs = self._entries.keys(), self._runs
        await _until_done(lambda: self._runtime.sweep(cluster_id, attempts, runs), "sweep")

    async def _release(self, run_id: str) -> None:
        await _until_done(lambda: self._runtime.release(run_id), f"run={run_id} release")
        self._runs.discard(run_id)
        self._released.set()


async def _until_done(job: Callable[[], Awaitable[None]], what: str) -> None:
    """Again until it worked: what cannot be removed now, because it is in use or the engine is away, can be later."""
    wait_s = _CHORE_RETRY_MIN_S
    while True:
        try:
            await job()
            return
        except ExecutionError as failure:
            log.debug("%s waits: %s", what, failure.reason)
        await asyncio.sleep(wait_s)
        wait_s = min(wait_s * 2, _CHORE_RETRY_MAX_S)


async def _as_coroutine(job: Awaitable[None]) -> None:
    await job


@contextmanager
def _held(settings: AgentConfig) -> Iterator[str]:
    """Hold the directory; the agent's id, which is made if there is none."""
    directory = settings.data_dir
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise PistageError(
            Code.USAGE, f"cannot use the agent's directory {directory}: {error.strerror}", hint="set data_dir"
        ) from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        raise PistageError(
            Code.CONFLICT, f"another agent is using {directory}", hint="give each agent a data_dir of its own"
        ) from None
    try:
        yield _agent_id(settings)
    finally:
        os.close(lock)


def _agent_id(settings: AgentConfig) -> str:
    file = settings.data_dir / "id"
    if file.exists():
        known = file.read_text(encoding="ascii").strip()
        if ids.is_id(known):
            return known
        raise PistageError(Code.STORAGE, f"{file} does not hold an agent's id", hint="remove it to become a new agent")
    fresh = new_id()
    draft = file.with_suffix(".new")
    with draft.open("w", encoding="ascii") as stream:
        stream.write(fresh)
        stream.flush()
        os.fsync(stream.fileno())
    draft.replace(file)
    return fresh
