"""Lines: the tasks that wait, sorted so that what may be placed next is found without looking at the others.

A line holds tasks that are alike to the scheduler: of one owner, queue, priority and concurrency group, and with one
demand. The lines of one owner, queue and priority are a band: turns go from band to band, and within one to the oldest
task.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from pistage.core.changes import QueueSettings, WaitingTask

if TYPE_CHECKING:
    from pistage.core.schedule.shapes import Shape

#: A task's place in its line: its run's age, then its place in the run.
Place = tuple[int, str, int]
AGEING_MS: Final = 60_000  # a wait of this long is worth one point of priority
_GAP_MAX = 512


class Line:
    """Tasks in order of age. Taking the first, and adding a new last one, cost the same however long it is."""

    __slots__ = ("_gap", "_places", "band", "gate", "shape")

    def __init__(self, band: Band, shape: Shape, gate: Gate) -> None:
        self.band = band
        self.shape = shape
        self.gate = gate
        self._places: list[Place] = []
        self._gap = 0  # places at the front that are gone

    def __len__(self) -> int:
        return len(self._places) - self._gap

    @property
    def first(self) -> Place:
        """The oldest; there must be one."""
        return self._places[self._gap]

    def add(self, place: Place) -> None:
        if not self._places or place > self._places[-1]:
            self._places.append(place)
        else:
            insort(self._places, place, lo=self._gap)

    def remove(self, place: Place) -> None:
        at = bisect_left(self._places, place, lo=self._gap)
        if at == self._gap:
            self._gap += 1
            if self._gap > _GAP_MAX and 2 * self._gap > len(self._places):
                del self._places[: self._gap]
                self._gap = 0
        else:
            del self._places[at]

    def count_before(self, place: Place) -> int:
        """How many are older."""
        return bisect_left(self._places, place, lo=self._gap) - self._gap


@dataclass(frozen=True, slots=True)
class Gate:
    """What may hold a line up as a whole: how many runs of its group may run. `group` None: nothing."""

    group: str | None = None
    limit: int = 0
    is_begun: bool = False  # its tasks are of runs that hold their places already


@dataclass(slots=True)
class Band:
    """The lines of one owner, queue and priority."""

    queue: QueueSettings
    owner: str
    priority: int
    lines: dict[Shape, dict[Gate, Line]] = field(default_factory=dict)
    served_at: int = 0  # when a task of it was last placed, or the first one came

    def level(self, now: int) -> int:
        """How urgent it is: its priority, and a point for each `AGEING_MS` in which nothing of it was placed."""
        return self.queue.priority + self.priority + max(0, now - self.served_at) // AGEING_MS

    def all_lines(self) -> Iterator[Line]:
        """In no order."""
        for of_shape in self.lines.values():
            yield from of_shape.values()


@dataclass(slots=True)
class Gates:
    """Which runs hold places in groups and queues."""

    groups: dict[str, set[str]] = field(default_factory=dict)
    queues: dict[str, set[str]] = field(default_factory=dict)
    begun: dict[str, tuple[str, str | None]] = field(default_factory=dict)  # run -> its queue and group

    def hold(self, run_id: str, queue: str, group: str | None) -> None:
        self.begun[run_id] = (queue, group)
        self.queues.setdefault(queue, set()).add(run_id)
        if group is not None:
            self.groups.setdefault(group, set()).add(run_id)

    def release(self, run_id: str) -> tuple[str, str | None] | None:
        """The queue and group in which there is a place more; None if it held none."""
        held = self.begun.pop(run_id, None)
        if held is not None:
            for holders, key in ((self.queues, held[0]), (self.groups, held[1])):
                if key is not None:
                    holders[key].discard(run_id)
                    if not holders[key]:
                        del holders[key]
        return held

    def is_open(self, band: Band, gate: Gate) -> bool:
        """Whether a run that has not begun may begin."""
        if gate.is_begun:
            return True
        if gate.group is not None and len(self.groups.get(gate.group, ())) >= gate.limit:
            return False
        return band.queue.limit is None or len(self.queues.get(band.queue.name, ())) < band.queue.limit


def place_of(task: WaitingTask) -> Place:
    """Where the task stands in its line."""
    return task.created_at, task.run_id, task.position
