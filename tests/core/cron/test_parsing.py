"""J10: which crontabs are read, in which dialect, and what is said of the others."""

import re
from datetime import UTC, datetime

import pytest
from cronsim import CronSim

from pistage.core.cron import CronError, parse_cron
from pistage.core.cron.expressions import DayRule, WeekdayRule


@pytest.mark.parametrize(
    ("text", "dialect"),
    [
        ("* * * * *", "cron"),
        ("@daily", "cron"),
        ("@HOURLY", "cron"),
        ("0 0 * * * *", "seconds"),
        ("0 0 0 * * ?", "quartz"),
        ("0 0 0 ? * MON", "quartz"),
        ("0 0 12 L * ?", "quartz"),
        ("0 0 12 ? * 6L", "quartz"),
        ("0 0 12 15W * ?", "quartz"),
        ("0 0 12 ? * 6#3", "quartz"),
        ("0 0 12 * * ? 2030", "quartz"),
        ("0 0 12 * JUL WED", "seconds"),
        ("0 0 12 1 1 * 2030", "quartz"),
    ],
)
def test_j10_the_dialect_is_told_by_fields_and_characters(text: str, dialect: str) -> None:
    assert parse_cron(text).dialect == dialect


def test_j10_in_quartz_1_is_sunday_and_in_cron_0_and_7_are() -> None:
    assert parse_cron("0 0 0 ? * 1").weekdays.values == {0}
    assert parse_cron("0 0 0 ? * 2-6").weekdays.values == {1, 2, 3, 4, 5}
    assert parse_cron("0 0 0 ? * SUN,SAT").weekdays.values == {0, 6}
    assert parse_cron("0 0 * * 0").weekdays.values == parse_cron("0 0 * * 7").weekdays.values == {0}
    assert parse_cron("0 0 * * 1-5").weekdays.values == parse_cron("0 0 * * MON-FRI").weekdays.values == {1, 2, 3, 4, 5}
    assert parse_cron("0 0 * * 5-7").weekdays.values == {5, 6, 0}


def test_j10_fields_are_read() -> None:
    cron = parse_cron("*/20 8-10 1,15 JAN-MAR 5/2")
    assert cron.seconds.values == {0}
    assert cron.minutes.values == {0, 20, 40}
    assert cron.hours.values == {8, 9, 10}
    assert cron.days.values == {1, 15}
    assert cron.months.values == {1, 2, 3}
    assert cron.weekdays.values == {5, 0}
    assert (cron.minutes.is_star, cron.hours.is_star, cron.years.values) == (True, False, frozenset())


def test_j10_quartz_days_that_depend_on_the_month_become_rules() -> None:
    assert parse_cron("0 0 0 L,L-3,LW,L-3W,15W,2 * ?").day_rules == (
        DayRule(day=0, is_from_end=True),
        DayRule(day=3, is_from_end=True),
        DayRule(day=0, is_from_end=True, is_nearest_weekday=True),
        DayRule(day=3, is_from_end=True, is_nearest_weekday=True),
        DayRule(day=15, is_nearest_weekday=True),
    )
    rules = parse_cron("0 0 0 ? * 6L,FRI#3").weekday_rules
    assert rules == (WeekdayRule(weekday=5), WeekdayRule(weekday=5, nth=3))
    assert parse_cron("0 0 0 ? * L").weekdays.values == {6}
    assert parse_cron("0 0 12 * * ? 2030-2032").years.values == {2030, 2031, 2032}


