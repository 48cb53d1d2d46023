"""Agents and dispatch, on the seeds that run the real state machine: what is assigned, run, lost and reported.

The desk is what a leader does for agents, and forgets with its leadership; it is careless on purpose, because what is
promised (I14, I15) must not depend on its care: it proposes from old views, twice, and to agents that are gone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import TYPE_CHECKING, Any

from pistage import raft, wire
from pistage.core import commands as c
from pistage.core.machine import Outcome
from pistage.core.model import AgentInfo, Capacity, Result, State
from pistage.core.plan import FailureClass
from tests.sim.host import TICK, Host
from tests.sim.records import Records
from tests.sim.sqlite_machine import SqliteMachine

if TYPE_CHECKING:
    from tests.sim.world import World

LEASE = 15 * TICK
IN_FLIGHT_MAX = 8
_LIVE = "SELECT id, fence, state FROM attempt WHERE agent_id = ? AND state IN ('queued', 'running') ORDER BY id"
_WAITING = (
    "SELECT run_id, position FROM task WHERE state = 'queued' AND ready_at <= ? ORDER BY run_id, position LIMIT 20"
)
_UP = """
SELECT agent.id, agent.epoch, agent.slots - COUNT(attempt.id) FROM agent
LEFT JOIN attempt ON attempt.agent_id = agent.id AND attempt.state IN ('queued', 'running')
WHERE agent.state = 'up' GROUP BY agent.id ORDER BY agent.id
"""
_OPEN = "SELECT COUNT(*) FROM task WHERE state IN ('pending', 'queued', 'running')"


class Fleet:
    """All agents, and a desk for each leadership."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.records = Records(world)
        self.desks: dict[str, Desk] = {}
        self.agents = [Agent(world, self, f"a{n}") for n in range(world.rng.choice((1, 2, 3, 5, 20)))]
        world.at(TICK, self._turn)

    def desk_of(self, host: Host) -> Desk | None:
        """Where agents are served; None on a master that does not lead."""
        if host.node is None or host.node.leadership is None:
            return None
        reign = (host.starts, host.node.term)
        desk = self.desks.get(host.name)
        if desk is None or desk.reign != reign:
            desk = self.desks[host.name] = Desk(self.world, host, reign)
        return desk

    def _turn(self) -> None:
        for host in self.world.leaders():
            if (desk := self.desk_of(host)) is not None and not host.is_paused:
                desk.turn()
        self.world.at((3 if self.world.is_faulty else 1) * TICK, self._turn)

    def applied(self, host: Host, entry: raft.Entry) -> None:
        assert isinstance(host.machine, SqliteMachine)
        self.records.applied(host.machine, entry)

    def trouble(self, rng: Random) -> None:
        """An agent crashes, stands still, or is cut off in one direction or both."""
        agent, until = rng.choice(self.agents), self.world.now + rng.randint(5, 200) * TICK
        match rng.randrange(4):
            case 0:
                agent.crash(keeps_journal=rng.random() < 0.5)
            case 1:
                agent.paused_until = until
            case 2:
                agent.deaf_until = until  # acknowledgements are lost
            case _:
                agent.deaf_until = agent.mute_until = until

    def heal(self) -> None:
        for agent in self.agents:
            agent.paused_until = agent.deaf_until = agent.mute_until = 0

    def is_idle(self, host: Host) -> bool:
        """Whether everything that was submitted has come to an end."""
        assert isinstance(host.machine, SqliteMachine)
        return bool(host.machine.db.execute(_OPEN).fetchone() == (0,))


