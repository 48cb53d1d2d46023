"""Lists of a project's things by name, a page at a time."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from sqlite3 import Row
from typing import Any

from aiohttp import web

from pistage.core import limits
from pistage.master.api import http
from pistage.master.api.context import Context
from pistage.master.state import Snapshot


async def page_by_name(
    context: Context,
    request: web.Request,
    select: str,
    view: Callable[[Snapshot, Row], Awaitable[dict[str, Any]]],
    *,
    column: str = "name",
) -> web.Response:
    """A page of ?limit= rows of `select`, after the name ?cursor=; each is shown by `view`, under its "name"."""
    project = context.project_of(request)
    limit = http.number_in(request, "limit", limits.PAGE_DEFAULT, least=1, most=limits.PAGE_MAX)
    async with context.replica.reader.snapshot() as snapshot:
        rows = await snapshot.rows(
            f"{select} WHERE project = ? AND {column} > ? ORDER BY {column} LIMIT ?",
            (project, request.query.get("cursor", ""), limit + 1),
        )
        items = [await view(snapshot, row) for row in rows[:limit]]
        applied_index = await snapshot.applied_index()
    cursor = items[-1]["name"] if len(rows) > limit else None
    return http.answer({"items": items, "next": cursor, "applied_index": applied_index})