@pytest.mark.parametrize(
    ("text", "is_wildcard"),
    [
        ("* * * * *", True),
        ("*/5 * * * *", True),
        ("0 * * * *", True),
        ("@hourly", True),
        ("0 */2 * * *", True),
        ("*/10 2 * * *", True),
        ("*,30 2 * * *", True),
        ("30 2 * * *", False),
        ("@daily", False),
        ("0-59/10 2 * * *", False),
        ("0 0-23 * * *", False),
        ("0/10 2 * * *", False),
        ("* 30 2 * * *", False),  # a star in the seconds alone
        ("0 0/5 2 * * ?", True),  # Quartz: the same as */5
        ("0 0 /2 * * ?", True),
        ("0 5/10 2 * * ?", False),
    ],
)
def test_wildcard_is_what_has_a_star_in_the_minute_or_the_hour(text: str, is_wildcard: bool) -> None:
    assert parse_cron(text).is_wildcard is is_wildcard


def test_only_quartz_has_ranges_over_the_end() -> None:
    cron = parse_cron("58-2 50-10/10 22-2 28-3 NOV-FEB ?")
    assert cron.seconds.values == {58, 59, 0, 1, 2}
    assert cron.minutes.values == {50, 0, 10}
    assert cron.hours.values == {22, 23, 0, 1, 2}
    assert cron.days.values == {28, 29, 30, 31, 1, 2, 3}
    assert cron.months.values == {11, 12, 1, 2}
    assert parse_cron("0 0 0 ? * FRI-MON").weekdays.values == {5, 6, 0, 1}
    for text in ("0 22-2 * * *", "0 0 * * FRI-MON", "0 0 0 1 NOV-FEB *", "0 0 0 1 1 ? 2030-2029"):
        with pytest.raises(CronError, match="runs backwards"):
            parse_cron(text)


@pytest.mark.parametrize(
    ("text", "field", "expected"),
    [
        ("60 * * * *", "minute", "0 to 59, not '60'"),
        ("* 24 * * *", "hour", "0 to 23, not '24'"),
        ("* * 0 * *", "day of the month", "1 to 31, not '0'"),
        ("* * * 13 *", "month", "1 to 12 or JAN to DEC, not '13'"),
        ("* * * FOO *", "month", "not 'FOO'"),
        ("* * * * 8", "day of the week", "0 to 7 or SUN to SAT, not '8'"),
        ("60 * * * * *", "second", "0 to 59, not '60'"),
        ("0 0 0 ? * 0", "day of the week", "1 to 7 or SUN to SAT, not '0'"),
        ("0 0 0 ? * 8L", "day of the week", "not '8'"),
        ("0 0 0 ? * 6#6", "day of the week", "a month has no 6#6"),
        ("0 0 0 32W * ?", "day of the month", "there is no day '32W'"),
        ("0 0 0 1 1 ? 1969", "year", "1970 to 2199, not '1969'"),
        ("*/0 * * * *", "minute", "a step must be a number from 1, not '0'"),
        ("5/x * * * *", "minute", "a step must be a number from 1, not 'X'"),
        ("30-10 * * * *", "minute", "the range 30-10 runs backwards"),
        ("1,,2 * * * *", "minute", "and nothing is there"),
        ("* * * * MON-", "day of the week", "and nothing is there"),
        ("١ * * * *", "minute", "not '١'"),
        ("* * * * ſun", "day of the week", "not 'ſun'"),
        ("0 22-2 * * *", "hour", "the range 22-2 runs backwards"),
        ("0 0 * * SAT-SUN", "day of the week", "the range SAT-SUN runs backwards"),
        ("0 0/60 * * * ?", "minute", "in Quartz a step must be 1 to 59, not '60'"),
        ("0/120 0 8-18 ? * 2-6", "second", "in Quartz a step must be 1 to 59, not '120'"),
        ("0 0 /24 ? * 2-6", "hour", "in Quartz a step must be 1 to 23, not '24'"),
        ("0 0 0 ? /13 2-6", "month", "in Quartz a step must be 1 to 12, not '13'"),
        ("0 0 0 ? * 1/120", "day of the week", "in Quartz a step must be 1 to 7, not '120'"),
        ("0 / 8-18 ? * 2-6", "minute", "a step must be a number from 1, not ''"),
        ("/5 * * * *", "minute", "and nothing is there"),
        ("* * * * Jan-Foo ?", "month", "not 'FOO'"),
        ("L 30 * * * ?", "second", "not 'L'"),
        ("0 0 0 L-31 * ?", "day of the month", "there is no day 'L-31'"),
        ("0 0 0 0W * ?", "day of the month", "there is no day '0W'"),
        ("0 0 0 1 1 ? 2200", "year", "1970 to 2199, not '2200'"),
        ("0 0 ? * * ?", "hour", "not '?'"),
    ],
)
def test_j10_an_error_names_the_field_what_was_expected_and_what_came(text: str, field: str, expected: str) -> None:
    with pytest.raises(CronError, match=rf"the {field} field .*{re.escape(expected)}"):
        parse_cron(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "'' has 0"),
        ("* * * *", "has 4"),
        ("* * * * * * * *", "has 8"),
        ("@fortnightly", "macro '@fortnightly' is not known"),
        ("@reboot", "macro"),
        ("0 0 L * *", "Quartz needs 6 or 7 fields"),
        ("0 0 0 ? * ?", "only one of"),
        ("0 0 0 1 * MON 2030", "either a day of the month or a day of the week"),
        ("0 0 30 2 *", "day 30 is in none of the months"),
        ("0 0 31 4,6,9,11 *", "day 31 is in none"),
        ("0 0 30 2 */2", "day 30 is in none"),
        ("0 0 0 29 2 ? 2100", "no day is day of the month '29', month '2', day of the week '?', year '2100' at once"),
        ("0 0 0 31 2 ?", "day 31 is in none"),
        ("0 0 0 29 2 ? 2027-2027", "it would never fire"),
        ("0 0 0 31W 2,4,6,9,11 ?", "it would never fire"),
        ("0 0 0 L-29 2 ?", "it would never fire"),
        ("0 0 0 ? 2 2#5 2045-2071", "it would never fire"),
        ("kilroy was here", "has 3"),
        ("* " * 150, "characters"),
    ],
)
def test_j10_what_cannot_be_a_crontab_is_refused(text: str, message: str) -> None:
    with pytest.raises(CronError, match=re.escape(message)):
        parse_cron(text)


