"""One seed: a loop in simulated time, one source of chance, masters, agents, people and a nemesis."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from random import Random
from typing import Any

from pistage import wire
from pistage.core import commands as c
from pistage.core import ids, schedule
from pistage.core.model import AgentInfo
from pistage.core.schedule import Explainer
from pistage.errors import PistageError
from tests.fleet.agents import Agent
from tests.fleet.checker import Checker
from tests.fleet.cluster import EPOCH_MS, Cluster
from tests.fleet.faults import Mix, Nemesis, mix_of
from tests.fleet.ground import Ground
from tests.fleet.jobs import People, a_giant, an_agent
from tests.fleet.loop import SimLoop
from tests.fleet.views import Views
from tests.sim.violation import Violation

_OPEN = "SELECT COUNT(*) FROM run WHERE state IN ('pending', 'queued', 'running')"
_WAITING = "SELECT run_id, position FROM task WHERE state = 'queued'"
_LOOK_EVERY_S = 60.0
_SETTLE_S = 300.0  # in which nothing ends: longer than any task, patience, pause of losses and wait before a retry


class World:
    """`run()` lets the storm last for so long, heals everything, and asks for an end to all work."""

    def __init__(self, seed: int, *, agents: int | None = None, mix: Mix | None = None) -> None:
        self.seed, self.rng = seed, Random(seed)
        self.loop = SimLoop()
        self.counts: Counter[str] = Counter()
        self.is_stormy = True
        count = self.rng.choice((1, 2, 3, 5, 8, 12, 20, 30, 50)) if agents is None else agents
        drawn = mix_of(self.rng, count)
        self.mix = mix or drawn
        self.lease_s = self.rng.choice((6.0, 20.0))
        self.ground, self.checker, self.views = Ground(self), Checker(self), Views(self)
        self.agents: dict[str, Agent] = {}
        with self.doors():
            self.cluster = Cluster(self, self.rng.choice((1, 3, 3)))
            for number in range(count):
                self.join(an_agent(self.rng, f"a{number}"))

    # --- time and chance --------------------------------------------------------------------------------------------

    @property
    def now_s(self) -> float:
        return self.loop.now_s

    def now_ms(self) -> int:
        return EPOCH_MS + int(self.loop.now_s * 1000)

    def new_id(self) -> str:
        return ids.make_id(self.now_ms(), self.rng.randbytes(10))

    def at(self, wait_s: float, call: Callable[..., object], *arguments: Any) -> None:
        self.loop.call_at(self.now_s + max(0.0, wait_s), call, *arguments)

    def go(self, work: Coroutine[Any, Any, None]) -> None:
        """To the end, or to that of the world; what it raises is a failure of the world."""
        self.loop.create_task(work).add_done_callback(
            lambda task: None if task.cancelled() or not task.exception() else self.loop.fail(task.exception())  # type: ignore[arg-type]
        )

    def delay_s(self) -> float:
        return self.rng.expovariate(1 / self.mix.delay_s)

    def count(self, what: str, number: int = 1) -> None:
        if number:
            self.counts[what] += number

    def most(self, what: str, number: int) -> None:
        self.counts[what] = max(self.counts[what], number)

    @contextmanager
    def doors(self) -> Iterator[None]:
        """While it runs, the clock and the ids of the program are those of the world, and `decide` is watched."""
        before = wire.now_ms, wire.new_id, schedule.decide
        wire.now_ms, wire.new_id, schedule.decide = self.now_ms, self.new_id, self.views.decide  # type: ignore[assignment]
        try:
            yield
        finally:
            wire.now_ms, wire.new_id, schedule.decide = before

    # --- agents -----------------------------------------------------------------------------------------------------

    def join(self, info: AgentInfo) -> Agent:
        agent = self.agents[info.id] = Agent(self, info)
        agent.boot()
        return agent

    def boot(self, agent: Agent, life: int | None = None) -> None:
        """Start its process again, unless something else did."""
        if not agent.is_gone and not agent.is_running and life in (None, agent.life):
            agent.boot()

    # --- the course of it -------------------------------------------------------------------------------------------

    def run(self, storm_s: float) -> None:
        """Violation: something fell; any other exception of the program is a bug as well."""
        with self.doors():
            try:
                People(self)
                Nemesis(self)
                self.loop.run_until(storm_s)
                self.heal()
                self._settle()
            finally:
                self.close()

    def close(self) -> None:
        self.loop.finish()
        self.cluster.db.close()

    def heal(self) -> None:
        """No more faults; who is not gone for good comes back, and two agents come that can take anything."""
        self.is_stormy = False
        for agent in list(self.agents.values()):
            agent.cut_in_until = agent.cut_out_until = 0.0
            agent.pump()
            if not agent.is_gone and not agent.is_leaving:
                self.boot(agent)
        for name in ("giant-a", "giant-b"):
            self.join(a_giant(name))
        self.go(self._undo())

    async def _undo(self) -> None:
        """What people have set is taken back, as soon as there is a leader."""
        rows = self.cluster.db.execute("SELECT id FROM agent WHERE is_draining").fetchall()
        commands: list[c.Command] = [c.SetAgentDrain(at=0, agent_id=row[0], is_draining=False) for row in rows]
        for command in commands:
            await self.insist(command)

    async def insist(self, command: c.Command) -> None:
        """Propose until it is done."""
        for _ in range(100):
            if self.cluster.leader is not None:
                try:
                    await self.cluster.leader.propose(command)
                    return
                except PistageError as refusal:
                    if refusal.code != "unavailable":
                        return
            await asyncio.sleep(0.5)

    def _settle(self) -> None:
        """Every run ends, but for those with a task that no agent here could ever take: they are cancelled, and end."""
        until, ended = self.now_s + _SETTLE_S, 0
        while self.now_s < until:
            self.loop.run_until(self.now_s + _LOOK_EVERY_S, self._is_quiet)
            if self._is_quiet():
                self.count("settled")
                self._all_is_over()
                return
            if ended < len(self.checker.ended):
                until, ended = self.now_s + _SETTLE_S, len(self.checker.ended)
            self._cancel_what_cannot_be_placed()
        raise Violation("stuck", self._told())

    def _is_quiet(self) -> bool:
        return bool(self.cluster.db.execute(_OPEN).fetchone() == (0,))

    def _cancel_what_cannot_be_placed(self) -> None:
        leader = self.cluster.leader
        if leader is None or leader.dispatch._view is None:
            return
        explainer = Explainer(leader.dispatch._view, leader.now_ms())
        found = {task: explainer.explain(task) for task in self.cluster.db.execute(_WAITING).fetchall()}
        unplaceable = {task[0] for task, told in found.items() if told is not None and not told.is_placeable}
        for run_id in sorted(unplaceable):
            self.count("run that no agent could take")
            self.go(self.insist(c.CancelRun(at=0, run_id=run_id, owner="o", reason="it cannot be placed")))

    def _told(self) -> str:
        leader = self.cluster.leader
        if leader is None:
            return "nobody leads"
        waiting = self.cluster.db.execute(_WAITING).fetchall()
        live = self.cluster.db.execute(
            "SELECT id, agent_id, state FROM attempt WHERE state IN ('queued', 'running')"
        ).fetchall()
        told = {task: explained.brief for task in waiting if (explained := leader.dispatch.explain(task))}
        return f"in {_SETTLE_S} s of peace nothing has ended; these wait: {told}; these live: {live}"

    def _all_is_over(self) -> None:
        live = self.cluster.db.execute("SELECT id FROM attempt WHERE state IN ('queued', 'running')").fetchall()
        open_tasks = self.cluster.db.execute(
            "SELECT run_id, name FROM task WHERE state IN ('pending', 'queued', 'running')"
        ).fetchall()
        if live or open_tasks:
            raise Violation("stuck", f"all runs have ended, but not {live} and {open_tasks}")
        self.count("run", self.cluster.db.execute("SELECT COUNT(*) FROM run").fetchone()[0])
