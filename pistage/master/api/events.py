"""The route of what happened to a run: a list, or a stream of server-sent events."""

from __future__ import annotations

import json
from typing import Any

from aiohttp import web

from pistage.core import limits
from pistage.core.model import State
from pistage.master.api import http, views
from pistage.master.api.asked import last_event
from pistage.master.api.context import Context
from pistage.master.api.sending import Sender
from pistage.master.state import Snapshot

_EVENTS_AT_ONCE = 256


class EventRoutes:
    """The handler of /api/v1/runs/{id}/events."""

    def __init__(self, context: Context) -> None:
        self._context = context

    async def events(self, request: web.Request) -> web.StreamResponse:
        """What happened to the run: a JSON list, or with `Accept: text/event-stream` a stream until it is over."""
        context = self._context
        async with context.replica.reader.snapshot() as snapshot:
            run_id = await views.resolve_run(snapshot, request.match_info["id"], context.project_of(request))
        after, _ = last_event(request) or (0, 0)
        if "text/event-stream" not in request.headers.get("Accept", ""):
            async with context.replica.reader.snapshot() as snapshot:
                items = await _events_after(snapshot, run_id, after, limits.PAGE_MAX)
            return http.answer({"items": items, "next": items[-1]["id"] if len(items) == limits.PAGE_MAX else None})
        sender = Sender(request, "text/event-stream")
        await sender.begin()
        while True:
            changed = context.run_signals.changed(run_id)
            async with context.replica.reader.snapshot() as snapshot:
                state = State(await snapshot.value("SELECT state FROM run WHERE id = ?", (run_id,)))
                items = await _events_after(snapshot, run_id, after, _EVENTS_AT_ONCE)
            for item in items:
                await sender.event(str(item["id"]), item["kind"], json.dumps(item, ensure_ascii=False))
                after = item["id"]
            await sender.flush()
            if not items:
                if state.is_terminal:
                    break
                await sender.wait(changed)
        await sender.event("", "end", "{}")
        return await sender.end()


async def _events_after(snapshot: Snapshot, run_id: str, after: int, count: int) -> list[dict[str, Any]]:
    rows = await snapshot.rows(
        "SELECT id, at, kind, fields FROM event WHERE run_id = ? AND id > ? ORDER BY id LIMIT ?",
        (run_id, after, count),
    )
    return [
        {"id": row["id"], "kind": row["kind"], "at": views.at(row["at"])} | json.loads(row["fields"]) for row in rows
    ]
