"""Routes of actions and of definitions that are only looked at: register, list, show, delete, lint, plan."""

from __future__ import annotations

import hashlib
from typing import Any

from aiohttp import web

from pistage import wire
from pistage.core import limits
from pistage.core.commands import DeleteAction, PutAction
from pistage.errors import Code, PistageError
from pistage.master.api import http, views
from pistage.master.api.context import Context
from pistage.master.api.runs import plan_view
from pistage.master.api.submissions import Submission, finding_view, parse_submission
from pistage.predefined import predefined_actions


class ActionRoutes:
    """Handlers of /api/v1/actions, /api/v1/lint and /api/v1/plan."""

    def __init__(self, context: Context) -> None:
        self._context = context

    async def put(self, request: web.Request) -> web.Response:
        """Register the definition in the body under {name}; a new version if its text is new."""
        context = self._context
        project = context.project_of(request)
        text = await http.read_body(request, bytes_max=limits.DOCUMENT_BYTES_MAX)
        found = await context.planner.lint(Submission(text=text), project)
        if errors := [finding for finding in found.findings if finding.severity == "error"]:
            raise PistageError(
                Code.INVALID,
                errors[0].message,
                hint=errors[0].hint,
                details={"findings": [finding_view(finding) for finding in found.findings]},
            )
        name = request.match_info["name"]
        if found.name != name:
            raise PistageError(
                Code.INVALID,
                f"the document's name is {found.name!r}, not {name!r}",
                hint="register it under its own name",
            )
        decoded = text.decode("utf-8")
        outcome = await context.replica.propose(
            PutAction(
                at=wire.now_ms(),
                project=project,
                owner=context.owner_of(request),
                name=name,
                text=decoded,
                sha256=hashlib.sha256(text).hexdigest(),
            )
        )
        answered = {"name": name, "version": outcome.value["version"], "is_new": outcome.value["is_new"]}
        warnings = [finding_view(finding) for finding in found.findings]
        return http.answer(answered | {"warnings": warnings}, status=201 if outcome.value["is_new"] else 200)

    async def list(self, request: web.Request) -> web.Response:
        """Registered actions and predefined ones; a registered one hides the predefined one of its name."""
        project = self._context.project_of(request)
        async with self._context.replica.reader.snapshot() as snapshot:
            rows = await snapshot.rows(
                "SELECT name, MAX(version) AS version, sha256, owner, at FROM action WHERE project = ?"
                " GROUP BY name ORDER BY name",
                (project,),
            )
            applied_index = await snapshot.applied_index()
        items: dict[str, dict[str, Any]] = {
            name: {"name": name, "version": 0, "is_predefined": True, "sha256": _sha256(text), "updated_at": None}
            for name, text in predefined_actions().items()
        }
        for row in rows:
            items[row["name"]] = {
                "name": row["name"],
                "version": row["version"],
                "is_predefined": False,
                "sha256": row["sha256"],
                "updated_at": views.at(row["at"]),
                "owner": row["owner"],
            }
        ordered = [items[name] for name in sorted(items)]
        return http.answer({"items": ordered, "next": None, "applied_index": applied_index})

    async def show(self, request: web.Request) -> web.Response:
        """The newest text of an action."""
        project = self._context.project_of(request)
        found = await self._context.planner.find_action(request.match_info["name"], project)
        return http.answer_cached(
            request,
            {
                "name": found.name,
                "version": found.version,
                "is_predefined": found.is_predefined,
                "sha256": found.sha256,
                "text": found.text,
            },
        )

    async def schema(self, request: web.Request) -> web.Response:
        """What an action takes, as JSON Schema (2020-12); any object where it declares no inputs."""
        project = self._context.project_of(request)
        schema = await self._context.planner.inputs_schema(request.match_info["name"], project)
        return http.answer_cached(request, schema)

    async def delete(self, request: web.Request) -> web.Response:
        """Forget a registered action; runs that exist keep their plans."""
        project = self._context.project_of(request)
        name = request.match_info["name"]
        await self._context.replica.propose(DeleteAction(at=wire.now_ms(), project=project, name=name))
        return web.Response(status=204)

    async def lint(self, request: web.Request) -> web.Response:
        """What is wrong with the definition in the body; 200 also where there are errors."""
        project = self._context.project_of(request)
        submission = parse_submission(await http.read_body(request), request.content_type)
        found = await self._context.planner.lint(submission, project)
        return http.answer(
            {
                "name": found.name,
                "dialect": found.dialect,
                "findings": [finding_view(finding) for finding in found.findings],
                "normalised": found.normalised,
                "parameters_needed": list(found.parameters_needed),
                "images_missing": list(found.images_missing),
            }
        )

    async def plan(self, request: web.Request) -> web.Response:
        """What a run of the definition in the body would execute; 422 with every finding if it would be refused."""
        project = self._context.project_of(request)
        submission = parse_submission(await http.read_body(request), request.content_type)
        planned, _ = await self._context.planner.plan(submission, project)
        findings = [finding_view(finding) for finding in planned.findings]
        return http.answer({"plan": plan_view(planned.plan), "findings": findings})


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
