"""Runs: cancelled, reprioritised, and settled again whenever one of their tasks has changed or given up."""

from __future__ import annotations

import json
from collections.abc import Collection

from pistage.core import commands as c
from pistage.core.changes import RunBegun, RunEnded, RunReprioritised, TaskUnqueued
from pistage.core.machine import notices, outputs, waiting
from pistage.core.machine.endings import note_end
from pistage.core.machine.outcome import CancelAttempt, ReleaseRun, TaskKey, Turn
from pistage.core.machine.settling import Waiting, moves, run_state
from pistage.core.model import State, check_transition
from pistage.core.plan import When
from pistage.errors import Code, PistageError


def cancel(turn: Turn, command: c.CancelRun) -> dict[str, object]:
    """End what waits; ask the agents to stop what runs. Cancelling again, or too late, changes nothing."""
    row = turn.db.execute("SELECT state, cancel_reason FROM run WHERE id = ?", (command.run_id,)).fetchone()
    if row is None:
        raise PistageError(Code.NOT_FOUND, f"no run {command.run_id}", hint="see pistage ps")
    if State(row[0]).is_terminal or row[1] is not None:
        return {"state": row[0], "is_new": False}
    cancel_now(turn, command.run_id, command.reason, owner=command.owner)
    return {"state": State.RUNNING, "is_new": True}


def cancel_now(turn: Turn, run_id: str, reason: str, *, owner: str | None = None) -> None:
    """The same for a run that is known not to have ended; `owner` None where the cluster itself does it."""
    turn.db.execute("UPDATE run SET cancel_reason = ? WHERE id = ?", (reason, run_id))
    turn.record(run_id, "run_cancelling", reason=reason, owner=owner)
    for position, name, state in turn.db.execute(_WAITING_TASKS, (run_id,)).fetchall():
        end_task(turn, TaskKey(run_id, position, name), State(state), State.CANCELLED, reason)
    for attempt_id, agent_id in turn.db.execute(_LIVE_ATTEMPTS, (run_id,)).fetchall():
        turn.effects.append(CancelAttempt(attempt_id=attempt_id, agent_id=agent_id, reason=reason))
    settle(turn, run_id)


def cancel_task(turn: Turn, command: c.CancelTask) -> dict[str, object]:
    """End one task that waits, or ask its agent to stop it. Cancelling again, or too late, changes nothing."""
    row = turn.db.execute(
        "SELECT position, state, cancel_reason, attempt_id FROM task WHERE run_id = ? AND name = ?",
        (command.run_id, command.task),
    ).fetchone()
    if row is None:
        raise PistageError(
            Code.NOT_FOUND, f"run {command.run_id} has no task {command.task!r}", hint="see pistage show"
        )
    position, state, reason, attempt_id = row[0], State(row[1]), row[2], row[3]
    if state.is_terminal or reason is not None:
        return {"state": state, "is_new": False}
    turn.db.execute(
        "UPDATE task SET cancel_reason = ? WHERE run_id = ? AND position = ?",
        (command.reason, command.run_id, position),
    )
    turn.record(command.run_id, "task_cancelling", task=command.task, reason=command.reason, owner=command.owner)
    if state is State.RUNNING:
        (agent_id,) = turn.db.execute("SELECT agent_id FROM attempt WHERE id = ?", (attempt_id,)).fetchone()
        turn.effects.append(CancelAttempt(attempt_id=attempt_id, agent_id=agent_id, reason=command.reason))
    else:
        key = TaskKey(command.run_id, position, command.task)
        end_task(turn, key, state, State.CANCELLED, command.reason)
        settle(turn, command.run_id)
    return {"state": state, "is_new": True}


_WAITING_TASKS = """
SELECT position, name, state FROM task WHERE run_id = ? AND state IN ('pending', 'queued') ORDER BY position
"""
_LIVE_ATTEMPTS = """
SELECT id, agent_id FROM attempt WHERE run_id = ? AND state IN ('queued', 'running') ORDER BY id
"""


def expire(turn: Turn, command: c.ExpireTask) -> dict[str, object]:
    """Fail a task that has waited for too long; refused if it does not wait, or may yet."""
    row = turn.db.execute(
        "SELECT name, state, ready_at, queue_timeout_ms FROM task WHERE run_id = ? AND position = ?",
        (command.run_id, command.position),
    ).fetchone()
    deadline = None if row is None or row[1] != State.QUEUED else waiting.expiry(row[2], row[3])
    if deadline is None or deadline > command.at:
        raise PistageError(Code.CONFLICT, f"task {command.position} of run {command.run_id} may wait")
    key = TaskKey(command.run_id, command.position, row[0])
    reason = f"it waited for a place for longer than its queue_timeout of {row[3] / 1000:g} s"
    end_task(turn, key, State.QUEUED, State.FAILED, reason)
    settle(turn, command.run_id)
    return {}


def set_priority(turn: Turn, command: c.SetRunPriority) -> dict[str, object]:
    """The priority counts for the run's tasks that have no place yet."""
    row = turn.db.execute("SELECT state, priority FROM run WHERE id = ?", (command.run_id,)).fetchone()
    if row is None:
        raise PistageError(Code.NOT_FOUND, f"no run {command.run_id}", hint="see pistage ps")
    if State(row[0]).is_terminal:
        raise PistageError(Code.CONFLICT, f"the run has ended: it is {row[0]}")
    if row[1] != command.priority:
        turn.db.execute("UPDATE run SET priority = ? WHERE id = ?", (command.priority, command.run_id))
        turn.record(
            command.run_id, "run_reprioritised", old=row[1], priority=command.priority, owner=command.owner
        )  # fmt: skip
        turn.changes.append(RunReprioritised(command.run_id, command.priority))
    return {"priority": command.priority}


