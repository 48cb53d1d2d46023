"""Routes of definitions that come after runs of others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from sqlite3 import Row
from typing import Any, Final

from aiohttp import web

from pistage import wire
from pistage.core import codec
from pistage.core.commands_of_triggers import DeleteAfter, PutAfter
from pistage.core.triggers.settings import After, AfterRule
from pistage.errors import Code, PistageError
from pistage.master.api import http, views
from pistage.master.api.context import Context
from pistage.master.api.listing import page_by_name
from pistage.master.state import Snapshot

_SHOWN: Final = 20


class AfterRoutes:
    """Handlers under /api/v1/afters."""

    def __init__(self, context: Context) -> None:
        self._context = context

    async def list(self, request: web.Request) -> web.Response:
        """Definitions that come after runs of others, by name; ?limit= &cursor=."""
        return await page_by_name(self._context, request, _RULES, _view, column="definition")

    async def show(self, request: web.Request) -> web.Response:
        """One, with what became of the latest runs that it came after."""
        return http.answer(await self._shown(self._context.project_of(request), request.match_info["name"]))

    async def delete(self, request: web.Request) -> web.Response:
        """Let it come after nothing; its runs stay."""
        project, name = self._context.project_of(request), request.match_info["name"]
        await self._context.replica.propose(DeleteAfter(at=wire.now_ms(), project=project, definition=name))
        return web.Response(status=204)

    async def put(
        self, request: web.Request, definition: str, afters: Sequence[After], source: str, parameters: Mapping[str, Any]
    ) -> dict[str, Any] | None:
        """Let the document come after these, or after nothing any more; how that looks."""
        context, project = self._context, self._context.project_of(request)
        if not afters:
            async with context.replica.reader.snapshot() as snapshot:
                is_there = await snapshot.row(f"{_RULES} WHERE project = ? AND definition = ?", (project, definition))
            if is_there is not None:
                await context.replica.propose(DeleteAfter(at=wire.now_ms(), project=project, definition=definition))
            return None
        command = PutAfter(
            at=wire.now_ms(), id=wire.new_id(), project=project, owner=context.owner_of(request), definition=definition,
            rule=AfterRule(afters=tuple(afters), parameters=parameters), source=source,
        )  # fmt: skip
        await context.replica.propose(command)
        return await self._shown(project, definition)

    async def _shown(self, project: str, name: str) -> dict[str, Any]:
        async with self._context.replica.reader.snapshot() as snapshot:
            row = await snapshot.row(f"{_RULES} WHERE project = ? AND definition = ?", (project, name))
            if row is None:
                raise PistageError(
                    Code.NOT_FOUND, f"{name[:100]!r} comes after nothing", hint="pistage after ls lists what does"
                )  # fmt: skip
            return await _view(snapshot, row, _SHOWN)


_RULES: Final = "SELECT id, project, definition, owner, created_at, at, spec FROM after_rule"
_LATEST: Final = """
SELECT after_due.at, after_due.depth, after_due.outcome, after_due.reason, ended.id AS ended_id,
  ended.name AS ended_name, ended.number AS ended_number, ended.state AS ended_state, made.id AS made_id,
  made.name AS made_name, made.number AS made_number, made.state AS made_state
FROM after_due JOIN run AS ended ON ended.id = after_due.run_id LEFT JOIN run AS made ON made.id = after_due.made_run_id
WHERE after_due.after_id = ? ORDER BY after_due.at DESC, after_due.run_id DESC LIMIT ?
"""


async def _view(snapshot: Snapshot, row: Row, count: int = 1) -> dict[str, Any]:
    rule: AfterRule = codec.from_json(AfterRule, row["spec"])
    return {
        "id": row["id"],
        "name": row["definition"],
        "project": row["project"],
        "owner": row["owner"],
        "after": [{"pipeline": after.pipeline, "state": after.state} for after in rule.afters],
        "with": dict(rule.parameters),
        "latest": [_latest(one) for one in await snapshot.rows(_LATEST, (row["id"], count))],
        "created_at": views.at(row["created_at"]),
        "changed_at": views.at(row["at"]),
    }


def _latest(row: Row) -> dict[str, Any]:
    return {
        "at": views.at(row["at"]),
        "after": _run(row, "ended"),
        "depth": row["depth"],
        "outcome": row["outcome"] or "due",
        "reason": row["reason"],
        "run": None if row["made_id"] is None else _run(row, "made"),
    }


def _run(row: Row, which: str) -> dict[str, Any]:
    return {key: row[f"{which}_{key}"] for key in ("id", "name", "number", "state")}
