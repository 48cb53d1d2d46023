"""Parsing: the text of a crontab -> a checked expression, or the field that is wrong (J10)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import date

from pistage.core.cron.expressions import YEAR_FIRST, YEAR_LAST, Cron, CronError, DayRule, Dialect, Field, WeekdayRule
from pistage.core.cron.nominal import days_in, month_length

_MACROS = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}
_MONTHS = ("JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC")
_DAYS = ("SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT")
_CHARS_MAX = 200
_BLANK = " \t\r\n"
_SHOWN_CHARS_MAX = 40


@dataclass(frozen=True, slots=True)
class _Shape:
    """What a field of plain terms may hold. Only Quartz has ranges over the end, `/5` for `*/5`, and a largest step."""

    name: str
    least: int
    most: int
    names: tuple[str, ...] = ()
    first_name: int = 0
    step_max: int = 9999
    wraps: bool = False
    is_quartz: bool = False

    @property
    def expected(self) -> str:
        names = f" or {self.names[0]} to {self.names[-1]}" if self.names else ""
        return f"{self.least} to {self.most}{names}"


# second, minute, hour, day of the month, month, day of the week, year
_CRON = (
    _Shape("second", 0, 59),
    _Shape("minute", 0, 59),
    _Shape("hour", 0, 23),
    _Shape("day of the month", 1, 31),
    _Shape("month", 1, 12, _MONTHS, 1),
    _Shape("day of the week", 0, 7, _DAYS),
)
_QUARTZ = (
    _Shape("second", 0, 59, step_max=59, wraps=True, is_quartz=True),
    _Shape("minute", 0, 59, step_max=59, wraps=True, is_quartz=True),
    _Shape("hour", 0, 23, step_max=23, wraps=True, is_quartz=True),
    _Shape("day of the month", 1, 31, step_max=31, wraps=True, is_quartz=True),
    _Shape("month", 1, 12, _MONTHS, 1, step_max=12, wraps=True, is_quartz=True),
    _Shape("day of the week", 1, 7, _DAYS, 1, step_max=7, wraps=True, is_quartz=True),
    _Shape("year", YEAR_FIRST, YEAR_LAST, is_quartz=True),
)
_EVERY_YEAR = Field(bits=0, is_star=True)
_EVERY_DAY = Field(bits=(1 << 32) - 2, is_star=True)
_EVERY_WEEKDAY = Field(bits=127, is_star=True)


def parse_cron(text: str) -> Cron:
    """The expression in `text`; CronError names the field that is wrong, or says that it would never fire.

    Five fields and macros are classic cron; six begin with seconds; seven, or any `?`, `L`, `W` or `#`, are Quartz.
    Quartz's own parser takes no lists with `L` or `#` and wants `?` beside any day; what such things mean is plain, so
    here they are taken.
    """
    if len(text) > _CHARS_MAX:
        raise CronError(f"the crontab has {len(text)} characters; at most {_CHARS_MAX} are read")
    written = text.strip(_BLANK)
    # Only ASCII has another case here: some letters of other scripts become S or K, and would name a day.
    expression = written.upper() if written.isascii() else written
    if expression.startswith("@"):
        macro = _MACROS.get(expression.lower())
        if macro is None:
            raise CronError(f"the crontab macro '{_shown(written)}' is not known", f"there are {', '.join(_MACROS)}")
        expression = macro
    parts = [part for part in re.split(f"[{_BLANK}]+", expression) if part]
    if len(parts) not in (5, 6, 7):
        raise CronError(
            f"a crontab has 5 fields, 6 with seconds first, or 7 in Quartz; '{_shown(written)}' has {len(parts)}",
            "write for example 30 2 * * *",
        )
    is_quartz = len(parts) == 7 or _is_quartz(parts)
    if is_quartz and len(parts) == 5:
        raise CronError(
            f"'{_shown(written)}' uses Quartz characters (? L W #), and Quartz needs 6 or 7 fields, seconds first",
            f"write 0 {_shown(written)}",
        )
    cron = _quartz(text, parts) if is_quartz else _classic(text, parts)
    _check_ever(cron, parts)
    return cron


def _shown(text: str) -> str:
    return text if len(text) <= _SHOWN_CHARS_MAX else f"{text[:_SHOWN_CHARS_MAX]}…"


def _is_quartz(parts: list[str]) -> bool:
    """Whether a day field holds a character that only Quartz knows; names such as WED and JUL do not count."""
    bare = re.sub(r"[A-Z]{3}", "", " ".join((parts[-3], parts[-1]) if len(parts) == 5 else (parts[3], parts[5])))
    return any(char in bare for char in "?LW#")


def _classic(text: str, parts: list[str]) -> Cron:
    dialect = Dialect.CRON if len(parts) == 5 else Dialect.SECONDS
    parts = ["0", *parts] if len(parts) == 5 else parts
    seconds, minutes, hours, days, months, weekdays = (
        _field(part, shape) for part, shape in zip(parts, _CRON, strict=True)
    )
    return Cron(
        text=text,
        dialect=dialect,
        seconds=seconds,
        minutes=minutes,
        hours=hours,
        days=days,
        months=months,
        # Sunday is 0 and 7.
        weekdays=Field(bits=(weekdays.bits | weekdays.bits >> 7) & 127, is_star=weekdays.is_star),
        years=_EVERY_YEAR,
    )


def _quartz(text: str, parts: list[str]) -> Cron:
    days, weekdays = parts[3], parts[5]
    if days == weekdays == "?":
        raise CronError("only one of day of the month and day of the week can be '?'", "say something in the other")
    if days not in ("*", "?") and weekdays not in ("*", "?"):
        raise CronError("Quartz takes either a day of the month or a day of the week, not both", "make one of them '?'")
    plain_days, day_rules = _days(days)
    plain_weekdays, weekday_rules = _weekdays(weekdays)
    return Cron(
        text=text,
        dialect=Dialect.QUARTZ,
        seconds=_field(parts[0], _QUARTZ[0]),
        minutes=_field(parts[1], _QUARTZ[1]),
        hours=_field(parts[2], _QUARTZ[2]),
        days=plain_days,
        months=_field(parts[4], _QUARTZ[4]),
        weekdays=plain_weekdays,
        years=_EVERY_YEAR if parts[6:] in ([], ["*"]) else _field(parts[6], _QUARTZ[6]),
        day_rules=day_rules,
        weekday_rules=weekday_rules,
    )


def _field(part: str, shape: _Shape) -> Field:
    """A field of plain terms: `*`, numbers, names, ranges, steps, lists."""
    bits = 0
    for term in part.split(","):
        for number in _term(term, part, shape):
            bits |= 1 << number
    return Field(bits=bits, is_star=part.startswith(("*", "/", "0/") if shape.is_quartz else "*"))


def _term(term: str, part: str, shape: _Shape) -> list[int]:
    base, slash, step_text = term.partition("/")
    step = _step(step_text, part, shape) if slash else 1
    first, dash, last = base.partition("-")
    size = shape.most - shape.least + 1
    if base == "*" or (not base and slash and shape.is_quartz):
        low, high = shape.least, shape.most
    elif dash:
        low, high = _number(first, part, shape), _number(last, part, shape)
        if high < low and not shape.wraps:
            raise CronError(
                f"the {shape.name} field '{_shown(part)}': the range {base} runs backwards",
                "write it as two ranges, joined by ','",
            )
        high += size * (high < low)
    else:
        low = _number(base, part, shape)
        high = shape.most if slash else low
    return [(number - shape.least) % size + shape.least for number in range(low, high + 1, step)]


def _step(text: str, part: str, shape: _Shape) -> int:
    if not re.fullmatch(r"[0-9]{1,4}", text) or int(text) == 0:
        raise CronError(
            f"the {shape.name} field '{_shown(part)}': a step must be a number from 1, not '{_shown(text)}'"
        )
    if int(text) > shape.step_max:
        raise CronError(
            f"the {shape.name} field '{_shown(part)}': in Quartz a step must be 1 to {shape.step_max}, not '{text}'",
            "a step begins anew with each value of the next larger field",
        )
    return int(text)


def _number(text: str, part: str, shape: _Shape) -> int:
    if text in shape.names:
        return shape.names.index(text) + shape.first_name
    if re.fullmatch(r"[0-9]{1,4}", text) and shape.least <= int(text) <= shape.most:
        return int(text)
    came = f"not '{_shown(text)}'" if text else "and nothing is there"
    raise CronError(
        f"the {shape.name} field '{_shown(part)}' takes {shape.expected}, {came}", "'*' is every one of them"
    )


def _days(part: str) -> tuple[Field, tuple[DayRule, ...]]:
    """Quartz's days of the month: also `?`, `L`, `L-3`, `LW`, `15W`."""
    if part == "?":
        return _EVERY_DAY, ()
    plain, rules = [], []
    for term in part.split(","):
        found = re.fullmatch(r"(L)(?:-([0-9]{1,2}))?(W)?|([0-9]{1,2})(W)", term)
        if found is None:
            plain.append(term)
            continue
        from_end, offset, weekday_from_end, day, weekday = found.groups()
        number = int(offset or day or 0)
        if not (1 <= number <= (30 if from_end else 31) or (from_end and offset is None)):
            raise CronError(
                f"the day of the month field '{_shown(part)}': there is no day '{term}'", "write L, L-3, LW or 15W"
            )
        is_nearest = bool(weekday_from_end or weekday)
        rules.append(DayRule(day=number, is_from_end=bool(from_end), is_nearest_weekday=is_nearest))
    return _field(",".join(plain), _QUARTZ[3]) if plain else Field(bits=0), tuple(rules)


