"""Routes of runs: submit, retry, list, show, plan, cancel, reprioritise."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from aiohttp import web
from pydantic import Field

from pistage import wire
from pistage.core import codec, limits
from pistage.core.commands import CancelRun, CancelTask, NewRun, RetryRun, SetRunPriority, SubmitRun, SubmitRuns
from pistage.core.model import State
from pistage.core.plan import Plan, redacted
from pistage.errors import Code, PistageError
from pistage.master import reads
from pistage.master.api import bodies, http, views
from pistage.master.api.context import Context
from pistage.master.api.leading import told_by_the_leader
from pistage.master.api.notices import missing_receivers
from pistage.master.api.queues import PRIORITY_MAX
from pistage.master.api.retries import kept_in, parse_retry
from pistage.master.api.schedules import ScheduleRoutes, asks_for_triggers
from pistage.master.api.scripts import keyed, keyed_view, parse_script
from pistage.master.api.submissions import Submission, finding_view, parse_submission

_KEY = re.compile(r"[\x21-\x7e]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asked:
    """A submission as it came: by whom, for which project, and under which key, if any."""

    project: str
    owner: str
    body: bytes
    key: str | None
    sha256: str


class _Priority(bodies.Body):
    priority: int = Field(ge=0, le=PRIORITY_MAX)


class RunRoutes:
    """Handlers under /api/v1/runs."""

    def __init__(self, context: Context, schedules: ScheduleRoutes) -> None:
        self._context, self._schedules = context, schedules

    async def submit(self, request: web.Request) -> web.Response:
        """Make a run of a definition (YAML or JSON), or of {"action": name, "with": {...}}.

        A definition that has a schedule, or comes after others, is run by that: {"schedules": […], "after": {…}};
        ?now=1 makes a run at once all the same.
        """
        asked = await self._asked(request)
        return await self._submit(asked, lambda body: parse_submission(body, request.content_type), by=request)

    async def submit_script(self, request: web.Request) -> web.Response:
        """Make a run of a script: {"script": code}, and language, file, args, stdin, requirements, env, timeout …"""
        asked = await self._asked(request, kind=b"script\0")
        try:
            return await self._submit(asked, parse_script)
        except PistageError as error:
            raise keyed(error) from None

    async def _submit(
        self, asked: _Asked, parse: Callable[[bytes], Submission], *, by: web.Request | None = None
    ) -> web.Response:
        """`by` is the request of a definition: it may be one for a schedule, and what is found has a place in it."""
        context = self._context
        if (earlier := await self._earlier(asked)) is not None:
            return await self._submitted(earlier[0][0], [], status=200)
        context.refuse_unless_space()
        submission = parse(asked.body)
        if by is not None and not http.is_set(by, "now") and asks_for_triggers(submission):
            triggers = await self._schedules.put_those_of(submission, by)
            if triggers is not None:
                return http.answer(triggers, status=201)
        planned, source = await context.planner.plan(submission, asked.project)
        command = SubmitRun(
            at=wire.now_ms(),
            run_id=wire.new_id(),
            project=asked.project,
            owner=asked.owner,
            plan=planned.plan,
            source=source,
            request_key=asked.key,
            request_sha256=asked.sha256,
        )
        outcome = await context.replica.propose(command)
        view = keyed_view if by is None else finding_view
        warnings = [view(finding) for finding in planned.findings]
        warnings += await missing_receivers(context, planned.plan, asked.project)
        return await self._submitted(
            str(outcome.value["run_id"]), warnings, status=201 if outcome.value["is_new"] else 200
        )

    async def submit_batch(self, request: web.Request) -> web.Response:
        """Make up to 1,000 runs, all or none: {"action": name or "definition": text, "runs": [{"with": {…}}, …]}."""
        context = self._context
        asked = await self._asked(request, kind=b"batch\0")
        if (earlier := await self._earlier(asked)) is not None:
            items: object = [{"id": run_id, "number": number} for run_id, number in earlier]
            return await self._submitted_batch(items, [], status=200)
        context.refuse_unless_space()
        batch = await context.planner.plan_batch(asked.body, asked.project)
        # Sorted, so that the runs are listed in the order in which they were sent and numbered.
        run_ids = sorted(wire.new_id() for _ in batch.plan_of)
        command = SubmitRuns(
            at=wire.now_ms(),
            project=asked.project,
            owner=asked.owner,
            plans=batch.plans,
            runs=tuple(NewRun(run_id=run_id, plan=n) for run_id, n in zip(run_ids, batch.plan_of, strict=True)),
            source=batch.source,
            request_key=asked.key,
            request_sha256=asked.sha256,
        )
        outcome = await context.replica.propose(command)
        warnings = [finding_view(finding) for finding in batch.findings]
        status = 201 if outcome.value["is_new"] else 200
        return await self._submitted_batch(outcome.value["items"], warnings, status=status)

    async def retry(self, request: web.Request) -> web.Response:
        """Run again what has ended: all of it, {"failed": true} what failed, or {"from": task} what begins there."""
        context = self._context
        async with context.replica.reader.snapshot() as snapshot:
            run_id = await views.resolve_run(snapshot, request.match_info["id"], context.project_of(request))
        asked = await self._asked(request, kind=f"retry\0{run_id}\0".encode())
        if (earlier := await self._earlier(asked)) is not None:
            return await self._submitted(earlier[0][0], [], status=200)
        context.refuse_unless_space()
        wanted = parse_retry(asked.body)
        async with context.replica.reader.snapshot() as snapshot:
            kept = await kept_in(snapshot, run_id, wanted)
        command = RetryRun(
            at=wire.now_ms(),
            run_id=wire.new_id(),
            retry_of=run_id,
            owner=asked.owner,
            kept=kept,
            request_key=asked.key,
            request_sha256=asked.sha256,
        )
        outcome = await context.replica.propose(command)
        return await self._submitted(str(outcome.value["run_id"]), [], status=201 if outcome.value["is_new"] else 200)

    async def _asked(self, request: web.Request, *, kind: bytes = b"") -> _Asked:
        project = self._context.project_of(request)
        key = _idempotency_key(request)
        body = await http.read_body(request)
        owner = self._context.owner_of(request)
        return _Asked(
            project=project,
            owner=owner,
            body=body,
            key=None if key is None else f"{project}/{owner}/{key}",
            # The same body sent to another route is another request.
            sha256=hashlib.sha256(kind + body).hexdigest(),
        )

    async def _earlier(self, asked: _Asked) -> list[tuple[str, int]] | None:
        # A repeat gets the answer of the first time also where its actions are gone since, or the disk is full; that
        # two at the same time make one run is for the state machine to see to.
        if asked.key is None:
            return None
        async with self._context.replica.reader.snapshot() as snapshot:
            return await reads.earlier_request(snapshot, asked.key, asked.sha256, wire.now_ms())

    async def _submitted(self, run_id: str, warnings: Sequence[dict[str, Any]], *, status: int) -> web.Response:
        async with self._context.replica.reader.snapshot() as snapshot:
            run = await views.show_run(snapshot, run_id, self._context.why_waiting)
        headers = {"Location": f"/api/v1/runs/{run_id}"}
        return http.answer(run | {"warnings": list(warnings)}, status=status, headers=headers)

    async def _submitted_batch(self, items: object, warnings: Sequence[dict[str, Any]], *, status: int) -> web.Response:
        async with self._context.replica.reader.snapshot() as snapshot:
            applied_index = await snapshot.applied_index()
        return http.answer({"items": items, "warnings": list(warnings), "applied_index": applied_index}, status=status)

    async def list(self, request: web.Request) -> web.Response:
        """Runs, the newest first; ?state= &name= &queue= &limit= &cursor= &project=."""
        state = request.query.get("state")
        if state is not None and state not in set(State):
            raise PistageError(Code.USAGE, f"state: expected one of {', '.join(State)}, got {state[:50]!r}")
        async with self._context.replica.reader.snapshot() as snapshot:
            page = await views.list_runs(
                snapshot,
                state=state,
                name=request.query.get("name"),
                queue=request.query.get("queue"),
                project=self._context.project_of(request),
                limit=http.number_in(request, "limit", limits.PAGE_DEFAULT, least=1, most=limits.PAGE_MAX),
                cursor=request.query.get("cursor"),
            )
        return http.answer(page)

    async def show(self, request: web.Request) -> web.Response:
        """A run with its tasks, attempts and steps; {id} may be a prefix of the id, or name#number."""
        async with self._context.replica.reader.snapshot() as snapshot:
            run_id = await views.resolve_run(snapshot, request.match_info["id"], self._context.project_of(request))
            run = await views.show_run(snapshot, run_id, self._context.why_waiting)
        queued = {task["name"]: task for task in run["tasks"] if task["state"] == State.QUEUED}
        if queued and (told := await told_by_the_leader(self._context, request)) is not None:
            for task in told["tasks"]:
                if task["name"] in queued:
                    queued[task["name"]] |= {key: task[key] for key in ("waiting", "is_placeable")}
        return http.answer_cached(request, run)

    async def plan(self, request: web.Request) -> web.Response:
        """The plan that the run executes, credentials replaced by stars."""
        async with self._context.replica.reader.snapshot() as snapshot:
            run_id = await views.resolve_run(snapshot, request.match_info["id"], self._context.project_of(request))
            plan = await reads.plan_of(snapshot, run_id)
        return http.answer({"plan": plan_view(plan)})

    async def cancel(self, request: web.Request) -> web.Response:
        """Cancel what has not ended, or with ?task= one task; it is `cancelled` when its containers are gone."""
        context, task = self._context, request.query.get("task")
        async with context.replica.reader.snapshot() as snapshot:
            run_id = await views.resolve_run(snapshot, request.match_info["id"], context.project_of(request))
            if task is not None:
                await views.refuse_unless_task(snapshot, run_id, task)
        at, owner = wire.now_ms(), context.owner_of(request)
        reason = request.query.get("reason", "")[: limits.REASON_CHARS_MAX] or f"cancelled by {owner}"
        await context.replica.propose(
            CancelRun(at=at, run_id=run_id, owner=owner, reason=reason)
            if task is None
            else CancelTask(at=at, run_id=run_id, task=task, owner=owner, reason=reason)
        )
        return await self._shown(run_id, status=202)

    async def set_priority(self, request: web.Request) -> web.Response:
        """Give a run that has not ended another priority: {"priority": n}; it counts for what has no place yet."""
        context = self._context
        asked = await bodies.read(request, _Priority, expected=f'{{"priority": 0 to {PRIORITY_MAX}}}')
        async with context.replica.reader.snapshot() as snapshot:
            run_id = await views.resolve_run(snapshot, request.match_info["id"], context.project_of(request))
        owner = context.owner_of(request)
        await context.replica.propose(
            SetRunPriority(at=wire.now_ms(), run_id=run_id, priority=asked.priority, owner=owner)
        )
        return await self._shown(run_id, status=200)

    async def _shown(self, run_id: str, *, status: int) -> web.Response:
        async with self._context.replica.reader.snapshot() as snapshot:
            return http.answer(await views.show_run(snapshot, run_id, self._context.why_waiting), status=status)


def plan_view(plan: Plan) -> Any:
    """A plan in JSON, fit to be shown."""
    return codec.to_jsonable(Plan, redacted(plan))


def _idempotency_key(request: web.Request) -> str | None:
    key = request.headers.get("Idempotency-Key")
    if key is not None and (len(key) > limits.IDEMPOTENCY_KEY_CHARS_MAX or not _KEY.fullmatch(key)):
        raise PistageError(
            Code.USAGE, f"Idempotency-Key: expected 1 to {limits.IDEMPOTENCY_KEY_CHARS_MAX} visible ASCII characters"
        )
    return key
