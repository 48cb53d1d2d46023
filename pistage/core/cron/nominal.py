"""Nominal times: which local days and times an expression names, in a calendar without zones or clock changes.

A local time is an integer: seconds from 1970-01-01 00:00:00 on the same clock.
"""

from __future__ import annotations

from datetime import date

from pistage.core.cron.expressions import YEAR_LAST, Cron

_DAY_S = 86_400
_EPOCH_DAY = date(1970, 1, 1).toordinal()
_MONTH_DAYS = (0, 31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)
_EVERY_WEEK = 1 | 1 << 7 | 1 << 14 | 1 << 21 | 1 << 28


def at_or_after(cron: Cron, local_s: int) -> int | None:
    """The first local time of the expression that is not before `local_s`; None if there is none by the last year.

    It looks at each month that is asked for at most once.
    """
    day, second = divmod(local_s, _DAY_S)
    first = _day_at_or_after(cron, day)
    if first == day:
        time = _time_at_or_after(cron, second)
        if time is not None:
            return day * _DAY_S + time
        first = _day_at_or_after(cron, day + 1)
    if first is None:
        return None
    return (
        first * _DAY_S + _lowest(cron.hours.bits) * 3600 + _lowest(cron.minutes.bits) * 60 + _lowest(cron.seconds.bits)
    )


def days_in(cron: Cron, year: int, month: int) -> int:
    """The days of one month that the expression names, as bits; the month and the year themselves are not asked."""
    first = date(year, month, 1).toordinal() % 7
    last = month_length(year, month)
    whole = (2 << last) - 2
    days = cron.days.bits & whole
    for rule in cron.day_rules:
        day = last - rule.day if rule.is_from_end else rule.day
        if 1 <= day <= last:
            days |= 1 << (_nearest_weekday(day, first, last) if rule.is_nearest_weekday else day)
    weekdays = _on_weekdays(cron.weekdays.bits, first) & whole
    for each in cron.weekday_rules:
        of_the_kind = _on_weekdays(1 << each.weekday, first) & whole
        weekdays |= of_the_kind & (127 << (last - 6) if each.nth is None else 127 << (each.nth * 7 - 6))
    # Vixie's rule: a field that begins with a star does not restrict, so its values are asked for beside the other's.
    return days & weekdays if cron.days.is_star or cron.weekdays.is_star else days | weekdays


def month_length(year: int, month: int) -> int:
    """Days in a month of the Gregorian calendar."""
    return _MONTH_DAYS[month] + (month == 2 and year % 4 == 0 and (year % 100 != 0 or year % 400 == 0))


def _day_at_or_after(cron: Cron, day: int) -> int | None:
    """The first day, counted from 1970-01-01, that the expression names and that is not before `day`."""
    start = date.fromordinal(day + _EPOCH_DAY)
    year, month, least = start.year, start.month, start.day
    while year <= YEAR_LAST:
        if cron.years.bits and not cron.years.bits >> year & 1:
            later = _next_bit(cron.years.bits, year)
            if later is None:
                return None
            year, month, least = later, 1, 1
        found = _next_bit(cron.months.bits, month)
        if found is None:
            year, month, least = year + 1, 1, 1
            continue
        if found != month:
            month, least = found, 1
        named = _next_bit(days_in(cron, year, month), least)
        if named is not None:
            return date(year, month, named).toordinal() - _EPOCH_DAY
        year, month, least = (year, month + 1, 1) if month < 12 else (year + 1, 1, 1)
    return None


def _time_at_or_after(cron: Cron, second: int) -> int | None:
    """The first time of the day, in seconds, that the expression names and that is not before `second`."""
    hour, minute, second = second // 3600, second // 60 % 60, second % 60
    if cron.hours.bits >> hour & 1:
        if cron.minutes.bits >> minute & 1:
            found = _next_bit(cron.seconds.bits, second)
            if found is not None:
                return hour * 3600 + minute * 60 + found
        found = _next_bit(cron.minutes.bits, minute + 1)
        if found is not None:
            return hour * 3600 + found * 60 + _lowest(cron.seconds.bits)
    found = _next_bit(cron.hours.bits, hour + 1)
    if found is None:
        return None
    return found * 3600 + _lowest(cron.minutes.bits) * 60 + _lowest(cron.seconds.bits)


def _nearest_weekday(day: int, first: int, last: int) -> int:
    """Monday to Friday nearest to `day`, within the month that begins on the weekday `first` and has `last` days."""
    match (first + day - 1) % 7:
        case 6:
            return day - 1 if day > 1 else 3
        case 0:
            return day + 1 if day < last else day - 2
        case _:
            return day


def _on_weekdays(bits: int, first: int) -> int:
    """The days of 35 from the first of a month on, that month beginning on the weekday `first`."""
    return ((bits >> first | bits << (7 - first)) & 127) * _EVERY_WEEK << 1


def _next_bit(bits: int, least: int) -> int | None:
    rest = bits >> least
    return least + _lowest(rest) if rest else None


def _lowest(bits: int) -> int:
    return (bits & -bits).bit_length() - 1
