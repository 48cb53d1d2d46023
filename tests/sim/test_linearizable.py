"""The checker of histories, on histories that are known to be good or bad."""

import pytest

from tests.sim.clients import Operation
from tests.sim.linearizable import is_linearizable


def history(text: str) -> list[Operation]:
    """`w1 0-2, r1 1-3`: a write of 1 from 0 to 2, a read of 1 from 1 to 3; `w1 0-` never ended."""
    found = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        what, _, when = part.partition(" ")
        start, _, end = when.partition("-")
        found.append(Operation("x", what[1:], what[0] == "w", int(start), int(end) if end else None))
    return found


@pytest.mark.parametrize(
    "good",
    [
        "",
        "r 0-1",
        "w1 0-1, r1 2-3",
        "w1 0-3, r 1-2",
        "w1 0-3, r1 1-2",
        "w1 0-5, r 1-2, r1 3-4",
        "w1 0-, r 1-2, r1 3-4",
        "w1 0-, r 1-2, r 3-4",
        "w1 0-9, w2 1-8, r1 2-3, r2 4-5",
        "w1 0-9, w2 1-8, r2 2-3, r1 4-5",
        "w1 0-1, w2 2-3, r2 4-5",
    ],
)
def test_a_history_that_one_register_could_have_given(good: str) -> None:
    assert is_linearizable(history(good))


@pytest.mark.parametrize(
    "bad",
    [
        "r1 0-1",
        "w1 0-1, r 2-3",
        "w1 0-5, r1 1-2, r 3-4",
        "w1 0-1, w2 2-3, r1 4-5",
        "w1 0-, r1 1-2, r 3-4",
        "w1 0-9, w2 1-8, r1 2-3, r2 4-5, r1 6-7",
        "r1 0-1, w1 2-3",
        "w1 0-1, w2 2-3, r2 4-5, r1 6-7",
    ],
    ids=["from nowhere", "stale", "new then old", "overwritten", "undone", "back again", "before it", "lost update"],
)
def test_a_history_that_it_could_not(bad: str) -> None:
    assert not is_linearizable(history(bad))
