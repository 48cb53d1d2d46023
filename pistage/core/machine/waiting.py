"""Waiting: what the scheduler is told of a task that is queued."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from typing import Any

from pistage.core.changes import TaskQueued, WaitingTask
from pistage.core.machine.outcome import Turn

#: Queued tasks with all that the scheduler knows of them, to be followed by a WHERE.
WAITING = """
SELECT task.run_id, task.position, task.name, run.queue, run.owner, run.priority, run.created_at, task.ready_at,
  task.demand, task.queue_timeout_ms, task.gang, run.concurrency, run.concurrency_limit, task.attempts
FROM task JOIN run ON run.id = task.run_id
"""
#: The agents that a task has been tried on.
TRIED_ON = "SELECT DISTINCT agent_id FROM attempt WHERE run_id = ? AND position = ? ORDER BY agent_id"


def waiting_task(row: Sequence[Any], tried_on: Iterable[str] = ()) -> WaitingTask:
    """What a row of `WAITING` says; `tried_on` is wanted where the task has had attempts."""
    run_id, position, name, queue, owner, priority, created_at, ready_at, demand, timeout_ms, gang, *group, _ = row
    return WaitingTask(
        run_id=run_id, position=position, name=name, queue=queue, owner=owner, priority=priority,
        created_at=created_at, ready_at=ready_at, demand=demand, expires_at=expiry(ready_at, timeout_ms), gang=gang,
        group=group[0], group_limit=group[1], tried_on=frozenset(tried_on),
    )  # fmt: skip


def expiry(ready_at: int, timeout_ms: int | None) -> int | None:
    """When a task that may wait that long has waited for too long."""
    return None if timeout_ms is None else ready_at + timeout_ms


def announce(turn: Turn, run_id: str, position: int) -> None:
    """Tell the scheduler of a task that is queued now."""
    row = turn.db.execute(WAITING + " WHERE task.run_id = ? AND task.position = ?", (run_id, position)).fetchone()
    tried_on = _tried_on(turn.db, run_id, position) if row[-1] else ()
    turn.changes.append(TaskQueued(waiting_task(row, tried_on)))


def _tried_on(db: sqlite3.Connection, run_id: str, position: int) -> list[str]:
    return [agent_id for (agent_id,) in db.execute(TRIED_ON, (run_id, position))]
