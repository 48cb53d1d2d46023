"""Routes of a run's output and events: as text, as JSON lines, or as a stream of server-sent events."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from pistage.core import limits
from pistage.core.model import State
from pistage.errors import Code, PistageError
from pistage.master import reads
from pistage.master.api import http, views
from pistage.master.api.context import Context
from pistage.master.records import Record
from pistage.master.state import Snapshot

_STREAMS = {"stdout": 1, "stderr": 2}
_NAMES = {number: name for name, number in _STREAMS.items()}
_OFFSET_MAX = 1 << 53  # bytes of output, or records; more is no place in any file
_SOURCE_RECORDS_MAX = 1 << 40  # of one run's index: beyond it begin the numbers of the next source
_RECORDS_AT_ONCE = 256
_EVENTS_AT_ONCE = 256


@dataclass(slots=True)
class _Selection:
    """Which output of a run is asked for; learns of attempts as they come.

    `sources` are the runs that hold it: those that tasks were kept from, then the run itself, whose output grows.
    Record `n` of source `i` has the number `i * _SOURCE_RECORDS_MAX + n`: numbers grow, and never change.
    """

    run_id: str
    sources: Sequence[str]
    task: str | None
    step: str | None
    attempt: str | None
    stream: int | None
    is_stale: bool
    has_kept: bool
    attempts: dict[str, tuple[str, int]] = field(default_factory=dict)  # id -> task, number

    def takes(self, record: Record, source: str) -> bool:
        if record.is_barrier or record.gap is not None:
            return False
        if source != self.run_id and record.attempt_id not in self.attempts:
            return False  # of a task that was not kept from there
        task, number = self.attempts.get(record.attempt_id, ("", 0))
        return (
            (self.task is None or task == self.task)
            and (self.step is None or record.step == self.step)
            and (self.attempt is None or self.attempt in {record.attempt_id, str(number)})
            and (self.stream is None or record.stream == self.stream)
        )


class OutputRoutes:
    """Handlers of /api/v1/runs/{id}/logs and /api/v1/runs/{id}/events."""

    def __init__(self, context: Context) -> None:
        self._context = context

    async def logs(self, request: web.Request) -> web.StreamResponse:
        """Output in the order it came; ?task= &step= &attempt= &stream= &offset= &limit= &follow= &kept=.

        `text/plain` is the bytes themselves, `offset` and `limit` count them; `application/x-ndjson` and
        `text/event-stream` are numbered pieces, `offset` is the first one wanted, Last-Event-ID the last one had.
        What tasks printed that were kept from an earlier run comes first; with ?kept=0 it is left out.
        With ?stale=1 whatever is here, where the others cannot be asked what they have.
        """
        selection = await self._selection(request)
        follow = http.is_set(request, "follow")
        offset = http.number_in(request, "offset", 0, most=_OFFSET_MAX)
        limit = http.number_in(request, "limit", 1 << 62, least=1)
        if not selection.is_stale:
            await self._context.replica.read()  # a leader that was deposed without knowing it has only a part
        await self._readable(selection, selection.run_id)
        try:
            if "text/event-stream" in request.headers.get("Accept", ""):
                start = offset if (last := _last_event(request)) is None else last + 1
                return await self._events_of_output(request, selection, start)
            return await self._output(request, selection, offset, limit, follow=follow)
        except PistageError as refusal:  # this master leads no longer, and the answer has begun
            # Only an end that is none says that there is more: who reads goes on from there with the next leader.
            request.protocol.force_close()
            raise ConnectionError(str(refusal)) from None

    async def _output(
        self, request: web.Request, selection: _Selection, offset: int, limit: int, *, follow: bool
    ) -> web.StreamResponse:
        if "json" in request.headers.get("Accept", ""):
            response = await _start(request, "application/x-ndjson")
            async for number, source, record in self._follow(selection, offset, follow=follow):
                if limit <= 0:
                    break
                limit -= 1
                piece = await self._piece(selection, number, source, record)
                await response.write(json.dumps(piece, ensure_ascii=False).encode() + b"\n")
        else:
            response = await _start(request, "text/plain")
            await self._write_bytes(response, selection, offset, limit, follow=follow)
        await response.write_eof()
        return response

    async def _write_bytes(
        self, response: web.StreamResponse, selection: _Selection, offset: int, limit: int, *, follow: bool
    ) -> None:
        async for _, source, record in self._follow(selection, 0, follow=follow):
            if offset >= record.length:
                offset -= record.length
                continue
            wanted = min(record.length - offset, limit)
            data = await self._context.logs.read(source, record.key, record.place + offset, wanted)
            await response.write(data)
            offset = 0
            limit -= wanted
            if limit <= 0:
                return

    async def _events_of_output(self, request: web.Request, selection: _Selection, start: int) -> web.StreamResponse:
        response = await _start(request, "text/event-stream")
        async for number, source, record in self._follow(selection, start, follow=True, response=response):
            await _send_event(response, number, "output", await self._piece(selection, number, source, record))
        await response.write(b"event: end\ndata: {}\n\n")
        await response.write_eof()
        return response

    async def _follow(
        self, selection: _Selection, start: int, *, follow: bool, response: web.StreamResponse | None = None
    ) -> AsyncIterator[tuple[int, str, Record]]:
        """Number, source and record of what is selected, from `start` on; with `follow` until the run is over."""
        first, start = divmod(start, _SOURCE_RECORDS_MAX)
        if len(selection.sources) > 1:
            await self._learn_attempts(selection)
        for place, source in enumerate(selection.sources[first:], first):
            if source == selection.run_id or selection.has_kept:
                is_growing = follow and source == selection.run_id
                async for number, record in self._follow_source(
                    selection, source, start, follow=is_growing, response=response
                ):
                    yield place * _SOURCE_RECORDS_MAX + number, source, record
            start = 0

    async def _follow_source(
        self, selection: _Selection, source: str, start: int, *, follow: bool, response: web.StreamResponse | None
    ) -> AsyncIterator[tuple[int, Record]]:
        logs = self._context.logs
        while True:
            changed = logs.signals.changed(source)
            is_over = not follow or await self._is_over(source)
            safe = await self._readable(selection, source)
            records = await logs.records(source, start, min(_RECORDS_AT_ONCE, max(0, safe - start)))
            if source == selection.run_id and any(
                record.attempt_id not in selection.attempts and not record.is_barrier for record in records
            ):
                await self._learn_attempts(selection)
            for number, record in enumerate(records, start):
                if selection.takes(record, source):
                    yield number, record
            start += len(records)
            if not records:
                if is_over:
                    return
                await _wait(changed, response)

    async def _readable(self, selection: _Selection, source: str) -> int:
        return _OFFSET_MAX if selection.is_stale else await self._context.copies.readable(source)

    async def _piece(self, selection: _Selection, number: int, source: str, record: Record) -> dict[str, Any]:
        data = await self._context.logs.read(source, record.key, record.place, record.length)
        task, attempt = selection.attempts.get(record.attempt_id, ("", 0))
        return {
            "number": number,
            "task": task,
            "attempt": attempt,
            "attempt_id": record.attempt_id,
            "step": record.step,
            "stream": _NAMES[record.stream],
            "offset": record.offset,
            "at": views.at(record.at),
            "text": data.decode("utf-8", "replace"),
            "data": base64.b64encode(data).decode(),
        }

    async def events(self, request: web.Request) -> web.StreamResponse:
        """What happened to the run: a JSON list, or with `Accept: text/event-stream` a stream until it is over."""
        context = self._context
        async with context.replica.reader.snapshot() as snapshot:
            run_id = await views.resolve_run(snapshot, request.match_info["id"], context.project_of(request))
        after = _last_event(request) or 0
        if "text/event-stream" not in request.headers.get("Accept", ""):
            async with context.replica.reader.snapshot() as snapshot:
                items = await _events_after(snapshot, run_id, after, limits.PAGE_MAX)
            return http.answer({"items": items, "next": items[-1]["id"] if len(items) == limits.PAGE_MAX else None})
        response = await _start(request, "text/event-stream")
        while True:
            changed = context.run_signals.changed(run_id)
            async with context.replica.reader.snapshot() as snapshot:
                is_over = await _is_terminal(snapshot, run_id)
                items = await _events_after(snapshot, run_id, after, _EVENTS_AT_ONCE)
            for item in items:
                await _send_event(response, item["id"], item["kind"], item)
                after = item["id"]
            if not items:
                if is_over:
                    break
                await _wait(changed, response)
        await response.write(b"event: end\ndata: {}\n\n")
        await response.write_eof()
        return response

    async def _selection(self, request: web.Request) -> _Selection:
        query = request.query
        stream = query.get("stream")
        if stream is not None and stream not in _STREAMS:
            raise PistageError(Code.USAGE, f"stream: expected stdout or stderr, got {stream[:50]!r}")
        async with self._context.replica.reader.snapshot() as snapshot:
            run_id = await views.resolve_run(snapshot, request.match_info["id"], self._context.project_of(request))
            task = query.get("task")
            if task is not None:
                await views.refuse_unless_task(snapshot, run_id, task)
            sources = await reads.output_sources(snapshot, run_id)
        return _Selection(
            run_id,
            sources,
            task,
            query.get("step"),
            query.get("attempt"),
            _STREAMS.get(stream or ""),
            is_stale=http.is_set(request, "stale"),
            has_kept="kept" not in query or http.is_set(request, "kept"),
        )

    async def _learn_attempts(self, selection: _Selection) -> None:
        async with self._context.replica.reader.snapshot() as snapshot:
            selection.attempts = await reads.attempts_with_output(snapshot, selection.run_id)

    async def _is_over(self, run_id: str) -> bool:
        async with self._context.replica.reader.snapshot() as snapshot:
            return await _is_terminal(snapshot, run_id)


async def _is_terminal(snapshot: Snapshot, run_id: str) -> bool:
    return State(await snapshot.value("SELECT state FROM run WHERE id = ?", (run_id,))).is_terminal


async def _events_after(snapshot: Snapshot, run_id: str, after: int, count: int) -> list[dict[str, Any]]:
    rows = await snapshot.rows(
        "SELECT id, at, kind, fields FROM event WHERE run_id = ? AND id > ? ORDER BY id LIMIT ?",
        (run_id, after, count),
    )
    return [
        {"id": row["id"], "kind": row["kind"], "at": views.at(row["at"])} | json.loads(row["fields"]) for row in rows
    ]


def _last_event(request: web.Request) -> int | None:
    text = request.headers.get("Last-Event-ID", request.query.get("after", ""))
    return min(int(text), _OFFSET_MAX) if text.isascii() and text.isdigit() and len(text) < 19 else None


async def _start(request: web.Request, content_type: str) -> web.StreamResponse:
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no", "X-Content-Type-Options": "nosniff"}
    response = web.StreamResponse(headers=headers)
    response.content_type = content_type
    response.charset = "utf-8"
    await response.prepare(request)
    return response


async def _send_event(response: web.StreamResponse, event_id: int, kind: str, fields: dict[str, Any]) -> None:
    text = f"id: {event_id}\nevent: {kind}\ndata: {json.dumps(fields, ensure_ascii=False)}\n\n"
    await response.write(text.encode())


async def _wait(changed: asyncio.Event, response: web.StreamResponse | None) -> None:
    try:
        async with asyncio.timeout(limits.SSE_HEARTBEAT_S):
            await changed.wait()
    except TimeoutError:
        if response is not None:
            await response.write(b": still here\n\n")
