"""Runs: submitted, cancelled, and settled again whenever one of their tasks has changed."""

from __future__ import annotations

import json
from dataclasses import replace

from pistage.core import codec, limits
from pistage.core import commands as c
from pistage.core.machine.outcome import CancelAttempt, ReleaseRun, TaskKey, Turn
from pistage.core.model import State, check_transition
from pistage.core.plan import Plan, Task, When
from pistage.errors import Code, PistageError

_INSERT_RUN = """
INSERT INTO run (id, project, name, number, owner, state, reason, priority, queue, plan, source, notes, created_at)
VALUES (?, ?, ?, ?, ?, 'pending', '', ?, ?, ?, ?, '[]', ?)
"""
_INSERT_TASK = """
INSERT INTO task (run_id, position, name, state, reason, needs, run_when, is_skip_planned, spec, gang,
                  cpus_milli, memory_bytes, gpus, ready_at, attempts, failures)
VALUES (?, ?, ?, 'pending', '', ?, ?, ?, ?, ?, ?, ?, ?, 0, 0, '{}')
"""
_NEXT_NUMBER = """
INSERT INTO pipeline (project, name, last_number) VALUES (?, ?, 1)
ON CONFLICT (project, name) DO UPDATE SET last_number = last_number + 1
RETURNING last_number
"""


def submit(turn: Turn, command: c.SubmitRun) -> dict[str, object]:
    """Make the run and its tasks; a repeat of the same request is answered with the run it made."""
    if command.request_key is not None and (earlier := _earlier_request(turn, command)) is not None:
        return {"run_id": earlier, "is_new": False}
    plan = command.plan
    number = turn.db.execute(_NEXT_NUMBER, (command.project, plan.name)).fetchone()[0]
    head = codec.to_json(Plan, replace(plan, tasks=()))
    row = (command.run_id, command.project, plan.name, number, command.owner, plan.priority, plan.queue, head)
    turn.db.execute(_INSERT_RUN, (*row, command.source, command.at))
    turn.record(command.run_id, "run_submitted", name=plan.name, number=number, owner=command.owner)
    move_run(turn, command.run_id, State.PENDING, State.QUEUED)
    for position, task in enumerate(plan.tasks):
        turn.db.execute(_INSERT_TASK, _task_row(command.run_id, position, task))
        if task.skip_reason is not None:
            key = TaskKey(command.run_id, position, task.name)
            end_task(turn, key, State.PENDING, State.SKIPPED, task.skip_reason)
    settle(turn, command.run_id)
    return {"run_id": command.run_id, "number": number, "is_new": True}


def _task_row(run_id: str, position: int, task: Task) -> tuple[object, ...]:
    needs = json.dumps(list(task.needs), ensure_ascii=False)
    spec = codec.to_json(Task, task)
    room = task.resources
    wanted = (room.cpus_milli or 0, room.memory_bytes or 0, room.gpus)
    return (run_id, position, task.name, needs, task.when, int(task.skip_reason is not None), spec, task.gang, *wanted)


def _earlier_request(turn: Turn, command: c.SubmitRun) -> str | None:
    # What is kept is forgotten by the clock of the log, never by a local one (dissertation §6.3).
    turn.db.execute("DELETE FROM request WHERE at < ?", (command.at - limits.IDEMPOTENCY_KEPT_MS,))
    row = turn.db.execute("SELECT sha256, run_id FROM request WHERE key = ?", (command.request_key,)).fetchone()
    if row is None:
        turn.db.execute(
            "INSERT INTO request (key, sha256, run_id, at) VALUES (?, ?, ?, ?)",
            (command.request_key, command.request_sha256, command.run_id, command.at),
        )
        return None
    if row[0] != command.request_sha256:
        raise PistageError(
            Code.CONFLICT,
            "this Idempotency-Key came before with another body",
            hint="use a new key for a new submission",
        )
    return str(row[1])


def cancel(turn: Turn, command: c.CancelRun) -> dict[str, object]:
    """End what waits; ask the agents to stop what runs. Cancelling again, or too late, changes nothing."""
    row = turn.db.execute("SELECT state, cancel_reason FROM run WHERE id = ?", (command.run_id,)).fetchone()
    if row is None:
        raise PistageError(Code.NOT_FOUND, f"no run {command.run_id}", hint="see pistage ps")
    if State(row[0]).is_terminal or row[1] is not None:
        return {"state": row[0], "is_new": False}
    turn.db.execute("UPDATE run SET cancel_reason = ? WHERE id = ?", (command.reason, command.run_id))
    turn.record(command.run_id, "run_cancelling", reason=command.reason, owner=command.owner)
    for position, name, state in turn.db.execute(_WAITING_TASKS, (command.run_id,)).fetchall():
        key = TaskKey(command.run_id, position, name)
        end_task(turn, key, State(state), State.CANCELLED, command.reason)
    for attempt_id, agent_id in turn.db.execute(_LIVE_ATTEMPTS, (command.run_id,)).fetchall():
        turn.effects.append(CancelAttempt(attempt_id=attempt_id, agent_id=agent_id, reason=command.reason))
    settle(turn, command.run_id)
    return {"state": State.RUNNING, "is_new": True}


