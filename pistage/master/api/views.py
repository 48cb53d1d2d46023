"""How runs, tasks and agents look in JSON, read from the state."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from datetime import UTC, datetime
from sqlite3 import Row
from typing import Any

from pistage.core import codec, ids
from pistage.core.model import State
from pistage.core.plan import Task
from pistage.errors import Code, PistageError
from pistage.master.state import Snapshot

WhyWaiting = Callable[[str, int], tuple[str, bool]]
_NUMBERED = re.compile(r"(?P<name>.+)#(?P<number>\d{1,15})")


def at(ms: int | None) -> str | None:
    """Milliseconds UTC as RFC 3339."""
    if ms is None:
        return None
    return datetime.fromtimestamp(ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


async def resolve_run(snapshot: Snapshot, reference: str, project: str = "default") -> str:
    """The id that a full id, a unique prefix of one, or `name#42` means; `not_found` or `conflict` otherwise."""
    if match := _NUMBERED.fullmatch(reference):
        sql = "SELECT id FROM run WHERE project = ? AND name = ? AND number = ?"
        rows = await snapshot.rows(sql, (project, match["name"], int(match["number"])))
    elif ids.is_id(reference):
        rows = await snapshot.rows("SELECT id FROM run WHERE id = ?", (reference,))
    elif reference and reference.isascii() and reference.isalnum():
        sql = "SELECT id FROM run WHERE id >= ? AND id < ? ORDER BY id LIMIT 2"
        prefix = reference.lower()
        rows = await snapshot.rows(sql, (prefix, prefix + "~"))
    else:
        rows = []
    if not rows:
        raise PistageError(Code.NOT_FOUND, f"no run {reference!r}", hint="pistage ps lists the runs")
    if len(rows) > 1:
        raise PistageError(Code.CONFLICT, f"{reference!r} begins the id of several runs", hint="give more of the id")
    return str(rows[0][0])


_RUN_COLUMNS = """
id, project, name, number, owner, state, reason, priority, queue, notes, cancel_reason,
created_at, started_at, finished_at
"""

_APPLIED_INDEX = "(SELECT CAST(value AS INTEGER) FROM meta WHERE key = 'applied_index') AS applied_index"


def run_head(row: Row) -> dict[str, Any]:
    """A run without its tasks."""
    return {
        "id": row["id"],
        "number": row["number"],
        "name": row["name"],
        "project": row["project"],
        "owner": row["owner"],
        "state": row["state"],
        "reason": row["reason"],
        "is_cancelling": row["cancel_reason"] is not None and not State(row["state"]).is_terminal,
        "priority": row["priority"],
        "queue": row["queue"],
        "notes": json.loads(row["notes"]),
        "created_at": at(row["created_at"]),
        "started_at": at(row["started_at"]),
        "finished_at": at(row["finished_at"]),
    }


async def list_runs(
    snapshot: Snapshot, *, state: str | None, name: str | None, project: str, limit: int, cursor: str | None
) -> dict[str, Any]:
    """A page of runs, the newest first."""
    clauses, parameters = ["project = ?"], [project]
    for clause, value in (("state = ?", state), ("name = ?", name), ("id < ?", cursor)):
        if value is not None:
            clauses.append(clause)
            parameters.append(value)
    sql = f"SELECT {_RUN_COLUMNS} FROM run WHERE {' AND '.join(clauses)} ORDER BY id DESC LIMIT ?"
    rows = await snapshot.rows(sql, (*parameters, limit + 1))
    return {
        "items": [run_head(row) for row in rows[:limit]],
        "next": rows[limit - 1]["id"] if len(rows) > limit else None,
        "applied_index": await snapshot.applied_index(),
    }


async def show_run(snapshot: Snapshot, run_id: str, why_waiting: WhyWaiting) -> dict[str, Any]:
    """A run with its tasks, their attempts and their steps."""
    row = await snapshot.row(f"SELECT {_RUN_COLUMNS}, {_APPLIED_INDEX} FROM run WHERE id = ?", (run_id,))
    if row is None:
        raise PistageError(Code.NOT_FOUND, f"no run {run_id}", hint="pistage ps lists the runs")
    attempts: dict[int, list[Row]] = {}
    for attempt in await snapshot.rows(_ATTEMPTS, (run_id,)):
        attempts.setdefault(attempt["position"], []).append(attempt)
    steps: dict[str, dict[str, Row]] = {}
    for step in await snapshot.rows(_STEPS, (run_id,)) if attempts else ():
        steps.setdefault(step["attempt_id"], {})[step["id"]] = step
    tasks = [
        _task(task, attempts.get(task["position"], []), steps, why_waiting)
        for task in await snapshot.rows(_TASKS, (run_id,))
    ]
    return run_head(row) | {"tasks": tasks, "applied_index": row["applied_index"]}


_TASKS = """
SELECT run_id, position, name, state, reason, needs, spec, started_at, finished_at
FROM task WHERE run_id = ? ORDER BY position
"""
_ATTEMPTS = """
SELECT attempt.id, attempt.position, attempt.number, attempt.agent_id, agent.name AS agent_name, attempt.fence,
  attempt.state, attempt.failure, attempt.exit_code, attempt.reason, attempt.runtime, attempt.assigned_at,
  attempt.started_at, attempt.finished_at
