"""Every five-field expression fires when cronsim says and when a daemon would that looks at each minute."""

import random
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from cronsim import CronSim, CronSimError

from pistage.core.cron import CronError, next_after, parse_cron, times_between, zone_named
from pistage.core.cron.expressions import YEAR_LAST
from tests.core.cron.clocks import instant
from tests.core.cron.naive import changes, invented, walk

#: With what is odd about the first four: half an hour; an hour less in Ramadan; change at midnight; a day left out.
PLACES = [
    ("Australia/Lord_Howe", 2023),
    ("Africa/Casablanca", 2024),
    ("America/Sao_Paulo", 2015),
    ("Pacific/Apia", 2010),
    ("Europe/Berlin", 2024),
    ("America/New_York", 2025),
    ("Asia/Tehran", 2020),
]
#: Where cronsim 2.8 and Debian's cron part for what has a star in the minute or hour: by half an hour it is thrown out
#: of step until the next day, and where midnight does not exist it fires though the clock never showed 0 o'clock.
CRONSIM_ERRS_IN = {"Australia/Lord_Howe", "America/Sao_Paulo", "Asia/Tehran"}
KNOWN = [
    "* * * * *",
    "*/5 * * * *",
    "7/20 * * * *",
    "0 * * * *",
    "30 */2 * * *",
    "15 1-3 * * *",
    "*/10 2 * * *",
    "0-59/10 2 * * *",
    "0 0-23 * * *",
    "0 0 * * *",
    "0,30 0-2 * * *",
    "30 2 * * *",
    "30 1 * * SUN",
    "45 23 * * 6",
    "0 2,3 * * 0",
    "30 0 1,15 * 1",
    "0 3 */2 * 0",
    "59 23 31 * *",
]


def cronsim_times(text: str, zone: ZoneInfo, after: datetime, count: int) -> list[int]:
    """What cronsim says up to 2199, as milliseconds, once where it says one instant for several skipped times."""
    times: list[int] = []
    for when in CronSim(text, after.astimezone(zone)):
        if len(times) >= count or when.year > YEAR_LAST:
            break
        at = int(when.timestamp()) * 1000
        if [at] != times[-1:]:
            times.append(at)
    return [at for at in times if at < instant("2200-01-01", zone.key)]


def ours(text: str, zone: ZoneInfo, after: datetime, count: int) -> list[int]:
    return list(times_between(parse_cron(text), zone, int(after.timestamp() * 1000), 2**53, count))


def compare_with_cronsim(rng: random.Random, rounds: int, count: int) -> None:
    for _ in range(rounds):
        name, year = rng.choice([*PLACES, ("UTC", 2026)])
        text, zone = invented(rng, is_sparse=rng.random() < 0.5), zone_named(name)
        after = datetime(year, 1, 1, tzinfo=UTC) + timedelta(minutes=rng.randrange(4 * 525_960))
        if after.astimezone(zone).fold:  # cronsim forgets which of two hours it begins in
            continue
        if name in CRONSIM_ERRS_IN and parse_cron(text).is_wildcard:
            continue
        assert ours(text, zone, after, count) == cronsim_times(text, zone, after, count), (text, name, after)


def test_random_expressions_fire_when_cronsim_says() -> None:
    compare_with_cronsim(random.Random(6), 150, 15)


@pytest.mark.parametrize(("name", "year"), PLACES)
def test_around_a_clock_change_everything_fires_as_with_cronsim_and_with_a_daemon(name: str, year: int) -> None:
    zone, rng = zone_named(name), random.Random(name)
    found = changes(zone, year, year + 1)
    assert found
    for change in found[:2]:
        start, end = change - timedelta(hours=27), change + timedelta(hours=27)
        texts = {*KNOWN, *(invented(rng) for _ in range(15))}
        for text, times in walk(texts, zone, start, end).items():
            after_ms, until_ms = int(start.timestamp() * 1000) - 1, int(end.timestamp() * 1000) - 1
            assert list(times_between(parse_cron(text), zone, after_ms, until_ms, 10_000)) == times, (text, name)
            if name not in CRONSIM_ERRS_IN or not parse_cron(text).is_wildcard:
                assert cronsim_times(text, zone, start - timedelta(seconds=1), len(times)) == times, (text, name)


def test_six_fields_fire_when_cronsim_says_where_no_clock_changes() -> None:
    rng, zone = random.Random(61), zone_named("UTC")
    for _ in range(60):
        text = f"{rng.choice(['0', '30', '*/20', '5,7', '*'])} {invented(rng)}"
        after = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=rng.randrange(10**8))
        assert ours(text, zone, after, 10) == cronsim_times(text, zone, after, 10), text


@pytest.mark.slow
def test_thousands_of_random_expressions_fire_when_cronsim_says() -> None:
    compare_with_cronsim(random.Random(7), 6_000, 25)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "year"), PLACES)
def test_four_years_of_every_minute_fire_as_a_daemon_would(name: str, year: int) -> None:
    zone, rng = zone_named(name), random.Random(f"{name} of {year}")
    start, end = datetime(year, 1, 1, tzinfo=UTC), datetime(year + 4, 1, 1, tzinfo=UTC)
    texts = {*KNOWN[2:], *(invented(rng, is_sparse=True) for _ in range(60))}
    after_ms, until_ms = int(start.timestamp() * 1000) - 1, int(end.timestamp() * 1000) - 1
    for text, times in walk(texts, zone, start, end).items():
        assert list(times_between(parse_cron(text), zone, after_ms, until_ms, 10**7)) == times, (text, name)


def test_cronsim_and_the_parser_refuse_the_same_fields() -> None:
    rng, refused = random.Random(62), 0
    for _ in range(600):
        fields = invented(rng).split()
        spoilt = rng.randrange(5)
        fields[spoilt] = "".join(rng.choice("0123456789*/-,") for _ in range(rng.randint(1, 4)))
        text = " ".join(fields)
        try:
            CronSim(text, datetime(2026, 1, 1, tzinfo=UTC))
        except CronSimError:
            refused += 1
            with pytest.raises(CronError):
                parse_cron(text)
        else:
            try:
                cron = parse_cron(text)
            except CronError as error:
                assert "steps" in error.message or "step" in error.message or "never" in error.message, text
            else:
                assert next_after(cron, zone_named("UTC"), 0) is not None
    assert refused > 100
