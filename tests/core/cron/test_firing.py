"""Firing: every rule of the clock changes by its name, both nights of it, and where a search ends."""

import random
import re
import time
from datetime import UTC, datetime, timedelta

import pytest

from pistage.core.cron import last_between, next_after, parse_cron, times_between, zone_named
from tests.core.cron.clocks import firings, instant, local
from tests.core.cron.naive import invented

BERLIN, NEW_YORK, LORD_HOWE = "Europe/Berlin", "America/New_York", "Australia/Lord_Howe"


def test_the_next_time_is_strictly_after_to_the_millisecond() -> None:
    cron, utc = parse_cron("0 2 * * *"), zone_named("UTC")
    two = instant("2026-03-01T02:00")
    assert next_after(cron, utc, two - 1) == two
    assert next_after(cron, utc, two) == two + 86_400_000
    assert next_after(cron, utc, two + 1) == two + 86_400_000


@pytest.mark.parametrize(
    ("rule", "text", "zone", "after", "times"),
    [
        # Spring, 29 March 2026 in Berlin: 02:00 to 03:00 does not exist.
        ("a time in the gap fires at the change", "30 2 * * *", BERLIN, "2026-03-28T12:00", "03-29T03:00 03-30T02:30"),
        ("two times in one gap fire once", "0,30 2 * * *", BERLIN, "2026-03-28T12:00", "03-29T03:00 03-30T02:00"),
        ("with one that is due then, too", "0 2,3 * * *", BERLIN, "2026-03-28T12:00", "03-29T03:00 03-30T02:00"),
        ("a range of hours is fixed", "0 1-4 * * *", BERLIN, "2026-03-29T00:30", "03-29T01:00 03-29T03:00 03-29T04:00"),
        ("seconds too", "*/20 30 2 * * *", BERLIN, "2026-03-28T12:00", "03-29T03:00 03-30T02:30 03-30T02:30:20"),
        ("Quartz too", "0 30 2 ? * SUN", BERLIN, "2026-03-28T12:00", "03-29T03:00 04-05T02:30"),
        ("Quartz, the last Sunday", "0 30 2 ? 3 1L", BERLIN, "2026-03-01T12:00", "03-29T03:00 2027-03-28T03:00"),
        ("every half hour goes by real time", "*/30 * * * *", BERLIN, "2026-03-29T01:00", "03-29T01:30 03-29T03:00"),
        ("an hour that is skipped is not made up for", "0 */2 * * *", BERLIN, "2026-03-29T00:00", "03-29T04:00"),
        ("nor minutes of it", "*/30 2 * * *", BERLIN, "2026-03-28T12:00", "03-30T02:00 03-30T02:30"),
        ("unless they are fixed", "0-59/30 2 * * *", BERLIN, "2026-03-28T12:00", "03-29T03:00 03-30T02:00"),
        ("from within the last second before", "30 2 * * *", BERLIN, "2026-03-29T01:59:59", "03-29T03:00 03-30T02:30"),
        ("from the change on, it is over", "30 2 * * *", BERLIN, "2026-03-29T03:00", "03-30T02:30"),
        ("of half an hour", "15 2 * * *", LORD_HOWE, "2026-10-03T12:00", "10-04T02:30 10-05T02:15"),
        ("at midnight", "0 0 * * *", "America/Sao_Paulo", "2018-11-03T12:00", "2018-11-04T01:00 2018-11-05T00:00"),
        (
            "at midnight in Tehran",
            "15 0 22 3 *",
            "Asia/Tehran",
            "2021-03-01T12:00",
            "2021-03-22T01:00 2022-03-22T01:00",
        ),
        ("of a day", "0 9 30 12 *", "Pacific/Apia", "2011-12-01T00:00", "2011-12-31T00:00 2012-12-30T09:00"),
        ("of a day, by the hour", "0 * * * *", "Pacific/Apia", "2011-12-29T22:30", "2011-12-29T23:00 2011-12-31T00:00"),
    ],
)
def test_when_clocks_are_put_forward(rule: str, text: str, zone: str, after: str, times: str) -> None:
    expected = [each if each[4] == "-" else f"2026-{each}" for each in times.split()]
    assert [re.sub("[+-]..:..$", "", each) for each in firings(text, zone, after, len(expected))] == expected, rule