_WAITING_TASKS = """
SELECT position, name, state FROM task WHERE run_id = ? AND state IN ('pending', 'queued') ORDER BY position
"""
_LIVE_ATTEMPTS = """
SELECT id, agent_id FROM attempt WHERE run_id = ? AND state IN ('queued', 'running') ORDER BY id
"""


def settle(turn: Turn, run_id: str) -> None:
    """Bring pending tasks and the run itself to where its tasks have got to."""
    rows = turn.db.execute(
        "SELECT position, name, state, needs, run_when, is_skip_planned FROM task WHERE run_id = ? ORDER BY position",
        (run_id,),
    ).fetchall()
    states = {name: State(state) for _, name, state, *_ in rows}
    excused = {name for _, name, _, _, _, is_skip_planned in rows if is_skip_planned}
    has_changed = True
    while has_changed:  # a skip may settle a task further down; the graph is finite and states only move on
        has_changed = False
        for position, name, _, needs, run_when, _ in rows:
            if states[name] is not State.PENDING:
                continue
            verdict = _verdict(json.loads(needs), When(run_when), states, excused)
            if verdict is None:
                continue
            states[name], reason = verdict
            has_changed = True
            key = TaskKey(run_id, position, name)
            if states[name] is State.QUEUED:
                _queue_task(turn, key)
            else:
                end_task(turn, key, State.PENDING, states[name], reason)
    _settle_run(turn, run_id, list(states.values()))


def _verdict(needs: list[str], run_when: When, states: dict[str, State], excused: set[str]) -> tuple[State, str] | None:
    if not all(states[name].is_terminal for name in needs):
        return None
    bad = [name for name in needs if states[name] is not State.SUCCEEDED and name not in excused]
    match run_when:
        case When.SUCCESS if bad:
            return State.SKIPPED, f"needs {bad[0]!r}, which ended {states[bad[0]]}"
        case When.FAILURE if not bad:
            return State.SKIPPED, "runs only after a failure, and nothing it needs has failed"
        case _:
            return State.QUEUED, ""


def _settle_run(turn: Turn, run_id: str, states: list[State]) -> None:
    state, cancel_reason = turn.db.execute("SELECT state, cancel_reason FROM run WHERE id = ?", (run_id,)).fetchone()
    old = State(state)
    new = _run_state(old, states)
    if new is not old:
        move_run(turn, run_id, old, new, reason=_run_reason(turn, run_id, new, cancel_reason))


def _run_state(old: State, states: list[State]) -> State:
    if all(state.is_terminal for state in states):
        worst_first = (State.FAILED, State.LOST, State.CANCELLED)
        return next((worst for worst in worst_first if worst in states), State.SUCCEEDED)
    # A run that has started stays running while its tasks wait for another try.
    return State.RUNNING if old is State.RUNNING or State.RUNNING in states else State.QUEUED


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
    turn.db.execute(
        "UPDATE run SET state = ?, reason = ?, started_at = CASE WHEN ? THEN ? ELSE started_at END,"
        " finished_at = CASE WHEN ? THEN ? ELSE finished_at END WHERE id = ? AND state = ?",
        (new, reason, new is State.RUNNING, turn.at, new.is_terminal, turn.at, run_id, old),
    )
    if new is State.RUNNING:
        turn.record(run_id, "run_started")
    if new.is_terminal:
        turn.record(run_id, "run_finished", state=new, reason=reason)
        agents = turn.db.execute(
            "SELECT DISTINCT agent_id FROM attempt WHERE run_id = ? ORDER BY agent_id", (run_id,)
        ).fetchall()
        turn.effects.append(ReleaseRun(run_id=run_id, agent_ids=tuple(agent for (agent,) in agents)))


def _queue_task(turn: Turn, key: TaskKey) -> None:
    turn.db.execute(
        "UPDATE task SET state = 'queued', ready_at = ? WHERE run_id = ? AND position = ? AND state = 'pending'",
        (turn.at, key.run_id, key.position),
    )
    turn.record(key.run_id, "task_queued", task=key.name)


def end_task(turn: Turn, key: TaskKey, old: State, new: State, reason: str) -> None:
    """The task ends in `new`; who calls this settles the run afterwards."""
    check_transition(str(key), old, new)
    turn.db.execute(
        "UPDATE task SET state = ?, reason = ?, finished_at = ? WHERE run_id = ? AND position = ? AND state = ?",
        (new, reason, turn.at, key.run_id, key.position, old),
    )
    turn.record(key.run_id, "task_finished", task=key.name, state=new, reason=reason)
