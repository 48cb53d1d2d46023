"""Expressions: what a checked crontab holds, as sets of bits that a search walks through."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

#: Nothing is named, and nothing fires, outside of these years: those of Quartz's CronExpression.
YEAR_FIRST, YEAR_LAST = 1970, 2199


class CronError(Exception):
    """The expression is wrong: which field, what was expected, what came."""

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class Dialect(StrEnum):
    """How an expression is read."""

    CRON = "cron"  # five fields
    SECONDS = "seconds"  # six: the same, seconds first
    QUARTZ = "quartz"  # six or seven; days of the week are counted from 1, Sunday


@dataclass(frozen=True, slots=True, kw_only=True)
class Field:
    """The plain values of one field; bit 5 is the value 5. `is_star`: it begins with `*`, or is `?`.

    In Quartz `0/5` and `/5` count as `*/5`, which they mean there.
    """

    bits: int
    is_star: bool = False

    @property
    def values(self) -> frozenset[int]:
        return frozenset(value for value in range(self.bits.bit_length()) if self.bits >> value & 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class DayRule:
    """A day of the month that depends on the month: `L`, `L-3`, `LW`, `15W`.

    `day` counts from 1, or from the last day, then from 0. The weekday that is nearest to it never leaves the month.
    """

    day: int
    is_from_end: bool = False
    is_nearest_weekday: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class WeekdayRule:
    """A day of the week, 0 being Sunday, once in a month: the third (`6#3`), or without `nth` the last (`6L`)."""

    weekday: int
    nth: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Cron:
    """A checked expression, which fires at some time. Day of the week: 0 is Sunday, whatever the dialect.

    `years` without bits is every year. Where neither day field is a star, either of them will do; else both must hold.
    """

    text: str
    dialect: Dialect
    seconds: Field
    minutes: Field
    hours: Field
    days: Field
    months: Field
    weekdays: Field
    years: Field
    day_rules: tuple[DayRule, ...] = ()
    weekday_rules: tuple[WeekdayRule, ...] = ()

    @property
    def is_wildcard(self) -> bool:
        """Whether it goes by every hour that passes, not by the times of a day: `firing` says what that changes."""
        return self.minutes.is_star or self.hours.is_star