@pytest.mark.parametrize(
    ("rule", "text", "zone", "after", "times"),
    [
        # Autumn, 25 October 2026 in Berlin: 02:00 to 03:00 comes twice, first with +02:00.
        (
            "a time that comes twice fires the first time",
            "30 2 * * *",
            BERLIN,
            "2026-10-25T00:00",
            "10-25T02:30+02:00 10-26T02:30+01:00",
        ),
        ("from between the two, it is over", "30 2 * * *", BERLIN, "2026-10-25T02:45+02:00", "10-26T02:30+01:00"),
        ("from the second, too", "45 2 * * *", BERLIN, "2026-10-25T02:30+01:00", "10-26T02:45+01:00"),
        ("a list within it", "15,45 2 * * *", BERLIN, "2026-10-25T02:15+02:00", "10-25T02:45+02:00 10-26T02:15+01:00"),
        (
            "a range of hours is fixed",
            "0 0-23 * * *",
            BERLIN,
            "2026-10-25T01:30",
            "10-25T02:00+02:00 10-25T03:00+01:00",
        ),
        ("seconds too", "0 30 2 * * *", BERLIN, "2026-10-25T00:00", "10-25T02:30+02:00 10-26T02:30+01:00"),
        ("Quartz too", "0 30 2 ? * 1", BERLIN, "2026-10-25T00:00", "10-25T02:30+02:00 11-01T02:30+01:00"),
        (
            "what is due every half hour is due in both",
            "*/30 * * * *",
            BERLIN,
            "2026-10-25T01:45",
            "10-25T02:00+02:00 10-25T02:30+02:00 10-25T02:00+01:00 10-25T02:30+01:00 10-25T03:00+01:00",
        ),
        ("every hour", "@hourly", BERLIN, "2026-10-25T01:00", "10-25T02:00+02:00 10-25T02:00+01:00 10-25T03:00+01:00"),
        (
            "every second hour",
            "0 */2 * * *",
            BERLIN,
            "2026-10-25T01:00",
            "10-25T02:00+02:00 10-25T02:00+01:00 10-25T04:00+01:00",
        ),
        (
            "minutes of the hour alone",
            "*/40 2 * * *",
            BERLIN,
            "2026-10-25T02:10+02:00",
            "10-25T02:40+02:00 10-25T02:00+01:00 10-25T02:40+01:00 10-26T02:00+01:00",
        ),
        (
            "Quartz, every half hour",
            "0 0/30 * * * ?",
            BERLIN,
            "2026-10-25T02:30+02:00",
            "10-25T02:00+01:00 10-25T02:30+01:00",
        ),
        ("of half an hour, fixed", "45 1 * * *", LORD_HOWE, "2026-04-05T00:00", "04-05T01:45+11:00 04-06T01:45+10:30"),
        (
            "of half an hour, by the quarter",
            "*/15 * * * *",
            LORD_HOWE,
            "2026-04-05T01:30+11:00",
            "04-05T01:45+11:00 04-05T01:30+10:30 04-05T01:45+10:30 04-05T02:00+10:30",
        ),
        (
            "midnight that comes twice",
            "0 0 * * *",
            "America/Havana",
            "2026-10-31T12:00",
            "11-01T00:00-04:00 11-02T00:00-05:00",
        ),
        (
            "a day that ends twice",
            "59 23 * * *",
            "America/Sao_Paulo",
            "2018-02-17T12:00",
            "2018-02-17T23:59-02:00 2018-02-18T23:59-03:00",
        ),
        (
            "a day that ends twice, by the hour",
            "0 * * * *",
            "America/Sao_Paulo",
            "2018-02-17T22:30",
            "2018-02-17T23:00-02:00 2018-02-17T23:00-03:00 2018-02-18T00:00-03:00",
        ),
        ("Ramadan begins", "30 2 * * *", "Africa/Casablanca", "2026-02-15T00:00", "02-15T02:30+01:00 02-16T02:30Z"),
        ("New York", "30 1 * * *", NEW_YORK, "2026-11-01T00:00", "11-01T01:30-04:00 11-02T01:30-05:00"),
    ],
)
def test_when_clocks_are_put_back(rule: str, text: str, zone: str, after: str, times: str) -> None:
    expected = [each if each[4] == "-" else f"2026-{each}" for each in times.split()]
    assert firings(text, zone, after, len(expected)) == [each.removesuffix("Z") for each in expected], rule


def test_leap_days_come_when_they_come() -> None:
    assert firings("0 0 29 2 *", "UTC", "2096-01-01", 2) == ["2096-02-29T00:00", "2104-02-29T00:00"]
    assert firings("0 0 29 2 */7", "UTC", "2026-01-01", 2) == ["2032-02-29T00:00", "2060-02-29T00:00"]
    assert firings("0 0 31 * *", "UTC", "2026-01-31", 3) == ["2026-03-31T00:00", "2026-05-31T00:00", "2026-07-31T00:00"]


def test_either_day_field_will_do_unless_one_begins_with_a_star() -> None:
    assert firings("0 0 13 * FRI", "UTC", "2026-11-01", 4) == [
        "2026-11-06T00:00", "2026-11-13T00:00", "2026-11-20T00:00", "2026-11-27T00:00"
    ]  # fmt: skip
    assert firings("0 0 14 * FRI", "UTC", "2026-11-10", 3) == [
        "2026-11-13T00:00", "2026-11-14T00:00", "2026-11-20T00:00"
    ]  # fmt: skip
    assert firings("0 0 */2 * FRI", "UTC", "2026-11-01", 3) == [
        "2026-11-13T00:00", "2026-11-27T00:00", "2026-12-11T00:00"
    ]  # fmt: skip
    assert firings("0 0 13 * */5", "UTC", "2026-11-01", 2) == ["2026-11-13T00:00", "2026-12-13T00:00"]