class Desk:
    """One leadership's sessions with agents; placement and losses."""

    def __init__(self, world: World, host: Host, reign: tuple[int, int]) -> None:
        self.world, self.host, self.reign = world, host, reign
        self.since = world.now
        self.heard: dict[str, int] = {}
        self.welcomed: dict[str, int] = {}  # agent: its epoch
        self.in_flight = 0  # proposals that are not applied: each will be, or this leadership ends

    @property
    def db(self) -> Any:
        assert isinstance(self.host.machine, SqliteMachine)
        return self.host.machine.db

    def turn(self) -> None:
        """Nobody is judged before he has had a lease's time to be heard here."""
        rng, at = self.world.rng, self.host.at()
        agents = self.db.execute(_UP).fetchall()
        for agent_id, epoch, _ in agents:
            if self.world.now - max(self.heard.get(agent_id, 0), self.since) > LEASE:
                self.propose(c.LoseAgent(at=at, agent_id=agent_id, epoch=epoch, reason="silent"))
                self.welcomed.pop(agent_id, None)
        free = [agent for agent in agents if agent[2] > 0 and agent[0] in self.welcomed]
        placed: list[c.Assignment] = []
        for run_id, position in self.db.execute(_WAITING, (at,)).fetchall():
            takers = agents if rng.random() < 0.1 else free
            if not takers:
                continue
            agent_id, epoch, _ = rng.choice(takers)
            placed.append(
                c.Assignment(
                    attempt_id=f"t{self.world.new_token()}",
                    run_id=run_id,
                    position=position,
                    agent_id=agent_id,
                    agent_epoch=epoch - (rng.random() < 0.05),
                )
            )
            if rng.random() < 0.5:  # alone, or with others in one entry
                self.propose(c.AssignTasks(at=at, assignments=tuple(placed)))
                placed = []
        if placed:
            self.propose(c.AssignTasks(at=at, assignments=tuple(placed)))

    def propose(self, command: c.Command, done: Callable[[Outcome], None] = lambda _: None) -> None:
        """`done` gets the outcome, if this leader lives to see it; what is too much is left for another turn."""
        if self.in_flight >= IN_FLIGHT_MAX:
            return
        self.in_flight += 1

        def applied(index: int) -> None:
            self.in_flight -= 1
            assert isinstance(self.host.machine, SqliteMachine)
            if (outcome := self.host.machine.outcomes.get(index)) is not None:
                done(outcome)

        def replied(reply: raft.Reply) -> None:
            if reply.refusal is None:
                self.host.wait(reply.index, reply.term, applied)
            else:
                self.in_flight -= 1

        self.host.propose((wire.pack_command(command),), replied)

    # --- what agents say -----------------------------------------------------------------------------------------

    def hello(self, agent: Agent, session: int, info: AgentInfo, held: dict[str, int]) -> None:
        """A session begins: in which epoch, and what of the work it holds is still its own."""
        self.heard[info.id] = self.world.now

        def registered(outcome: Outcome) -> None:
            epoch = int(str(outcome.value["epoch"]))
            self.welcomed[info.id] = epoch
            live = self.db.execute(_LIVE, (info.id,)).fetchall()
            fences = {attempt_id: fence for attempt_id, fence, _ in live}
            kept = {attempt_id for attempt_id, fence in held.items() if fences.get(attempt_id) == fence}
            agent.hear(agent.welcome, session, epoch, kept)
            forgotten = [(i, fence) for i, fence, state in live if state == "running" and i not in kept]
            if forgotten:
                self.propose(_lost(self.host.at(), forgotten))

        self.propose(c.RegisterAgent(at=self.host.at(), info=info), registered)

    def heartbeat(self, agent: Agent, epoch: int) -> None:
        """Work that was assigned is sent until it is accepted."""
        self.heard[agent.id] = self.world.now
        if self.welcomed.get(agent.id) != epoch:
            agent.hear(agent.unknown, epoch)
            return
        for attempt_id, fence, state in self.db.execute(_LIVE, (agent.id,)).fetchall():
            if state == "queued":
                agent.hear(agent.assigned, epoch, attempt_id, fence)

    def report(self, agent: Agent, epoch: int, events: tuple[c.AttemptEvent, ...]) -> None:
        """Answered once it is committed."""
        if self.welcomed.get(agent.id) != epoch:
            agent.hear(agent.unknown, epoch)
            return
        self.heard[agent.id] = self.world.now

        def recorded(outcome: Outcome) -> None:
            refused = outcome.value["refused"]
            assert isinstance(refused, list)
            agent.hear(agent.reported, events, frozenset(refused))

        self.propose(c.RecordEvents(at=self.host.at(), events=events), recorded)


def _lost(at: int, forgotten: list[tuple[str, int]]) -> c.RecordEvents:
    result = Result(state=State.LOST, failure=FailureClass.LOST, reason="its agent came back without knowing of it")
    events = (c.Finished(at=at, attempt_id=attempt_id, fence=fence, result=result) for attempt_id, fence in forgotten)
    return c.RecordEvents(at=at, events=tuple(events))


@dataclass(slots=True)
class _Job:
    fence: int
    outbox: list[c.AttemptEvent] = field(default_factory=list)


