"""The agent: holds its directory, its runtime, its attempts and its session together."""

from __future__ import annotations

import asyncio
import logging
import platform
from collections.abc import Awaitable, Coroutine, Mapping, Sequence
from contextlib import suppress
from typing import Any

from pistage import __version__
from pistage.agent import runtimes
from pistage.agent.admission import Admission
from pistage.agent.arrivals import Arrival, Arrivals
from pistage.agent.attempt.runner import Runner
from pistage.agent.capacity import capacity_of, labels_of
from pistage.agent.chores import kept_apart, until_done
from pistage.agent.directory import held
from pistage.agent.gpus import Gpu, GpuPool, offered
from pistage.agent.journal import Entry, Journal, JournalError, journal_error_in
from pistage.agent.lease import Expiry, Lease
from pistage.agent.outbox import Outbox
from pistage.agent.reports import Reports
from pistage.agent.runtimes import devices
from pistage.agent.runtimes.base import Runtime
from pistage.agent.session import Send, Session
from pistage.config import AgentConfig
from pistage.core import ids
from pistage.core.commands import Finished
from pistage.core.model import AgentInfo, Capacity, Result, State
from pistage.core.plan import FailureClass, OnPartition
from pistage.errors import Code, PistageError
from pistage.wire import (
    Assign,
    Cancel,
    Evict,
    Held,
    Hello,
    LogAck,
    LogRefused,
    Release,
    Reported,
    ToAgent,
    Welcome,
    codecs,
    new_id,
    now_ms,
)

log = logging.getLogger(__name__)

_TIDY_S = 3.0  # at a stop, for the networks and volumes of runs that have just ended
_LAST_WORDS_S = 5.0  # after the stop grace, for the end of what ends with the agent to reach a master


