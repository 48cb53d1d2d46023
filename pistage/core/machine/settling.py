"""Settling: where pending tasks, and the run they are of, get to. Computed from states alone, without the tables."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from pistage.core.model import State
from pistage.core.plan import When


@dataclass(frozen=True, slots=True)
class Waiting:
    """A pending task, and what it waits for."""

    position: int
    name: str
    needs: Sequence[str]
    run_when: When


@dataclass(frozen=True, slots=True)
class Move:
    """A pending task leaves for `to`; `reason` says why where that is its end."""

    position: int
    name: str
    to: State
    reason: str = ""


def moves(waiting: Sequence[Waiting], states: dict[str, State], excused: Collection[str]) -> Iterator[Move]:
    """What the pending tasks do now, in order; `states`, of all tasks by name, follows each move.

    `excused` are the tasks that the plan itself skips: they hold nobody up.
    """
    has_changed = True
    while has_changed:  # a skip may settle a task further down; the graph is finite and states only move on
        has_changed = False
        for task in waiting:
            if states[task.name] is not State.PENDING:
                continue
            verdict = _verdict(task, states, excused)
            if verdict is not None:
                states[task.name] = verdict[0]
                has_changed = has_changed or verdict[0].is_terminal
                yield Move(task.position, task.name, *verdict)


def _verdict(task: Waiting, states: dict[str, State], excused: Collection[str]) -> tuple[State, str] | None:
    if not all(states[name].is_terminal for name in task.needs):
        return None
    bad = [name for name in task.needs if states[name] is not State.SUCCEEDED and name not in excused]
    match task.run_when:
        case When.SUCCESS if bad:
            return State.SKIPPED, f"needs {bad[0]!r}, which ended {states[bad[0]]}"
        case When.FAILURE if not bad:
            return State.SKIPPED, "runs only after a failure, and nothing it needs has failed"
        case _:
            return State.QUEUED, ""


def run_state(old: State, states: Collection[State]) -> State:
    """The state of a run in `old` whose tasks are in `states`."""
    if all(state.is_terminal for state in states):
        worst_first = (State.FAILED, State.LOST, State.CANCELLED)
        return next((worst for worst in worst_first if worst in states), State.SUCCEEDED)
    # A run that has started stays running while its tasks wait for another try.
    return State.RUNNING if old is State.RUNNING or State.RUNNING in states else State.QUEUED
