"""Placing: a queued task gets an attempt on an agent, if all that the proposer relied on still holds."""

from __future__ import annotations

import sqlite3

from pistage.core import commands as c
from pistage.core.changes import AttemptBegun
from pistage.core.machine import runs
from pistage.core.machine.outcome import SendAssignment, Turn
from pistage.core.model import State
from pistage.errors import Code, PistageError

_TASK = """
SELECT task.name, task.state, task.ready_at, task.attempts, task.gang, task.cpus_milli, task.memory_bytes, task.gpus,
  run.state, run.owner, run.queue, run.concurrency, run.concurrency_limit
FROM task JOIN run ON run.id = task.run_id WHERE task.run_id = ? AND task.position = ?
"""
_USED = """
SELECT COALESCE(SUM(task.cpus_milli), 0), COALESCE(SUM(task.memory_bytes), 0), COALESCE(SUM(task.gpus), 0), COUNT(*)
FROM attempt JOIN task ON task.run_id = attempt.run_id AND task.position = attempt.position
WHERE attempt.agent_id = ? AND attempt.state IN ('queued', 'running')
"""
_AGENT = "SELECT epoch, state, is_draining, cpus_milli, memory_bytes, gpus, slots FROM agent WHERE id = ?"
_IN_GROUP = "SELECT COUNT(*) FROM run WHERE concurrency = ? AND state = 'running'"
_IN_QUEUE = "SELECT COUNT(*) FROM run WHERE queue = ? AND state = 'running'"
# The networks and volumes of a gang stand where its latest attempt went, as long as that agent is up.
_GANG_AGENT = """
SELECT attempt.agent_id, agent.state FROM attempt
JOIN task ON task.run_id = attempt.run_id AND task.position = attempt.position
LEFT JOIN agent ON agent.id = attempt.agent_id
WHERE attempt.run_id = ? AND task.gang = ? ORDER BY attempt.fence DESC, attempt.id DESC LIMIT 1
"""


def assign(turn: Turn, command: c.AssignTasks) -> dict[str, object]:
    """Place each task that can be; `refused` says of each other attempt why not."""
    rooms: dict[str, _Room] = {}
    gangs: dict[tuple[str, str], str | None] = {}
    refused: dict[str, str] = {}
    for assignment in command.assignments:
        try:
            room = rooms.get(assignment.agent_id)
            if room is None:
                room = rooms[assignment.agent_id] = _Room(turn.db, assignment.agent_id)
            _assign(turn, assignment, room, gangs)
        except PistageError as refusal:
            refused[assignment.attempt_id] = str(refusal)
    return {"fence": turn.index, "refused": refused}


class _Room:
    """What an agent has left: read once for all that one command places there."""

    def __init__(self, db: sqlite3.Connection, agent_id: str) -> None:
        self._agent_id = agent_id
        self._agent = db.execute(_AGENT, (agent_id,)).fetchone()
        self._used = list(db.execute(_USED, (agent_id,)).fetchone())

    def refuse_unless_free(self, epoch: int, wanted: tuple[int, int, int]) -> None:
        """PistageError `conflict` unless it is up in this epoch, not draining, and has that much left.

        `wanted` is thousandths of a core, bytes of memory, GPUs.
        """
        agent = self._agent
        if agent is None or agent[0] != epoch or agent[1] != "up" or agent[2]:
            raise PistageError(Code.CONFLICT, f"agent {self._agent_id} takes no work in epoch {epoch}")
        if any(used + want > whole for used, want, whole in zip(self._used, (*wanted, 1), agent[3:], strict=True)):
            raise PistageError(Code.CONFLICT, f"agent {self._agent_id} has no room")

    def take(self, wanted: tuple[int, int, int]) -> None:
        self._used = [used + want for used, want in zip(self._used, (*wanted, 1), strict=True)]


def _assign(turn: Turn, assignment: c.Assignment, room: _Room, gangs: dict[tuple[str, str], str | None]) -> None:
    run_id, position, attempt_id = assignment.run_id, assignment.position, assignment.attempt_id
    task = turn.db.execute(_TASK, (run_id, position)).fetchone()
    if task is None or task[1] != State.QUEUED or task[2] > turn.at:
        raise PistageError(Code.CONFLICT, f"task {position} of run {run_id} is not waiting for a place")
    name, number, gang, wanted, run_state, owner = task[0], task[3] + 1, task[4], task[5:8], task[8], task[9]
    room.refuse_unless_free(assignment.agent_epoch, wanted)
    if gang is not None:
        _refuse_unless_with_its_gang(turn.db, assignment, gang, gangs)
    if run_state == State.QUEUED:
        _refuse_unless_run_may_begin(turn.db, *task[10:])
    room.take(wanted)
    if gang is not None:
        gangs[run_id, gang] = assignment.agent_id
    turn.db.execute(
        "INSERT INTO attempt (id, run_id, position, number, agent_id, fence, state, reason, runtime, assigned_at)"
        " VALUES (?, ?, ?, ?, ?, ?, 'queued', '', '', ?)",
        (attempt_id, run_id, position, number, assignment.agent_id, turn.index, turn.at),
    )
    turn.db.execute(
        "UPDATE task SET state = 'running', reason = '', attempts = ?, attempt_id = ?,"
        " started_at = COALESCE(started_at, ?) WHERE run_id = ? AND position = ? AND state = 'queued'",
        (number, attempt_id, turn.at, run_id, position),
    )
    turn.record(
        run_id, "task_assigned", task=name, attempt=attempt_id, agent=assignment.agent_id, number=number
    )  # fmt: skip
    turn.changes.append(
        AttemptBegun(
            attempt_id=attempt_id, agent_id=assignment.agent_id, run_id=run_id, position=position, owner=owner,
            gang=gang, cpus_milli=wanted[0], memory_bytes=wanted[1], gpus=wanted[2],
        )
    )  # fmt: skip
    if run_state == State.QUEUED:
        runs.start(turn, run_id)
    turn.effects.append(SendAssignment(attempt_id=attempt_id, agent_id=assignment.agent_id))


def _refuse_unless_with_its_gang(
    db: sqlite3.Connection, assignment: c.Assignment, gang: str, gangs: dict[tuple[str, str], str | None]
) -> None:
    key = (assignment.run_id, gang)
    if key not in gangs:
        bound = db.execute(_GANG_AGENT, key).fetchone()
        gangs[key] = bound[0] if bound is not None and bound[1] == "up" else None
    if gangs[key] not in {None, assignment.agent_id}:
        raise PistageError(Code.CONFLICT, f"the run's networks and volumes are on agent {gangs[key]}")


def _refuse_unless_run_may_begin(db: sqlite3.Connection, queue: str, group: str | None, limit: int) -> None:
    if group is not None and db.execute(_IN_GROUP, (group,)).fetchone()[0] >= limit:
        raise PistageError(Code.CONFLICT, f"{limit} runs of the concurrency group {group!r} are running")
    row = db.execute("SELECT run_limit FROM queue WHERE name = ?", (queue,)).fetchone()
    if row is not None and row[0] is not None and db.execute(_IN_QUEUE, (queue,)).fetchone()[0] >= row[0]:
        raise PistageError(Code.CONFLICT, f"{row[0]} runs of the queue {queue!r} are running")
