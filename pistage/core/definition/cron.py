"""Cron: a crontab expression -> a checked value that a schedule can fire from (J10)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from zoneinfo import ZoneInfo

_MACROS = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}
_MONTHS = ["JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC"]
_DAYS = ["SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT"]
_DAYS_IN_MONTH = (31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)
_CHARS_MAX = 200


class CronError(Exception):
    """The expression is wrong: which field, what was expected, what came."""

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


@dataclass(frozen=True, slots=True, kw_only=True)
class Field:
    """One field: its plain values, and for days the rules that depend on the month.

    `specials` are words in their Quartz spelling: `L`, `L-3`, `LW`, `15W` for days of the month; `6L`, `6#3` for days
    of the week, where 0 is Sunday whatever the dialect. `is_any` is `*` or `?`; `is_star` also a stepped `*/2`.
    """

    values: frozenset[int]
    specials: tuple[str, ...] = ()
    is_any: bool = False
    is_star: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Cron:
    """A checked expression. Day of the week: 0 is Sunday. `years` None is every year.

    Where both day fields say something, classic cron fires on either; Quartz has one of them as `?`.
    """

    text: str
    dialect: str  # "cron", "seconds" (six fields) or "quartz"
    seconds: Field
    minutes: Field
    hours: Field
    days: Field
    months: Field
    weekdays: Field
    years: Field | None = None


@dataclass(frozen=True, slots=True)
class _Shape:
    name: str
    least: int
    most: int
    names: tuple[str, ...] = ()
    offset: int = 0  # what is taken off a number of the week's days to make Sunday 0

    @property
    def expected(self) -> str:
        names = f" or {self.names[0]} to {self.names[-1]}" if self.names else ""
        return f"{self.least} to {self.most}{names}"


_SECOND = _Shape("second", 0, 59)
_MINUTE = _Shape("minute", 0, 59)
_HOUR = _Shape("hour", 0, 23)
_DAY = _Shape("day of the month", 1, 31)
_MONTH = _Shape("month", 1, 12, tuple(_MONTHS))
_WEEKDAY = _Shape("day of the week", 0, 7, tuple(_DAYS))
_QUARTZ_WEEKDAY = _Shape("day of the week", 1, 7, tuple(_DAYS), 1)
_YEAR = _Shape("year", 1970, 2199)


def parse_cron(text: str) -> Cron:
    """The expression in `text`; CronError names the field that is wrong.

    Five fields and macros are classic cron; six begin with seconds; seven, or any `?`, `L`, `W` or `#`, are Quartz.
    """
    if len(text) > _CHARS_MAX:
        raise CronError(f"the crontab has {len(text)} characters; at most {_CHARS_MAX} are read")
    expression = text.strip().upper()
    if expression.startswith("@"):
        macro = _MACROS.get(expression.lower())
        if macro is None:
            raise CronError(f"the crontab macro '{text.strip()}' is not known", f"there are {', '.join(_MACROS)}")
        expression = macro
    parts = expression.split()
    if len(parts) not in (5, 6, 7):
        raise CronError(
            f"a crontab has 5 fields, 6 with seconds first, or 7 in Quartz; '{text.strip()}' has {len(parts)}",
            "write for example 30 2 * * *",
        )
    is_quartz = len(parts) == 7 or _is_quartz(parts)
    if is_quartz and len(parts) == 5:
        raise CronError(
            f"'{text.strip()}' uses Quartz characters (? L W #), and Quartz needs 6 or 7 fields, seconds first",
            f"write 0 {text.strip()}",
        )
    return _checked(text, parts, is_quartz)


def _is_quartz(parts: list[str]) -> bool:
    """Whether a day field holds a character that only Quartz knows; names such as WED and JUL do not count."""
    bare = re.sub(r"[A-Z]{3}", "", " ".join((parts[-3], parts[-1]) if len(parts) == 5 else (parts[3], parts[5])))
    return any(char in bare for char in "?LW#")


def _checked(text: str, parts: list[str], is_quartz: bool) -> Cron:
    dialect = "quartz" if is_quartz else "cron" if len(parts) == 5 else "seconds"
    parts = ["0", *parts] if len(parts) == 5 else parts
    days, weekdays = parts[3], parts[5]
    if is_quartz and "?" in (days, weekdays) and days == weekdays:
        raise CronError("only one of day of the month and day of the week can be '?'", "say something in the other")
    if is_quartz and days not in "*?" and weekdays not in "*?":
        raise CronError("Quartz takes either a day of the month or a day of the week, not both", "make one of them '?'")
    cron = Cron(
        text=text,
        dialect=dialect,
        seconds=_field(parts[0], _SECOND),
        minutes=_field(parts[1], _MINUTE),
        hours=_field(parts[2], _HOUR),
        days=_days(parts[3]) if is_quartz else _field(parts[3], _DAY),
        months=_field(parts[4], _MONTH),
        weekdays=_weekdays(parts[5]) if is_quartz else _field(parts[5], _WEEKDAY),
        years=_field(parts[6], _YEAR) if len(parts) == 7 else None,
    )
    _check_ever(cron)
    return cron


def _check_ever(cron: Cron) -> None:
    """Refuse a day that none of the months has, such as 30 February."""
    days = [] if cron.days.specials or cron.days.is_any or not cron.weekdays.is_any else list(cron.days.values)
    if days and min(days) > max(_DAYS_IN_MONTH[month - 1] for month in cron.months.values):
        raise CronError(
            f"day {min(days)} is in none of the months asked for: it would never fire", "choose another day"
        )


def _field(part: str, shape: _Shape) -> Field:
    """A field of plain terms: `*`, numbers, names, ranges, steps, lists."""
    values: set[int] = set()
    for term in part.split(","):
        values |= _term(term, part, shape)
    return Field(values=frozenset(values), is_any=part in ("*", "?"), is_star=part.startswith("*"))


def _term(term: str, part: str, shape: _Shape) -> set[int]:
    base, slash, step_text = term.partition("/")
    step = 1
    if slash:
        if not re.fullmatch(r"[0-9]{1,4}", step_text) or int(step_text) == 0:
            raise CronError(f"the {shape.name} field '{part}': a step must be a number from 1, not '{step_text}'")
        step = int(step_text)
    first, dash, last = base.partition("-")
    if base == "*":
        low, high = shape.least, shape.most - (shape.most == 7 and shape.least == 0)
    elif dash:
        low, high = _number(first, part, shape), _number(last, part, shape)
        if high < low:
            raise CronError(
                f"the {shape.name} field '{part}': the range {base} runs backwards",
                "write it as two ranges, joined by ','",
            )
    else:
        low = _number(base, part, shape)
        high = shape.most if slash else low
    return {_worth(number, shape) for number in range(low, high + 1, step)}


def _number(text: str, part: str, shape: _Shape) -> int:
    if text in shape.names:
        return shape.names.index(text) + (1 if shape.least == 1 else 0)
    if re.fullmatch(r"[0-9]{1,4}", text) and shape.least <= int(text) <= shape.most:
        return int(text)
    came = f"not '{text}'" if text else "and nothing is there"
    raise CronError(f"the {shape.name} field '{part}' takes {shape.expected}, {came}", "'*' is every one of them")


def _worth(number: int, shape: _Shape) -> int:
    return (number - shape.offset) % 7 if shape.names and shape.most == 7 else number


def _days(part: str) -> Field:
    """Quartz's days of the month: also `?`, `L`, `L-3`, `LW`, `15W`."""
    if part == "?":
        return Field(values=frozenset(), is_any=True)
    plain, special = [], []
    for term in part.split(","):
        found = re.fullmatch(r"L(?:-([0-9]{1,2}))?W?|([0-9]{1,2})W", term)
        if found is None:
            plain.append(term)
            continue
        number = int(found[1] or found[2] or 1)
        if not 1 <= number <= (30 if found[1] else 31):
            raise CronError(f"the day of the month field '{part}': there is no day '{term}'", "write L, L-3, LW or 15W")
        special.append(term)
    values = _field(",".join(plain), _DAY) if plain else Field(values=frozenset())
    return Field(values=values.values, specials=tuple(special), is_any=part == "*", is_star=values.is_star)