def test_nothing_fires_before_1970_or_after_2199() -> None:
    utc = zone_named("UTC")
    assert next_after(parse_cron("* * * * *"), utc, -(10**18)) == 0
    assert next_after(parse_cron("* * * * *"), utc, instant("2199-12-31T23:58")) == instant("2199-12-31T23:59")
    assert next_after(parse_cron("* * * * *"), utc, instant("2199-12-31T23:59")) is None
    assert next_after(parse_cron("* * * * *"), utc, 10**18) is None
    assert next_after(parse_cron("30 2 * * *"), zone_named(BERLIN), 2**63) is None
    assert next_after(parse_cron("0 0 0 1 1 ? 2025"), utc, instant("2025-01-01")) is None


@pytest.mark.parametrize("name", ["UTC", BERLIN, LORD_HOWE, "Africa/Casablanca", "Pacific/Apia", "Antarctica/Troll"])
def test_from_any_instant_the_next_time_is_the_first_of_all_that_are_later(name: str) -> None:
    rng, zone = random.Random(name), zone_named(name)
    start = instant("2010-01-01")
    for _ in range(25):
        text = invented(rng)
        cron = parse_cron(text if rng.random() < 0.5 else f"{rng.randrange(60)},17 {text}")
        after = start + rng.randrange(4 * 365 * 86_400_000)
        times = times_between(cron, zone, after, 2**53, 40)
        assert all(earlier < later for earlier, later in zip((after, *times), times, strict=False)), (text, after)
        for earlier, later in zip((after, *times), times, strict=False):
            between = rng.randrange(earlier, later)
            assert next_after(cron, zone, between) == next_after(cron, zone, later - 1) == later, (text, between)


def test_times_between_are_those_after_the_one_and_not_after_the_other() -> None:
    cron, utc = parse_cron("0 * * * *"), zone_named("UTC")
    one, three = instant("2026-01-01T01:00"), instant("2026-01-01T03:00")
    two = (one + three) // 2
    assert times_between(cron, utc, one, three, 10) == (two, three)
    assert times_between(cron, utc, one - 1, three - 1, 10) == (one, two)
    assert times_between(cron, utc, one, three, 1) == (two,)
    assert times_between(cron, utc, three, one, 10) == times_between(cron, utc, one, three, 0) == ()


def test_the_last_time_is_found_without_counting_the_others() -> None:
    rng, every_second = random.Random(9), parse_cron("* * * * * *")
    start, end = instant("2000-01-01"), instant("2030-01-01T00:00:00.500")
    assert last_between(every_second, zone_named(BERLIN), start, end) == end - 500
    assert last_between(parse_cron("0 0 * * *"), zone_named("UTC"), start, start + 86_399_999) is None
    assert last_between(parse_cron("0 0 0 1 1 ? 2005"), zone_named("UTC"), start, end) == instant("2005-01-01")
    for _ in range(60):
        cron, zone = parse_cron(invented(rng)), zone_named(rng.choice([BERLIN, LORD_HOWE, "UTC"]))
        after = instant("2026-01-01") + rng.randrange(10**10)
        until = after + rng.randrange(10**9)
        times = times_between(cron, zone, after, until, 10**6)
        assert last_between(cron, zone, after, until) == (times[-1] if times else None), cron.text


def test_a_search_costs_little_even_for_what_is_rare_or_over() -> None:
    """Generous by ten: what is looked for is a search that goes by minutes or days."""
    for text in (
        "0 0 0 ? 2 2#5",
        "*/5 * 29 2 */7",
        "0 0 31 12 */7",
        "0 0 0 1 1 ? 2005",
        "0 0 0 29 2 ? 2196",
        "* * * * *",
    ):
        cron, zone, after = parse_cron(text), zone_named(BERLIN), instant("2026-01-01")
        began = time.process_time()
        for _ in range(10):
            next_after(cron, zone, after)
        assert time.process_time() - began < 1.0, text


def test_a_day_of_every_second_is_every_second_of_it() -> None:
    zone = zone_named(NEW_YORK)
    start = datetime(2026, 11, 1, 3, tzinfo=UTC)
    after = round(start.timestamp() * 1000)
    times = times_between(parse_cron("* * * * * *"), zone, after, after + 14_400_000, 20_000)
    assert len(times) == 14_400
    assert local(times[0], NEW_YORK) == "2026-10-31T23:00:01-04:00"
    assert times[-1] == round((start + timedelta(hours=4)).timestamp() * 1000)