class Agent:
    """Runs what the masters assign until it is cancelled, or asked to leave or to stop.

    PistageError `usage` for an output codec that is not installed.
    Stopping ends sandboxed and plain processes; containers run on and are found again by the next start. Leaving is
    stopping once what runs is done, or `drain_timeout` is over; nothing new is begun meanwhile.
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
        codec = codecs.named("raw" if settings.output_codec == "none" else settings.output_codec)
        self._session = Session(settings.masters, self, token=token, codec=codec)
        self._runners: dict[str, Runner] = {}
        self._entries: dict[str, Entry] = {}
        self._arrivals = Arrivals()
        self._admission = Admission()
        self._runs: set[str] = set()
        self._ended_runs: set[str] = set()  # attempts of which are still here
        self._chores: asyncio.TaskGroup | None = None
        self._gpus = GpuPool()
        self._labels: Mapping[str, str] = {}
        self._lease: Lease | None = None
        self._stopping = asyncio.Event()
        self._settled = asyncio.Event()  # an attempt or a report was settled
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
        self._settled.set()

    def request_leave(self) -> None:
        """Take no more work, and make `run` return when what there is has ended; asked again, soon."""
        if self._admission.leaving.is_set():
            self.request_stop()
        self._admission.leave()

    async def run(self) -> None:
        """Until cancelled or what was requested is done; PistageError `conflict` if another agent has the directory."""
        with held(self._settings) as agent_id:
            self._id = agent_id
            log.info("agent=%s name=%s runtime=%s starts", self._id, self._name, self._runtime.name)
            async with asyncio.TaskGroup() as group:
                work = group.create_task(self._work(), name="agent")
                stop = group.create_task(self._end(), name="stop")
                await asyncio.wait([work, stop], return_when=asyncio.FIRST_COMPLETED)
                if not work.done():
                    await self._tidied()
                work.cancel()
                stop.cancel()

    async def _end(self) -> None:
        """Until it is time to stop."""
        async with asyncio.TaskGroup() as group:
            waits = [group.create_task(wish.wait()) for wish in (self._admission.leaving, self._stopping)]
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            for wait in waits:
                wait.cancel()
        if self._stopping.is_set():
            return
        wait_s = self._settings.drain_timeout
        log.info("leaving: %d attempts have %g s to end", len(self._entries) + len(self._arrivals), wait_s)
        if await self._drained(wait_s) or self._runtime.is_lasting or not self._session.is_connected:
            return
        # What ends with the agent anyway is said to be lost, while there is somebody to hear it.
        for assign in self._held():
            self._stop(Evict(attempt_id=assign.attempt_id, reason="its agent was stopped"))
        await self._drained(self._settings.stop_grace + _LAST_WORDS_S)

    async def _drained(self, wait_s: float) -> bool:
        """Wait until every attempt has ended and the masters know it, or a stop is requested; False: not in time."""
        try:
            async with asyncio.timeout(wait_s):
                while (self._entries or self._arrivals or self._reports.has_any) and not self._stopping.is_set():
                    self._settled.clear()
                    await self._settled.wait()
        except TimeoutError:
            return False
        return True

    async def _tidied(self) -> None:
        """Wait a little for the end of what is being removed; with work under way, that is left to the next start."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_TIDY_S):
                while self._runs and not self._arrivals and all(entry.is_over for entry in self._entries.values()):
                    self._released.clear()
                    await self._released.wait()

    async def _work(self) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                self._chores = group
                await self._runtime.open(group)
                self._offer(offered(await self._runtime.gpus(), self._settings.gpus))
                self._journal = Journal(self._settings.data_dir / "journal")
                self._entries = {entry.attempt_id: entry for entry in self._journal.load()}
                for entry in self._entries.values():
                    devices.claim(self._gpus, entry.attempt_id, entry, entry.contexts_left())
                # What an earlier agent ran may run out of its lease before any master is found.
                self._lease = Lease(self._settings.data_dir / "lease", self._fence)
                self._lease.resume()
                group.create_task(self._lease.watch())
                await self._session.run()
        finally:
            await self._runtime.close()
            if self._journal is not None:
                self._journal.close()

    def _offer(self, gpus: Sequence[Gpu]) -> None:
        self._gpus = GpuPool(gpus)
        self._capacity = capacity_of(self._settings, gpus=len(gpus))
        self._labels = labels_of(self._settings, gpus)

    # --- what the session asks ------------------------------------------------------------------------------

    def hello(self) -> Hello:
        """Who this is, and every attempt in the journal, or on its way into it."""
        info = AgentInfo(
            id=self._id,
            name=self._name,
            incarnation=self._incarnation,
            version=__version__,
            runtimes=(self._runtime.name,),
            capacity=self._capacity,
            labels=self._labels,
            languages=self._runtime.languages(),
            installs=self._runtime.installs(),
            ignores_images=self._settings.ignore_images and self._settings.runtime != "docker",
        )
        held = (Held(attempt_id=assign.attempt_id, run_id=assign.run_id, fence=assign.fence) for assign in self._held())
        return Hello(info=info, held=tuple(held), is_leaving=self._admission.is_closed)

    def _held(self) -> list[Assign]:
        return [one.assign for one in (*self._entries.values(), *self._arrivals)]

    async def welcomed(self, welcome: Welcome, *, sent_s: float) -> None:
        """Give up what is not wanted any more, take up what an earlier process left, say again what was not heard."""
        assert self._lease is not None, "there is no session before there is a lease"
        # The coming of an agent is committed before it is welcomed: an answer like that to a heartbeat.
        self._lease.renew(sent_s, length_s=welcome.lease_s)
        self._reports.begin_session()
        self._outbox.begin_session()
        for attempt_id, entry in list(self._entries.items()):
            if attempt_id not in self._runners:
                self._take_up(entry)
        for verdict in welcome.verdicts:
            if not verdict.is_kept:
                self._abandon(verdict.attempt_id, verdict.reason or "the masters do not know it any more")
        if not self._is_resumed:
            self._is_resumed = True
            self._runs |= set(welcome.live_runs)
            self._begin_chore(self._sweep(welcome.cluster_id))
            return
        # A release can be lost with the master that was to send it, or while this agent was away.
        for run_id in self._runs - set(welcome.live_runs):
            self._ended(run_id)

    def answered(self, sent_s: float) -> None:
        """The lease runs from there."""
        assert self._lease is not None, "there is no session before there is a lease"
        self._lease.renew(sent_s)

    def received(self, message: ToAgent) -> None:
        """One message of the master's."""
        self._look_at_the_lease()
        match message:
            case Assign():
                self._assigned(message)
            case Cancel() | Evict():
                self._stop(message)
            case Reported(number=number, refused=refused):
                self._reported(number, refused)
            case LogAck():
                self._outbox.on_ack(message)
            case LogRefused():
                self._outbox.on_refused(message)
            case Release(run_id=run_id):
                self._ended(run_id)
            case _:
                pass  # Welcome, HeartbeatAck and Goodbye are the session's own

    def pumps(self, send: Send) -> Sequence[Awaitable[None]]:
        """What sends reports and output, and says whether work is taken; the session ends with the first of them."""
        return [self._reports.pump(send), self._outbox.pump(send), self._admission.say(send)]

    # --- attempts -------------------------------------------------------------------------------------------

    def _assigned(self, assign: Assign) -> None:
        attempt_id = assign.attempt_id
        if attempt_id in self._entries or self._arrivals.knows(attempt_id):
            return  # a repeat: its events are on their way, or come with the next session, or are committed
        if not (ids.is_id(attempt_id) and ids.is_id(assign.run_id)):
            raise PistageError(Code.INVALID, "an assignment whose ids are not ours")
        if self._admission.is_closed:
            self._refuse(assign, self._admission.refusal)  # it was on its way already
            return
        self._runs.add(assign.run_id)
        self._begin_chore(self._begin(self._arrivals.add(assign)))

    def _refuse(self, assign: Assign, reason: str) -> None:
        """Nothing was begun, so another agent may have it at once."""
        result = Result(state=State.LOST, failure=FailureClass.LOST, reason=reason)
        self._reports.add(Finished(at=now_ms(), attempt_id=assign.attempt_id, fence=assign.fence, result=result))
        self._arrivals.settle(assign.attempt_id)

    async def _begin(self, arrival: Arrival) -> None:
        """Record an assignment, then do what was said of it meanwhile."""
        assert self._journal is not None, "assignments come over a session, and that begins after the journal"
        attempt_id = arrival.assign.attempt_id
        try:
            entry = await self._arrivals.begin(arrival, self._journal)
        except JournalError as error:
            self._suspend(error)
            if not arrival.is_abandoned:
                self._refuse(arrival.assign, str(error))
            self._settled.set()
            self._release_if_free(arrival.assign.run_id)
            return
        self._entries[attempt_id] = entry
        if arrival.is_abandoned:
            self._forget(entry)
            return
        self._take_up(entry)
        if arrival.stop is not None:
            self._stop(arrival.stop)

    def _stop(self, message: Cancel | Evict) -> None:
        runner = self._runners.get(message.attempt_id)
        match message:
            case _ if runner is None:
                self._arrivals.stop(message)
            case Cancel(reason=reason):
                runner.cancel(reason)
            case Evict(reason=reason):
                runner.evict(reason)

    def _take_up(self, entry: Entry) -> None:
        runner = Runner(
            entry,
            self._runtime,
            self._outbox,
            agent_name=self._name,
            grace_s=self._settings.stop_grace,
            gpus=self._gpus,
            publish=self._reports.add,
            look=self._look_at_the_lease,
        )
        for event in entry.events:
            self._reports.add(event)
        self._runners[entry.attempt_id] = runner
        self._begin_chore(self._see_through(runner, entry))

    async def _see_through(self, runner: Runner, entry: Entry) -> None:
        try:
            await runner.run()
        except Exception as error:
            await self._give_up(runner, error)
        if runner.is_abandoned:
            self._forget(entry)
        else:
            runner.is_done = True
            if runner.is_acknowledged:
                self._forget(entry)

    async def _give_up(self, runner: Runner, error: Exception) -> None:
        """One attempt that meets a bug of ours, or a full disk, must not take the others on this machine with it."""
        if (trouble := journal_error_in(error)) is not None:
            self._suspend(trouble)
            reason = str(trouble)
            log.error("attempt=%s is given up: %s", runner.attempt_id, reason)
        else:
            reason = f"an error inside the agent: {error!r}"
            log.exception("attempt=%s ends by an error inside the agent", runner.attempt_id)
        try:
            await runner.give_up(reason)
        except Exception:
            log.exception("attempt=%s leaves something behind", runner.attempt_id)

    def _suspend(self, error: JournalError) -> None:
        assert self._journal is not None, "it cannot be written"
        if not self._admission.is_closed:
            self._admission.suspend(str(error))
            self._begin_chore(self._admission.resume_with(self._journal))

    def _look_at_the_lease(self) -> None:
        """Before anything is begun: the whole machine may have slept since anybody looked."""
        if self._lease is not None:
            self._lease.check()

    def _fence(self, expiry: Expiry) -> None:
        """No master was heard of for a lease: what must not run twice ends before the masters give it to another."""
        reason = f"no master was heard of for {expiry.unheard_s:.0f} s, so the agent stopped it"
        for arrival in self._arrivals:
            if arrival.assign.task.on_partition is not OnPartition.CONTINUE:
                self._stop(Evict(attempt_id=arrival.assign.attempt_id, reason=reason))
        for attempt_id, entry in list(self._entries.items()):
            if entry.is_over or entry.assign.task.on_partition is OnPartition.CONTINUE:
                continue
            if attempt_id not in self._runners:
                self._take_up(entry)
            runner = self._runners[attempt_id]
            if runner.is_fenced or runner.is_abandoned:
                continue
            log.warning("attempt=%s %s", attempt_id, reason)
            grace_s = max(0.0, min(self._settings.stop_grace, expiry.grace_s))
            self._begin_chore(kept_apart(runner.fence_off(reason, grace_s=grace_s), f"attempt={attempt_id}"))

    def _abandon(self, attempt_id: str, reason: str) -> None:
        runner = self._runners.get(attempt_id)
        if runner is None:
            self._arrivals.abandon(attempt_id)
            return
        log.info("attempt=%s is given up: %s", attempt_id, reason)
        self._reports.forget(attempt_id)
        runner.abandon(reason)
        if runner.is_done:
            self._forget(self._entries[attempt_id])

    def _reported(self, number: int, refused: Sequence[str]) -> None:
        self._settled.set()
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
            self._runners.pop(entry.attempt_id, None)
            self._arrivals.settle(entry.attempt_id)
            entry.drop()
            self._settled.set()
            self._release_if_free(entry.assign.run_id)

    # --- what is left of runs -------------------------------------------------------------------------------

    def _begin_chore(self, chore: Coroutine[Any, Any, None]) -> None:
        assert self._chores is not None, "there is no chore before there is a session"
        self._chores.create_task(chore)

    async def _sweep(self, cluster_id: str) -> None:
        # Views of what there is when it is looked at: work that comes in meanwhile is not taken for a leftover.
        attempts, runs = self._entries.keys(), self._runs
        await until_done(lambda: self._runtime.sweep(cluster_id, attempts, runs), "sweep")

    def _ended(self, run_id: str) -> None:
        """The run is over; what is left of it goes once none of its attempts is here any more."""
        self._ended_runs.add(run_id)
        self._release_if_free(run_id)

    def _release_if_free(self, run_id: str) -> None:
        if run_id in self._ended_runs and all(assign.run_id != run_id for assign in self._held()):
            self._ended_runs.discard(run_id)
            self._begin_chore(self._release(run_id))

    async def _release(self, run_id: str) -> None:
        await until_done(lambda: self._runtime.release(run_id), f"run={run_id} release")
        self._runs.discard(run_id)
        self._released.set()
