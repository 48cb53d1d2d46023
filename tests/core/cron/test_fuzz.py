"""Fuzz: whatever is written, it is refused or it is an expression whose times are found at once."""

import random
import time
from zoneinfo import ZoneInfo

import pytest

from pistage.core.cron import Cron, CronError, next_after, parse_cron, zone_named
from pistage.core.cron.nominal import days_in
from tests.core.cron.naive import invented

TEXT_S_MAX = 1.0  # of our own CPU time: what takes longer hangs
ZONES = ["UTC", "Europe/Berlin", "Australia/Lord_Howe", "Pacific/Apia", "America/Sao_Paulo"]
QUARTZ = [
    *("0 0 12 * * ?", "0 15 10 ? * 6L 2002-2199", "0 0/5 14,18 * * ?", "0 15 10 L-3W * ?", "0 0 0 LW 2 ?"),
    *("0 0 0 ? 2 2#5", "58-2 50-10/10 22-2 28-3 NOV-FEB ?", "0 0 0 29 2 ? 2096/4", "* * * * * ? *", "0 0 0 L-30 * ?"),
]
PIECES = [
    *"0123456789*/-,?LW#@ \t\n\0.+_~:éſıßＡ٣²½Ⅷ\u00a0\u2028\ud800😀",
    *("SUN", "MON-FRI", "JAN", "L-3W", "LW", "15W", "6#3", "6L", "*/", "1970", "2199", "99999999999999999999", "-1"),
    *("@daily", "@reboot", "1e3", "0x1F", "00000", "1-", ",,", "//", "NaN", "  "),
]


def written(rng: random.Random) -> str:
    """Garbage, or something sound with some of it changed, doubled, moved or left out."""
    kind = rng.random()
    if kind < 0.15:
        return "".join(rng.choice(PIECES) for _ in range(rng.randrange(40)))
    if kind < 0.25:
        return " ".join("".join(rng.choice(PIECES) for _ in range(rng.randint(1, 4))) for _ in range(rng.randint(4, 8)))
    sound = rng.choice(QUARTZ) if kind < 0.6 else f"{rng.choice(['', '', '*/7 '])}{invented(rng)}"
    text = list(sound)
    for _ in range(rng.randrange(4)):
        place = rng.randrange(len(text) + 1)
        match rng.randrange(4):
            case 0:
                text.insert(place, rng.choice(PIECES))
            case 1:
                text[place : place + 1] = [rng.choice(PIECES)]
            case 2:
                del text[place : place + rng.randint(1, 4)]
            case _:
                text[place:place] = text[rng.randrange(len(text) + 1) :][:4]
    joined = "".join(text)
    return joined * rng.choice([1] * 20 + [50, 5000]) if rng.random() < 0.1 else joined


def survives(rng: random.Random, rounds: int) -> tuple[int, int]:
    """How many were taken and how many refused; anything else fails, and so does what takes long."""
    taken = refused = 0
    zones = [zone_named(name) for name in ZONES]
    for _ in range(rounds):
        text = written(rng)
        began = time.process_time()
        try:
            cron = parse_cron(text)
        except CronError as error:
            refused += 1
            assert error.message and len(error.message) < 400, text
        else:
            taken += 1
            fires(rng, cron, rng.choice(zones))
        assert time.process_time() - began < TEXT_S_MAX, text[:300]
    return taken, refused


def fires(rng: random.Random, cron: Cron, zone: ZoneInfo) -> None:
    after = rng.randrange(-(10**12), 8 * 10**12)
    for _ in range(4):
        due = next_after(cron, zone, after)
        if due is None:
            return
        assert due > after, cron.text
        assert due % 1000 == 0, cron.text
        after = due


def test_two_thousand_broken_expressions_are_taken_or_refused() -> None:
    taken, refused = survives(random.Random(1), 2_000)
    assert taken > 400
    assert refused > 400


@pytest.mark.slow
def test_a_hundred_thousand_broken_expressions_are_taken_or_refused() -> None:
    taken, refused = survives(random.Random(2), 100_000)
    assert taken > 20_000
    assert refused > 20_000


def test_what_is_taken_names_a_day() -> None:
    rng, seen = random.Random(3), 0
    for _ in range(1_000):
        try:
            cron = parse_cron(written(rng))
        except CronError:
            continue
        seen += 1
        years = cron.years.values or range(2000, 2028)
        assert any(days_in(cron, year, month) for year in years for month in cron.months.values), cron.text
    assert seen > 200
