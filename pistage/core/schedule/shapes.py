"""Shapes: tasks alike in what they ask of an agent, and for each the agents that could take one, the best in front."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush, heapreplace
from itertools import islice
from typing import TYPE_CHECKING

from pistage.core import demand as demands
from pistage.core.changes import Placing
from pistage.core.demand import Demand
from pistage.core.schedule.agents import Agent, Score
from pistage.core.schedule.lines import Line

if TYPE_CHECKING:
    from pistage.core.schedule.fleet import Fleet

_MOVES_KEPT = 4_096
_IDLE_MAX = 1_000
_CHECKS_AT_ONCE = 20_000  # whether an agent has room for a shape; some ten milliseconds
_CHECKS_IN_A_ROW = 32


class Moves:
    """Agents whose place in a ranking may have become better, in order; who was away for too long begins anew."""

    def __init__(self) -> None:
        self._agents: list[str] = []
        self._begin = 0  # how many came before those

    @property
    def end(self) -> int:
        """How many there have been."""
        return self._begin + len(self._agents)

    def add(self, agent_id: str) -> None:
        self._agents.append(agent_id)
        if len(self._agents) >= 2 * _MOVES_KEPT:
            del self._agents[:_MOVES_KEPT]
            self._begin += _MOVES_KEPT

    def since(self, end: int) -> list[str] | None:
        """Those after the first `end`, each once; None if they are not known any more."""
        return None if end < self._begin else list(dict.fromkeys(self._agents[end - self._begin :]))


@dataclass(slots=True)
class _Ranking:
    """The agents that have room for a shape now, the best first.

    An entry may promise more than its agent holds by now, which is seen when it comes to the front; never less.
    """

    heap: list[tuple[Score, int, str]] = field(default_factory=list)
    latest: dict[str, int] = field(default_factory=dict)  # by agent, the number of the entry that counts
    read: int = -1  # of the moves


class Kind:
    """What an agent must be, its size aside: who is, is looked up once for all shapes of the kind."""

    __slots__ = ("__weakref__", "_demand", "agents")

    def __init__(self, demand: Demand, agents: Iterable[Agent]) -> None:
        self._demand = demand
        self.agents: set[str] = set()
        for agent in agents:
            self.consider(agent)

    def consider(self, agent: Agent) -> None:
        """The agent is new, or another than it was."""
        if next(demands.mismatches(self._demand, agent.info), None) is None:
            self.agents.add(agent.info.id)
        else:
            self.agents.discard(agent.info.id)


@dataclass(slots=True, eq=False)
class Shape:
    """One demand, and for the tasks of a gang that has chosen its agent, that agent (`pin`)."""

    demand: Demand
    kind: Kind
    pin: str | None
    lines: dict[Line, None] = field(default_factory=dict)
    is_blocked: bool = False  # no agent has room for a task of it, and none has got more since that was found
    _rankings: dict[Placing, _Ranking] = field(default_factory=dict)

    def suits(self, agent: Agent) -> bool:
        """Whether a task of it could ever be placed there, were there nothing else."""
        return (
            (self.pin is None or self.pin == agent.info.id)
            and agent.info.id in self.kind.agents
            and demands.is_large_enough(self.demand, agent.info.capacity)
        )

    def fits(self, agent: Agent) -> bool:
        """Whether a task of it could be placed there now."""
        return (
            agent.takes_work and agent.kept_for is None and agent.has_room(self.demand.resources) and self.suits(agent)
        )

    def block(self) -> None:
        """No agent has room for a task of it: who has some day will have moved by then."""
        self.is_blocked = True
        for ranking in self._rankings.values():
            ranking.heap.clear()
            ranking.latest.clear()

    def best(self, fleet: Fleet, placing: Placing, avoided: Collection[str]) -> Agent | None:
        """The best agent that has room now; one of the `avoided` only where there is no other."""
        ranking = self._ranking(fleet, placing)
        heap, want = ranking.heap, self.demand.resources
        passed: list[tuple[Score, int, str]] = []
        found: Agent | None = None
        while heap and found is None:
            score, number, agent_id = heap[0]
            agent = fleet.agents.get(agent_id)
            if ranking.latest.get(agent_id) != number or agent is None or not self.fits(agent):
                heappop(heap)
            elif (now := agent.score(want, placing)) != score:
                heapreplace(heap, (now, number, agent_id))
            elif agent_id in avoided:
                passed.append(heappop(heap))
            else:
                found = agent
        for entry in passed:
            heappush(heap, entry)
        return fleet.agents[passed[0][2]] if found is None and passed else found

    def _ranking(self, fleet: Fleet, placing: Placing) -> _Ranking:
        ranking = self._rankings.setdefault(placing, _Ranking())
        want, moves = self.demand.resources, fleet.moves_for(placing)
        moved = moves.since(ranking.read)
        if moved is None:
            fleet.ranked += 1
            candidates = self.kind.agents if self.pin is None else self.kind.agents & {self.pin}
            fitting = (fleet.agents[agent_id] for agent_id in candidates)
            ranking.heap = [(one.score(want, placing), 0, one.info.id) for one in fitting if self.fits(one)]
            heapify(ranking.heap)
            ranking.latest = dict.fromkeys((agent_id for _, _, agent_id in ranking.heap), 0)
        else:
            for agent_id in moved:
                agent = fleet.agents.get(agent_id)
                if agent is not None and self.fits(agent):
                    number = ranking.latest.get(agent_id, 0) + 1
                    ranking.latest[agent_id] = number
                    heappush(ranking.heap, (agent.score(want, placing), number, agent_id))
        ranking.read = moves.end
        return ranking


class Shapes:
    """Every shape, also those of which no task waits now: the next task is often like one before."""

    def __init__(self) -> None:
        self._shapes: dict[tuple[str, str | None], Shape] = {}
        self._most = _IDLE_MAX
        self._sweep: Iterator[Shape | None] = iter(())
        self._is_swept = True

    def __iter__(self) -> Iterator[Shape]:
        return iter(self._shapes.values())

    def of(self, demand: str, pin: str | None, fleet: Fleet) -> Shape:
        """The shape of a demand in JSON."""
        shape = self._shapes.get((demand, pin))
        if shape is None:
            if len(self._shapes) >= self._most:
                self._shapes = {key: shape for key, shape in self._shapes.items() if shape.lines}
                self._most = max(_IDLE_MAX, 2 * len(self._shapes))
            asked = demands.read(demand)
            shape = self._shapes[demand, pin] = Shape(asked, fleet.kind_of(asked), pin)
        return shape

    def which_may_fit(self, fleet: Fleet) -> Iterator[Shape]:
        """Blocked ones for which an agent has got room; not all at once, see `is_swept`."""
        if self._is_swept and fleet.has_grown:
            self._sweep, self._is_swept = self._sweeping(fleet.grown()), False
        for shape in islice(self._sweep, _CHECKS_AT_ONCE // _CHECKS_IN_A_ROW):
            if shape is not None:
                yield shape

    def is_swept(self, fleet: Fleet) -> bool:
        """Whether no agent has got room that was not looked at yet."""
        return self._is_swept and not fleet.has_grown

    def _sweeping(self, grown: Sequence[Agent]) -> Iterator[Shape | None]:
        """A step a shape and a few agents: None where none of those has room."""
        for begin in range(0, len(grown), _CHECKS_IN_A_ROW):
            some = grown[begin : begin + _CHECKS_IN_A_ROW]
            for shape in list(self._shapes.values()):
                if shape.is_blocked:  # one that nobody waits for is tried anew: who has got room by then is forgotten
                    yield shape if not shape.lines or any(shape.fits(agent) for agent in some) else None
        self._is_swept = True
