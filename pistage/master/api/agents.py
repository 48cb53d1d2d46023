"""Routes of agents: list, drain, resume, remove."""

from __future__ import annotations

import json
from collections.abc import Callable
from sqlite3 import Row
from typing import Any

from aiohttp import web
from pydantic import Field

from pistage import wire
from pistage.core.commands import RemoveAgent, SetAgentDrain
from pistage.errors import Code, PistageError
from pistage.master.api import bodies, http, views
from pistage.master.api.context import Context
from pistage.master.state import Snapshot

_DEADLINE_MAX_S = 30 * 24 * 3600  # longer than any task may take; past this a person has forgotten


class _Drain(bodies.Body):
    """How long what the agent runs may go on."""

    deadline_s: float | None = Field(None, ge=0, le=_DEADLINE_MAX_S, allow_inf_nan=False)


class AgentRoutes:
    """Handlers under /api/v1/agents."""

    def __init__(self, context: Context) -> None:
        self._context = context

    async def list(self, request: web.Request) -> web.Response:
        """Every agent that ever registered and was not removed: state, labels, capacity, what is reserved."""
        async with self._context.replica.reader.snapshot() as snapshot:
            items = await list_agents(snapshot, self._seen_at)
            applied_index = await snapshot.applied_index()
        return http.answer({"items": items, "next": None, "applied_index": applied_index})

    async def drain(self, request: web.Request) -> web.Response:
        """Give the agent no new work; after {"deadline_s": n} what it runs is stopped and tried elsewhere."""
        asked = await bodies.read(request, _Drain, expected='{"deadline_s": seconds}, or nothing')
        until = None if asked.deadline_s is None else wire.now_ms() + round(1000 * asked.deadline_s)
        return await self._set_drain(request, is_draining=True, until=until)

    async def resume(self, request: web.Request) -> web.Response:
        """Let the agent take work again."""
        return await self._set_drain(request, is_draining=False)

    async def remove(self, request: web.Request) -> web.Response:
        """Forget an agent that is gone; with ?force=1 also one that is connected or at work, and give its work up."""
        context, is_forced = self._context, http.is_set(request, "force")
        async with context.replica.reader.snapshot() as snapshot:
            agent_id, name = await _resolve(snapshot, request.match_info["id"])
        was_connected = context.sessions.is_connected(agent_id)
        if was_connected and not is_forced:
            raise PistageError(
                Code.CONFLICT,
                f"agent {name} is connected",
                hint="stop it first, or it registers again by itself; to remove it all the same: ?force=1, or --force",
            )
        outcome = await context.replica.propose(RemoveAgent(at=wire.now_ms(), agent_id=agent_id, is_forced=is_forced))
        context.sessions.drop(agent_id)
        given_up = outcome.value["lost"]
        return http.answer({"id": agent_id, "name": name, "was_connected": was_connected, "attempts_lost": given_up})

    async def _set_drain(self, request: web.Request, *, is_draining: bool, until: int | None = None) -> web.Response:
        async with self._context.replica.reader.snapshot() as snapshot:
            agent_id, _ = await _resolve(snapshot, request.match_info["id"])
        await self._context.replica.propose(
            SetAgentDrain(at=wire.now_ms(), agent_id=agent_id, is_draining=is_draining, until=until)
        )
        async with self._context.replica.reader.snapshot() as snapshot:
            items = await list_agents(snapshot, self._seen_at)
        return http.answer(next(item for item in items if item["id"] == agent_id))

    def _seen_at(self, agent_id: str) -> tuple[bool, int]:
        sessions = self._context.sessions
        return sessions.is_connected(agent_id), wire.now_ms() - round(1000 * sessions.silent_s(agent_id))


async def list_agents(snapshot: Snapshot, seen_at: Callable[[str], tuple[bool, int]]) -> list[dict[str, Any]]:
    """Every agent; `seen_at` tells whether it is connected and when it was last heard of (milliseconds UTC)."""
    return [_agent(row, *seen_at(row["id"])) for row in await snapshot.rows(_AGENTS)]


def _agent(row: Row, is_connected: bool, last_seen: int) -> dict[str, Any]:
    info = json.loads(row["info"])
    return {
        "id": row["id"],
        "name": row["name"],
        "state": row["state"],
        "reason": row["reason"],
        "is_connected": is_connected,
        "is_draining": bool(row["is_draining"]),
        "drain_until": views.at(row["drain_until"]),
        "epoch": row["epoch"],
        "version": info["version"],
        "runtimes": info["runtimes"],
        "languages": info["languages"],
        "installs": info["installs"],
        "ignores_images": info["ignores_images"],
        "labels": info["labels"],
        "capacity": info["capacity"],
        "used": {key: row[f"used_{key}"] for key in ("cpus_milli", "memory_bytes", "gpus", "slots")},
        "last_seen": views.at(last_seen),
    }


_AGENTS = """
SELECT agent.id, agent.name, agent.state, agent.reason, agent.is_draining, agent.drain_until, agent.epoch, agent.info,
  COALESCE(SUM(task.cpus_milli), 0) AS used_cpus_milli, COALESCE(SUM(task.memory_bytes), 0) AS used_memory_bytes,
  COALESCE(SUM(task.gpus), 0) AS used_gpus, COUNT(task.run_id) AS used_slots
FROM agent
LEFT JOIN attempt ON attempt.agent_id = agent.id AND attempt.state IN ('queued', 'running')
LEFT JOIN task ON task.run_id = attempt.run_id AND task.position = attempt.position
GROUP BY agent.id ORDER BY agent.name, agent.id
"""


async def _resolve(snapshot: Snapshot, reference: str) -> tuple[str, str]:
    """Id and name of the agent that an id or a name means."""
    rows = await snapshot.rows(
        "SELECT id, name FROM agent WHERE id = ? OR name = ? ORDER BY id LIMIT 2", (reference,) * 2
    )
    if not rows:
        raise PistageError(Code.NOT_FOUND, f"no agent {reference!r}", hint="pistage agent ls lists the agents")
    if len(rows) > 1:
        raise PistageError(Code.CONFLICT, f"several agents are called {reference!r}", hint="give the id")
    return str(rows[0]["id"]), str(rows[0]["name"])
