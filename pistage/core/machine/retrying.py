"""Retrying: a run of the same plan as one that has ended, in which what succeeded there may stand as it is."""

from __future__ import annotations

from pistage.core import codec
from pistage.core import commands as c
from pistage.core.machine import groups, runs
from pistage.core.machine.outcome import Turn
from pistage.core.machine.submissions import earlier, remember, take_numbers
from pistage.core.model import Starter, State, Trigger
from pistage.core.plan import Plan
from pistage.errors import Code, PistageError

_SOURCE = "SELECT project, name, number, state, plan, started_by FROM run WHERE id = ?"
_COPY_RUN = """
INSERT INTO run (id, project, name, number, owner, started_by, nominal, state, reason, priority, queue, concurrency,
                 concurrency_limit, retry_of, notes, is_pinned, output_dropped_reason, created_at, plan, source)
SELECT ?, project, name, ?, ?, ?, nominal, 'queued', '', priority, queue, concurrency, concurrency_limit, id, '[]', 0,
       '', ?, plan, source
FROM run WHERE id = ?
"""
_COPY_TASKS = """
INSERT INTO task (run_id, position, name, state, reason, needs, run_when, is_skip_planned, gang, has_volumes,
                  demand, queue_timeout_ms, cpus_milli, memory_bytes, gpus, ready_at, attempts, failures, finished_at,
                  spec)
SELECT :run_id, position, name, CASE WHEN is_skip_planned THEN 'skipped' ELSE 'pending' END,
       CASE WHEN is_skip_planned THEN reason ELSE '' END, needs, run_when, is_skip_planned, gang, has_volumes, demand,
       queue_timeout_ms, cpus_milli, memory_bytes, gpus, 0, 0, '{}', CASE WHEN is_skip_planned THEN :at END, spec
FROM task WHERE run_id = :source ORDER BY position
"""
_KEEP = """
UPDATE task SET state = 'succeeded', reason = :reason, finished_at = :at, kept_from = (
  SELECT COALESCE(other.kept_from, other.run_id) FROM task AS other
  WHERE other.run_id = :source AND other.position = :position)
WHERE run_id = :run_id AND position = :position
"""


def retry(turn: Turn, command: c.RetryRun) -> dict[str, object]:
    """Make the run; a repeat of the same request is answered with the run it made."""
    known = earlier(turn, command)
    if known is not None:
        return {"run_id": known[0][0], "number": known[0][1], "is_new": False}
    source = turn.db.execute(_SOURCE, (command.retry_of,)).fetchone()
    if source is None:
        raise PistageError(Code.NOT_FOUND, f"no run {command.retry_of}", hint="see pistage ps")
    project, name, old_number, state, head, started_by = source
    if not State(state).is_terminal:
        raise PistageError(
            Code.CONFLICT,
            f"{name}#{old_number} is {state}: only a run that has ended is retried",
            hint="cancel it first",
        )
    plan: Plan = codec.from_json(Plan, head)
    groups.refuse_if_full(turn, project, [plan.concurrency])
    number = take_numbers(turn, project, name, 1)
    depth = codec.from_json(Trigger, started_by).depth  # what comes after it is no shorter a chain
    trigger = codec.to_json(Trigger, Trigger(kind=Starter.RETRY, run_id=command.retry_of, depth=depth))
    turn.db.execute(_COPY_RUN, (command.run_id, number, command.owner, trigger, turn.at, command.retry_of))
    turn.db.execute(_COPY_TASKS, {"run_id": command.run_id, "at": turn.at, "source": command.retry_of})
    turn.record(
        command.run_id, "run_submitted", name=name, number=number, owner=command.owner, retry_of=command.retry_of
    )  # fmt: skip
    _keep(turn, command, f"kept from {name}#{old_number}")
    runs.settle(turn, command.run_id)
    groups.cancel_what_is_too_much(turn, project, [plan.concurrency], f"{name}#{number}")
    remember(turn, command, [(command.run_id, number)])
    return {"run_id": command.run_id, "number": number, "is_new": True}


def _keep(turn: Turn, command: c.RetryRun, reason: str) -> None:
    rows = turn.db.execute(
        "SELECT name, position FROM task WHERE run_id = ? AND state = 'succeeded'", (command.retry_of,)
    ).fetchall()
    succeeded = dict(rows)
    for task in command.kept:
        if task not in succeeded:
            raise PistageError(Code.CONFLICT, f"task {task!r} did not succeed there, so it cannot be kept")
        about = {"reason": reason, "at": turn.at, "source": command.retry_of}
        turn.db.execute(_KEEP, about | {"run_id": command.run_id, "position": succeeded[task]})
        turn.record(command.run_id, "task_finished", task=task, state=State.SUCCEEDED, reason=reason)
