"""The decision: which waiting task goes to which agent now, and who has waited for too long.

Order. Bands take turns: first the most urgent (`Band.level`: priority of queue and run, and a point for each minute in
which a band got nothing, so that none starves); among equals the owner who has reserved the smallest share of what
there is; then the band that was not served for longest. Within a band the oldest run is served first. A task that finds
no agent with room is passed over, so that small ones fill what large ones leave; one that has been passed over for
`KEEP_AFTER_MS` gets an agent kept free for it, until it fits.
"""

from __future__ import annotations

from dataclasses import dataclass
from heapq import heapify, heappop, heappush, heapreplace
from typing import Final

from pistage.core.changes import TaskId
from pistage.core.schedule.agents import Agent
from pistage.core.schedule.lines import Band, Line, Place
from pistage.core.schedule.view import Entry, View

KEEP_AFTER_MS: Final = 5 * 60_000
_KEEP_LOOK_EVERY_MS = 5_000
_RANKED_AT_ONCE_MAX = 32  # shapes for which every agent is looked at: a millisecond each where there are a thousand
PLACED_AT_ONCE_MAX: Final = 256  # they become one entry of the log


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Assign this task to this agent, in this epoch."""

    run_id: str
    position: int
    task: str
    agent_id: str
    agent_epoch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What to do now. `expired` have waited for too long; `wake_at` is when time alone will change something.

    With `is_more` there are places and tasks left: decide again.
    """

    placements: tuple[Placement, ...] = ()
    expired: tuple[TaskId, ...] = ()
    wake_at: int | None = None
    is_more: bool = False


def decide(view: View, now: int, *, most: int = PLACED_AT_ONCE_MAX) -> Decision:
    """Place what can be placed at `now` (milliseconds UTC), at most so many.

    The view counts each placement as made: `View.take` confirms it once it is committed, `View.give_back` undoes it.
    What this costs follows what has changed since the last decision, not what waits.
    """
    expired = view.advance(now)
    placements = _served_kept(view, now)
    if now >= view.keeping_due:
        view.keeping_due = now + _KEEP_LOOK_EVERY_MS
        _keep_for_the_starving(view, now)
    turns = _Turns(view, now)
    ranked_max = view.fleet.ranked + _RANKED_AT_ONCE_MAX
    while len(placements) < most and view.fleet.ranked < ranked_max and (line := turns.next()) is not None:
        entry = view.entry(line.first[1:])
        assert entry is not None, "who stands in a line waits"
        agent = line.shape.best(view.fleet, line.band.queue.placing, entry.task.tried_on)
        if agent is None:
            line.shape.block()
        else:
            placements.append(_placed(view, entry, agent, now))
    is_more = turns.next() is not None
    if not is_more:
        view.due.clear()
    is_more |= not view.shapes.is_swept(view.fleet)
    return Decision(
        placements=tuple(placements), expired=tuple(expired), wake_at=view.next_at, is_more=is_more
    )  # fmt: skip


def _placed(view: View, entry: Entry, agent: Agent, now: int) -> Placement:
    task = entry.task
    view.place(entry, agent, now)
    return Placement(
        run_id=task.run_id, position=task.position, task=task.name, agent_id=agent.info.id, agent_epoch=agent.epoch
    )


class _Turns:
    """Whose turn it is. The lines of a band are looked at when its turn comes, which for most it does not."""

    def __init__(self, view: View, now: int) -> None:
        self._view = view
        self._now = now
        self._lines: dict[int, list[tuple[Place, int, Line]]] = {}  # by the identity of the band
        self._count = 0
        view.joined.clear()
        bands = (band for band in view.bands.values() if band.lines) if view.due else ()
        self._bands = [(*self._turn_of(band), self._next_number(), band) for band in bands]
        heapify(self._bands)

    def next(self) -> Line | None:
        """The line whose first task is to be placed now; None if there is none."""
        self._join_new_ones()
        while self._bands:
            *said, _, band = self._bands[0]
            turn = self._turn_of(band)
            if turn > tuple(said):  # others come before it by now
                heapreplace(self._bands, (*turn, self._next_number(), band))
                continue
            line = self._first_of(band)
            if line is not None:
                return line
            heappop(self._bands)
        return None

    def _turn_of(self, band: Band) -> tuple[int, float, int]:
        return -band.level(self._now), self._view.fleet.share_of(band.owner), band.served_at

    def _first_of(self, band: Band) -> Line | None:
        """The line of the band with the oldest task that may find a place."""
        lines = self._lines.get(id(band))
        if lines is None:
            lines = self._lines[id(band)] = self._due_in(band)
        while lines:
            place, _, line = lines[0]
            if not line or line.shape.is_blocked or not self._view.gates.is_open(band, line.gate):
                heappop(lines)
            elif line.first != place:  # who stood there has a place, or stands in another line by now
                heapreplace(lines, (line.first, self._next_number(), line))
            else:
                return line
        return None

    def _due_in(self, band: Band) -> list[tuple[Place, int, Line]]:
        due = self._view.due
        shapes = due if len(due) < len(band.lines) else band.lines
        found = [
            (line.first, self._next_number(), line)
            for shape in shapes
            if shape in due and not shape.is_blocked
            for line in band.lines.get(shape, {}).values()
        ]
        heapify(found)
        return found

    def _join_new_ones(self) -> None:
        """Lines that came to be by a decision: the rest of a run that has begun, of a gang that has an agent."""
        for line in self._view.joined:
            lines = self._lines.get(id(line.band))
            if lines is not None and line:
                heappush(lines, (line.first, self._next_number(), line))
            heappush(self._bands, (*self._turn_of(line.band), self._next_number(), line.band))
        self._view.joined.clear()

    def _next_number(self) -> int:
        self._count += 1
        return self._count


def _served_kept(view: View, now: int) -> list[Placement]:
    placements = []
    for task, agent_id in list(view.fleet.kept.items()):
        entry, agent = view.entry(task), view.fleet.agents.get(agent_id)
        if entry is None or entry.line is None or agent is None or not agent.takes_work:
            view.fleet.unkeep(task)
            continue
        shape = view.shape_of(entry.task)
        if not shape.suits(agent) or not view.gates.is_open(entry.line.band, entry.line.gate):
            view.fleet.unkeep(task)
        elif agent.has_room(shape.demand.resources):
            placements.append(_placed(view, entry, agent, now))
    return placements


def _keep_for_the_starving(view: View, now: int) -> None:
    """Give those who have been passed over for long an agent that nobody else is placed on."""
    left = max(1, len(view.fleet.agents) // 4) - len(view.fleet.kept)
    firsts = (view.entry(line.first[1:]) for shape in view.shapes if shape.is_blocked for line in shape.lines)
    starving = [entry for entry in firsts if entry is not None and now - entry.task.ready_at >= KEEP_AFTER_MS]
    for entry in sorted(starving, key=lambda entry: (entry.task.ready_at, entry.task.id)):
        if left <= 0:
            return
        line = entry.line
        if line is None or entry.task.id in view.fleet.kept or not view.gates.is_open(line.band, line.gate):
            continue
        agents = (agent for agent in view.fleet.agents.values() if agent.takes_work and agent.kept_for is None)
        takers = [agent for agent in agents if line.shape.suits(agent)]
        if takers:
            want = line.shape.demand.resources
            view.fleet.keep(entry.task.id, min(takers, key=lambda agent: agent.score(want, "spread")))
            left -= 1
