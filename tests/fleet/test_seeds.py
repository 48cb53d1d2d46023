"""The simulator of fleets: some seeds in every run of the tests, many in the slow ones, and the same world twice."""

import logging
import os
from collections.abc import Iterator

import pytest

from tests.fleet import fairness, runs
from tests.fleet.world import World

FEW = (1, 4, 10)
MANY = int(os.environ.get("PISTAGE_FLEET_SEEDS", "60"))
#: What sixty seeds must reach, less than half of what they do: seeds in which nothing happens prove nothing.
REACHED_BY_SIXTY = {
    "run": 3_000,
    "settled": 60,
    "execution": 8_000,
    "result acknowledged": 8_000,
    "view compared": 3_500,
    "decision compared": 3_000,
    "look at what waits": 3_000,
    "obstacle that is one": 150_000,
    "register_agent": 1_500,
    "lose_agent": 180,
    "pause_losses": 7,
    "fenced": 130,
    "attempt kept": 400,
    "attempt not kept": 130,
    "attempt forgotten": 4,
    "assignment told again": 100,
    "execution found again": 60,
    "abandoned": 100,
    "execution beyond the promise": 12,
    "overlap that was allowed": 8,
    "session ended by silence": 250,
    "eviction": 10,
    "left": 30,
    "gone for good": 15,
    "came back as another": 10,
    "assignment refused: takes no work": 4,
    "constraint met": 1_500,
    "GPU given": 300,
    "out of memory": 500,
    "gang together": 350,
    "gang moved": 20,
    "agent kept free": 30,
    "placed on an agent kept free": 15,
    "concurrency full": 400,
    "queue full": 500,
    "submitted to a group: cancel-old": 120,
    "submitted to a group: refuse": 70,
    "expire_task": 140,
    "cancel_run": 200,
    "cancel_task": 180,
    "retry_run": 150,
    "set_run_priority": 180,
    "set_agent_drain": 180,
    "put_queue": 110,
    "remove_agent": 18,
    "fault: leader": 25,
    "fault: many": 30,
    "fault: stall": 30,
    "fault: pause": 20,
    "leader: cut off": 10,
    "leader: hand over": 10,
    "leader: crash": 5,
    "proposal of a deposed leader": 20,
    "run that no agent could take": 50,
}


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """The program under test has reason for thousands of warnings."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


def test_some_seeds_hold() -> None:
    report = runs.run(FEW, storm_s=60.0)
    print(report)
    assert not report.failures, str(report)
    for what in ("run", "settled", "execution", "view compared", "decision compared", "look at what waits"):
        assert report.reached[what] > 0, f"no {what} in {report.seeds} seeds"


@pytest.mark.slow
def test_a_world_is_a_function_of_its_seed() -> None:
    first, second = World(8), World(8)
    for world in (first, second):
        assert runs.failure_of(world, 40.0) is None
    assert (first.counts, first.loop.events, first.now_s) == (second.counts, second.loop.events, second.now_s)


def test_owners_who_ask_for_the_same_have_the_same() -> None:
    gap, looks = fairness.widest_gap(1)
    assert looks > 50
    assert gap <= 1


def test_the_least_urgent_waits_a_minute_for_each_point_of_priority() -> None:
    """And then for the next place that becomes free."""
    assert 175 < fairness.wait_of_the_least(1, priority=3) < 3 * 60 + 20


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_many_seeds_hold_and_reach_what_they_are_for() -> None:
    """PISTAGE_FLEET_SEEDS says how many."""
    report = runs.run(range(MANY), failures_max=5)
    print(report)
    assert not report.failures, str(report)
    if MANY >= 60:
        least = {what: count * MANY // 60 for what, count in REACHED_BY_SIXTY.items()}
        idle = {
            what: f"{report.reached[what]} of {count}" for what, count in least.items() if report.reached[what] < count
        }
        assert not idle, f"in {MANY} seeds only {idle}"


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_thousands_of_agents() -> None:
    report = runs.run((2,), storm_s=40.0, agents=2_000)
    print(report)
    assert not report.failures, str(report)
    assert report.reached["register_agent"] >= 2_000
    assert report.reached["execution"] >= 200
    assert report.reached["lose_agent"] > 0


@pytest.mark.slow
def test_shares_and_ageing_in_many_worlds() -> None:
    for seed in range(10):
        gap, looks = fairness.widest_gap(seed)
        assert looks > 30
        assert gap <= 1, f"seed {seed}"
    for priority in (1, 5, 9):
        wait_s = fairness.wait_of_the_least(priority, priority)
        assert 60 * priority - 5 < wait_s < 60 * priority + 30