def _weekdays(part: str) -> tuple[Field, tuple[WeekdayRule, ...]]:
    """Quartz's days of the week, 1 being Sunday: also `?`, `L`, `6L`, `FRIL`, `6#3`."""
    if part == "?":
        return _EVERY_WEEKDAY, ()
    shape = _QUARTZ[5]
    plain, rules = [], []
    for term in part.split(","):
        found = re.fullmatch(r"([0-9]|[A-Z]{3})(?:(L)|#([0-9]+))", term)
        if found is None:
            plain.append("SAT" if term == "L" else term)
            continue
        day, _, nth = found.groups()
        if nth is not None and not re.fullmatch("[1-5]", nth):
            raise CronError(
                f"the day of the week field '{_shown(part)}': a month has no {_shown(term)}", "after '#' comes 1 to 5"
            )
        rules.append(WeekdayRule(weekday=_number(day, part, shape) - 1, nth=None if nth is None else int(nth)))
    field = _field(",".join(plain), shape) if plain else Field(bits=0)
    return Field(bits=field.bits >> 1, is_star=field.is_star), tuple(rules)


def _check_ever(cron: Cron, parts: list[str]) -> None:
    """Refuse what no day of any year meets, such as 30 February, or 29 February in years that have none.

    A year is one of fourteen, by its length and the weekday that it begins with; 28 years in a row are all of them.
    """
    kinds: set[tuple[int, int]] = set()
    for year in cron.years.values or range(2000, 2028):
        kind = (month_length(year, 2), date(year, 1, 1).weekday())
        if kind in kinds:
            continue
        kinds.add(kind)
        if any(days_in(cron, year, month) for month in cron.months.values):
            return
    days, month, weekdays, *year_part = parts[-3:] if len(parts) == 5 else parts[3:]
    if cron.weekdays.is_star and not cron.day_rules and cron.years is _EVERY_YEAR:
        raise CronError(
            f"day {min(cron.days.values)} is in none of the months asked for: it would never fire",
            "choose another day",
        )
    years = f", year '{_shown(year_part[0])}'" if year_part else ""
    raise CronError(
        f"no day is day of the month '{_shown(days)}', month '{_shown(month)}', day of the week '{_shown(weekdays)}'"
        f"{years} at once: it would never fire",
        "choose another day",
    )
