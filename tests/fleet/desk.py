"""Sessions as one master has them: what `pistage.master.sessions` does, over links without sockets.

It keeps to that file in what counts: a session begins once the agent's coming is committed, nothing that is decided
from then on is missed, reports are recorded one after the other, and a heartbeat is answered only while it leads.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pistage import wire
from pistage.core import commands as c
from pistage.core.model import Result, State
from pistage.core.plan import FailureClass
from pistage.errors import PistageError
from pistage.master import reads

if TYPE_CHECKING:
    from tests.fleet.cluster import Master
    from tests.fleet.links import Link
    from tests.fleet.world import World

HEARTBEAT_S = 2.0
_CONFIRM_S = 0.1


@dataclass(slots=True, eq=False)
class Session:
    """One agent, connected. Until it is welcomed, what is said to it waits."""

    agent_id: str
    link: Link
    epoch: int
    is_leaving: bool
    waiting: list[wire.ToAgent] | None = field(default_factory=list)
    reports: deque[wire.Report] = field(default_factory=deque)
    is_recording: bool = False


class Sessions:
    """Every agent that is connected to this master."""

    def __init__(self, world: World, master: Master) -> None:
        self._world, self._master = world, master
        self._sessions: dict[str, Session] = {}
        self._last_heard: dict[str, float] = {}
        self._listening_since = 0.0
        self._links: dict[Link, None] = {}
        self.greeting = 0  # sessions that have begun, and of which nobody was told
        self._heard: dict[Session, int] = {}  # heartbeats that wait for a round of messages
        self._on_change: Callable[[], None] = lambda: None

    # --- what Dispatch and Losses ask -------------------------------------------------------------------------------

    def on_change(self, listener: Callable[[], None]) -> None:
        self._on_change = listener

    def open(self) -> None:
        self._listening_since = self._world.now_s
        self._last_heard.clear()

    def close(self) -> None:
        for link in list(self._links):
            self._hang_up(link)

    def drop(self, agent_id: str) -> None:
        if session := self._sessions.get(agent_id):
            self._hang_up(session.link)

    def is_connected(self, agent_id: str) -> bool:
        return agent_id in self._sessions

    def takes_work(self, agent_id: str) -> bool:
        session = self._sessions.get(agent_id)
        return session is not None and not session.is_leaving

    def silent_s(self, agent_id: str) -> float:
        return self._world.now_s - max(self._last_heard.get(agent_id, 0.0), self._listening_since)

    def send(self, agent_id: str, message: wire.ToAgent) -> None:
        if session := self._sessions.get(agent_id):
            if session.waiting is None:
                session.link.to_agent(message)
            else:
                session.waiting.append(message)

    # --- links ------------------------------------------------------------------------------------------------------

    def connected(self, link: Link) -> None:
        self._links[link] = None

    def received(self, link: Link, message: wire.ToMaster) -> None:
        """A message of the agent's; the first one is its hello."""
        session = link.session
        if isinstance(message, wire.Hello):
            self._last_heard[message.info.id] = self._world.now_s
            self._world.go(self._greet(link, message))
            return
        if session is None:
            return
        self._last_heard[session.agent_id] = self._world.now_s
        match message:
            case wire.Report():
                session.reports.append(message)
                if not session.is_recording and session.waiting is None:
                    session.is_recording = True
                    self._world.go(self._record(session))
            case wire.Heartbeat(number=number):
                if not self._heard:
                    self._world.at(self._world.rng.uniform(0.001, _CONFIRM_S), self._answer)
                self._heard[session] = number
            case wire.Leaving():
                session.is_leaving = True
                self._on_change()
            case _:
                self._hang_up(link)

    def lost(self, link: Link) -> None:
        """The connection is gone."""
        self._links.pop(link, None)
        if link.session is not None:
            self._forget(link.session)

    def _hang_up(self, link: Link) -> None:
        link.close_by_master()
        self.lost(link)

    def _forget(self, session: Session) -> None:
        if self._sessions.get(session.agent_id) is session:
            del self._sessions[session.agent_id]
            self._on_change()

    def _answer(self) -> None:
        heard, self._heard = self._heard, {}
        if self._master.is_leading and not self._master.is_cut_off:
            for session, number in heard.items():
                session.link.to_agent(wire.HeartbeatAck(number=number))

    # --- a session --------------------------------------------------------------------------------------------------

    async def _greet(self, link: Link, hello: wire.Hello) -> None:
        info = hello.info
        try:
            outcome = await self._master.propose(c.RegisterAgent(at=wire.now_ms(), info=info))
        except PistageError:
            self._hang_up(link)
            return
        if not link.is_open_here or not self._master.is_leading:
            return
        session = Session(info.id, link, int(str(outcome.value["epoch"])), hello.is_leaving)
        if older := self._sessions.pop(info.id, None):
            self._hang_up(older.link)
        self._sessions[info.id] = link.session = session  # from here on nothing that is decided is missed
        self.greeting += 1
        try:
            await self._welcome(session, hello.held)
        except PistageError:
            self._hang_up(link)
            return
        finally:
            self.greeting -= 1
        self._on_change()
        if session.reports and not session.is_recording:
            session.is_recording = True
            await self._record(session)

    async def _welcome(self, session: Session, held: Sequence[wire.Held]) -> None:
        async with self._master.reader.snapshot() as snapshot:
            live = await reads.live_attempts(snapshot, session.agent_id)  # type: ignore[arg-type]
            live_runs = await reads.live_runs(snapshot, session.agent_id)  # type: ignore[arg-type]
            fences = {attempt.attempt_id: attempt.fence for attempt in live}
            held_ids = {one.attempt_id for one in held if fences.get(one.attempt_id) == one.fence}
            untold = [one.attempt_id for one in live if one.attempt_id not in held_ids and not one.is_accepted]
            assigns, ends = await reads.assignments(snapshot, untold)  # type: ignore[arg-type]
        self._world.count("attempt kept", len(held_ids))
        self._world.count("attempt not kept", len(held) - len(held_ids))
        self._world.count("assignment told again", len(untold))
        verdicts = tuple(
            wire.Verdict(attempt_id=one.attempt_id, is_kept=one.attempt_id in held_ids, reason="gone") for one in held
        )
        session.link.to_agent(
            wire.Welcome(
                cluster_id="c", epoch=session.epoch, heartbeat_s=HEARTBEAT_S, lease_s=self._world.lease_s,
                verdicts=verdicts, live_runs=tuple(live_runs),
            )
        )  # fmt: skip
        cancels = [
            wire.Cancel(attempt_id=one.attempt_id, reason=one.cancel_reason) for one in live if one.cancel_reason
        ]
        forgotten = [one for one in live if one.is_accepted and one.attempt_id not in held_ids]
        self._world.count("attempt forgotten", len(forgotten))
        ends += [_lost(one) for one in forgotten]
        since, session.waiting = session.waiting or [], None
        for message in (*assigns, *cancels, *since):
            session.link.to_agent(message)
        if ends:
            await self._master.propose(c.RecordEvents(at=wire.now_ms(), events=tuple(ends)))

    async def _record(self, session: Session) -> None:
        """One report after the other; it is answered once it is committed."""
        while session.reports and session.link.is_open_here:
            report = session.reports.popleft()
            own, foreign = [], []
            for event in report.events:
                async with self._master.reader.snapshot() as snapshot:
                    run_id = await reads.run_of_attempt(snapshot, event.attempt_id, session.agent_id)  # type: ignore[arg-type]
                (foreign if run_id is None else own).append(event)
            refused = [event.attempt_id for event in foreign]
            if own:
                try:
                    outcome = await self._master.propose(c.RecordEvents(at=wire.now_ms(), events=tuple(own)))
                except PistageError:
                    self._hang_up(session.link)
                    return
                refused += [str(attempt) for attempt in outcome.value["refused"]]  # type: ignore[attr-defined]
            self._world.count("report refused", len(refused))
            session.link.to_agent(wire.Reported(number=report.number, refused=tuple(dict.fromkeys(refused))))
        session.is_recording = False


def _lost(attempt: reads.LiveAttempt) -> c.Finished:
    result = Result(state=State.LOST, failure=FailureClass.LOST, reason="its agent came back without knowing of it")
    return c.Finished(at=wire.now_ms(), attempt_id=attempt.attempt_id, fence=attempt.fence, result=result)
