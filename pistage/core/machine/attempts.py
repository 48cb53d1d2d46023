"""Attempts: reported on by their agent under their fence, ended once, and retried as the task's policy says."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from dataclasses import replace
from typing import assert_never

from pistage.core import codec
from pistage.core import commands as c
from pistage.core import demand as demands
from pistage.core.changes import AttemptEnded
from pistage.core.machine import runs, waiting
from pistage.core.machine.outcome import TaskKey, Turn
from pistage.core.model import Result, State, StreamEnd, check_transition
from pistage.core.plan import Backoff, FailureClass, Task, with_more_memory
from pistage.errors import PistageError


def record(turn: Turn, command: c.RecordEvents) -> dict[str, object]:
    """Take each event whose attempt and fence are right; a repeat changes nothing.

    `refused` lists the attempts that are not the reporter's business any more: it must stop and remove them.
    """
    refused: dict[str, None] = {}
    for event in command.events:
        row = turn.db.execute(
            "SELECT attempt.fence, attempt.state, attempt.run_id, task.name FROM attempt JOIN task"
            " ON task.run_id = attempt.run_id AND task.position = attempt.position WHERE attempt.id = ?",
            (event.attempt_id,),
        ).fetchone()
        if row is None or row[0] != event.fence or row[1] == State.LOST:
            refused[event.attempt_id] = None
        elif not State(row[1]).is_terminal:
            _take(turn, event, run_id=row[2], task=row[3])
    return {"refused": list(refused)}


def _take(turn: Turn, event: c.AttemptEvent, *, run_id: str, task: str) -> None:
    match event:
        case c.Accepted():
            _accept(turn, event, run_id, task)
        case c.StepStarted():
            _start_step(turn, event, run_id, task)
        case c.StepFinished():
            _finish_step(turn, event, run_id, task)
        case c.Finished():
            end(turn, event.attempt_id, event.result, at=event.at)
        case _:
            assert_never(event)


def _accept(turn: Turn, event: c.Accepted, run_id: str, task: str) -> None:
    changed = turn.db.execute(
        "UPDATE attempt SET state = 'running', runtime = ?, started_at = ? WHERE id = ? AND state = 'queued'",
        (event.runtime, event.at, event.attempt_id),
    )
    if changed.rowcount == 0:
        return
    if event.notes:
        (notes,) = turn.db.execute("SELECT notes FROM run WHERE id = ?", (run_id,)).fetchone()
        known = json.loads(notes)
        merged = known + [note for note in event.notes if note not in known]
        turn.db.execute("UPDATE run SET notes = ? WHERE id = ?", (json.dumps(merged, ensure_ascii=False), run_id))
    turn.record(
        run_id, "attempt_accepted", task=task, attempt=event.attempt_id, runtime=event.runtime, notes=list(event.notes)
    )


def _start_step(turn: Turn, event: c.StepStarted, run_id: str, task: str) -> None:
    added = turn.db.execute(
        "INSERT INTO step (attempt_id, id, state, reason, container, started_at) VALUES (?, ?, 'running', '', ?, ?)"
        " ON CONFLICT (attempt_id, id) DO NOTHING",
        (event.attempt_id, event.step, event.container, event.at),
    )
    if added.rowcount:
        turn.record(run_id, "step_started", task=task, attempt=event.attempt_id, step=event.step)


def _finish_step(turn: Turn, event: c.StepFinished, run_id: str, task: str) -> None:
    result = event.result
    out = event.stdout or StreamEnd(length=0, sha256="")
    err = event.stderr or StreamEnd(length=0, sha256="")
    ended = (result.state, result.failure, result.exit_code, result.reason, event.at)
    streams = (out.length, out.sha256, out.missing, err.length, err.sha256, err.missing)
    changed = turn.db.execute(
        "INSERT INTO step (attempt_id, id, state, failure, exit_code, reason, finished_at, container,"
        " stdout_bytes, stdout_sha256, stdout_missing, stderr_bytes, stderr_sha256, stderr_missing)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, '', ?, ?, ?, ?, ?, ?)"
        " ON CONFLICT (attempt_id, id) DO UPDATE SET state = excluded.state, failure = excluded.failure,"
        " exit_code = excluded.exit_code, reason = excluded.reason, finished_at = excluded.finished_at,"
        " stdout_bytes = excluded.stdout_bytes, stdout_sha256 = excluded.stdout_sha256,"
        " stdout_missing = excluded.stdout_missing, stderr_bytes = excluded.stderr_bytes,"
        " stderr_sha256 = excluded.stderr_sha256, stderr_missing = excluded.stderr_missing"
        " WHERE step.state = 'running'",
        (event.attempt_id, event.step, *ended, *streams),
    )
    if changed.rowcount:
        turn.record(
            run_id, "step_finished", task=task, attempt=event.attempt_id, step=event.step, state=result.state,
            exit_code=result.exit_code, reason=result.reason,
        )  # fmt: skip


def end(turn: Turn, attempt_id: str, result: Result, *, at: int | None = None) -> None:
    """End a live attempt, and with it its task, unless the task's policy gives it another try."""
    *key, state, failures, cancel_reason = turn.db.execute(_ENDING, (attempt_id,)).fetchone()
    key = TaskKey(*key)
    _close(turn, attempt_id, result, at or turn.at)
    counted: dict[str, int] = json.loads(failures)
    if result.failure is not None:
        counted[result.failure] = counted.get(result.failure, 0) + 1
        task = _task_to_retry(turn.db, key) if cancel_reason is None else None
        if task is not None and counted[result.failure] <= task.retry.limits.get(result.failure, 0):
            _retry(turn, key, task, counted, attempt_id=attempt_id, result=result)
            return
    runs.end_task(turn, key, State(state), result.state, result.reason)
    runs.settle(turn, key.run_id)


