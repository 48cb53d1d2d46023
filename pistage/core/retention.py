"""Retention: whose output is dropped, by age, size and count of a pipeline's runs, and why."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from pistage.core import limits

#: The name under which a project says what holds for all its pipelines of which nothing else is said.
ALL_PIPELINES: Final = "*"
AGE_DEFAULT_MS: Final = 90 * 24 * 3_600_000  # as long as GitHub Actions keeps its logs
AGE_MAX_MS: Final = 100 * 366 * 24 * 3_600_000
RUNS_MAX: Final = 1_000_000
#: Of one command: each is a row that is written anew, with the document of its run.
DROPS_MAX: Final = 100

_UNITS_OF_TIME: Final = ((86_400_000, "day"), (3_600_000, "hour"), (60_000, "minute"), (1_000, "second"))
_UNITS_OF_SIZE: Final = ((limits.GIB, "GiB"), (limits.MIB, "MiB"), (limits.KIB, "KiB"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Retention:
    """How much output of a pipeline's ended runs is kept; None where there is no such bound.

    All bounds hold at once, and the oldest runs go first. A pinned run stays, and counts for none of them. However
    much it printed, the newest run is not dropped for its size: its output would be gone before anybody has seen it.
    """

    age_ms: int | None = AGE_DEFAULT_MS  # since the run ended
    bytes_max: int | None = None
    runs_max: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EndedRun:
    """A run that has ended and whose output is there; times are milliseconds UTC.

    `is_read`: a run that goes on, or is pinned, shows some of this output as its own, since it kept tasks from here.
    Then it is passed over, and goes by the bounds as if it had been dropped.
    """

    run_id: str
    finished_at: int
    output_bytes: int
    is_pinned: bool = False
    is_read: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """How many ended runs of a pipeline have their output, and how much that is; the pinned ones are not counted."""

    runs: int
    output_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Drop:
    """A run whose output is to go, and why, for people."""

    run_id: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What is to be dropped of the runs that were looked at, what is kept after that, and whether that is all."""

    drops: tuple[Drop, ...]
    kept: Kept
    is_all: bool  # the runs that were not looked at, which are newer, stay


def decide(retention: Retention, runs: Iterable[EndedRun], kept: Kept, now: int) -> Decision:
    """What is to be dropped of `runs`, the oldest first, where `kept` is all that there is of the pipeline.

    More of its runs, newer ones, are decided on by another call, with the `kept` of the answer.
    """
    drops: list[Drop] = []
    for run in runs:
        if run.is_pinned:
            continue
        reason = _reason(retention, run, kept, now)
        if reason is None:  # and each newer run is younger, and has no more beside it
            return Decision(drops=tuple(drops), kept=kept, is_all=True)
        kept = Kept(runs=kept.runs - 1, output_bytes=kept.output_bytes - run.output_bytes)
        if not run.is_read:
            drops.append(Drop(run_id=run.run_id, reason=reason))
    return Decision(drops=tuple(drops), kept=kept, is_all=False)


def _reason(retention: Retention, run: EndedRun, kept: Kept, now: int) -> str | None:
    if retention.age_ms is not None and run.finished_at + retention.age_ms <= now:
        return f"it ended more than {_duration(retention.age_ms)} ago"
    if retention.runs_max is not None and kept.runs > retention.runs_max:
        return f"of its pipeline the newest {_count(retention.runs_max, 'run')} {_are(retention.runs_max)} kept"
    if retention.bytes_max is not None and kept.output_bytes > retention.bytes_max and kept.runs > 1:
        return f"with it the output of its pipeline is more than {_size(retention.bytes_max)}"
    return None


def _duration(ms: int) -> str:
    """In the largest unit in which it is a whole number."""
    for size, unit in _UNITS_OF_TIME:
        if ms >= size and ms % size == 0:
            return _count(ms // size, unit)
    return f"{ms / 1000:g} seconds"


def _size(count: int) -> str:
    for size, unit in _UNITS_OF_SIZE:
        if count >= size:
            return f"{count / size:.4g} {unit}"
    return _count(count, "byte")


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'s' * (number != 1)}"


def _are(number: int) -> str:
    return "is" if number == 1 else "are"
