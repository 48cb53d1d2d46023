"""The route that says why: of each task its state, what stands in its way, and what became of its earlier attempts."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass
from sqlite3 import Row
from typing import Any, Final

from aiohttp import web

from pistage.core.model import State
from pistage.core.schedule import Explanation
from pistage.errors import Code, PistageError
from pistage.master.api import http, views
from pistage.master.api.context import Context
from pistage.master.state import Snapshot

_TASKS_MAX: Final = 100  # each with every agent: past this nobody reads on, and one can be named


class WhyRoutes:
    """Handlers under /api/v1/runs/{id}/why."""

    def __init__(self, context: Context) -> None:
        self._context = context

    async def why(self, request: web.Request) -> web.Response:
        """Why each task that has not succeeded is where it is, or ?task=; of those that wait, agent by agent."""
        context, name = self._context, request.query.get("task")
        async with context.replica.reader.snapshot() as snapshot:
            run_id = await views.resolve_run(snapshot, request.match_info["id"], context.project_of(request))
            if name is not None:
                await views.refuse_unless_task(snapshot, run_id, name)
            head = await snapshot.row(views.RUN_HEAD, (run_id,))
            if head is None:
                raise PistageError(Code.NOT_FOUND, f"no run {run_id}", hint="pistage ps lists the runs")
            told = await _told(snapshot, head)
            chosen = [task for task in told.tasks if _is_asked(task, name)]
            tasks = []
            for task in chosen[:_TASKS_MAX]:
                tasks.append(self._task(task, told))
                await asyncio.sleep(0)  # each is a look at every agent: others have their turn between
            await _name_runs(snapshot, tasks)
        more = len(chosen) - len(tasks)
        return http.answer(
            views.run_head(head) | {"tasks": tasks, "more": more, "applied_index": head["applied_index"]}
        )

    def _task(self, row: Row, told: _Told) -> dict[str, Any]:
        attempts = told.attempts.get(row["position"], [])
        state = State(row["state"])
        explanation = self._context.dispatch.explain((row["run_id"], row["position"])) if state == "queued" else None
        return {
            "name": row["name"],
            "state": state,
            "reason": row["reason"],
            "kept_from": row["kept_from"],
            "needs": [{"task": need, "state": told.states[need]} for need in json.loads(row["needs"])],
            "waiting": None if explanation is None else _waiting(row, explanation),
            "running": _running(attempts[-1]) if state is State.RUNNING and attempts else None,
            "cancelled": told.cancelled_tasks.get(row["name"]) or _with_its_run(row, told),
            "attempts": [_attempt(attempt, told.retries.get(attempt["id"], {})) for attempt in attempts],
        }


def _is_asked(task: Row, name: str | None) -> bool:
    return bool(task["state"] != State.SUCCEEDED if name is None else task["name"] == name)


def _waiting(row: Row, explanation: Explanation) -> dict[str, Any]:
    timeout_ms, turn = row["queue_timeout_ms"], explanation.turn
    return {
        "since": views.at(row["ready_at"]),
        "until": None if timeout_ms is None else views.at(row["ready_at"] + timeout_ms),
        "holds": list(explanation.holds),
        "turn": turn and {"place": turn.place, "count": turn.count, "behind": turn.behind},
        "is_placeable": explanation.is_placeable,
        "agents": [
            {"id": one.agent_id, "name": one.agent, "reasons": list(one.reasons)} for one in explanation.agents
        ],
        "brief": explanation.brief,
    }  # fmt: skip


def _running(attempt: Row) -> dict[str, Any]:
    return {
        "agent_id": attempt["agent_id"],
        "agent_name": attempt["agent_name"],
        "attempt": attempt["number"],
        "is_accepted": attempt["state"] == State.RUNNING,
        "since": views.at(attempt["started_at"] or attempt["assigned_at"]),
    }


def _attempt(row: Row, retry: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "number": row["number"],
        "agent_id": row["agent_id"],
        "agent_name": row["agent_name"],
        "state": row["state"],
        "failure": row["failure"],
        "exit_code": row["exit_code"],
        "reason": row["reason"],
        "started_at": views.at(row["started_at"]),
        "finished_at": views.at(row["finished_at"]),
        "retried_at": views.at(retry.get("ready_at")),
        "memory_bytes_then": retry.get("memory_bytes"),  # what the next one was given, where that was more
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class _Told:
    """What the state tells of a run: its tasks, their attempts, and the events that explain their ends."""

    tasks: list[Row]
    states: dict[str, str]
    attempts: dict[int, list[Row]]
    retries: dict[str, dict[str, Any]]  # by attempt
    cancelled_tasks: dict[str, dict[str, Any]]
    cancelled_run: dict[str, Any] | None


async def _told(snapshot: Snapshot, head: Row) -> _Told:
    tasks = await snapshot.rows(_TASKS, (head["id"],))
    attempts: dict[int, list[Row]] = {}
    for attempt in await snapshot.rows(views.ATTEMPTS, (head["id"],)):
        attempts.setdefault(attempt["position"], []).append(attempt)
    retries: dict[str, dict[str, Any]] = {}
    cancelled_tasks: dict[str, dict[str, Any]] = {}
    cancelled_run = None
    for event in await snapshot.rows(_EVENTS, (head["id"],)):
        fields = json.loads(event["fields"])
        by = {"at": views.at(event["at"]), "by": fields.get("owner"), "reason": fields.get("reason", "")}
        match event["kind"]:
            case "task_retried":
                retries[fields["attempt"]] = fields
            case "task_cancelling":
                cancelled_tasks[fields["task"]] = by | {"of": "task"}
            case "run_cancelling":
                cancelled_run = by | {"of": "run"}
    return _Told(
        tasks=tasks,
        states={task["name"]: task["state"] for task in tasks},
        attempts=attempts,
        retries=retries,
        cancelled_tasks=cancelled_tasks,
        cancelled_run=cancelled_run,
    )


def _with_its_run(row: Row, told: _Told) -> dict[str, Any] | None:
    """The end of the whole run explains that of a task which it cancelled, or is about to."""
    state = State(row["state"])
    return told.cancelled_run if state is State.CANCELLED or not state.is_terminal else None


async def _name_runs(snapshot: Snapshot, tasks: list[dict[str, Any]]) -> None:
    """Runs that hold places are told by name and number."""
    waiting = [task["waiting"] for task in tasks if task["waiting"] is not None]
    titled = await views.titles_in(snapshot, (text for one in waiting for text in (*one["holds"], one["brief"])))
    for one in waiting:
        one["holds"] = [titled(hold) for hold in one["holds"]]
        one["brief"] = titled(one["brief"])


_TASKS = """
SELECT run_id, position, name, state, reason, needs, queue_timeout_ms, kept_from, ready_at
FROM task WHERE run_id = ? ORDER BY position
"""
_EVENTS = """
SELECT kind, at, fields FROM event
WHERE run_id = ? AND kind IN ('task_retried', 'task_cancelling', 'run_cancelling') ORDER BY id
"""
