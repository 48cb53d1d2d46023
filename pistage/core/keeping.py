"""Keeping: which tasks of a run that has ended stand as they are when it is tried again."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pistage.core.model import State
from pistage.errors import Code, PistageError

_NAMED_MAX = 20
#: How a task ends that did not do what it was for. A skip is no failure: it follows from others, and does so again.
_FAILED = frozenset({State.FAILED, State.LOST, State.CANCELLED})


@dataclass(frozen=True, slots=True, kw_only=True)
class EndedTask:
    """A task of the run that is tried again: how it ended, what it needs, and with whom it shares an agent."""

    name: str
    state: State
    needs: tuple[str, ...] = ()
    gang: str | None = None
    is_skip_planned: bool = False  # skipped by the plan itself: it never runs, and holds nobody up


def kept_after_failure(tasks: Sequence[EndedTask]) -> tuple[str, ...]:
    """The tasks that stand when only what failed is tried again, and what that brings with it.

    PistageError `conflict` where nothing has failed.
    """
    failed = [task.name for task in tasks if task.state in _FAILED]
    if not failed:
        raise PistageError(
            Code.CONFLICT,
            "nothing in the run has failed: there is nothing to try again",
            hint="retry it whole, or from a task on with --from TASK",
        )
    return _without(tasks, failed)


def kept_before(tasks: Sequence[EndedTask], start: str) -> tuple[str, ...]:
    """The tasks that stand when `start`, and what depends on it, is done anew, and with it all that failed.

    PistageError `not_found` for a task that is not there, `conflict` for one that the plan skips.
    """
    found = next((task for task in tasks if task.name == start), None)
    if found is None:
        known = ", ".join(task.name for task in tasks[:_NAMED_MAX])
        more = ", …" if len(tasks) > _NAMED_MAX else ""
        raise PistageError(Code.NOT_FOUND, f"the run has no task {start!r}", hint=f"it has {known}{more}")
    if found.is_skip_planned:
        raise PistageError(
            Code.CONFLICT,
            f"task {start!r} is skipped by the plan, also when it is tried again",
            hint="submit the definition anew, with other parameters or another start",
        )
    return _without(tasks, [start, *(task.name for task in tasks if task.state in _FAILED)])


def _without(tasks: Sequence[EndedTask], begun: Sequence[str]) -> tuple[str, ...]:
    again = _run_again(tasks, begun)
    return tuple(task.name for task in tasks if task.state is State.SUCCEEDED and task.name not in again)


def _run_again(tasks: Sequence[EndedTask], begun: Sequence[str]) -> set[str]:
    """`begun`, what needs one of them, and what shares networks or volumes with one: those are made anew, empty."""
    after: dict[str, list[str]] = {}
    gangs: dict[str, list[str]] = {}
    gang_of: dict[str, str] = {}
    for task in tasks:
        if task.is_skip_planned:
            continue
        for need in task.needs:
            after.setdefault(need, []).append(task.name)
        if task.gang is not None:
            gangs.setdefault(task.gang, []).append(task.name)
            gang_of[task.name] = task.gang

    def brought_by(name: str) -> Iterator[str]:
        yield from after.get(name, ())
        yield from gangs.pop(gang_of.get(name, ""), ())  # once is enough

    found, waiting = set(begun), deque(begun)
    while waiting:
        for name in brought_by(waiting.popleft()):
            if name not in found:
                found.add(name)
                waiting.append(name)
    return found
