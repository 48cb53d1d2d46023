"""Firing: the instants at which an expression fires in a time zone, through clock changes.

An instant is nominal: what the expression says, whatever was late. It names the slot of a schedule, so every rule
here gives each slot one instant, and never the same instant twice.

What becomes of a time that the clocks skip or show twice depends on the expression, as in Debian's cron (cron(8),
"Local time changes"; `find_jobs` of its cron.c; cronsim does the same):

- A *fixed* one has neither a minute nor an hour field that begins with `*`: `30 2 * * *`, `0,30 1-3 * * *`, and also
  `0 0-23 * * *`. A time that does not exist fires at the change, the first instant after the gap; several such times,
  and one that the expression names for that instant, fire once. A time that exists twice fires the first time.
- A *wildcard* one has: `* * * * *`, `*/5 * * * *`, `0 */2 * * *`, `@hourly`, and also `*/10 2 * * *`. It fires whenever
  the clocks show a time of its own: in both copies of a repeated hour, and not in an hour that is skipped. So what is
  due every ten minutes is due every ten minutes of real time, but `*/10 2 * * *` misses the day on which 2 o'clock
  does; write `0-59/10 2 * * *` to have it fixed.

Debian asks the minute and the hour only, so a star in the seconds changes nothing. In Quartz `0/5` and `/5` mean what
`*/5` means, and count as it. Debian holds to this for changes of less than three hours; here it holds for all, so what
was due on the day that Samoa left out (30 December 2011) fires once, when that day would have ended.
"""

from __future__ import annotations

from zoneinfo import ZoneInfo

from pistage.core.cron.expressions import YEAR_LAST, Cron
from pistage.core.cron.nominal import at_or_after
from pistage.core.cron.zones import change_between, first_shown, furthest_shown, offset_at

#: How far a clock change is looked for: more than the widest is wide, less than two are apart.
_LOOK_S = 2 * 86_400
#: Instants outside of these are not reckoned with: nothing fires before 1970, and past 2199 nothing is left.
_AT_S_MIN, _AT_S_MAX = -1, (YEAR_LAST - 1969) * 366 * 86_400


def next_after(cron: Cron, zone: ZoneInfo, after_ms: int) -> int | None:
    """The first instant strictly after `after_ms` at which the expression fires; both milliseconds UTC.

    None when there is none in its years, or before 2200. Some microseconds; for days that come once in decades, tens.
    """
    after_s = max(after_ms // 1000, _AT_S_MIN)
    if after_s > _AT_S_MAX:
        return None
    due = _next_wildcard(cron, zone, after_s) if cron.is_wildcard else _next_fixed(cron, zone, after_s)
    return None if due is None else due * 1000


def times_between(cron: Cron, zone: ZoneInfo, after_ms: int, until_ms: int, limit: int) -> tuple[int, ...]:
    """The first `limit` instants after `after_ms` and not after `until_ms`, in their order."""
    times: list[int] = []
    due = next_after(cron, zone, after_ms)
    while due is not None and due <= until_ms and len(times) < limit:
        times.append(due)
        due = next_after(cron, zone, due)
    return tuple(times)


def last_between(cron: Cron, zone: ZoneInfo, after_ms: int, until_ms: int) -> int | None:
    """The last instant after `after_ms` and not after `until_ms`, without counting those before it.

    As costly as some forty of `next_after`, however many instants there are.
    """
    last = next_after(cron, zone, after_ms)
    if last is None or last > until_ms:
        return None
    # From any instant before the last one, the next one is in time; from the last one on, it is not.
    low, high = last, until_ms + 1
    while high - low > 1:
        middle = (low + high) // 2
        due = next_after(cron, zone, middle)
        if due is None or due > until_ms:
            high = middle
        else:
            last = low = due
    return last


def _next_fixed(cron: Cron, zone: ZoneInfo, after_s: int) -> int | None:
    """A local time fires when the clocks first show it or a later one; what they have shown once is over."""
    local = at_or_after(cron, furthest_shown(zone, after_s) + 1)
    return None if local is None else first_shown(zone, local)


def _next_wildcard(cron: Cron, zone: ZoneInfo, after_s: int) -> int | None:
    """A local time fires whenever the clocks show it, so the search begins again where they change."""
    at = after_s
    offset = offset_at(zone, at)
    local = at_or_after(cron, at + offset + 1)
    while local is not None:
        due = local - offset
        change = change_between(zone, at, min(due, at + _LOOK_S))
        if change is not None:
            at = change
            offset = offset_at(zone, at)
            local = at_or_after(cron, at + offset)
        elif due <= at + _LOOK_S:
            return due
        else:
            # Far off. Until shortly before it the clocks show only times that are not asked for, changes or not.
            at = due - _LOOK_S
            offset = offset_at(zone, at)
    return None
