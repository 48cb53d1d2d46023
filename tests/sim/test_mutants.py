"""Each known fault is found; and a seed that found one can be made smaller."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.sim import mutants, mutating

ROOT = Path(__file__).parent.parent.parent


def sim(*arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "tests.sim", *arguments],
        cwd=ROOT,
        env=dict(os.environ),
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode in (0, 1), done.stderr
    return done.stdout


@pytest.mark.parametrize("mutant", mutants.MUTANTS, ids=lambda mutant: mutant.name)
def test_a_mutant_still_stands_in_the_source(mutant: mutants.Mutant) -> None:
    for module in {module for module, _, _ in mutant.edits}:
        source = mutating.source_of(module).read_text(encoding="utf-8")
        edits = [(old, new) for name, old, new in mutant.edits if name == module]
        compile(mutating.mutated(source, edits), module, "exec")


def test_there_are_enough_of_them_and_each_has_a_name() -> None:
    assert len(mutants.MUTANTS) >= 25
    assert len(mutants.BY_NAME) == len(mutants.MUTANTS)


def test_an_edit_that_is_not_there_and_a_mutant_that_comes_late_are_refused() -> None:
    with pytest.raises(ValueError, match="stands there 0 times"):
        mutating.mutated("x = 1", [("y", "z")])
    import pistage.raft.election  # noqa: F401 - as any test does that uses the core

    with pytest.raises(RuntimeError, match="too late"):
        mutants.BY_NAME["vote-before-durable"].install()


def test_a_quick_mutant_is_killed_and_its_seed_replays() -> None:
    found = sim("run", "0:20", "--mutant", "two-votes-a-term")
    seed = found.partition("seed ")[2].partition(":")[0]
    again = sim("replay", seed, "--mutant", "two-votes-a-term")
    assert found.splitlines()[-2:] == again.splitlines()[-2:]


@pytest.mark.slow
def test_a_seed_that_fails_is_shrunk() -> None:
    found = sim("run", "0:40", "--events", "600", "--mutant", "leader-counts-unsynced")
    seed = found.partition("seed ")[2].partition(":")[0]
    shrunk = sim("shrink", seed, "--events", "600", "--mutant", "leader-counts-unsynced")
    assert "I7" in shrunk
    assert "least:" in shrunk


@pytest.mark.slow
@pytest.mark.timeout(1_800)
def test_every_mutant_is_killed_within_500_seeds() -> None:
    table = sim("mutants")
    print(table)
    assert "ALIVE" not in table
