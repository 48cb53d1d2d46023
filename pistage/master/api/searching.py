"""The route that searches what many runs printed: the newest first, as far as the time for one answer goes."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Final

from aiohttp import web

from pistage.core import limits
from pistage.core.model import State
from pistage.errors import Code, PistageError
from pistage.master.api import http
from pistage.master.api.answering import Answer, Means
from pistage.master.api.asked import Asked, Form, pattern_in, wanted_in
from pistage.master.api.context import Context
from pistage.master.api.following import Following
from pistage.master.api.sending import Sender
from pistage.master.api.telling import LineTeller
from pistage.master.reading.lines import Line
from pistage.master.reading.locate import By
from pistage.master.reading.selection import Selection

_RUNS_AT_ONCE: Final = 64  # whose copies are compared at one time
#: Clocks of agents are not ours: output may seem older than its run, or younger.
_CLOCKS_MS: Final = 3_600_000
_CURSOR = re.compile(r"([0-9a-z]{26})(?:\.(\d{1,18})(?:\.(\d{1,18}))?)?", re.ASCII)


@dataclass(frozen=True, slots=True)
class _Cursor:
    """Where to go on: at a line of a run, of whose number so many were told: what a gap breaks off counts as none."""

    run_id: str
    line: int = 0
    told: int = 0

    def __str__(self) -> str:
        return f"{self.run_id}.{self.line}" + (f".{self.told}" if self.told else "")


@dataclass(frozen=True, slots=True)
class _Run:
    """One that may have printed what is searched for."""

    id: str
    name: str
    number: int

    @property
    def pairs(self) -> str:
        """For each of its lines."""
        named = {"run": self.id, "name": self.name, "number": self.number}
        return json.dumps(named, ensure_ascii=False)[1:-1] + ", "


class SearchRoutes:
    """The handler of /api/v1/logs."""

    def __init__(self, context: Context, means: Means) -> None:
        self._context, self._means = context, means

    async def search(self, request: web.Request) -> web.StreamResponse:
        """Lines of all runs, the newest first, that hold ?grep=, or match it with &regex= &ignore_case=.

        &name= &state= &since= &until= &task= &step= &stream= say of which; at most &limit= of them, and what can be
        looked at in ten seconds: the last object has `next`, with which &cursor= goes on, or null.
        """
        pattern = pattern_in(request)
        if pattern is None:
            raise PistageError(Code.USAGE, "grep: over many runs something must be searched for")
        state = request.query.get("state")
        if state is not None and state not in set(State):
            raise PistageError(Code.USAGE, f"state: expected one of {', '.join(State)}, got {state[:50]!r}")
        asked = Asked(
            form=Form.JSON,
            wanted=wanted_in(request),
            by=By.LINE,
            offset=0,
            limit=http.number_in(request, "limit", limits.FOUND_DEFAULT, least=1, most=limits.FOUND_MAX),
            pattern=pattern,
            is_stale=http.is_set(request, "stale"),
        )
        cursor = _cursor_in(request)
        if not asked.is_stale:
            await self._context.replica.read()
        with self._means.reader():
            async with self._means.searchers.place():  # or it is refused while it still can be
                pass
            sender = Sender(request, "application/x-ndjson", self._means.turns)
            await sender.begin()
            try:
                search = _Search(self._context, self._means, sender, asked)
                await search.tell(self._runs(request, asked, cursor.run_id), cursor)
                return await sender.end()
            except PistageError as refusal:  # only an end that is none says that there is more
                request.protocol.force_close()
                raise ConnectionError(str(refusal)) from None

    async def _runs(self, request: web.Request, asked: Asked, newest: str) -> AsyncGenerator[list[_Run], None]:
        """Those that may have printed it, from `newest` on, a page at a time."""
        clauses, parameters = ["project = ?"], [self._context.project_of(request)]
        for clause, value in (("state = ?", request.query.get("state")), ("name = ?", request.query.get("name"))):
            if value is not None:
                clauses.append(clause)
                parameters.append(value)
        sql = _RUNS.format(" AND ".join(clauses))
        until = min(asked.wanted.until, 1 << 53) + _CLOCKS_MS
        since = asked.wanted.since - _CLOCKS_MS
        before = newest + "~" if newest else "~"
        while True:
            async with self._context.replica.reader.snapshot() as snapshot:
                rows = await snapshot.rows(sql, (*parameters, before, until, since, _RUNS_AT_ONCE))
            if not rows:
                return
            yield [_Run(row["id"], row["name"], row["number"]) for row in rows]
            before = rows[-1]["id"]


_RUNS: Final = """
SELECT id, name, number FROM run
WHERE {} AND id < ? AND started_at IS NOT NULL AND output_dropped_at IS NULL
  AND created_at < ? AND (finished_at IS NULL OR finished_at >= ?)
