"""Naive: cron as a daemon does it, minute by minute, to compare with. It shares nothing with what it is compared to.

Debian's rule as cron.c has it: what has a star in the minute or the hour runs when the clock shows its time; the rest
runs once for every minute that the clock has not shown before, all skipped ones at the change.
"""

import itertools
import random
from collections import defaultdict
from collections.abc import Iterable
from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

MONTHS = ["JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC"]
WEEKDAYS = ["SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT"]
MINUTE = timedelta(minutes=1)


def values(field: str, least: int, most: int, names: tuple[str, ...] = ()) -> set[int]:
    """The values of a five-field crontab's field."""

    def value(word: str) -> int:
        return names.index(word.upper()) + least if word.upper() in names else int(word)

    found: set[int] = set()
    for term in field.split(","):
        base, _, step = term.partition("/")
        if base == "*":
            span = range(least, most + 1)
        elif "-" in base:
            span = range(value(base.split("-")[0]), value(base.split("-")[1]) + 1)
        else:
            span = range(value(base), (most if step else value(base)) + 1)
        found.update(span[:: int(step or 1)])
    return found


class Line:
    """A crontab of five fields."""

    def __init__(self, text: str) -> None:
        self.text = text
        minute, hour, day, month, weekday = text.split()
        self.times = {(h, m) for h in values(hour, 0, 23) for m in values(minute, 0, 59)}
        self.is_wild = minute[0] == "*" or hour[0] == "*"
        self.days, self.months = values(day, 1, 31), values(month, 1, 12, tuple(MONTHS))
        self.weekdays = {w % 7 for w in values(weekday, 0, 7, tuple(WEEKDAYS))}
        self.both = day[0] == "*" or weekday[0] == "*"

    def is_on(self, day: date) -> bool:
        by_day, by_weekday = day.day in self.days, day.isoweekday() % 7 in self.weekdays
        return day.month in self.months and (by_day and by_weekday if self.both else by_day or by_weekday)


def walk(texts: Iterable[str], zone: ZoneInfo, start: datetime, end: datetime) -> dict[str, list[int]]:
    """For each crontab every instant (ms) from `start` to before `end`, found by looking at every minute of them.

    `start` must not lie in a repeated hour.
    """
    lines = [Line(text) for text in texts]
    fired: dict[str, list[int]] = {line.text: [] for line in lines}
    wild: dict[tuple[int, int], list[Line]] = defaultdict(list)
    fixed: dict[tuple[int, int], list[Line]] = defaultdict(list)
    for line in lines:
        for time in line.times:
            (wild if line.is_wild else fixed)[time].append(line)
    first, last = int(start.timestamp()) // 60, int(end.timestamp()) // 60
    seen = datetime.fromtimestamp(first * 60 - 60, zone).replace(tzinfo=None, fold=0)
    for minute in range(first, last):
        shown = datetime.fromtimestamp(minute * 60, zone).replace(tzinfo=None, fold=0)
        due = [line for line in wild[(shown.hour, shown.minute)] if line.is_on(shown.date())]
        while seen < shown:
            seen += MINUTE
            due += [line for line in fixed[(seen.hour, seen.minute)] if line.is_on(seen.date())]
        for line in {line.text: line for line in due}.values():
            fired[line.text].append(minute * 60_000)
    return fired


def invented(rng: random.Random, *, is_sparse: bool = False) -> str:
    """A crontab of five fields that names at least one day, with stars, steps, ranges, lists and names."""

    def field(least: int, most: int, names: list[str], stars: float) -> str:
        if rng.random() < stars:
            return rng.choice(["*", "*", f"*/{rng.randint(1, most)}"])

        def term() -> str:
            low = rng.randint(least, most)
            high = rng.randint(low, most)
            if names and rng.random() < 0.3:
                return rng.choice(names)
            shapes = [str(low), str(low), f"{low}-{high}", f"{low}/7"]
            if low < high:  # cronsim takes 5-5/2 for 5/2; Debian's cron, and Pistage, for 5
                shapes.append(f"{low}-{high}/{rng.randint(1, 6)}")
            return rng.choice(shapes[:2] if is_sparse else shapes)

        return ",".join(term() for _ in range(rng.choice([1, 1, 1, 2, 3])))

    star = 0.15 if is_sparse else 0.4
    while True:
        text = " ".join(
            (
                field(0, 59, [], star),
                field(0, 23, [], star),
                field(1, 31, [], 0.6),
                field(1, 12, MONTHS, 0.8),
                field(0, 7, WEEKDAYS, 0.6),
            )
        )
        line = Line(text)
        if any(line.is_on(date(2024, 1, 1) + timedelta(days=day)) for day in range(366)):
            return text


def changes(zone: ZoneInfo, first_year: int, last_year: int) -> list[datetime]:
    """The hours in which the zone's clocks change, found by looking at every one."""
    hours = range(int(datetime(first_year, 1, 1, tzinfo=UTC).timestamp()) // 3600, (last_year - 1969) * 8766)
    offsets = [datetime.fromtimestamp(hour * 3600, zone).utcoffset() for hour in hours]
    return [
        datetime.fromtimestamp(hour * 3600, UTC)
        for hour, (before, after) in zip(hours[1:], itertools.pairwise(offsets), strict=False)
        if before != after
    ]
