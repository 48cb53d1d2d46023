"""How runs and tasks look in JSON, read from the state."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from sqlite3 import Row
from typing import Any, Final

from pistage.core import codec, ids
from pistage.core.model import State, Trigger
from pistage.core.notices import Notify, shown_url
from pistage.core.plan import Task
from pistage.errors import Code, PistageError
from pistage.master.state import Snapshot

WhyWaiting = Callable[[str, int], tuple[str, bool]]
_NUMBERED = re.compile(r"(?P<name>.+)#(?P<number>\d{1,15})")
_NAMED_MAX = 20
_ID = re.compile(r"\b[0-9a-z]{26}\b")


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


async def refuse_unless_task(snapshot: Snapshot, run_id: str, task: str) -> None:
    """PistageError `not_found`, with the tasks that there are, unless the run has one of that name."""
    if await snapshot.row("SELECT 1 FROM task WHERE run_id = ? AND name = ?", (run_id, task)):
        return
    sql = "SELECT name FROM task WHERE run_id = ? ORDER BY position LIMIT ?"
    known = [name for (name,) in await snapshot.rows(sql, (run_id, _NAMED_MAX + 1))]
    more = ", …" if len(known) > _NAMED_MAX else ""
    raise PistageError(
        Code.NOT_FOUND,
        f"the run has no task {task[:100]!r}",
        hint=f"it has {', '.join(known[:_NAMED_MAX])}{more}",
    )


async def titles_in(snapshot: Snapshot, texts: Iterable[str]) -> Callable[[str], str]:
    """What replaces ids of runs in such texts by `name#42`: the scheduler, which wrote them, knows ids alone."""
    named = sorted({found for text in texts for found in _ID.findall(text) if ids.is_id(found)})
    sql = "SELECT run.id, run.name, run.number FROM json_each(?) AS asked JOIN run ON run.id = asked.value"
    rows = await snapshot.rows(sql, (json.dumps(named),)) if named else []
    titles = {row["id"]: f"{row['name']}#{row['number']}" for row in rows}
    return lambda text: _ID.sub(lambda match: titles.get(match[0], match[0]), text) if titles else text


_RUN_COLUMNS = """
id, project, name, number, owner, started_by, state, reason, priority, queue, concurrency, concurrency_limit, retry_of,
(SELECT other.number FROM run AS other WHERE other.id = run.retry_of) AS retry_of_number,
notes, cancel_reason, is_pinned, output_bytes, output_dropped_at, output_dropped_reason, created_at, started_at,
finished_at
"""

_APPLIED_INDEX = "(SELECT CAST(value AS INTEGER) FROM meta WHERE key = 'applied_index') AS applied_index"
#: One run, for `run_head`, and how far the state is.
RUN_HEAD: Final = f"SELECT {_RUN_COLUMNS}, {_APPLIED_INDEX} FROM run WHERE id = ?"


def run_head(row: Row) -> dict[str, Any]:
    """A run without its tasks."""
    return {
        "id": row["id"],
        "number": row["number"],
        "name": row["name"],
        "project": row["project"],
        "owner": row["owner"],
        "started_by": _started_by(row),
        "state": row["state"],
        "reason": row["reason"],
        "is_cancelling": row["cancel_reason"] is not None and not State(row["state"]).is_terminal,
        "priority": row["priority"],
        "queue": row["queue"],
        "concurrency": _concurrency(row),
        "retry_of": row["retry_of"],
        "retry_of_number": row["retry_of_number"],
        "notes": json.loads(row["notes"]),
        "is_pinned": bool(row["is_pinned"]),
        "output_bytes": row["output_bytes"],
        "output_dropped_at": at(row["output_dropped_at"]),
        "output_dropped_reason": row["output_dropped_reason"],
        "created_at": at(row["created_at"]),
        "started_at": at(row["started_at"]),
        "finished_at": at(row["finished_at"]),
    }


def _started_by(row: Row) -> dict[str, Any]:
    trigger: Trigger = codec.from_json(Trigger, row["started_by"])
    return {"kind": trigger.kind, "name": trigger.name, "nominal": at(trigger.nominal), "run": trigger.run_id or None}


def _concurrency(row: Row) -> dict[str, Any] | None:
    if row["concurrency"] is None:
        return None
    return {"group": group_title(row["concurrency"]), "limit": row["concurrency_limit"]}


def group_title(group: str) -> str:
    """A concurrency group as the definition calls it: in the state its project stands in front."""
    return group.partition("/")[2]


async def list_runs(
    snapshot: Snapshot,
    *,
    state: str | None,
    name: str | None,
    project: str,
    limit: int,
    cursor: str | None,
    queue: str | None = None,
) -> dict[str, Any]:
    """A page of runs, the newest first."""
    clauses, parameters = ["project = ?"], [project]
    for clause, value in (("state = ?", state), ("name = ?", name), ("queue = ?", queue), ("id < ?", cursor)):
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
    row = await snapshot.row(RUN_HEAD, (run_id,))
    if row is None:
        raise PistageError(Code.NOT_FOUND, f"no run {run_id}", hint="pistage ps lists the runs")
    attempts: dict[int, list[Row]] = {}
    for attempt in await snapshot.rows(ATTEMPTS, (run_id,)):
        attempts.setdefault(attempt["position"], []).append(attempt)
    steps: dict[str, dict[str, Row]] = {}
    for step in await snapshot.rows(_STEPS, (run_id,)) if attempts else ():
        steps.setdefault(step["attempt_id"], {})[step["id"]] = step
    rows = await snapshot.rows(_TASKS, (run_id,))
    waiting = await _why_they_wait([row for row in rows if row["state"] == State.QUEUED][:_EXPLAINED_MAX], why_waiting)
    tasks = [_task(task, attempts.get(task["position"], []), steps, waiting) for task in rows]
    titled = await titles_in(snapshot, (task["waiting"] for task in tasks))
    for task in tasks:
        task["waiting"] = titled(task["waiting"])
    notices = await notices_of(snapshot, run_id) if State(row["state"]).is_terminal else []
    return run_head(row) | {"tasks": tasks, "notices": notices, "applied_index": row["applied_index"]}


async def notices_of(snapshot: Snapshot, run_id: str) -> list[dict[str, Any]]:
    """Whom the end of a run is told to, and how far that is; no more of a URL than where it leads."""
    found = []
    for row in await snapshot.rows(_NOTICES, (run_id,)):
        notifies: tuple[Notify, ...] = codec.from_json(tuple[Notify, ...], row["notifies"] or "[]")
        is_inline = row["receiver"] is None and row["notify"] < len(notifies)
        url = shown_url(notifies[row["notify"]].url) if is_inline else None
        found.append(
            {"delivery": f"{run_id}-{row['position']}", "receiver": row["receiver"], "url": url, "state": row["state"]}
            | {key: row[key] for key in ("tries", "status", "reason")}
            | {key: at(row[key]) for key in ("due_at", "created_at", "ended_at")}
        )
    return found


_NOTICES = """
SELECT delivery.position, delivery.receiver, delivery.notify, delivery.state, delivery.tries, delivery.status,
  delivery.reason, delivery.due_at, delivery.created_at, delivery.ended_at,
  CASE WHEN json_valid(run.plan) THEN json_extract(run.plan, '$.notify') END AS notifies
