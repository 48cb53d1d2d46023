"""What goes wrong in a seed: how much of it, drawn once, and the nemesis that does it."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING

from pistage.master import losses
from tests.fleet.agents import Agent
from tests.fleet.jobs import an_agent

if TYPE_CHECKING:
    from tests.fleet.world import World


@dataclass(frozen=True, slots=True, kw_only=True)
class Mix:
    """Chances and paces of one world."""

    commit_s: float  # from a proposal to its commit, on average
    delay_s: float  # of a message to or from an agent
    slow_read: float
    clocks: float  # how many agents have clocks that run wrong
    work_s: float
    failure: float
    deeds_per_s: float  # of people
    operator: float
    faults_per_s: float
    weights: dict[str, float]


AGENT_FAULTS = ("crash", "crash without its disk", "process", "pause", "cut", "cut in", "cut out", "break", "leave")
FAULTS = (*AGENT_FAULTS, "join", "many", "leader", "stall")


def mix_of(rng: Random, agents: int) -> Mix:
    """Each fault is absent in a third of the seeds: some bugs hide behind others."""
    return Mix(
        commit_s=rng.choice((0.002, 0.01, 0.05, 0.3)),
        delay_s=rng.choice((0.001, 0.01, 0.1)),
        slow_read=rng.choice((0.0, 0.0, 0.02)),
        clocks=rng.choice((0.0, 0.5)),
        work_s=rng.choice((2.0, 8.0, 25.0)),
        failure=rng.choice((0.02, 0.2)),
        deeds_per_s=rng.choice((0.1, 0.3, 0.6)) * max(1, agents / 100),
        operator=rng.choice((0.0, 1.0, 3.0)),
        faults_per_s=rng.choice((0.0, 0.02, 0.05, 0.1)) * (1 + agents / 50),
        weights={fault: rng.random() if rng.random() < 0.67 else 0.0 for fault in FAULTS},
    )


class Nemesis:
    """Does one thing after the other, for as long as the storm lasts."""

    def __init__(self, world: World) -> None:
        self.world, self.rng = world, world.rng
        if world.mix.faults_per_s and any(world.mix.weights.values()):
            self._later()

    def _later(self) -> None:
        self.world.at(self.rng.expovariate(self.world.mix.faults_per_s), self._turn)

    def _turn(self) -> None:
        if not self.world.is_stormy:
            return
        (fault,) = self.rng.choices(FAULTS, weights=[self.world.mix.weights[fault] for fault in FAULTS])
        self.world.count(f"fault: {fault}")
        there = [agent for agent in self.world.agents.values() if not agent.is_gone]
        match fault:
            case "join":
                self.world.join(an_agent(self.rng, f"a{len(self.world.agents)}"))
            case "leader":
                self.world.cluster.depose(how=self.rng.choice(("crash", "cut off", "cut off", "hand over")))
            case "stall":
                self.world.cluster.stall(self.rng.uniform(0.2, 8.0))
                for agent in self.rng.sample(there, min(2, len(there))):  # in the middle of it, and not noticed
                    if agent.is_running:
                        agent.crash(keeps_journal=True)
                        self.world.at(0.1, self.world.boot, agent, agent.life)
            case "many":
                some = [agent for agent in there if self.rng.random() < 0.6]
                wait_s = self._outage_s()
                for agent in some:
                    self._cut(agent, wait_s, is_in=True, is_out=True)
            case _ if there:
                self._trouble(fault, self.rng.choice(there))
        self._later()

    def _outage_s(self) -> float:
        """Short, long, or just as long as it takes to be declared lost."""
        patience_s = losses.patience_s(self.world.lease_s)
        return self.rng.choice(
            (self.rng.uniform(0.5, 20), patience_s + self.rng.uniform(-2.0, 2.0), self.rng.uniform(30, 120))
        )

    def _trouble(self, fault: str, agent: Agent) -> None:
        world, wait_s = self.world, self._outage_s()
        match fault:
            case "crash" | "crash without its disk" if agent.is_running:
                agent.crash(keeps_journal=fault == "crash")
                self._back(agent, wait_s)
            case "process" if agent.is_running and not agent.is_paused:
                agent.die()
                world.at(wait_s, world.boot, agent, agent.life)
            case "pause" if agent.is_running and not agent.is_paused:
                agent.pause(wait_s)
            case "cut" | "cut in" | "cut out":
                self._cut(agent, wait_s, is_in=fault != "cut out", is_out=fault != "cut in")
            case "break":
                for link in list(agent.links):
                    link.break_off()
            case "leave" if agent.is_running:
                agent.leave(waits_s=wait_s)
                self._back(agent, wait_s + 30.0)

    def _back(self, agent: Agent, wait_s: float) -> None:
        """One in four is gone for good; another one in four comes back as another machine of that name."""
        lot = self.rng.random()
        if lot < 0.25:
            self.world.count("gone for good")
            agent.is_gone = True
            return
        if lot < 0.5:
            other = an_agent(self.rng, agent.id)
            self.world.at(wait_s, self._renewed, agent, other)
        self.world.at(wait_s, self.world.boot, agent, None)

    def _renewed(self, agent: Agent, other: object) -> None:
        if not agent.is_running:
            self.world.count("came back as another")
            agent.crash(keeps_journal=False)
            agent.info = other  # type: ignore[assignment]

    def _cut(self, agent: Agent, wait_s: float, *, is_in: bool, is_out: bool) -> None:
        until = self.world.now_s + wait_s
        agent.cut_in_until = until if is_in else agent.cut_in_until
        agent.cut_out_until = until if is_out else agent.cut_out_until
        self.world.at(wait_s + 0.001, agent.pump)
