"""What is raised when an invariant falls."""

from __future__ import annotations


class Violation(AssertionError):  # noqa: N818 - it is the word for it
    """`invariant` is its number in the list of `tests.sim`, or a word."""

    def __init__(self, invariant: str, what: str) -> None:
        super().__init__(f"{invariant}: {what}")
        self.invariant = invariant
