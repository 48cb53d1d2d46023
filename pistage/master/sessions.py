"""Sessions with agents: one WebSocket each, over which work goes out and reports and output come in."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from aiohttp import WSMsgType, web

from pistage import wire
from pistage.core import limits
from pistage.core.commands import Finished, RecordEvents, RegisterAgent
from pistage.core.model import Result, State
from pistage.core.plan import FailureClass
from pistage.errors import Code, PistageError
from pistage.master import reads
from pistage.master.copies import Copies
from pistage.master.heartbeats import Heartbeats
from pistage.master.logwriter import Appended
from pistage.master.records import StreamKey
from pistage.master.replica import Replica

log = logging.getLogger(__name__)

_HELLO_TIMEOUT_S = 10.0
_OUTGOING_MAX = 4096  # messages; an agent that reads slower than this is dropped and comes back
_INCOMING_MAX = 256  # reports and acknowledgements under way; then the socket is not read
_TICK_S = 0.5
_LATE_MAX_S = 0.5  # a loop that is later than this was not merely busy


@dataclass(slots=True)
class Session:
    """One agent, connected."""

    agent_id: str
    name: str
    epoch: int
    outgoing: asyncio.Queue[wire.ToAgent]
    run_of: dict[str, str] = field(default_factory=dict)  # attempt -> run, of this agent's own attempts
    is_closing: asyncio.Event = field(default_factory=asyncio.Event)
    leader: str = ""  # where to go on, once it is closing
    is_leaving: bool = False  # it takes no more work


class Sessions:
    """Every agent that is connected to this master."""

    def __init__(self, replica: Replica, copies: Copies, *, heartbeat_s: float, lease_s: float) -> None:
        self._replica = replica
        self._copies = copies
        self._heartbeat_s = heartbeat_s
        self._lease_s = lease_s
        self._listening_since = time.monotonic()
        self._sessions: dict[str, Session] = {}
        self._last_heard: dict[str, float] = {}
        self._heartbeats = Heartbeats(replica)
        self._on_change: Callable[[], None] = lambda: None

    def on_change(self, listener: Callable[[], None]) -> None:
        """Call `listener` when an agent has come or gone, or takes no more work."""
        self._on_change = listener

    def open(self) -> None:
        """This master leads from now on: every agent has a full lease to come here before it is judged."""
        self._listening_since = time.monotonic()
        self._last_heard.clear()

    async def close(self, *, leader: str = "") -> None:
        """End every session; the agents go to the leader that is named, or look for a master again."""
        for session in self._sessions.values():
            session.leader = leader
            session.is_closing.set()

    def drop(self, agent_id: str) -> None:
        """End the agent's session, if it has one: it was declared lost, and only a new hello makes it up again."""
        if session := self._sessions.get(agent_id):
            session.is_closing.set()

    async def watch_the_clock(self) -> None:
        """Notice, until cancelled, when this process itself stood still (stopped, swapped out), and blame no agent.

        What came in meanwhile is not read yet, and agents may have hung up: each gets a lease anew.
        """
        while True:
            due = time.monotonic() + _TICK_S
            await asyncio.sleep(_TICK_S)
            if (late_s := time.monotonic() - due) > _LATE_MAX_S:
                log.warning("this master stood still for %.1f s: every agent gets a lease anew", late_s)
                self._listening_since = time.monotonic()

    async def answer_heartbeats(self) -> None:
        """For as long as this master leads, or until cancelled."""
        await self._heartbeats.serve()

    def is_connected(self, agent_id: str) -> bool:
        """Whether the agent has a session here."""
        return agent_id in self._sessions

    def takes_work(self, agent_id: str) -> bool:
        """Whether the agent has a session here and has not said that it leaves."""
        session = self._sessions.get(agent_id)
        return session is not None and not session.is_leaving

    def silent_s(self, agent_id: str) -> float:
        """Seconds since the agent was heard of, or since this master began to listen: nobody is judged early."""
        return time.monotonic() - max(self._last_heard.get(agent_id, 0.0), self._listening_since)

    def send(self, agent_id: str, message: wire.ToAgent) -> None:
        """Send if the agent is connected; if not, it is told when it comes back."""
        if session := self._sessions.get(agent_id):
            if isinstance(message, wire.Assign):
                session.run_of[message.attempt_id] = message.run_id
            try:
                session.outgoing.put_nowait(message)
            except asyncio.QueueFull:
                log.warning("agent=%s reads too slowly: dropping its session", session.name)
                session.is_closing.set()

    async def serve(self, request: web.Request) -> web.WebSocketResponse:
        """The WebSocket of an agent: msgpack messages of the session protocol."""
        socket = web.WebSocketResponse(
            compress=False, max_msg_size=limits.SESSION_MESSAGE_BYTES_MAX, autoping=True, timeout=2.0
        )
        await socket.prepare(request)
        try:
            session = await self._greet(socket)
        except (PistageError, TimeoutError, TypeError) as error:  # TypeError: no bytes, or the end of the socket
            if socket.closed:
                return socket
            await socket.send_bytes(wire.pack_message(wire.Goodbye(reason=str(error) or "no hello came")))
            await socket.close()
            return socket
        log.info("agent=%s connected epoch=%d", session.name, session.epoch)
        self._on_change()
        try:
            link = _Link(
                self._replica, self._copies, socket, session,
                last_heard=self._last_heard, heartbeats=self._heartbeats, leaves=self._leaves,
            )  # fmt: skip
            await link.run()
        finally:
            self._forget(session)
            log.info("agent=%s disconnected", session.name)
        return socket

    async def _greet(self, socket: web.WebSocketResponse) -> Session:
        message = wire.unpack_message(await socket.receive_bytes(timeout=_HELLO_TIMEOUT_S))
        if not isinstance(message, wire.Hello) or message.protocol != wire.PROTOCOL:
            raise PistageError(Code.INVALID, f"expected a hello of protocol {wire.PROTOCOL}", hint="upgrade the agent")
        info = message.info
        self._last_heard[info.id] = time.monotonic()  # also of one that we cannot register now: our disk may be full
        outcome = await self._replica.propose(RegisterAgent(at=wire.now_ms(), info=info))
        session = Session(info.id, info.name, int(str(outcome.value["epoch"])), asyncio.Queue(_OUTGOING_MAX))
        session.is_leaving = message.is_leaving
        if older := self._sessions.pop(info.id, None):
            older.is_closing.set()
        self._sessions[info.id] = session  # from here on nothing that is decided is missed
        try:
            await self._welcome(socket, session, message.held)
        except BaseException:
            self._forget(session)
            raise
        return session

    def _leaves(self, session: Session) -> None:
        log.info("agent=%s takes no more work", session.name)
        session.is_leaving = True
        self._on_change()

    def _forget(self, session: Session) -> None:
        if self._sessions.get(session.agent_id) is session:
            del self._sessions[session.agent_id]
            self._on_change()

    async def _welcome(self, socket: web.WebSocketResponse, session: Session, held: Sequence[wire.Held]) -> None:
        async with self._replica.reader.snapshot() as snapshot:
            cluster_id = await reads.cluster_id(snapshot)
            live = await reads.live_attempts(snapshot, session.agent_id)
            live_runs = await reads.live_runs(snapshot, session.agent_id)
            fences = {attempt.attempt_id: attempt.fence for attempt in live}
            held_ids = {one.attempt_id for one in held if fences.get(one.attempt_id) == one.fence}
            untold = [one.attempt_id for one in live if one.attempt_id not in held_ids and not one.is_accepted]
            assigns, ends = await reads.assignments(snapshot, untold)
        session.run_of |= {attempt.attempt_id: attempt.run_id for attempt in live}
        verdicts = tuple(
            wire.Verdict(
                attempt_id=one.attempt_id,
                is_kept=one.attempt_id in held_ids,
                reason="" if one.attempt_id in held_ids else "the task went on without it",
            )
            for one in held
        )
        welcome = wire.Welcome(
            cluster_id=cluster_id, epoch=session.epoch, heartbeat_s=self._heartbeat_s, lease_s=self._lease_s,
            codecs=wire.available_codecs(),
            verdicts=verdicts, live_runs=tuple(live_runs),
        )  # fmt: skip
        await socket.send_bytes(wire.pack_message(welcome))
        cancels = [
            wire.Cancel(attempt_id=attempt.attempt_id, reason=attempt.cancel_reason)
            for attempt in live
            if attempt.cancel_reason is not None
        ]
        # What was decided since the snapshot comes after it: a cancellation means nothing before its assignment.
        since = [session.outgoing.get_nowait() for _ in range(session.outgoing.qsize())]
        for message in (*assigns, *cancels, *since):
            session.outgoing.put_nowait(message)
        forgotten = [one for one in live if one.is_accepted and one.attempt_id not in held_ids]
        ends.extend(_lost(forgotten))
        if ends:
            await self._replica.propose(RecordEvents(at=wire.now_ms(), events=tuple(ends)))


