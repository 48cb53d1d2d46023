"""Retention: which runs' output is dropped, by which bound, and what stays whatever the bounds say."""

import random
from itertools import islice

import pytest

from pistage.core import limits
from pistage.core.retention import DROPS_MAX, Decision, EndedRun, Kept, Retention, decide

DAY_MS = 86_400_000
NOW = 1_000 * DAY_MS
FOREVER = Retention(age_ms=None)


def a_run(number: int, *, output_bytes: int = 10, days_ago: float = 1, **about: bool) -> EndedRun:
    finished_at = NOW - round(days_ago * DAY_MS)
    return EndedRun(run_id=f"r{number}", finished_at=finished_at, output_bytes=output_bytes, **about)


def kept_of(runs: list[EndedRun]) -> Kept:
    counted = [run for run in runs if not run.is_pinned]
    return Kept(runs=len(counted), output_bytes=sum(run.output_bytes for run in counted))


def decided(retention: Retention, *runs: EndedRun) -> Decision:
    """Of all the runs that there are, the oldest first."""
    return decide(retention, runs, kept_of(list(runs)), NOW)


def dropped(retention: Retention, *runs: EndedRun) -> list[str]:
    return [drop.run_id for drop in decided(retention, *runs).drops]


def test_without_a_word_output_is_kept_for_ninety_days_however_much_it_is() -> None:
    old, young = a_run(1, days_ago=90), a_run(2, days_ago=89.9, output_bytes=1 << 50)
    (drop,) = decided(Retention(), old, young).drops
    assert (drop.run_id, drop.reason) == ("r1", "it ended more than 90 days ago")
    assert dropped(FOREVER, old, young) == []


def test_the_newest_runs_are_kept_as_many_as_may_be() -> None:
    runs = [a_run(number, days_ago=10 - number) for number in range(1, 6)]
    decision = decided(Retention(runs_max=2), *runs)
    assert [drop.run_id for drop in decision.drops] == ["r1", "r2", "r3"]
    assert {drop.reason for drop in decision.drops} == {"of its pipeline the newest 2 runs are kept"}
    assert decision.kept == Kept(runs=2, output_bytes=20) and decision.is_all


def test_the_newest_output_is_kept_as_much_as_may_be() -> None:
    sizes = (1, 5 * limits.MIB, 3 * limits.MIB, limits.MIB)
    runs = [a_run(number, output_bytes=size, days_ago=10 - number) for number, size in enumerate(sizes, 1)]
    decision = decided(Retention(bytes_max=4 * limits.MIB), *runs)
    assert [drop.run_id for drop in decision.drops] == ["r1", "r2"]  # what is older than too much goes, however small
    assert decision.drops[1].reason == "with it the output of its pipeline is more than 4 MiB"


def test_the_newest_run_is_not_dropped_for_its_size_but_for_its_age() -> None:
    huge = a_run(2, output_bytes=1 << 40)
    bound = Retention(bytes_max=1)
    assert dropped(bound, huge) == []
    assert dropped(bound, a_run(1, days_ago=2), huge) == ["r1"]
    assert dropped(bound, a_run(1, days_ago=100), a_run(2, days_ago=91)) == ["r1", "r2"]


def test_a_pinned_run_is_never_dropped_and_takes_nobodys_place() -> None:
    pinned = a_run(1, days_ago=500, output_bytes=1 << 40, is_pinned=True)
    others = [a_run(2, days_ago=3), a_run(3, days_ago=2)]
    bounds = Retention(runs_max=2, bytes_max=20)
    assert dropped(bounds, pinned, *others) == []
    assert dropped(bounds, pinned, *others, a_run(4)) == ["r2"]


def test_output_that_another_run_reads_stays_meanwhile_and_keeps_no_older_one() -> None:
    read = a_run(2, days_ago=4, is_read=True)
    runs = [a_run(1, days_ago=5), read, a_run(3, days_ago=3), a_run(4)]
    decision = decided(Retention(runs_max=2), *runs)
    assert [drop.run_id for drop in decision.drops] == ["r1"]
    assert decision.kept == Kept(runs=2, output_bytes=20)  # r3 has its place


@pytest.mark.parametrize(
    ("age_ms", "said"),
    [
        (DAY_MS, "1 day"),
        (36 * 3_600_000, "36 hours"),
        (90_000, "90 seconds"),
        (60_000, "1 minute"),
        (1, "0.001 seconds"),
    ],
)
def test_an_age_is_told_as_people_say_it(age_ms: int, said: str) -> None:
    (drop,) = decided(Retention(age_ms=age_ms), a_run(1, days_ago=9)).drops
    assert drop.reason == f"it ended more than {said} ago"


@pytest.mark.parametrize("seed", range(300))
def test_what_is_kept_obeys_the_bounds_what_is_dropped_does_not_and_pages_make_no_difference(seed: int) -> None:
    chance = random.Random(seed)
    runs = sorted(
        (
            a_run(
                number, days_ago=chance.uniform(0, 9), output_bytes=chance.choice((0, 1, 50, 1_000)),
                is_pinned=chance.random() < 0.2, is_read=chance.random() < 0.1,
            )
            for number in range(chance.randrange(40))
        ),
        key=lambda run: run.finished_at,
    )  # fmt: skip
    retention = Retention(
        age_ms=chance.choice((None, round(chance.uniform(0, 9) * DAY_MS))),
        bytes_max=chance.choice((None, 1, 500, 5_000)),
        runs_max=chance.choice((None, 1, 3, 20)),
    )
    gone = set(dropped(retention, *runs))
    for run in runs:
        assert not (run.is_pinned and run.run_id in gone) and not (run.is_read and run.run_id in gone)
    # From the newest back, a run is within the bounds or everything from there on is gone.
    bound = [run for run in reversed(runs) if not run.is_pinned]
    total, is_over = 0, False
    for number, run in enumerate(bound, 1):
        total += run.output_bytes
        is_over = is_over or (
            (retention.age_ms is not None and NOW - run.finished_at >= retention.age_ms)
            or (retention.runs_max is not None and number > retention.runs_max)
            or (retention.bytes_max is not None and total > retention.bytes_max and number > 1)
        )
        assert (run.run_id in gone) is (is_over and not run.is_read)
    assert gone == set(_in_pages(retention, runs, chance.randrange(1, 7)))


def _in_pages(retention: Retention, runs: list[EndedRun], size: int) -> list[str]:
    found: list[str] = []
    kept, left = kept_of(runs), iter(runs)
    while page := list(islice(left, size)):
        decision = decide(retention, page, kept, NOW)
        found += [drop.run_id for drop in decision.drops]
        kept = decision.kept
        if decision.is_all:
            break
    return found


def test_a_command_is_no_more_than_every_master_does_in_a_moment() -> None:
    assert DROPS_MAX <= 500