@pytest.mark.parametrize(
    "text",
    [
        "*/5 * * * *",
        "0 9-17 * * 1-5",
        "30 2 1,15 * *",
        "0 0 29 2 *",
        "15 3 * JAN,JUL SUN",
        "0 */6 * * *",
        "5/15 * * * *",
        "10 0 0 * * *",
        "*/7 1-2 3 4 5 6",
    ],
)
def test_j10_what_is_read_here_is_what_the_firing_library_reads(text: str) -> None:
    mine, theirs = parse_cron(text), CronSim(text, datetime(2024, 1, 1, tzinfo=UTC))
    assert mine.minutes.values == theirs.minutes
    assert mine.hours.values == theirs.hours
    assert mine.days.values == theirs.days
    assert mine.months.values == theirs.months
    assert mine.weekdays.values == {day % 7 for day in theirs.weekdays if isinstance(day, int)}
    assert mine.seconds.values == theirs.seconds


def test_what_fires_on_one_day_in_decades_is_taken() -> None:
    for text in ("0 0 29 2 *", "0 0 30 2 MON", "0 0 0 ? 2 2#5", "0 0 0 29 2 ? 2096", "0 0 0 L-28 2 ?"):
        parse_cron(text)


def test_a_long_field_is_cut_in_the_message() -> None:
    with pytest.raises(CronError) as error:
        parse_cron("9" * 150 + " * * * *")
    assert len(error.value.message) < 150


def test_blanks_are_spaces_tabs_and_line_ends() -> None:
    assert parse_cron("  0\t2  * * *\n").hours.values == {2}
    with pytest.raises(CronError, match="has 4"):
        parse_cron("0\u00a02 * * *")