def _task_to_retry(db: sqlite3.Connection, key: TaskKey) -> Task | None:
    (spec,) = db.execute("SELECT spec FROM task WHERE run_id = ? AND position = ?", key.id).fetchone()
    task: Task | None = codec.readable(Task, spec)  # one that cannot be read is not tried again
    return task


def _retry(turn: Turn, key: TaskKey, task: Task, counted: dict[str, int], *, attempt_id: str, result: Result) -> None:
    tries = sum(counted.values())
    ready_at = turn.at + _delay_ms(task.retry.backoff, tries - 1, attempt_id)
    grown = with_more_memory(task, _largest_memory(turn.db)) if result.failure is FailureClass.OOM else None
    if grown is not None:
        _grow(turn, key, grown)
    check_transition(str(key), State.RUNNING, State.QUEUED)
    turn.db.execute(
        "UPDATE task SET state = 'queued', reason = ?, ready_at = ?, failures = ?"
        " WHERE run_id = ? AND position = ? AND state = 'running'",
        (f"attempt {tries} ended: {result.reason}", ready_at, json.dumps(counted, sort_keys=True), *key.id),
    )
    turn.record(
        key.run_id, "task_retried", task=key.name, attempt=attempt_id, failure=result.failure, reason=result.reason,
        ready_at=ready_at, memory_bytes=None if grown is None else grown.resources.memory_bytes,
    )  # fmt: skip
    waiting.announce(turn, key.run_id, key.position)


def _largest_memory(db: sqlite3.Connection) -> int:
    (largest,) = db.execute("SELECT COALESCE(MAX(memory_bytes), 0) FROM agent WHERE state = 'up'").fetchone()
    return int(largest)


def _grow(turn: Turn, key: TaskKey, task: Task) -> None:
    (demand,) = turn.db.execute("SELECT demand FROM task WHERE run_id = ? AND position = ?", key.id).fetchone()
    memory_bytes = task.resources.memory_bytes or 0
    demand = demands.written(demands.with_memory(demands.read(demand), memory_bytes))
    turn.db.execute(
        "UPDATE task SET spec = ?, demand = ?, memory_bytes = ? WHERE run_id = ? AND position = ?",
        (codec.to_json(Task, task), demand, memory_bytes, *key.id),
    )
    if task.gang is not None:
        _seek_room_for_gang(turn, key, task.gang, memory_bytes)


def _seek_room_for_gang(turn: Turn, key: TaskKey, gang: str, memory_bytes: int) -> None:
    """The others of the gang, should one of them choose its agent, look for one where the grown task fits, too."""
    others = turn.db.execute(
        "SELECT position, state, demand FROM task WHERE run_id = ? AND gang = ? AND position <> ? ORDER BY position",
        (key.run_id, gang, key.position),
    ).fetchall()
    for position, state, text in others:
        try:
            demand = demands.read(text)
        except PistageError:  # a row that cannot be read gets no place, and keeps nobody else from theirs
            continue
        if memory_bytes > (demand.whole.memory_bytes or 0):
            wider = demands.written(replace(demand, whole=replace(demand.whole, memory_bytes=memory_bytes)))
            row = (wider, key.run_id, position)
            turn.db.execute("UPDATE task SET demand = ? WHERE run_id = ? AND position = ?", row)
            if state == State.QUEUED:
                waiting.announce(turn, key.run_id, position)


_ENDING = """
SELECT attempt.run_id, attempt.position, task.name, task.state, task.failures,
  COALESCE(run.cancel_reason, task.cancel_reason)
FROM attempt
JOIN task ON task.run_id = attempt.run_id AND task.position = attempt.position
JOIN run ON run.id = attempt.run_id
WHERE attempt.id = ?
"""


def _close(turn: Turn, attempt_id: str, result: Result, at: int) -> None:
    turn.db.execute(
        "UPDATE attempt SET state = ?, failure = ?, exit_code = ?, reason = ?, finished_at = ?"
        " WHERE id = ? AND state IN ('queued', 'running')",
        (result.state, result.failure, result.exit_code, result.reason, at, attempt_id),
    )
    turn.db.execute(
        "UPDATE step SET state = ?, reason = ?, finished_at = ? WHERE attempt_id = ? AND state = 'running'",
        (State.LOST if result.state is State.SUCCEEDED else result.state, result.reason, at, attempt_id),
    )
    turn.changes.append(AttemptEnded(attempt_id))


def _delay_ms(backoff: Backoff, number: int, attempt_id: str) -> int:
    delay_s = min(backoff.initial_s, backoff.max_s)
    for _ in range(min(number, 64)):  # not a power: that is not the same to the last bit everywhere
        delay_s = min(delay_s * backoff.factor, backoff.max_s)
    # Chance that every master agrees on: the attempt's id has 80 random bits of its proposer.
    share = int.from_bytes(hashlib.sha256(attempt_id.encode()).digest()[:4], "big") / 2**32
    return round(1000 * delay_s * (1 + backoff.jitter * (2 * share - 1)))


def live_attempts_of(db: sqlite3.Connection, agent_id: str) -> list[str]:
    """Ids of the attempts that the agent has been given and that have not ended, oldest first."""
    rows = db.execute(
        "SELECT id FROM attempt WHERE agent_id = ? AND state IN ('queued', 'running') ORDER BY id", (agent_id,)
    )
    return [attempt_id for (attempt_id,) in rows]