def settle(turn: Turn, run_id: str) -> None:
    """Bring pending tasks and the run itself to where its tasks have got to."""
    # Only where something waits are all tasks read: the end of one of 2,000 that need nothing must not cost 2,000 rows.
    if State.PENDING in _states_in(turn, run_id):
        _settle_tasks(turn, run_id)
    _settle_run(turn, run_id, _states_in(turn, run_id))


def _states_in(turn: Turn, run_id: str) -> set[State]:
    return {State(state) for (state,) in turn.db.execute(_STATES_IN, {"run_id": run_id}).fetchall()}


_STATES_IN = " UNION ALL ".join(
    f"SELECT '{state}' WHERE EXISTS (SELECT 1 FROM task WHERE state = '{state}' AND run_id = :run_id)"
    for state in State
)


def _settle_tasks(turn: Turn, run_id: str) -> None:
    rows = turn.db.execute(
        "SELECT position, name, state, needs, run_when, is_skip_planned FROM task WHERE run_id = ? ORDER BY position",
        (run_id,),
    ).fetchall()
    states = {name: State(state) for _, name, state, *_ in rows}
    excused = {name for _, name, _, _, _, is_skip_planned in rows if is_skip_planned}
    pending = [
        Waiting(position, name, json.loads(needs), When(run_when))
        for position, name, state, needs, run_when, _ in rows
        if state == State.PENDING
    ]
    for move in moves(pending, states, excused):
        key = TaskKey(run_id, move.position, move.name)
        if move.to is State.QUEUED:
            _queue_task(turn, key)
        else:
            end_task(turn, key, State.PENDING, move.to, move.reason)


def start(turn: Turn, run_id: str) -> None:
    """One of its tasks has a place: the run runs. That lets no other task move, so there is nothing to settle."""
    row = turn.db.execute("SELECT state FROM run WHERE id = ?", (run_id,)).fetchone()
    if row[0] == State.QUEUED:
        move_run(turn, run_id, State.QUEUED, State.RUNNING)


def _settle_run(turn: Turn, run_id: str, states: Collection[State]) -> None:
    state, cancel_reason = turn.db.execute("SELECT state, cancel_reason FROM run WHERE id = ?", (run_id,)).fetchone()
    old = State(state)
    new = run_state(old, states)
    if new is not old:
        move_run(turn, run_id, old, new, reason=_run_reason(turn, run_id, new, cancel_reason))


def _run_reason(turn: Turn, run_id: str, new: State, cancel_reason: str | None) -> str:
    if new is State.CANCELLED:
        return cancel_reason or ""
    if new in {State.FAILED, State.LOST}:
        row = turn.db.execute(
            "SELECT name, reason FROM task WHERE run_id = ? AND state = ? ORDER BY finished_at, position LIMIT 1",
            (run_id, new),
        ).fetchone()
        return f"task {row[0]!r}: {row[1]}"
    return ""


def move_run(turn: Turn, run_id: str, old: State, new: State, reason: str = "") -> None:
    """Take the run from `old` to `new`; at its end, let its agents remove what they made for it."""
    check_transition(f"run {run_id}", old, new)
    output_bytes = outputs.kept_bytes(turn.db, run_id) if new.is_terminal else None
    turn.db.execute(
        "UPDATE run SET state = ?, reason = ?, started_at = CASE WHEN ? THEN ? ELSE started_at END,"
        " finished_at = CASE WHEN ? THEN ? ELSE finished_at END, output_bytes = ? WHERE id = ? AND state = ?",
        (new, reason, new is State.RUNNING, turn.at, new.is_terminal, turn.at, output_bytes, run_id, old),
    )
    if new is State.RUNNING:
        turn.record(run_id, "run_started")
        queue, group = turn.db.execute("SELECT queue, concurrency FROM run WHERE id = ?", (run_id,)).fetchone()
        turn.changes.append(RunBegun(run_id, queue, group))
    if new.is_terminal:
        turn.changes.append(RunEnded(run_id))
        turn.record(run_id, "run_finished", state=new, reason=reason)
        note_end(turn, run_id)
        agents = turn.db.execute(
            "SELECT DISTINCT agent_id FROM attempt WHERE run_id = ? ORDER BY agent_id", (run_id,)
        ).fetchall()
        turn.effects.append(ReleaseRun(run_id=run_id, agent_ids=tuple(agent for (agent,) in agents)))
        notices.run_ended(turn, run_id)


def _queue_task(turn: Turn, key: TaskKey) -> None:
    turn.db.execute(
        "UPDATE task SET state = 'queued', ready_at = ? WHERE run_id = ? AND position = ? AND state = 'pending'",
        (turn.at, key.run_id, key.position),
    )
    turn.record(key.run_id, "task_queued", task=key.name)
    waiting.announce(turn, key.run_id, key.position)


def end_task(turn: Turn, key: TaskKey, old: State, new: State, reason: str) -> None:
    """The task ends in `new`; who calls this settles the run afterwards."""
    check_transition(str(key), old, new)
    if old is State.QUEUED:
        turn.changes.append(TaskUnqueued(key.run_id, key.position))
    turn.db.execute(
        "UPDATE task SET state = ?, reason = ?, finished_at = ? WHERE run_id = ? AND position = ? AND state = ?",
        (new, reason, turn.at, key.run_id, key.position, old),
    )
    turn.record(key.run_id, "task_finished", task=key.name, state=new, reason=reason)
