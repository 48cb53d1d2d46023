"""Routes of notices: who is told of runs that end, and what became of the notices of a run."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Sequence
from sqlite3 import Row
from typing import Any, Final, Literal

from aiohttp import web
from pydantic import Field

from pistage import wire
from pistage.core import codec, limits
from pistage.core.commands_of_notices import DeleteReceiver, PutReceiver
from pistage.core.definition import Finding
from pistage.core.definition.fields import problem_of_name
from pistage.core.definition.messages import problem_of_body
from pistage.core.notices import (
    ENDS_DEFAULT,
    End,
    Receiver,
    Verdict,
    problem_of_headers,
    problem_of_secret,
    problem_of_url,
    shown_url,
)
from pistage.core.plan import Plan
from pistage.errors import Code, PistageError
from pistage.master.api import bodies, http, views
from pistage.master.api.context import Context
from pistage.master.api.submissions import finding_view
from pistage.master.notices import sample
from pistage.master.state import Snapshot

_EXPECTED: Final = (
    '{"url": "https://…", "on": ["failed", …], "pipelines": [names] or null, "body", "headers", "secret"}'
)
_PIPELINES_MAX: Final = 100
_RECEIVERS: Final = "SELECT name, owner, at, spec FROM receiver WHERE project = ?"


class _Asked(bodies.Body):
    url: str = Field(max_length=limits.NOTICE_URL_CHARS_MAX)
    on: list[Literal["succeeded", "failed", "cancelled", "lost", "always"]] | None = Field(
        None, min_length=1, max_length=10
    )
    pipelines: list[str] | None = Field(None, max_length=_PIPELINES_MAX)
    body: str = Field("", max_length=limits.NOTICE_TEMPLATE_BYTES_MAX)
    headers: dict[str, str] = Field(default_factory=dict)
    secret: str = ""

    @property
    def receiver(self) -> Receiver:
        on: Collection[str] = self.on or ENDS_DEFAULT
        ends = tuple(end for end in End if end in on or "always" in on)
        pipelines = None if self.pipelines is None else tuple(sorted(set(self.pipelines)))
        return Receiver(
            url=self.url, on=ends, pipelines=pipelines, body=self.body, headers=self.headers, secret=self.secret
        )


class NoticeRoutes:
    """Handlers under /api/v1/notices, and of the notices of a run."""

    def __init__(self, context: Context) -> None:
        self._context = context

    async def list(self, request: web.Request) -> web.Response:
        """Who is told of runs that end; of URLs only the host is shown, of headers the names, of secrets nothing."""
        project = self._context.project_of(request)
        async with self._context.replica.reader.snapshot() as snapshot:
            rows = await snapshot.rows(f"{_RECEIVERS} ORDER BY name", (project,))
            applied_index = await snapshot.applied_index()
        return http.answer({"items": [_view(row) for row in rows], "next": None, "applied_index": applied_index})

    async def put(self, request: web.Request) -> web.Response:
        """Tell {name} of runs that end: {"url", "on", "pipelines", "body", "headers", "secret"}.

        What is left out it has not; "pipelines" null are all, [] those alone whose definition names it.
        """
        context, name = self._context, request.match_info["name"]
        project = context.project_of(request)
        if (problem := problem_of_name(name)) is not None or "://" in name:
            raise PistageError(
                Code.INVALID, f"the name of the receiver {problem or 'is a URL'}", hint="give it another name"
            )
        receiver = (await bodies.read(request, _Asked, expected=_EXPECTED)).receiver
        self._refuse_bad(receiver)
        command = PutReceiver(
            at=wire.now_ms(), project=project, owner=context.owner_of(request), name=name, receiver=receiver
        )
        await context.replica.propose(command)
        async with context.replica.reader.snapshot() as snapshot:
            return http.answer(_view(await _required(snapshot, project, name)))

    def _refuse_bad(self, receiver: Receiver) -> None:
        url = problem_of_url(receiver.url)
        address = self._context.outward.problem_of(receiver.url) if url is None else None
        body = problem_of_body(receiver.body) if receiver.body else None
        names = [problem for one in receiver.pipelines or () if (problem := problem_of_name(one)) is not None]
        problems = {
            "url: it": url,
            "url:": address,
            "body: it": body,
            "headers:": problem_of_headers(receiver.headers),
            "secret:": problem_of_secret(receiver.secret),
            "pipelines: a name": names[0] if names else None,
        }
        told = [f"{where} {problem}" for where, problem in problems.items() if problem is not None]
        if told:
            raise PistageError(Code.INVALID, "; ".join(told), hint=f"send {_EXPECTED}")

    async def delete(self, request: web.Request) -> web.Response:
        """Tell it no more; notices on their way to it are given up."""
        project, name = self._context.project_of(request), request.match_info["name"]
        await self._context.replica.propose(DeleteReceiver(at=wire.now_ms(), project=project, name=name))
        return web.Response(status=204)

    async def test(self, request: web.Request) -> web.Response:
        """Send it a notice of a run that never was, once, now; what came of that."""
        context, name = self._context, request.match_info["name"]
        project = context.project_of(request)
        async with context.replica.reader.snapshot() as snapshot:
            row = await _required(snapshot, project, name)
        receiver: Receiver = codec.from_json(Receiver, row["spec"])
        told = sample(name, project, views.at(wire.now_ms()) or "")
        tried = await context.notices.test(receiver, told, wire.new_id())
        is_delivered = tried.verdict is Verdict.DELIVERED
        return http.answer({"is_delivered": is_delivered, "status": tried.status, "reason": tried.reason})

    async def of_run(self, request: web.Request) -> web.Response:
        """Notices of a run that has ended: to whom, how often tried, and what became of each."""
        context = self._context
        async with context.replica.reader.snapshot() as snapshot:
            run_id = await views.resolve_run(snapshot, request.match_info["id"], context.project_of(request))
            items = await views.notices_of(snapshot, run_id)
            applied_index = await snapshot.applied_index()
        return http.answer({"items": items, "next": None, "applied_index": applied_index})


async def missing_receivers(context: Context, plan: Plan, project: str) -> Sequence[dict[str, Any]]:
    """A warning for each receiver that the plan names and that is not there now; it may be once the run ends."""
    asked = {notify.to for notify in plan.notify if notify.to}
    if not asked:
        return []
    async with context.replica.reader.single() as snapshot:
        known = {row["name"] for row in await snapshot.rows(_RECEIVERS, (project,))}
    return [
        finding_view(
            Finding(
                severity="warning", code="no-receiver", message=f"there is no receiver {name!r} to be told of the end",
                hint=f"set it before the run ends: pistage notice add {shlex.quote(name)} URL", path="notify",
            )
        )
        for name in sorted(asked - known)
    ]  # fmt: skip


async def _required(snapshot: Snapshot, project: str, name: str) -> Row:
    row = await snapshot.row(f"{_RECEIVERS} AND name = ?", (project, name))
    if row is None:
        raise PistageError(Code.NOT_FOUND, f"no receiver {name[:100]!r}", hint="pistage notice ls lists them")
    return row


def _view(row: Row) -> dict[str, Any]:
    receiver: Receiver = codec.from_json(Receiver, row["spec"])
    return {
        "name": row["name"],
        "url": shown_url(receiver.url),
        "on": receiver.on,
        "pipelines": receiver.pipelines,
        "body": receiver.body,
        "headers": sorted(receiver.headers),
        "has_secret": bool(receiver.secret),
        "owner": row["owner"],
        "changed_at": views.at(row["at"]),
    }
