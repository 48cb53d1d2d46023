"""The check that the tests of output stand on: what is missing where no gap is, or is there twice, is seen."""

from __future__ import annotations

import pytest

from tests.e2e.readback import Gap, wrong_order

PRINTED = b"abcdefgh"


@pytest.mark.parametrize(
    ("kept", "gaps"),
    [
        (b"abcdefgh", []),
        (b"abcfgh", [Gap(3, 0, "engine")]),
        (b"abcfgh", [Gap(3, 2, "lost")]),
        (b"abc", [Gap(3, 0, "engine")]),
        (b"abc", [Gap(3, 5, "limit")]),
        (b"abdgh", [Gap(2, 1, "lost"), Gap(3, 0, "engine")]),
        (b"abdh", [Gap(2, 0, "engine"), Gap(3, 3, "lost")]),
        (b"", [Gap(0, 8, "lost")]),
    ],
)
def test_what_is_missing_at_a_gap_is_in_order(kept: bytes, gaps: list[Gap]) -> None:
    assert wrong_order(kept, gaps, PRINTED) == ""


def test_a_gap_that_does_not_say_how_much_is_missing_is_no_excuse_for_everything() -> None:
    assert wrong_order(b"abgh", [Gap(2, 0, "engine")], PRINTED, unknown_max=4) == ""
    assert wrong_order(b"abgh", [Gap(2, 0, "engine")], PRINTED, unknown_max=3) != ""
    assert wrong_order(b"abcd", [Gap(4, 0, "engine")], PRINTED, unknown_max=4) == ""
    assert wrong_order(b"abcd", [Gap(4, 0, "engine")], PRINTED, unknown_max=3) != ""


@pytest.mark.parametrize(
    ("kept", "gaps"),
    [
        (b"abcdefg", []),
        (b"abcfgh", []),
        (b"abccdefgh", []),
        (b"abcdefghi", []),
        (b"abcfgh", [Gap(2, 0, "engine")]),
        (b"abcfgh", [Gap(3, 1, "lost")]),
        (b"abccfgh", [Gap(3, 0, "engine")]),
        (b"abcbcdefgh", [Gap(3, 0, "engine")]),
        (b"abcfg", [Gap(3, 0, "engine")]),
        (b"abcde", [Gap(3, 0, "engine")]),
        (b"abc", [Gap(3, 4, "limit")]),
    ],
)
def test_what_is_lost_elsewhere_or_doubled_is_not_in_order(kept: bytes, gaps: list[Gap]) -> None:
    assert wrong_order(kept, gaps, PRINTED) != ""
