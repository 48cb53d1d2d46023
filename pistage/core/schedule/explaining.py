"""Explanations: why a task waits, in words, for the whole and for each agent."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from pistage.core import demand as demands
from pistage.core.changes import TaskId, WaitingTask
from pistage.core.schedule.agents import Agent
from pistage.core.schedule.lines import Band, Line, place_of
from pistage.core.schedule.shapes import Shape
from pistage.core.schedule.view import Entry, View

_NAMED_MAX = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Obstacles:
    """What keeps a task from one agent now; nothing, if only its turn does."""

    agent_id: str
    agent: str
    reasons: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """Where a task stands: at which of how many places, as far as can be foreseen, and behind whose tasks."""

    place: int
    count: int
    behind: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """Why a task waits. `holds` keep it wherever it might go. `is_placeable` is false if no agent here could ever."""

    holds: tuple[str, ...]
    agents: tuple[Obstacles, ...]
    is_placeable: bool
    turn: Turn | None

    @property
    def brief(self) -> str:
        """In one line."""
        if self.holds:
            return "; ".join(self.holds)
        if not self.agents:
            return "no agent has registered"
        obstructed = [f"{one.agent}: {', '.join(one.reasons)}" for one in self.agents if one.reasons]
        if len(obstructed) < len(self.agents):
            return "its turn comes" if self.turn is None else _told(self.turn)
        more = len(obstructed) - _NAMED_MAX
        return "; ".join(obstructed[:_NAMED_MAX]) + (f"; and {more} more agents" if more > 0 else "")


def _told(turn: Turn) -> str:
    behind = f", behind tasks of {turn.behind}" if turn.behind is not None else ""
    return f"place {turn.place} of {turn.count} in the queue{behind}"


class Explainer:
    """Explanations from one view at one time. What many tasks have in common is looked at once."""

    def __init__(self, view: View, now: int) -> None:
        self._view = view
        self._now = now
        self._obstacles: dict[tuple[Shape, TaskId | None], tuple[tuple[Obstacles, ...], bool]] = {}
        # By its id; the band itself is kept, so that no other gets that id.
        self._standings: dict[int, tuple[Band, tuple[int, float, int]]] = {}

    def explain(self, task: TaskId) -> Explanation | None:
        """Why it waits; None if it does not, or has just got its place."""
        entry = self._view.entry(task)
        if entry is None:
            return None
        shape = self._view.shape_of(entry.task)
        is_kept_for = task in self._view.fleet.kept
        key = (shape, task if is_kept_for else None)
        if key not in self._obstacles:
            self._obstacles[key] = self._against(shape, task if is_kept_for else None)
        agents, is_placeable = self._obstacles[key]
        return Explanation(
            holds=tuple(self._holds(entry)), agents=agents, is_placeable=is_placeable, turn=self._turn(entry)
        )  # fmt: skip

    def _against(self, shape: Shape, task: TaskId | None) -> tuple[tuple[Obstacles, ...], bool]:
        found, is_placeable = [], False
        for agent in sorted(self._view.fleet.agents.values(), key=lambda agent: (agent.info.name, agent.info.id)):
            reasons = tuple(self._reasons(shape, agent, task))
            found.append(Obstacles(agent_id=agent.info.id, agent=agent.info.name, reasons=reasons))
            is_placeable |= agent.is_up and shape.suits(agent)
        return tuple(found), is_placeable

    @staticmethod
    def _reasons(shape: Shape, agent: Agent, task: TaskId | None) -> list[str]:
        misfits = list(demands.misfits(shape.demand, agent.info))
        if misfits:
            return misfits
        if shape.pin is not None and shape.pin != agent.info.id:
            return ["another agent has this run's networks and volumes"]
        return list(agent.obstacles(shape.demand.resources, task))

    def _holds(self, entry: Entry) -> list[str]:
        task, line = entry.task, entry.line
        if line is None:
            return [f"it waits {max(0.0, (task.ready_at - self._now) / 1000):.1f} s before its next try"]
        if self._view.gates.is_open(line.band, line.gate):
            return []
        return list(self._closed(task, line))

    def _closed(self, task: WaitingTask, line: Line) -> list[str]:
        gates, queue = self._view.gates, line.band.queue
        holds = []
        if task.group is not None and len(runs := gates.groups.get(task.group, set())) >= task.group_limit:
            group = task.group.partition("/")[2]
            holds.append(f"concurrency group {group}: {len(runs)} of {task.group_limit} running ({_named(runs)})")
        if queue.limit is not None and len(runs := gates.queues.get(queue.name, set())) >= queue.limit:
            holds.append(f"queue {queue.name}: {len(runs)} of {queue.limit} runs running ({_named(runs)})")
        return holds

    def _turn(self, entry: Entry) -> Turn | None:
        line = entry.line
        if line is None:
            return None
        own, ahead, total = line.band, Counter[str](), 0
        level, share, _ = self._standing_of(own)
        place = place_of(entry.task)
        before = sum(other.count_before(place) for other in own.all_lines())
        for band in self._view.bands.values():
            other_level, other_share, length = self._standing_of(band)
            total += length
            if band is own:
                continue
            if other_level > level:
                ahead[band.owner] += length
            elif other_level == level:  # they take turns
                ahead[band.owner] += min(length, before + (other_share < share))
        most = ahead.most_common(1)
        behind = most[0][0] if most and most[0][1] > before else (own.owner if before else None)
        place_now = before + ahead.total() + 1
        # It may have come since they were counted.
        return Turn(place=place_now, count=max(total, place_now), behind=behind)

    def _standing_of(self, band: Band) -> tuple[int, float, int]:
        """The level of the band, the share of its owner, and how many tasks wait in it; also of one that is new."""
        known = self._standings.get(id(band))
        if known is None:
            share, count = self._view.fleet.share_of(band.owner), sum(map(len, band.all_lines()))
            known = self._standings[id(band)] = band, (band.level(self._now), share, count)
        return known[1]


def _named(runs: set[str]) -> str:
    some = sorted(runs)[:_NAMED_MAX]
    return ", ".join(some) + (", …" if len(runs) > len(some) else "")
