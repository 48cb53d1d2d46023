"""Routes of schedules: what is to be run by itself, when next, and what became of each time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from sqlite3 import Row
from typing import Any, Final

from aiohttp import web
from pydantic import Field

from pistage import wire
from pistage.core import codec, limits
from pistage.core.commands_of_schedules import DeleteSchedule, EnableSchedule, NewSchedule, PutSchedules
from pistage.core.cron import CronError, Schedule, Timer, next_after
from pistage.core.definition import parse_schedule
from pistage.core.definition.fields import problem_of_name
from pistage.core.triggers.settings import problem_of_kept
from pistage.errors import Code, PistageError
from pistage.master.api import bodies, http, views
from pistage.master.api.afters import AfterRoutes
from pistage.master.api.context import Context
from pistage.master.api.listing import page_by_name
from pistage.master.api.submissions import Submission, finding_view
from pistage.master.state import Snapshot

_NEXT_MAX: Final = 100
_EVER: Final = 1 << 62
_EXPECTED: Final = '{"action": name or "definition": text, "schedule": {"cron": "0 2 * * *", …}}'


class _Asked(bodies.Body):
    action: str | None = Field(None, max_length=limits.NAME_CHARS_MAX)
    definition: str | None = Field(None, max_length=limits.DOCUMENT_BYTES_MAX)
    start_node: str | None = Field(None, max_length=limits.NAME_CHARS_MAX)
    schedule: dict[str, Any]


class ScheduleRoutes:
    """Handlers under /api/v1/schedules."""

    def __init__(self, context: Context, afters: AfterRoutes) -> None:
        self._context, self._afters = context, afters

    async def list(self, request: web.Request) -> web.Response:
        """Schedules by name, each with when it fires next and what became of its last time; ?limit= &cursor=."""
        return await page_by_name(self._context, request, _SCHEDULES, self._view)

    async def show(self, request: web.Request) -> web.Response:
        """A schedule, with its next ten times, or ?next= of them."""
        count = http.number_in(request, "next", 10, least=1, most=_NEXT_MAX)
        project, name = self._context.project_of(request), request.match_info["name"]
        return http.answer(await self._shown(project, name, count))

    async def fires(self, request: web.Request) -> web.Response:
        """What became of its times, the latest first: ran, skipped, missed or failed; ?limit= &cursor=."""
        project, name = self._context.project_of(request), request.match_info["name"]
        limit = http.number_in(request, "limit", limits.PAGE_DEFAULT, least=1, most=limits.PAGE_MAX)
        before = http.number_in(request, "cursor", _EVER, least=0)
        async with self._context.replica.reader.snapshot() as snapshot:
            row = await _required(snapshot, project, name)
            rows = await snapshot.rows(_FIRES, (row["id"], before, limit + 1))
        items = [_fire(one) for one in rows[:limit]]
        cursor = str(rows[limit - 1]["nominal"]) if len(rows) > limit else None
        return http.answer({"items": items, "next": cursor})

    async def put(self, request: web.Request) -> web.Response:
        """Run an action or a definition by this schedule: {"action" or "definition", "schedule": {"cron", …}}."""
        context = self._context
        project, name = context.project_of(request), request.match_info["name"]
        _refuse_bad_name(name)
        asked = await bodies.read(request, _Asked, expected=_EXPECTED)
        if (asked.action is None) == (asked.definition is None):
            raise PistageError(
                Code.INVALID, "expected one of action and definition", hint="name an action or send a text"
            )
        schedule = parse_schedule(asked.schedule)
        submission = Submission(
            asked.definition or "", asked.action, dict(schedule.parameters), asked.start_node
        )  # fmt: skip
        planned, _ = await context.planner.plan(submission, project)  # what cannot be run is refused now, not at night
        if planned.plan.concurrency is not None and "overlap" in asked.schedule:
            raise PistageError(
                Code.INVALID,
                "schedule.overlap: the definition has a concurrency group, and that decides what becomes of overlaps",
                hint="take out overlap here, or concurrency there",
            )
        command = PutSchedules(
            at=wire.now_ms(), project=project, owner=context.owner_of(request), since=wire.now_ms(),
            definition=f"{name}{_BY_HAND}",
            schedules=(NewSchedule(id=wire.new_id(), name=name, schedule=schedule),),
            source=asked.definition or "", action=asked.action, start_node=asked.start_node,
        )  # fmt: skip
        await context.replica.propose(command)
        warnings = [finding_view(finding) for finding in planned.findings]
        return http.answer(await self._shown(project, name, 10) | {"warnings": warnings})

    async def delete(self, request: web.Request) -> web.Response:
        """Forget a schedule; its runs stay."""
        project, name = self._context.project_of(request), request.match_info["name"]
        await self._context.replica.propose(DeleteSchedule(at=wire.now_ms(), project=project, name=name))
        return web.Response(status=204)

    async def pause(self, request: web.Request) -> web.Response:
        """Let it fire no more until it is resumed."""
        return await self._enable(request, is_enabled=False)

    async def resume(self, request: web.Request) -> web.Response:
        """Let it fire again, from now on."""
        return await self._enable(request, is_enabled=True)

    async def _enable(self, request: web.Request, *, is_enabled: bool) -> web.Response:
        project, name = self._context.project_of(request), request.match_info["name"]
        command = EnableSchedule(
            at=wire.now_ms(), since=wire.now_ms(), project=project, name=name, is_enabled=is_enabled
        )
        await self._context.replica.propose(command)
        return http.answer(await self._shown(project, name, 10))

    async def _shown(self, project: str, name: str, count: int) -> dict[str, Any]:
        async with self._context.replica.reader.snapshot() as snapshot:
            row = await _required(snapshot, project, name)
            return await self._view(snapshot, row, count=count)

    async def put_those_of(self, submission: Submission, request: web.Request) -> dict[str, Any] | None:
        """Set what a document asks for, to be run by itself and not now: its schedules, and what it comes after.

        How they look, {"schedules", "after"}; None where it asks for neither.
        """
        context, project = self._context, self._context.project_of(request)
        found = await context.planner.lint(submission, project)
        if found.name is None or not (found.schedules or found.afters):
            return None
        if (problem := problem_of_kept(submission.parameters)) is not None:
            raise PistageError(Code.INVALID, f"among the parameters, {problem}", hint="put it in quotes")
        text = submission.text.decode() if isinstance(submission.text, bytes) else submission.text
        for schedule in found.schedules.values():  # each has parameters of its own
            given = submission.parameters | dict(schedule.parameters)
            await context.planner.plan(replace(submission, parameters=given), project)
        if found.afters:
            await context.planner.plan(submission, project)
        after = await self._afters.put(request, found.name, found.afters, text, submission.parameters)
        schedules = found.schedules
        if not schedules and not await self._has_schedules(project, found.name):
            return {"schedules": [], "after": after}
        new = tuple(
            NewSchedule(
                id=wire.new_id(), name=own,
                schedule=replace(schedule, parameters=submission.parameters | dict(schedule.parameters)),
            )
            for own, schedule in schedules.items()
        )  # fmt: skip
        command = PutSchedules(
            at=wire.now_ms(), since=wire.now_ms(), project=project, owner=context.owner_of(request),
            definition=found.name, schedules=new, source=text, start_node=submission.start_node,
        )  # fmt: skip
        await context.replica.propose(command)
        return {"schedules": [await self._shown(project, own, 10) for own in schedules], "after": after}

    async def _has_schedules(self, project: str, definition: str) -> bool:
        async with self._context.replica.reader.snapshot() as snapshot:
            sql = f"{_SCHEDULES} WHERE project = ? AND definition = ? LIMIT 1"
            return await snapshot.row(sql, (project, definition)) is not None

    async def _view(self, snapshot: Snapshot, row: Row, *, count: int = 1) -> dict[str, Any]:
        schedule: Schedule = codec.from_json(Schedule, row["spec"])
        last = await snapshot.row(_FIRES, (row["id"], _EVER, 1))
        return {
            "id": row["id"],
            "name": row["name"],
            "project": row["project"],
            "definition": None if row["definition"].endswith(_BY_HAND) else row["definition"],
            "action": row["action"],
            "start_node": row["start_node"],
            "owner": row["owner"],
            "cron": schedule.cron,
            "timezone": schedule.timezone,
            "overlap": schedule.overlap,
            "catch_up": {
                "mode": schedule.catch_up, "limit": schedule.limit, "window_s": schedule.window_ms / 1000,
            },
            "jitter_s": schedule.jitter_ms / 1000,
            "is_once": schedule.is_once,
            "with": dict(schedule.parameters),
            "is_enabled": bool(row["is_enabled"]),
            "paused_reason": row["paused_reason"],
            "next": self._next(schedule, row, count) if row["is_enabled"] else [],
            "last": None if last is None else _fire(last),
            "created_at": views.at(row["created_at"]),
            "changed_at": views.at(row["at"]),
        }  # fmt: skip

    def _next(self, schedule: Schedule, row: Row, count: int) -> Sequence[str | None]:
        """Its next times, without the jitter: what they are called by."""
        try:
            timer = Timer.of(schedule, 0.0)
        except CronError:  # this machine does not know the zone
            return []
        times: list[str | None] = []
        at: int | None = max(row["decided_until"], wire.now_ms() - 1)
        while len(times) < count and at is not None:
            at = next_after(timer.cron, timer.zone, at)
            if at is not None:
                times.append(views.at(at))
        return times


#: Of a schedule that no document asked for: its own name stands where theirs has that of the definition, with this
#: behind it, which ends in a blank as no name of a definition does.
_BY_HAND: Final = " (by hand) "
_SCHEDULES: Final = """
SELECT id, project, name, definition, owner, is_enabled, paused_reason, decided_until, created_at, at, spec, action,
  start_node FROM schedule
