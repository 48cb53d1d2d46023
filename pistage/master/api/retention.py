"""Routes of retention: for how long output is kept, and the runs whose output stays."""

from __future__ import annotations

from typing import Any

from aiohttp import web
from pydantic import Field

from pistage import wire
from pistage.core import limits
from pistage.core.commands_of_output import DeleteRetention, PinRun, PutRetention
from pistage.core.model import COUNT_MAX
from pistage.core.retention import AGE_DEFAULT_MS, AGE_MAX_MS, ALL_PIPELINES, RUNS_MAX, Kept, Retention
from pistage.errors import Code, PistageError
from pistage.master import retained
from pistage.master.api import bodies, http, views
from pistage.master.api.context import Context

_EXPECTED = '{"age_s": seconds or null, "bytes_max": bytes or null, "runs_max": number of runs or null}'


class _Retention(bodies.Body):
    """How much is kept; what is not said has its default, and null is no such bound."""

    age_s: float | None = Field(AGE_DEFAULT_MS / 1000, ge=0.001, le=AGE_MAX_MS / 1000)
    bytes_max: int | None = Field(None, ge=1, le=COUNT_MAX)
    runs_max: int | None = Field(None, ge=1, le=RUNS_MAX)

    @property
    def bounds(self) -> Retention:
        age_ms = None if self.age_s is None else round(self.age_s * 1000)
        return Retention(age_ms=age_ms, bytes_max=self.bytes_max, runs_max=self.runs_max)


class RetentionRoutes:
    """Handlers under /api/v1/retention, and of pins."""

    def __init__(self, context: Context) -> None:
        self._context = context

    async def list(self, request: web.Request) -> web.Response:
        """What holds for all pipelines ("*") and for those that were set, and how much output each has; ?project=."""
        project = self._context.project_of(request)
        async with self._context.replica.reader.snapshot() as snapshot:
            said = await retained.said(snapshot)
            set_ones = sorted(name for of, name in said.bounds if of == project and name != ALL_PIPELINES)
            pipelines = [(project, name) for name in (ALL_PIPELINES, *set_ones)]
            items = [_view(said, pipeline, await retained.kept(snapshot, pipeline)) for pipeline in pipelines]
            applied_index = await snapshot.applied_index()
        return http.answer({"items": items, "next": None, "applied_index": applied_index})

    async def put(self, request: web.Request) -> web.Response:
        """Keep output of the pipeline {name}, or of all others ("*"), so: {"age_s", "bytes_max", "runs_max"}.

        What is left out has its default, 90 days and no bound of size or number; null is no bound.
        """
        project, name = self._context.project_of(request), _name_in(request)
        asked = await bodies.read(request, _Retention, expected=_EXPECTED)
        command = PutRetention(at=wire.now_ms(), project=project, name=name, retention=asked.bounds)
        await self._context.replica.propose(command)
        self._context.drops.wake()
        async with self._context.replica.reader.snapshot() as snapshot:
            kept = await retained.kept(snapshot, (project, name))
            return http.answer(_view(await retained.said(snapshot), (project, name), kept))

    async def delete(self, request: web.Request) -> web.Response:
        """Keep output of the pipeline as that of any other, or, for "*", for 90 days."""
        project, name = self._context.project_of(request), request.match_info["name"]
        await self._context.replica.propose(DeleteRetention(at=wire.now_ms(), project=project, name=name))
        self._context.drops.wake()
        return web.Response(status=204)

    async def pin(self, request: web.Request) -> web.Response:
        """Keep the run's output whatever retention says."""
        return await self._set_pin(request, is_pinned=True)

    async def unpin(self, request: web.Request) -> web.Response:
        """Let the run's output go by retention again."""
        return await self._set_pin(request, is_pinned=False)

    async def _set_pin(self, request: web.Request, *, is_pinned: bool) -> web.Response:
        context = self._context
        async with context.replica.reader.snapshot() as snapshot:
            run_id = await views.resolve_run(snapshot, request.match_info["id"], context.project_of(request))
        owner = context.owner_of(request)
        await context.replica.propose(PinRun(at=wire.now_ms(), run_id=run_id, is_pinned=is_pinned, owner=owner))
        if not is_pinned:
            context.drops.wake()
        async with context.replica.reader.snapshot() as snapshot:
            return http.answer(await views.show_run(snapshot, run_id, context.why_waiting))


def _name_in(request: web.Request) -> str:
    name = request.match_info["name"]
    if len(name) > limits.NAME_CHARS_MAX or not name.isprintable():
        raise PistageError(
            Code.INVALID,
            f"{name[:100]!r} cannot be the name of a pipeline",
            hint=f'give a name of at most {limits.NAME_CHARS_MAX} characters, or "*" for all pipelines',
        )
    return name


def _view(said: retained.Said, pipeline: retained.Pipeline, kept: Kept) -> dict[str, Any]:
    bounds = said.of(pipeline)
    return {
        "name": pipeline[1],
        "age_s": None if bounds.age_ms is None else bounds.age_ms / 1000,
        "bytes_max": bounds.bytes_max,
        "runs_max": bounds.runs_max,
        "is_set": pipeline in said.bounds,
        "runs": kept.runs,
        "output_bytes": kept.output_bytes,
    }