class Agent:
    """Its journal holds what it has accepted, by attempt, and what of that no master has acknowledged."""

    def __init__(self, world: World, fleet: Fleet, name: str) -> None:
        self.world, self.fleet, self.id = world, fleet, name
        self.lives = self.sessions = self.next_hello = 0
        self.paused_until = self.deaf_until = self.mute_until = 0
        self.journal: dict[str, _Job] = {}
        self.ended: set[str] = set()
        self.crash(keeps_journal=True)

    def crash(self, *, keeps_journal: bool) -> None:
        self.lives += 1
        self.epoch: int | None = None
        self.next_hello = 0
        if not keeps_journal:
            self.journal.clear()
            self.ended.clear()
        self.world.at(self.world.rng.randint(1, 60) * TICK, self._turn, self.lives)

    @property
    def info(self) -> AgentInfo:
        room = Capacity(cpus_milli=4_000, memory_bytes=1 << 30, slots=6)
        incarnation = f"{self.id}.{self.lives}"
        return AgentInfo(
            id=self.id, name=self.id, incarnation=incarnation, version="1", runtimes=("docker",), capacity=room
        )

    def _turn(self, life: int) -> None:
        if life != self.lives:
            return
        if self.world.now >= self.paused_until:
            host = self._master()
            if self.epoch is None and self.world.now < self.next_hello:
                pass  # the answer to the last one may be on its way
            elif self.epoch is None:
                self.sessions += 1
                self.next_hello = self.world.now + 12 * TICK
                held = {attempt_id: job.fence for attempt_id, job in self.journal.items()}
                self._say(host, Desk.hello, self.sessions, self.info, held)
            else:
                self._say(host, Desk.heartbeat, self.epoch)
                events = tuple(event for job in self.journal.values() for event in job.outbox)
                if events:
                    self._say(host, Desk.report, self.epoch, events)
        self.world.at(self.world.rng.randint(3, 6) * TICK, self._turn, life)

    def _master(self) -> Host:
        leaders = self.world.leaders()
        return self.world.rng.choice(leaders or list(self.world.hosts.values()))

    def _is_lost(self) -> bool:
        return self.world.is_faulty and self.world.rng.random() < self.world.mix.drop

    def _say(self, host: Host, what: Callable[..., None], *arguments: Any) -> None:
        if self.world.now < self.mute_until or self._is_lost():
            return

        def arrives() -> None:
            if (desk := self.fleet.desk_of(host)) is not None:
                what(desk, self, *arguments)

        self.world.at(self.world.rng.randint(1, 40), arrives, host=host)

    # --- what masters say ------------------------------------------------------------------------------------------

    def hear(self, what: Callable[..., None], *arguments: Any) -> None:
        if self.world.now >= self.deaf_until and not self._is_lost():
            self.world.at(self.world.rng.randint(1, 40), self._arrives, self.lives, what, arguments)

    def _arrives(self, life: int, what: Callable[..., None], arguments: tuple[Any, ...]) -> None:
        """Paused, it reads its inbox later; restarted, the connection is another one."""
        if self.world.now < self.paused_until:
            self.world.at(self.paused_until - self.world.now, self._arrives, life, what, arguments)
        elif life == self.lives:
            what(*arguments)

    def welcome(self, session: int, epoch: int, kept: set[str]) -> None:
        if session != self.sessions or self.epoch is not None:
            return  # to an older session, whose connection is gone
        self.epoch = epoch
        for attempt_id in [attempt_id for attempt_id in self.journal if attempt_id not in kept]:
            del self.journal[attempt_id]
        for attempt_id, job in self.journal.items():
            self._work(attempt_id, job)

    def unknown(self, epoch: int) -> None:
        if self.epoch == epoch:
            self.epoch, self.next_hello = None, 0

    def assigned(self, epoch: int, attempt_id: str, fence: int) -> None:
        if epoch == self.epoch and attempt_id not in self.journal and attempt_id not in self.ended:
            job = self.journal[attempt_id] = _Job(fence)
            job.outbox.append(c.Accepted(at=self._clock(), attempt_id=attempt_id, fence=fence, runtime="docker"))
            self._work(attempt_id, job)

    def _work(self, attempt_id: str, job: _Job) -> None:
        ticks = self.world.rng.randint(1, 12) if self.world.is_faulty else 1
        self.world.at(ticks * TICK, self._finish, self.lives, attempt_id, job)

    def _finish(self, life: int, attempt_id: str, job: _Job) -> None:
        if life != self.lives or self.journal.get(attempt_id) is not job or attempt_id in self.ended:
            return
        self.ended.add(attempt_id)
        at, fence = self._clock(), job.fence
        good = Result(state=State.SUCCEEDED, exit_code=0)
        bad = Result(state=State.FAILED, failure=FailureClass.FAILURE, exit_code=1, reason="exit code 1")
        result = good if self.world.rng.random() < 0.8 else bad
        job.outbox += [
            c.StepStarted(at=at, attempt_id=attempt_id, fence=fence, step="1", container="x"),
            c.StepFinished(at=at, attempt_id=attempt_id, fence=fence, step="1", result=result),
            c.Finished(at=at, attempt_id=attempt_id, fence=fence, result=result),
        ]

    def reported(self, events: tuple[c.AttemptEvent, ...], refused: frozenset[str]) -> None:
        for event in events:
            job = self.journal.get(event.attempt_id)
            if event.attempt_id in refused:
                self.journal.pop(event.attempt_id, None)
                continue
            if job is not None and event in job.outbox:
                job.outbox.remove(event)
            if isinstance(event, c.Finished):
                self.fleet.records.acknowledged(event)
                self.journal.pop(event.attempt_id, None)

    def _clock(self) -> int:
        return 1_700_000_000_000 + self.world.now
