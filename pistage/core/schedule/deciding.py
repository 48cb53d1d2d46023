"""The decision: which waiting task goes to which agent now, and who has waited for too long.

Order. Bands take turns: first the most urgent (`Band.level`: priority of queue and run, and a point for each minute in
which a band got nothing, so that none starves); among equals the owner who has reserved the smallest share of what
there is; then the band whose first task is oldest. Within a band the oldest run is served first. A task that finds no
agent with room is passed over, so that small ones fill what large ones leave; one that has been passed over for
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

AGEING_MS: Final = 60_000  # a wait of this long is worth one point of priority
KEEP_AFTER_MS: Final = 5 * 60_000
_KEEP_LOOK_EVERY_MS = 5_000
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
    while len(placements) < most and (line := turns.next()) is not None:
        entry = view.entry(line.first[1:])
        assert entry is not None, "who stands in a line waits"
        agent = line.shape.best(view.fleet.agents, view.fleet.moves, line.band.queue.placing, entry.task.tried_on)
        if agent is None:
            line.shape.is_blocked = True
            continue
        placements.append(_placed(view, entry, agent, now))
        turns.served(line)
    return Decision(
        placements=tuple(placements), expired=tuple(expired), wake_at=view.next_at, is_more=bool(view.due)
    )  # fmt: skip


def _placed(view: View, entry: Entry, agent: Agent, now: int) -> Placement:
    task = entry.task
    view.place(entry, agent, now)
    return Placement(
        run_id=task.run_id, position=task.position, task=task.name, agent_id=agent.info.id, agent_epoch=agent.epoch
    )


class _Turns:
    """Whose turn it is: the bands that have something due, and in each its lines."""

    def __init__(self, view: View, now: int) -> None:
        self._view = view
        self._now = now
        self._lines: dict[int, list[tuple[Place, int, Line]]] = {}  # by the identity of the band
        self._bands: list[tuple[int, float, Place, int, Band]] = []
        self._count = 0
        for line in view.due:
            band = id(line.band)
            self._lines.setdefault(band, []).append((line.first, self._next(), line))
        for lines in self._lines.values():
            heapify(lines)
            self._bands.append(self._turn_of(lines[0][2].band, lines[0][0]))
        heapify(self._bands)
        self._known = dict.fromkeys(view.due)

    def next(self) -> Line | None:
        """The line whose first task is to be placed now; None if none is due."""
        self._join_new_ones()
        while self._bands:
            *_, band = self._bands[0]
            lines = self._lines[id(band)]
            self._drop_what_is_not_due(lines)
            if not lines:
                heappop(self._bands)
                continue
            turn = self._turn_of(band, lines[0][0])
            if turn[:3] > self._bands[0][:3]:  # others are served before it by now
                heapreplace(self._bands, turn)
                continue
            return lines[0][2]
        return None

    def served(self, line: Line) -> None:
        """Its first task has a place; what comes next in it stands in another place of the order."""
        if line in self._view.due:
            heapreplace(self._lines[id(line.band)], (line.first, self._next(), line))

    def _drop_what_is_not_due(self, lines: list[tuple[Place, int, Line]]) -> None:
        """Until the first of the band's lines is one whose first task may find a place."""
        due = self._view.due
        while lines:
            place, _, line = lines[0]
            if line not in due:
                heappop(lines)
            elif line.shape.is_blocked or not self._view.gates.is_open(line.band, line.gate):
                heappop(lines)
                del due[line]
            elif line.first != place:  # who stood there stands in another line by now
                heapreplace(lines, (line.first, self._next(), line))
            else:
                return

    def _turn_of(self, band: Band, first: Place) -> tuple[int, float, Place, int, Band]:
        entry = self._view.entry(first[1:])
        since = self._now if entry is None else entry.task.ready_at
        level = band.level(since, self._now, AGEING_MS)
        return -level, self._view.fleet.share_of(band.owner), first, self._next(), band

    def _join_new_ones(self) -> None:
        """Lines that became due by a decision: the rest of a run that has begun, of a gang that has an agent."""
        if len(self._view.due) <= len(self._known) and self._view.due.keys() <= self._known.keys():
            return
        for line in self._view.due.keys() - self._known.keys():
            self._known[line] = None
            lines = self._lines.setdefault(id(line.band), [])
            heappush(lines, (line.first, self._next(), line))
            heappush(self._bands, self._turn_of(line.band, lines[0][0]))

    def _next(self) -> int:
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
        if agent_id not in shape.eligible or not view.gates.is_open(entry.line.band, entry.line.gate):
            view.fleet.unkeep(task)
        elif agent.has_room(shape.demand.resources):
            placements.append(_placed(view, entry, agent, now))
    return placements


def _keep_for_the_starving(view: View, now: int) -> None:
    """Give those who have been passed over for long an agent that nobody else is placed on."""
    left = max(1, len(view.fleet.agents) // 4) - len(view.fleet.kept)
    firsts = (view.entry(line.first[1:]) for shape in view.shapes() if shape.is_blocked for line in shape.lines)
    starving = [entry for entry in firsts if entry is not None and now - entry.task.ready_at >= KEEP_AFTER_MS]
    for entry in sorted(starving, key=lambda entry: (entry.task.ready_at, entry.task.id)):
        if left <= 0:
            return
        line = entry.line
        if line is None or entry.task.id in view.fleet.kept or not view.gates.is_open(line.band, line.gate):
            continue
        takers = [view.fleet.agents[agent_id] for agent_id in line.shape.eligible]
        takers = [agent for agent in takers if agent.takes_work and agent.kept_for is None]
        if takers:
            want = line.shape.demand.resources
            view.fleet.keep(entry.task.id, min(takers, key=lambda agent: agent.score(want, "spread")))
            left -= 1
