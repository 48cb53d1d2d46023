"""Shapes: tasks alike in what they ask of an agent, and for each the agents that could take one, the best in front."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush

from pistage.core import demand as demands
from pistage.core.changes import Placing
from pistage.core.demand import Demand
from pistage.core.schedule.agents import Agent, Score
from pistage.core.schedule.lines import Line

_MOVES_MAX = 8_192


class Moves:
    """Which agents have more or less room than before, in order; whoever read it once reads what came since."""

    def __init__(self) -> None:
        self.agents: list[str] = []
        self.age = 0  # how often it was begun anew

    def add(self, agent_id: str) -> None:
        self.agents.append(agent_id)
        if len(self.agents) > _MOVES_MAX:
            self.agents.clear()
            self.age += 1


@dataclass(slots=True)
class _Ranking:
    """The agents that have room for a shape now, the best first. An entry that is out of date is dropped when met."""

    heap: list[tuple[Score, int, str]] = field(default_factory=list)
    latest: dict[str, int] = field(default_factory=dict)
    read: int = 0  # of the moves
    age: int = -1


@dataclass(slots=True, eq=False)
class Shape:
    """One demand, and for the tasks of a gang that has chosen its agent, that agent (`pin`)."""

    demand: Demand
    pin: str | None
    eligible: set[str] = field(default_factory=set)  # agents that are large enough and labelled as asked
    lines: dict[Line, None] = field(default_factory=dict)
    is_blocked: bool = False  # no agent has room for a task of it, and none has got more since that was found
    _rankings: dict[Placing, _Ranking] = field(default_factory=dict)

    def consider(self, agent: Agent) -> None:
        """The agent is new, or another than it was."""
        is_pinned_elsewhere = self.pin is not None and self.pin != agent.info.id
        if not is_pinned_elsewhere and next(demands.misfits(self.demand, agent.info), None) is None:
            self.eligible.add(agent.info.id)
        else:
            self.eligible.discard(agent.info.id)

    def forget(self, agent_id: str) -> None:
        self.eligible.discard(agent_id)

    def fits(self, agent: Agent) -> bool:
        """Whether a task of it could be placed there now."""
        return (
            agent.info.id in self.eligible
            and agent.takes_work
            and agent.kept_for is None
            and agent.has_room(self.demand.resources)
        )

    def best(
        self, agents: Mapping[str, Agent], moves: Moves, placing: Placing, avoided: Collection[str]
    ) -> Agent | None:
        """The best agent that has room now; one of the `avoided` only where there is no other."""
        ranking = self._ranking(agents, moves, placing)
        passed: list[tuple[Score, int, str]] = []
        found: Agent | None = None
        while ranking.heap and found is None:
            entry = ranking.heap[0]
            agent = agents.get(entry[2])
            if ranking.latest.get(entry[2]) != entry[1] or agent is None or not self.fits(agent):
                heappop(ranking.heap)
            elif entry[2] in avoided:
                passed.append(heappop(ranking.heap))
            else:
                found = agent
        for entry in passed:
            heappush(ranking.heap, entry)
        return agents[passed[0][2]] if found is None and passed else found

    def _ranking(self, agents: Mapping[str, Agent], moves: Moves, placing: Placing) -> _Ranking:
        ranking = self._rankings.setdefault(placing, _Ranking())
        want = self.demand.resources
        if ranking.age != moves.age:
            fitting = (agents[agent_id] for agent_id in self.eligible)
            ranking.heap = [(one.score(want, placing), 0, one.info.id) for one in fitting if self.fits(one)]
            heapify(ranking.heap)
            ranking.latest = {agent_id: 0 for _, _, agent_id in ranking.heap}
            ranking.age = moves.age
        else:
            for agent_id in dict.fromkeys(moves.agents[ranking.read :]):
                agent = agents.get(agent_id)
                if agent is not None and self.fits(agent):
                    number = ranking.latest.get(agent_id, 0) + 1
                    ranking.latest[agent_id] = number
                    heappush(ranking.heap, (agent.score(want, placing), number, agent_id))
        ranking.read = len(moves.agents)
        return ranking
