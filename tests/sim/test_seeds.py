"""The simulator itself: some seeds in every run of the tests, many in the slow ones, and the same trace twice."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.sim import runs
from tests.sim.world import World

ROOT = Path(__file__).parent.parent.parent
FEW, FEW_EVENTS = range(1_000, 1_040), 2_000
MANY_EVENTS = 5_000
#: What a thousand seeds must reach, about half of what they do: seeds in which nothing happens prove nothing.
REACHED_PER_THOUSAND = {
    "commit": 70_000,
    "write": 30_000,
    "read": 16_000,
    "election won": 5_000,
    "membership change": 1_700,
    "snapshot": 850,
    "compaction": 5_500,
    "truncation": 700,
    "crash": 21_000,
    "crash in a write": 580,
    "crash after a write": 600,
    "crash before an apply": 280,
    "crash after an apply": 250,
    "message dropped": 45_000,
    "message duplicated": 43_000,
    "cut": 17_000,
    "pause": 8_000,
    "EIO": 3_800,
    "ENOSPC": 35_000,
    "slow_disk": 8_000,
    "replay": 5_000,
    "clock": 6_900,
    "jump": 7_300,
    "transfer": 7_400,
    "damaged log refused": 280,
    "damaged state given up": 130,
    "version raised": 750,
    "client": 7_100,
    "seed on SQLite": 100,
    "agent": 650,
    "register_agent": 800,
    "assign_tasks": 2_500,
    "record_events": 1_400,
    "lose_agent": 10,
    "result acknowledged": 3_900,
}


def test_some_seeds_hold_and_reach_what_they_are_for() -> None:
    report = runs.run(FEW, FEW_EVENTS)
    print(report)
    assert not report.failures, str(report)
    for what in ("commit", "election won", "snapshot", "membership change", "truncation", "compaction", "read"):
        assert report.reached[what] > 0, f"no {what} in {report.seeds} seeds"
    for what in ("damaged log refused", "damaged state given up", "version raised", "result acknowledged"):
        assert report.reached[what] > 0, f"no {what} in {report.seeds} seeds"


@pytest.mark.slow
@pytest.mark.timeout(3_600)
def test_many_seeds_hold() -> None:
    """PISTAGE_SIM_SEEDS says how many; 2,000 is what every release sees."""
    report = runs.run(range(int(os.environ.get("PISTAGE_SIM_SEEDS", "2000"))), MANY_EVENTS, failures_max=5)
    print(report)
    assert not report.failures, str(report)
    if report.seeds >= 1_000:
        reached = {what: report.reached[what] * 1_000 // report.seeds for what in REACHED_PER_THOUSAND}
        idle = {
            what: f"{reached[what]} of {least}" for what, least in REACHED_PER_THOUSAND.items() if reached[what] < least
        }
        assert not idle, f"in a thousand seeds only {idle}"


TRACE = """
from tests.sim.runs import world_of
for seed in (1, 7, 9, 30, 59):
    world = world_of(seed, is_traced=True)
    world.run(1_500)
    print(seed, world.events, world.trace)
"""


@pytest.mark.slow
def test_a_seed_gives_the_same_trace_whatever_the_hash_seed() -> None:
    """Nothing in the core or the simulator may depend on the order of a set."""
    traces = [
        subprocess.run(
            [sys.executable, "-c", TRACE],
            cwd=ROOT,
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        ).stdout
        for hash_seed in ("1", "2")
    ]
    assert traces[0] == traces[1]
    assert len(traces[0].splitlines()) == 5


def test_a_world_is_a_function_of_its_seed() -> None:
    first, second = World(5, is_traced=True), World(5, is_traced=True)
    first.run(1_000)
    second.run(1_000)
    assert (first.trace, first.counts) == (second.trace, second.counts)