"""
_FIRES: Final = """
SELECT fire.nominal, fire.until, fire.count, fire.outcome, fire.run_id, fire.at, fire.reason, run.name, run.number,
  run.state
FROM fire LEFT JOIN run ON run.id = fire.run_id
WHERE fire.schedule_id = ? AND fire.nominal < ? ORDER BY fire.nominal DESC LIMIT ?
"""


def asks_for_triggers(submission: Submission) -> bool:
    """Whether to look closer: most documents have no such word in them."""
    text = submission.text if isinstance(submission.text, bytes) else submission.text.encode()
    return submission.action is None and any(word in text for word in (b"crontab", b"schedule", b"after"))


def _refuse_bad_name(name: str) -> None:
    if (problem := problem_of_name(name)) is not None:
        raise PistageError(Code.INVALID, f"the name of the schedule {problem}", hint="give it another name")


async def _required(snapshot: Snapshot, project: str, name: str) -> Row:
    row = await snapshot.row(f"{_SCHEDULES} WHERE project = ? AND name = ?", (project, name))
    if row is None:
        raise PistageError(Code.NOT_FOUND, f"no schedule {name[:100]!r}", hint="pistage cron ls lists them")
    return row


def _fire(row: Row) -> dict[str, Any]:
    run = None
    if row["run_id"] is not None:
        run = {"id": row["run_id"], "name": row["name"], "number": row["number"], "state": row["state"]}
    return {
        "nominal": views.at(row["nominal"]),
        "until": views.at(row["until"]),
        "count": row["count"],
        "outcome": row["outcome"],
        "reason": row["reason"],
        "run": run,
        "at": views.at(row["at"]),
    }
