"""Each known fault is found by some seed of the fleet."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.fleet import mutants
from tests.sim import mutating

ROOT = Path(__file__).parent.parent.parent


def fleet(*arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "tests.fleet", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=1_700,
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
    assert len(mutants.MUTANTS) >= 15
    assert len(mutants.BY_NAME) == len(mutants.MUTANTS)


@pytest.mark.slow
def test_a_quick_mutant_is_killed() -> None:
    assert "1 of 1 killed" in fleet("mutants", "ended-room-is-not-given-back", "--seeds", "0:10")


@pytest.mark.slow
@pytest.mark.timeout(1_800)
def test_every_mutant_is_killed() -> None:
    table = fleet("mutants")
    print(table)
    assert "ALIVE" not in table
