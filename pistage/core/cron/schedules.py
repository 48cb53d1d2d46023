"""Schedules: when a definition is to be run by itself, and which of its times are to be decided now."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final
from zoneinfo import ZoneInfo

from pistage.core.cron.expressions import Cron
from pistage.core.cron.firing import last_between, next_after, times_between
from pistage.core.cron.parsing import parse_cron
from pistage.core.cron.zones import zone_named

#: A time that is no further back fires although it is not to be caught up: masters may have been electing a leader.
LATE_MS: Final = 60_000
#: Times that were missed are counted up to here; of more, nobody wants to know how many.
COUNTED_MAX: Final = 100
CAUGHT_UP_MAX: Final = 1_000
CAUGHT_UP_DEFAULT: Final = 100
WINDOW_DEFAULT_MS: Final = 24 * 3_600_000
WINDOW_MAX_MS: Final = 7 * 24 * 3_600_000
JITTER_MAX_MS: Final = 24 * 3_600_000


class Overlap(StrEnum):
    """What becomes of a time that comes while a run of the schedule is not over."""

    SKIP = "skip"  # it is passed over, and the schedule's history says so
    QUEUE = "queue"  # its run waits until the others are over
    CANCEL_OLD = "cancel-old"  # the others are cancelled, and it runs once they are gone


class CatchUp(StrEnum):
    """Which of the times fire that came while no master could start them."""

    NONE = "none"  # none, but for the last one where that was a moment ago
    LAST = "last"
    ALL = "all"


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """When, in which zone, and what then.

    Of what is caught up, at most `limit` times fire, the latest, and none that is further back than `window_ms`.
    Every time fires up to `jitter_ms` late, by an amount that is the schedule's own. `is_once`: it is paused after its
    first run. `parameters` are given to each run.
    """

    cron: str
    timezone: str = "UTC"
    overlap: Overlap = Overlap.SKIP
    catch_up: CatchUp = CatchUp.NONE
    limit: int = CAUGHT_UP_DEFAULT
    window_ms: int = WINDOW_DEFAULT_MS
    jitter_ms: int = 0
    is_once: bool = False
    is_enabled: bool = True
    parameters: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Missed:
    """Neighbouring times of a schedule that do not fire; `count` is None for more than COUNTED_MAX."""

    first: int
    last: int
    count: int | None


@dataclass(frozen=True, slots=True)
class Due:
    """What is to be decided now: times that were missed, then times that fire, in their order. Milliseconds UTC."""

    missed: Missed | None = None
    fires: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Timer:
    """A schedule's clockwork: its expression, read, and its own share of the jitter."""

    schedule: Schedule
    cron: Cron
    zone: ZoneInfo
    delay_ms: int

    @classmethod
    def of(cls, schedule: Schedule, share: float) -> Timer:
        """`share` of the jitter, from 0 to 1, is how late its times fire. CronError where nothing can be made of it."""
        delay_ms = int(schedule.jitter_ms * share)
        return cls(schedule, parse_cron(schedule.cron), zone_named(schedule.timezone), delay_ms)

    def next_due(self, decided_until: int) -> int | None:
        """When the first time after `decided_until` is to fire; None if there is none."""
        nominal = next_after(self.cron, self.zone, decided_until)
        return None if nominal is None else nominal + self.delay_ms

    def due(self, decided_until: int, now: int) -> Due:
        """What is to be decided of the times after `decided_until`, with all that are due by `now`."""
        until = now - self.delay_ms
        first = next_after(self.cron, self.zone, decided_until)
        if first is None or first > until:
            return Due()
        second = next_after(self.cron, self.zone, first)
        is_alone = second is None or second > until  # as nearly always
        last = first if is_alone else last_between(self.cron, self.zone, first, until)
        assert last is not None, "the first is not the last"
        fires: tuple[int, ...]
        match self.schedule.catch_up:
            case CatchUp.NONE:
                fires = (last,) if last >= until - LATE_MS else ()
            case CatchUp.LAST:
                fires = (last,) if last >= until - self.schedule.window_ms else ()
            case CatchUp.ALL:
                since = max(decided_until, until - self.schedule.window_ms - 1)
                fires = self._latest(since, last)
        if fires and fires[0] == first:
            return Due(fires=fires)
        return Due(self._missed(decided_until, fires[0] - 1 if fires else last), fires)

    def _latest(self, after: int, last: int) -> tuple[int, ...]:
        """The latest times after `after` and up to `last`, as many as may be caught up."""
        limit, span = self.schedule.limit, 60_000
        while True:
            since = max(after, last - span)
            times = times_between(self.cron, self.zone, since, last, WINDOW_MAX_MS // 1000 + 1)
            if len(times) >= limit or since == after:
                return tuple(deque(times, maxlen=limit))
            span *= 2

    def _missed(self, after: int, until: int) -> Missed:
        last = last_between(self.cron, self.zone, after, until)
        assert last is not None, "the first one does not fire"
        times = times_between(self.cron, self.zone, after, last, COUNTED_MAX + 1)
        return Missed(times[0], last, len(times) if len(times) <= COUNTED_MAX else None)