def _weekdays(part: str) -> Field:
    """Quartz's days of the week, 1 being Sunday: also `?`, `L`, `6L`, `FRIL`, `6#3`."""
    if part == "?":
        return Field(values=frozenset(), is_any=True)
    plain, special = [], []
    for term in part.split(","):
        if term == "L":
            plain.append("SAT")
            continue
        found = re.fullmatch(r"([0-9]|[A-Z]{3})(?:(L)|#([0-9]+))", term)
        if found is None:
            plain.append(term)
            continue
        day = _worth(_number(found[1], part, _QUARTZ_WEEKDAY), _QUARTZ_WEEKDAY)
        if found[3] is not None and not 1 <= int(found[3][:3]) <= 5:
            raise CronError(f"the day of the week field '{part}': a month has no {term}", "after '#' comes 1 to 5")
        special.append(f"{day}L" if found[2] else f"{day}#{found[3]}")
    values = _field(",".join(plain), _QUARTZ_WEEKDAY) if plain else Field(values=frozenset())
    return Field(values=values.values, specials=tuple(special), is_any=part == "*", is_star=values.is_star)


_ZONE = re.compile(r"[A-Za-z][A-Za-z0-9_+-]*(?:/[A-Za-z0-9_+-]+){0,2}")


def check_timezone(name: str) -> None:
    """CronError unless `name` is a time zone of the IANA database."""
    try:
        if _ZONE.fullmatch(name) and len(name) < 60:
            ZoneInfo(name)
            return
    except (KeyError, ValueError, OSError):
        pass
    raise CronError(
        f"there is no time zone '{name[:60]}'", "write it as in the IANA database: Europe/Berlin, Asia/Shanghai, UTC"
    )
