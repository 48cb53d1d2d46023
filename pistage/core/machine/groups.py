"""Concurrency groups: what becomes of a run that is submitted while its group is full."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from pistage.core.machine import runs
from pistage.core.machine.outcome import Turn
from pistage.core.plan import Concurrency, Overflow
from pistage.errors import Code, PistageError

_ACTIVE = """
SELECT id, name, number FROM run
WHERE concurrency = ? AND state IN ('pending', 'queued', 'running') AND cancel_reason IS NULL
ORDER BY created_at, rowid
"""
#: Each may skip thousands of tasks, and all masters wait. What is left over is cancelled by the next submission.
_CANCELLED_AT_ONCE = 100


def group_of(project: str, concurrency: Concurrency | None) -> str | None:
    """The group's name in the state: projects do not share groups."""
    return None if concurrency is None else f"{project}/{concurrency.group}"


def refuse_if_full(turn: Turn, project: str, asked: Sequence[Concurrency | None]) -> None:
    """PistageError `conflict` if the runs to be made do not all find room in groups that refuse what is too much."""
    counts = Counter(one.group for one in asked if one is not None)
    for concurrency in dict.fromkeys(one for one in asked if one is not None and one.overflow is Overflow.REFUSE):
        active = turn.db.execute(_ACTIVE, (group_of(project, concurrency),)).fetchall()
        if len(active) + counts[concurrency.group] > concurrency.limit:
            names = ", ".join(f"{name}#{number}" for _, name, number in active[:5])
            raise PistageError(
                Code.CONFLICT,
                f"the concurrency group {concurrency.group!r} is full: at most {concurrency.limit} at one time"
                + (f", and {names} {'is' if len(active) == 1 else 'are'} not over" if active else ""),
                hint="wait for them, cancel one, or submit with overflow: queue",
            )


def cancel_what_is_too_much(turn: Turn, project: str, made: Iterable[Concurrency | None], newest: str) -> None:
    """Cancel the oldest runs of groups that ask for it, until the newest have room; `newest` is for the reason."""
    cancelling = [one for one in made if one is not None and one.overflow is Overflow.CANCEL_OLD]
    for concurrency in dict.fromkeys(cancelling):
        active = turn.db.execute(_ACTIVE, (group_of(project, concurrency),)).fetchall()
        for run_id, _, _ in active[: min(_CANCELLED_AT_ONCE, max(0, len(active) - concurrency.limit))]:
            reason = f"{newest} took its place in the concurrency group {concurrency.group!r}"
            runs.cancel_now(turn, run_id, reason)
