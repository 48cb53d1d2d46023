"""Settings of triggers, as the state keeps them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from math import isfinite
from typing import Any, Final

from pistage.core import limits
from pistage.core.model import State

WINDOW_DEFAULT_MS: Final = 24 * 3_600_000


def problem_of_kept(parameters: object) -> str | None:
    """Why parameters, from a program, cannot be kept for a later run; None if they can."""
    level = [parameters]
    for _ in range(limits.DOCUMENT_DEPTH_MAX):
        below: list[object] = []
        for value in level:
            match value:
                case int() if not -(2**63) <= value < 2**64:
                    return "a number of more than 64 bits cannot be kept: write it as text"
                case float() if not isfinite(value):
                    return f"{value} cannot be kept, since JSON has no such number: write it as text"
                case list() | tuple():
                    below.extend(value)
                case Mapping():
                    below.extend(value.values())
        if not below:
            return None
        level = below
    return f"what is nested deeper than {limits.DOCUMENT_DEPTH_MAX} levels cannot be kept: write it as text"


@dataclass(frozen=True, slots=True, kw_only=True)
class Webhook:
    """What a webhook makes of a delivery.

    `inputs` is expression by input, `parameters` are given to each run beside them. A delivery makes a run only if
    each path of `when` is one of its values, and its event one of `events`, where there are any. `window_ms` is for
    how long a delivery is known again, and how far its own time may be off.
    """

    inputs: Mapping[str, str] = field(default_factory=dict)
    parameters: Mapping[str, Any] = field(default_factory=dict)
    when: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    events: tuple[str, ...] = ()
    window_ms: int = WINDOW_DEFAULT_MS


class Ending(StrEnum):
    """How a run has to end for others to come after it."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"  # or was lost
    ENDED = "ended"  # in any way, also cancelled


@dataclass(frozen=True, slots=True, kw_only=True)
class After:
    """A definition comes after each run of `pipeline` that ends so."""

    pipeline: str
    state: Ending = Ending.SUCCEEDED

    def is_met_by(self, state: State) -> bool:
        """Whether `state` is such an end."""
        match self.state:
            case Ending.SUCCEEDED:
                return state is State.SUCCEEDED
            case Ending.FAILED:
                return state in {State.FAILED, State.LOST}
            case Ending.ENDED:
                return state.is_terminal


@dataclass(frozen=True, slots=True, kw_only=True)
class AfterRule:
    """What a definition comes after, and what each of its runs is given."""

    afters: tuple[After, ...]
    parameters: Mapping[str, Any] = field(default_factory=dict)