ORDER BY id DESC LIMIT ?
"""


class _Search:
    """One answer: `tell` it, once."""

    def __init__(self, context: Context, means: Means, sender: Sender, asked: Asked) -> None:
        self._context, self._means, self._sender, self._asked = context, means, sender, asked
        self._left = asked.limit
        self._looked = 0
        self._deadline = time.monotonic() + limits.SEARCH_S

    async def tell(self, pages: AsyncGenerator[list[_Run], None], cursor: _Cursor) -> None:
        """What these runs hold, and where to go on."""
        after: _Cursor | None = None
        async with aclosing(pages):
            async for runs in pages:
                if not self._asked.is_stale:
                    await self._compare(runs)
                for run in runs:
                    start = cursor if run.id == cursor.run_id else _Cursor(run.id)
                    after = start if self._is_over() else await self._tell_of(run, start)
                    if after is not None:
                        break
                if after is not None:
                    break
        end = {"kind": "end", "next": after and str(after), "runs": self._looked}
        await self._sender.add(json.dumps(end) + "\n")

    def _is_over(self) -> bool:
        # At least one is looked at, or asking again would bring nothing new for ever.
        return not self._left or (self._looked > 0 and time.monotonic() > self._deadline)

    async def _compare(self, runs: list[_Run]) -> None:
        """Have this master know what it lacks of them, of all at once: it asks the others."""
        async with asyncio.TaskGroup() as group:
            for run in runs:
                group.create_task(self._known(run.id))

    async def _known(self, run_id: str) -> None:
        with contextlib.suppress(PistageError):  # it is refused again when it is read
            await self._context.copies.readable(run_id)

    async def _tell_of(self, run: _Run, at: _Cursor) -> _Cursor | None:
        """The run's lines from there on; where to go on, if that is in its middle."""
        asked = replace(self._asked, offset=at.line, limit=self._left + at.told)
        skipped = at.told
        selection = Selection(run.id, [run.id], asked.wanted)
        following = Following(
            context=self._context, files=self._means.files, sender=self._sender, is_stale=asked.is_stale,
            has_kept=False, has_gaps=False,
        )  # fmt: skip
        await following.learn_attempts(selection)
        answer = Answer(asked, selection, means=self._means, following=following, sender=self._sender)
        teller = LineTeller(asked, selection, self._means.files, self._sender, more=run.pairs)
        self._looked += 1
        try:
            await answer.look()
            async with aclosing(answer.lines()) as found:
                async for lines in found:
                    for one in lines:
                        assert isinstance(one, Line), "a search tells of no gaps"
                        if skipped and one.number == asked.offset:
                            skipped -= 1
                            continue
                        await teller.line(one)
                        self._left -= 1
                        at = replace(at, line=one.number, told=at.told + 1 if one.number == at.line else 1)
                        if not self._left:
                            break
                    await self._sender.flush()
                    if not self._left or time.monotonic() > self._deadline:
                        return at if at.line >= answer.next_line else _Cursor(run.id, answer.next_line)
        except PistageError as refusal:
            if refusal.code is not Code.STORAGE:
                raise
            # One that is damaged does not keep the others from being searched.
            await self._sender.add(f'{{"kind": "refused", {run.pairs}"text": {json.dumps(str(refusal))}}}\n')
        return None


def _cursor_in(request: web.Request) -> _Cursor:
    text = request.query.get("cursor", "")
    match = _CURSOR.fullmatch(text)
    if text and match is None:
        raise PistageError(Code.USAGE, f"cursor: expected what `next` was, got {text[:50]!r}")
    return _Cursor(match[1], int(match[2] or 0), int(match[3] or 0)) if match is not None else _Cursor("")