FROM attempt LEFT JOIN agent ON agent.id = attempt.agent_id WHERE attempt.run_id = ? ORDER BY position, number
"""
_STEPS = """
SELECT step.attempt_id, step.id, step.state, step.failure, step.exit_code, step.reason, step.container,
  step.started_at, step.finished_at, step.stdout_bytes, step.stdout_sha256, step.stderr_bytes, step.stderr_sha256
FROM step JOIN attempt ON attempt.id = step.attempt_id WHERE attempt.run_id = ?
"""


def _task(row: Row, attempts: list[Row], steps: dict[str, dict[str, Row]], why_waiting: WhyWaiting) -> dict[str, Any]:
    spec: Task = codec.from_json(Task, row["spec"])
    is_queued = row["state"] == State.QUEUED
    waiting, is_placeable = why_waiting(row["run_id"], row["position"]) if is_queued else ("", True)
    return {
        "name": row["name"],
        "state": row["state"],
        "reason": row["reason"],
        "waiting": waiting,
        "is_placeable": is_placeable,
        "needs": json.loads(row["needs"]),
        "started_at": at(row["started_at"]),
        "finished_at": at(row["finished_at"]),
        "attempts": [_attempt(attempt, spec, steps.get(attempt["id"], {})) for attempt in attempts],
        "steps": _planned_steps(spec),
    }


def _planned_steps(spec: Task) -> list[dict[str, Any]]:
    images = {context.id: context.image for context in spec.contexts}
    return [
        {"id": step.id, "name": step.name, "image": images[step.context], "action": step.action}
        for step in spec.steps()
    ]


def _attempt(row: Row, spec: Task, steps: dict[str, Row]) -> dict[str, Any]:
    return {
        "id": row["id"],
        "number": row["number"],
        "agent_id": row["agent_id"],
        "agent_name": row["agent_name"],
        "runtime": row["runtime"],
        "fence": row["fence"],
        "state": row["state"],
        "failure": row["failure"],
        "exit_code": row["exit_code"],
        "reason": row["reason"],
        "assigned_at": at(row["assigned_at"]),
        "started_at": at(row["started_at"]),
        "finished_at": at(row["finished_at"]),
        "steps": [planned | _step(steps.get(planned["id"]), row["state"]) for planned in _planned_steps(spec)],
    }


def _step(row: Row | None, attempt_state: str) -> dict[str, Any]:
    if row is None:
        state = State.SKIPPED if State(attempt_state).is_terminal else State.PENDING
        return {
            "state": state, "failure": None, "exit_code": None, "reason": "", "container": "", "started_at": None,
            "finished_at": None, "stdout_bytes": 0, "stderr_bytes": 0, "stdout_sha256": None, "stderr_sha256": None,
        }  # fmt: skip
    return {
        "state": row["state"],
        "failure": row["failure"],
        "exit_code": row["exit_code"],
        "reason": row["reason"],
        "container": row["container"],
        "started_at": at(row["started_at"]),
        "finished_at": at(row["finished_at"]),
        "stdout_bytes": row["stdout_bytes"],
        "stderr_bytes": row["stderr_bytes"],
        "stdout_sha256": row["stdout_sha256"],
        "stderr_sha256": row["stderr_sha256"],
    }


async def list_agents(snapshot: Snapshot, seen_at: Callable[[str], tuple[bool, int]]) -> list[dict[str, Any]]:
    """Every agent; `seen_at` tells whether it is connected and when it was last heard of (milliseconds UTC)."""
    agents = []
    for row in await snapshot.rows(_AGENTS):
        info = json.loads(row["info"])
        is_connected, last_seen = seen_at(row["id"])
        agents.append(
            {
                "id": row["id"],
                "name": row["name"],
                "state": row["state"],
                "reason": row["reason"],
                "is_connected": is_connected,
                "is_draining": bool(row["is_draining"]),
                "epoch": row["epoch"],
                "version": info["version"],
                "runtimes": info["runtimes"],
                "ignores_images": info["ignores_images"],
                "labels": info["labels"],
                "capacity": info["capacity"],
                "used": {key: row[f"used_{key}"] for key in ("cpus_milli", "memory_bytes", "gpus", "slots")},
                "last_seen": at(last_seen),
            }
        )
    return agents


_AGENTS = """
SELECT agent.id, agent.name, agent.state, agent.reason, agent.is_draining, agent.epoch, agent.info,
  COALESCE(SUM(task.cpus_milli), 0) AS used_cpus_milli, COALESCE(SUM(task.memory_bytes), 0) AS used_memory_bytes,
  COALESCE(SUM(task.gpus), 0) AS used_gpus, COUNT(task.run_id) AS used_slots
FROM agent
LEFT JOIN attempt ON attempt.agent_id = agent.id AND attempt.state IN ('queued', 'running')
LEFT JOIN task ON task.run_id = attempt.run_id AND task.position = attempt.position
GROUP BY agent.id ORDER BY agent.name, agent.id
"""
