"""Which times of a schedule are to be decided: on time, late, after an absence, caught up or missed."""

import random

import pytest

from pistage.core.cron import CatchUp, Due, Missed, Schedule, Timer, schedules, times_between
from pistage.core.cron.schedules import LATE_MS
from tests.core.cron.clocks import instant

MINUTE = 60_000
NOON = instant("2026-11-22T12:00")


def timer(cron: str = "* * * * *", share: float = 0.0, **said: object) -> Timer:
    return Timer.of(Schedule(cron=cron, **said), share)  # type: ignore[arg-type]


def test_a_time_fires_when_it_has_come_and_not_before() -> None:
    assert timer().due(NOON, NOON + MINUTE - 1) == Due()
    assert timer().due(NOON, NOON + MINUTE) == Due(fires=(NOON + MINUTE,))
    assert timer().next_due(NOON) == NOON + MINUTE


@pytest.mark.parametrize("catch_up", CatchUp)
def test_a_single_time_that_is_a_moment_late_fires_whatever_is_caught_up(catch_up: CatchUp) -> None:
    hourly = timer("0 * * * *", catch_up=catch_up)
    assert hourly.due(NOON - 1, NOON + LATE_MS) == Due(fires=(NOON,))


def test_without_catching_up_what_came_during_an_absence_is_missed() -> None:
    hourly = timer("0 * * * *")
    late = Missed(NOON - 2 * 60 * MINUTE, NOON, 3)
    assert hourly.due(NOON - 180 * MINUTE, NOON + LATE_MS + 1) == Due(late)
    assert timer().due(NOON, NOON + 3 * MINUTE) == Due(
        Missed(NOON + MINUTE, NOON + 2 * MINUTE, 2), (NOON + 3 * MINUTE,)
    )


def test_the_last_is_caught_up_unless_it_is_too_far_back() -> None:
    hourly = timer("0 * * * *", catch_up=CatchUp.LAST, window_ms=30 * MINUTE)
    since = NOON - 121 * MINUTE
    earlier = Missed(NOON - 120 * MINUTE, NOON - 60 * MINUTE, 2)
    assert hourly.due(since, NOON + 30 * MINUTE) == Due(earlier, (NOON,))
    assert hourly.due(since, NOON + 30 * MINUTE + 1) == Due(Missed(NOON - 120 * MINUTE, NOON, 3))


def test_all_are_caught_up_as_far_as_the_limit_and_the_window_go() -> None:
    every = timer(catch_up=CatchUp.ALL, limit=3)
    fires = tuple(NOON + n * MINUTE for n in (8, 9, 10))
    assert every.due(NOON, NOON + 10 * MINUTE) == Due(Missed(NOON + MINUTE, NOON + 7 * MINUTE, 7), fires)
    few = timer(catch_up=CatchUp.ALL, window_ms=MINUTE)
    assert few.due(NOON, NOON + 10 * MINUTE).fires == tuple(NOON + n * MINUTE for n in (9, 10))
    assert timer(catch_up=CatchUp.ALL).due(NOON, NOON + 2 * MINUTE) == Due(fires=(NOON + MINUTE, NOON + 2 * MINUTE))


def test_nobody_counts_what_was_missed_for_ever() -> None:
    missed = timer("* * * * * *").due(NOON, NOON + 30 * 24 * 60 * MINUTE).missed
    assert missed is not None
    assert (missed.first, missed.last, missed.count) == (NOON + 1000, NOON + 30 * 24 * 60 * MINUTE - 1000, None)


def test_jitter_makes_it_late_and_changes_no_name() -> None:
    late = timer("0 * * * *", share=0.5, jitter_ms=10 * MINUTE)
    assert late.next_due(NOON - 1) == NOON + 5 * MINUTE
    assert late.due(NOON - 1, NOON + 5 * MINUTE - 1) == Due()
    assert late.due(NOON - 1, NOON + 5 * MINUTE) == Due(fires=(NOON,))


def test_a_schedule_that_has_no_time_left_is_never_due() -> None:
    over = timer("0 0 12 1 1 ? 2026")
    assert over.next_due(NOON) is None and over.due(NOON, NOON + 10**12) == Due()


@pytest.mark.parametrize("seed", range(40))
def test_every_time_is_decided_once_whatever_is_caught_up_and_whenever_somebody_looks(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schedules, "COUNTED_MAX", 10_000)
    chance = random.Random(seed)
    cron = chance.choice(["* * * * *", "*/7 * * * *", "0 * * * *", "*/20 * * * * *", "30 2 * * *", "0 3,17 29 * *"])
    schedule = Schedule(
        cron=cron, timezone=chance.choice(["UTC", "Europe/Berlin", "Australia/Lord_Howe"]),
        catch_up=chance.choice(list(CatchUp)), limit=chance.choice([1, 3, 100]),
        window_ms=chance.choice([MINUTE, 90 * MINUTE, 24 * 60 * MINUTE]), jitter_ms=chance.choice([0, 5 * MINUTE]),
    )  # fmt: skip
    ours = Timer.of(schedule, chance.random())
    begin = decided = now = instant("2026-10-24T12:00")
    fired: list[int] = []
    missed = 0
    while now < begin + 36 * 60 * MINUTE:
        now += chance.choice([500, 20_000, MINUTE, 200 * MINUTE])
        due = ours.due(decided, now)
        if due.missed is not None:
            assert due.missed.first > decided and due.missed.count is not None
            missed += due.missed.count
            decided = due.missed.last
        for nominal in due.fires:
            assert decided < nominal <= now
            fired.append(nominal)
            decided = nominal
    expected = times_between(ours.cron, ours.zone, begin, now - ours.delay_ms, 10**6)
    assert set(fired) <= set(expected) and len(set(fired)) == len(fired)
    assert len(fired) + missed == len(expected)
