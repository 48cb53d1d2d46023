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


def test_some_seeds_hold_and_reach_what_they_are_for() -> None:
    report = runs.run(FEW, FEW_EVENTS)
    print(report)
    assert not report.failures, str(report)
    for what in ("commit", "election won", "snapshot", "membership change", "truncation", "compaction", "read"):
        assert report.reached[what] > 0, f"no {what} in {report.seeds} seeds"


@pytest.mark.slow
@pytest.mark.timeout(3_600)
def test_many_seeds_hold() -> None:
    """PISTAGE_SIM_SEEDS says how many; 2,000 is what every release sees."""
    report = runs.run(range(int(os.environ.get("PISTAGE_SIM_SEEDS", "2000"))), MANY_EVENTS, failures_max=5)
    print(report)
    assert not report.failures, str(report)


TRACE = """
from tests.sim.world import World
for seed in (1, 7, 30):
    world = World(seed, is_traced=True)
    world.run(1_500)
    print(seed, world.events, world.trace)
"""


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
    assert len(traces[0].splitlines()) == 3


def test_a_world_is_a_function_of_its_seed() -> None:
    first, second = World(5, is_traced=True), World(5, is_traced=True)
    first.run(1_000)
    second.run(1_000)
    assert (first.trace, first.counts) == (second.trace, second.counts)