def _lost(forgotten: Sequence[reads.LiveAttempt]) -> Iterator[Finished]:
    result = Result(state=State.LOST, failure=FailureClass.LOST, reason="its agent came back without knowing of it")
    for one in forgotten:
        yield Finished(at=wire.now_ms(), attempt_id=one.attempt_id, fence=one.fence, result=result)


class _Link:
    """The traffic of one session: what is sent, what is read, and what is answered once it is durable."""

    def __init__(
        self, replica: Replica, copies: Copies, socket: web.WebSocketResponse, session: Session,
        *, last_heard: dict[str, float], heartbeats: Heartbeats, leaves: Callable[[Session], None],
    ) -> None:  # fmt: skip
        self._replica = replica
        self._copies = copies
        self._socket = socket
        self._session = session
        self._last_heard = last_heard
        self._heartbeats = heartbeats
        self._leaves = leaves
        self._reports: asyncio.Queue[wire.Report] = asyncio.Queue(_INCOMING_MAX)
        self._appends: asyncio.Queue[tuple[StreamKey, asyncio.Future[Appended]]] = asyncio.Queue(_INCOMING_MAX)

    async def run(self) -> None:
        """Until the socket closes, either side gives up, or another session of the agent takes over."""
        owned = [self._read(), self._write(), self._record(), self._acknowledge(), self._session.is_closing.wait()]
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(coroutine) for coroutine in owned]
                await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                for task in tasks:
                    task.cancel()
        except* (ConnectionError, PistageError) as errors:
            log.warning("agent=%s: %s", self._session.name, errors.exceptions[0])
        finally:
            with contextlib.suppress(ConnectionError):
                if self._session.leader and not self._socket.closed:
                    goodbye = wire.Goodbye(reason="another master leads now", leader=self._session.leader)
                    await self._socket.send_bytes(wire.pack_message(goodbye))
            await self._socket.close()

    async def _read(self) -> None:
        async for frame in self._socket:
            self._last_heard[self._session.agent_id] = time.monotonic()
            if frame.type is not WSMsgType.BINARY:
                break
            match wire.unpack_message(frame.data):
                case wire.LogFrame() | wire.LogGap() as output:
                    await self._append(output)
                case wire.Report() as report:
                    await self._reports.put(report)
                case wire.Heartbeat(number=number):
                    self._heartbeats.heard(self._session.agent_id, number, self._answer)
                case wire.Leaving():
                    self._leaves(self._session)
                case wire.Goodbye(reason=reason):
                    log.info("agent=%s says goodbye: %s", self._session.name, reason)
                    break
                case other:
                    raise PistageError(Code.INVALID, f"an agent does not send {type(other).__name__}")

    async def _write(self) -> None:
        while True:
            await self._socket.send_bytes(wire.pack_message(await self._session.outgoing.get()))

    async def _record(self) -> None:
        while True:
            report = await self._reports.get()
            foreign = [e.attempt_id for e in report.events if not await self._is_own(e.attempt_id)]
            own = tuple(event for event in report.events if event.attempt_id not in foreign)
            refused = list(foreign)
            if own:
                outcome = await self._replica.propose(RecordEvents(at=wire.now_ms(), events=own))
                refused += [str(attempt) for attempt in outcome.value["refused"]]  # type: ignore[attr-defined]
            self._send(wire.Reported(number=report.number, refused=tuple(dict.fromkeys(refused))))
            for event in own:
                if isinstance(event, Finished):
                    self._session.run_of.pop(event.attempt_id, None)

    async def _append(self, frame: wire.LogFrame | wire.LogGap) -> None:
        key = (frame.attempt_id, frame.step, frame.stream)
        run_id = await self._live_run_of(frame.attempt_id)
        if run_id is None:
            self._refuse(key, "this attempt is not the agent's, or has ended", is_final=True)
            return
        try:
            safe = await self._copies.append(run_id, frame)
        except PistageError as error:
            self._refuse(key, str(error), is_final=False)
            return
        await self._appends.put((key, safe))

    async def _acknowledge(self) -> None:
        while True:
            (attempt_id, step, stream), safe = await self._appends.get()
            try:
                appended = await safe
            except PistageError as error:
                self._refuse((attempt_id, step, stream), str(error), is_final=False)
                continue
            self._send(
                wire.LogAck(
                    attempt_id=attempt_id, step=step, stream=stream, length=appended.length, missing=appended.missing,
                    is_gap=appended.is_gap, is_full=appended.is_full,
                )
            )  # fmt: skip

    def _refuse(self, key: StreamKey, reason: str, *, is_final: bool) -> None:
        attempt_id, step, stream = key
        self._send(wire.LogRefused(attempt_id=attempt_id, step=step, stream=stream, reason=reason, is_final=is_final))

    def _answer(self, number: int) -> None:
        if self._session.is_closing.is_set():
            return
        try:
            self._session.outgoing.put_nowait(wire.HeartbeatAck(number=number))
        except asyncio.QueueFull:  # said by whoever finds it full with more than this
            log.debug("agent=%s reads too slowly for its heartbeats", self._session.name)

    def _send(self, message: wire.ToAgent) -> None:
        try:
            self._session.outgoing.put_nowait(message)
        except asyncio.QueueFull:
            raise ConnectionError("the agent reads too slowly") from None

    async def _is_own(self, attempt_id: str) -> bool:
        return attempt_id in self._session.run_of or await self._looked_up(attempt_id) is not None

    async def _live_run_of(self, attempt_id: str) -> str | None:
        """The run of an attempt that goes on: of one that has ended all output was acknowledged before."""
        known = self._session.run_of
        if attempt_id not in known:
            run_id = await self._looked_up(attempt_id, is_live=True)
            if run_id is None:
                return None
            known[attempt_id] = run_id
        return known[attempt_id]

    async def _looked_up(self, attempt_id: str, *, is_live: bool = False) -> str | None:
        async with self._replica.reader.single() as snapshot:
            return await reads.run_of_attempt(snapshot, attempt_id, self._session.agent_id, is_live=is_live)
