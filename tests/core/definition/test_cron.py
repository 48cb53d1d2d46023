"""J10: which crontabs are read, in which dialect, and what is said of the others."""

import re
from datetime import UTC, datetime

import pytest
from cronsim import CronSim

from pistage.core.definition.cron import CronError, check_timezone, parse_cron


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
    assert (cron.minutes.is_star, cron.minutes.is_any, cron.years) == (True, False, None)


def test_j10_quartz_specials_are_kept_in_one_spelling() -> None:
    assert parse_cron("0 0 0 L-3,LW,15W * ?").days.specials == ("L-3", "LW", "15W")
    assert parse_cron("0 0 0 ? * 6L,FRI#3").weekdays.specials == ("5L", "5#3")
    assert parse_cron("0 0 0 ? * L").weekdays.values == {6}
    assert parse_cron("0 0 12 * * ? 2030-2032").years is not None


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


@pytest.mark.parametrize("name", ["UTC", "Europe/Berlin", "Asia/Shanghai", "America/Argentina/Ushuaia", "Etc/GMT+5"])
def test_time_zones_of_the_database_are_known(name: str) -> None:
    check_timezone(name)


@pytest.mark.parametrize(
    "name", ["", "Mars/Olympus", "../etc/passwd", "/etc/passwd", "Europe", "UTC ", "a" * 300, "a\0b", "+"]
)
def test_other_time_zones_are_refused(name: str) -> None:
    with pytest.raises(CronError, match="no time zone"):
        check_timezone(name)