FROM delivery JOIN run ON run.id = delivery.run_id WHERE delivery.run_id = ? ORDER BY delivery.position
"""

_EXPLAINED_MAX = 20  # of the tasks that wait; `why` tells of any of them
_TASKS = """
SELECT run_id, position, name, state, reason, needs, queue_timeout_ms, cancel_reason, kept_from, started_at,
  finished_at, spec
FROM task WHERE run_id = ? ORDER BY position
"""
# The attempts of a task that was kept are those of the run that it was kept from, where it has the same position.
_THEIR_ATTEMPTS = """
task JOIN attempt ON attempt.run_id = COALESCE(task.kept_from, task.run_id) AND attempt.position = task.position
"""
#: The attempts of a run's tasks, in their order.
ATTEMPTS: Final = f"""
SELECT attempt.id, attempt.position, attempt.number, attempt.agent_id, agent.name AS agent_name, attempt.fence,
  attempt.state, attempt.failure, attempt.exit_code, attempt.reason, attempt.runtime, attempt.assigned_at,
  attempt.started_at, attempt.finished_at
FROM {_THEIR_ATTEMPTS} LEFT JOIN agent ON agent.id = attempt.agent_id
WHERE task.run_id = ? ORDER BY task.position, attempt.number
"""
_STEPS = f"""
SELECT step.attempt_id, step.id, step.state, step.failure, step.exit_code, step.reason, step.container,
  step.started_at, step.finished_at, step.stdout_bytes, step.stdout_sha256, step.stdout_missing,
  step.stderr_bytes, step.stderr_sha256, step.stderr_missing
FROM {_THEIR_ATTEMPTS} JOIN step ON step.attempt_id = attempt.id WHERE task.run_id = ?
"""


async def _why_they_wait(rows: list[Row], why_waiting: WhyWaiting) -> dict[int, tuple[str, bool]]:
    """By position. What costs a look at every agent is done for one task at a time: others have their turn between."""
    found = {}
    for row in rows:
        found[row["position"]] = why_waiting(row["run_id"], row["position"])
        await asyncio.sleep(0)
    return found


def _task(
    row: Row, attempts: list[Row], steps: dict[str, dict[str, Row]], waits: Mapping[int, tuple[str, bool]]
) -> dict[str, Any]:
    spec: Task = codec.from_json(Task, row["spec"])
    waiting, is_placeable = waits.get(row["position"], ("", True))
    return {
        "name": row["name"],
        "state": row["state"],
        "reason": row["reason"],
        "waiting": waiting,
        "is_placeable": is_placeable,
        "needs": json.loads(row["needs"]),
        "kept_from": row["kept_from"],
        "cancel_reason": row["cancel_reason"],
        "queue_timeout_s": None if row["queue_timeout_ms"] is None else row["queue_timeout_ms"] / 1000,
        "on_partition": spec.on_partition,
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
            "finished_at": None, "stdout_bytes": 0, "stderr_bytes": 0, "stdout_missing": 0, "stderr_missing": 0,
            "stdout_sha256": None, "stderr_sha256": None,
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
        "stdout_missing": row["stdout_missing"],
        "stderr_missing": row["stderr_missing"],
        "stdout_sha256": row["stdout_sha256"],
        "stderr_sha256": row["stderr_sha256"],
    }
