"""Output of runs: as bytes, as pieces that name their step, as lines; whichever way, nothing twice, nothing missing."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import replace
from typing import Any, Protocol

from pistage.client import streams
from pistage.client.answers import Chunk, Gap, Line, Pattern, Searched, Selection, Unread
from pistage.client.places import BytePlace, LinePlace, PiecePlace, bytes_of
from pistage.client.transport import BROKEN, Request, Transport
from pistage.core import limits
from pistage.errors import Code, PistageError

_JSON_LINES = "application/x-ndjson"


class _Place(Protocol):
    """Where a reader of JSON lines stands."""

    @property
    def is_done(self) -> bool: ...
    def parameters(self) -> dict[str, str]: ...
    def begin(self) -> None: ...
    def fresh(self, value: Mapping[str, Any], /) -> dict[str, Any] | None: ...


class Output:
    """What the run at `path` printed. Followed, each stream goes on until the run is over.

    The end is believed only once the run is over and asking again from where we stand brings nothing: a master that
    stops closes its streams as politely as one that is done.
    """

    def __init__(self, transport: Transport, path: str) -> None:
        self._transport = transport
        self._path = path

    async def follow_bytes(
        self,
        selection: Selection,
        *,
        offset: int = 0,
        tail: int | None = None,
        limit: int | None = None,
        is_followed: bool = True,
    ) -> AsyncGenerator[bytes, None]:
        """The bytes that the steps wrote, in the order they came: from byte `offset` on, or of the last `tail` lines.

        At most `limit` lines.
        """
        place = await self._byte_place(selection, offset, tail, limit)
        resumption = streams.Resumption(self._transport)
        while not place.is_done:
            is_new = False
            place.begin()
            request = self._request("application/octet-stream", selection, place.parameters(), is_followed=is_followed)
            try:
                async with resumption.open(request) as pieces:
                    async for data in pieces:
                        if fresh := place.fresh(data):
                            is_new = True
                            resumption.note_progress()
                            yield fresh
                if not is_followed or (not is_new and await streams.is_over(self._transport, self._path)):
                    return
                if not is_new:
                    await resumption.pause()
            except BROKEN as error:
                await resumption.pause(error)

    async def follow_pieces(
        self, selection: Selection, *, start: int = 0, is_followed: bool = True
    ) -> AsyncGenerator[dict[str, Any], None]:
        """Pieces and gaps as the master describes them, from number `start` on."""
        place = PiecePlace(start, is_by_time=selection.is_by_time)
        async with aclosing(self._follow(selection, place, {}, is_followed=is_followed)) as pieces:
            async for piece in pieces:
                yield piece

    async def follow_lines(
        self,
        selection: Selection,
        *,
        pattern: Pattern | None = None,
        tail: int | None = None,
        limit: int | None = None,
        is_followed: bool = True,
    ) -> AsyncGenerator[dict[str, Any], None]:
        """Lines as the master describes them: all, or of the last `tail` ones; at most `limit`.

        Those that hold the `pattern`, if there is one: then `tail` is where the search begins, `limit` what it finds.
        """
        offset = -(tail or 0)
        if tail is not None and (is_followed or tail == 0 or selection.is_by_time):
            # Once and for all, so that what comes while we are cut off does not move the beginning.
            offset = await self._first_line(selection, tail)
        place = LinePlace(offset, limit, come_again=selection.is_by_time)
        more = {} if pattern is None else pattern.parameters()
        async with aclosing(self._follow(selection, place, more, is_followed=is_followed)) as lines:
            async for line in lines:
                yield line

    async def _byte_place(self, selection: Selection, offset: int, tail: int | None, limit: int | None) -> BytePlace:
        must_repeat = selection.is_by_time or selection.since is not None or selection.until is not None
        if tail == 0:
            return BytePlace("piece", await self._next_piece(selection), lines_max=limit)
        if tail is not None:
            first = await self._first_line(selection, tail)
            return BytePlace("line", first, lines_max=limit, must_repeat=must_repeat)
        by = "byte" if limit is None else "line"
        return BytePlace(by, offset, lines_max=limit, must_repeat=must_repeat)

    async def _first_line(self, selection: Selection, tail: int) -> int:
        """The number of the line where the last `tail` ones begin now."""
        selection = replace(selection, is_by_time=False)  # which is how they are numbered
        first = await self._one(selection, LinePlace(-max(tail, 1)))
        if first is None:
            return 0
        number = int(first["line"])
        if not first.get("is_open"):
            return number if tail else number + 1
        # Lines that are open are numbered anew as they end, each in its turn: none of them may be left behind.
        while number > 0 and (before := await self._one(selection, LinePlace(number - 1))) is not None:
            if not before.get("is_open"):
                break
            number -= 1
        return number

    async def _next_piece(self, selection: Selection) -> int:
        """The number of the piece that comes after all that is there now."""
        last = await self._one(selection, PiecePlace(-1))
        return 0 if last is None else int(last["number"]) + 1

    async def _one(self, selection: Selection, place: PiecePlace | LinePlace) -> dict[str, Any] | None:
        """The line or the piece at this place, or the first part of it; None where there is none."""
        wanted = "line" if isinstance(place, LinePlace) else "number"
        async with aclosing(self._follow(selection, place, {"limit": "1"}, is_followed=False)) as found:
            async for value in found:
                if wanted in value:
                    return value
        return None

    async def _follow(
        self, selection: Selection, place: _Place, more: Mapping[str, str], *, is_followed: bool
    ) -> AsyncGenerator[dict[str, Any], None]:
        resumption = streams.Resumption(self._transport)
        while not place.is_done:
            is_new = False
            place.begin()
            asked = {**place.parameters(), **more}
            try:
                async with resumption.open(
                    self._request(_JSON_LINES, selection, asked, is_followed=is_followed)
                ) as chunks:
                    async for line in streams.lines(chunks):
                        if line.strip() and (fresh := place.fresh(_object(line))) is not None:
                            is_new = True
                            resumption.note_progress()
                            yield fresh
                            if place.is_done:
                                return
                if not is_followed or (not is_new and await streams.is_over(self._transport, self._path)):
                    return
                if not is_new:
                    await resumption.pause()
            except BROKEN as error:
                await resumption.pause(error)

    def _request(
        self, accept: str, selection: Selection, parameters: Mapping[str, str], *, is_followed: bool
    ) -> Request:
        follow = {"follow": "1"} if is_followed else {}
        return Request(
            method="GET",
            is_for_leader=True,
            path=f"{self._path}/logs",
            parameters={**selection.parameters(), **parameters, **follow},
            headers={"Accept": accept},
        )


async def search(
    transport: Transport, path: str, parameters: Mapping[str, str], *, limit: int, cursor: str | None = None
) -> AsyncGenerator[dict[str, Any], None]:
    """Lines of many runs that match, at most `limit`, and then the object that ends them: it says where to go on.

    A master looks for some seconds at a time; it is asked again for as long as there is more to look at.
    """
    runs = 0
    while True:
        asked = {**parameters, "limit": str(min(limit, limits.FOUND_MAX))} | (
            {} if cursor is None else {"cursor": cursor}
        )
        async with aclosing(_searched(transport, _json_lines(path, asked))) as values:
            async for value in values:
                if value.get("kind") != "end":
                    yield value
                    limit -= value.get("kind") == "line" and not value.get("is_cut")
                    continue
                runs += int(value.get("runs") or 0)
                cursor = value.get("next") or None
                if cursor is None or limit <= 0:
                    yield dict(value) | {"runs": runs}
                    return


def _json_lines(path: str, parameters: Mapping[str, str]) -> Request:
    return Request(method="GET", path=path, parameters=parameters, headers={"Accept": _JSON_LINES})


async def _searched(transport: Transport, request: Request) -> AsyncGenerator[dict[str, Any], None]:
    """One answer, whole: up to its end."""
    resumption = streams.Resumption(transport)
    place = LinePlace(come_again=True)
    refused: set[object] = set()
    while True:
        place.begin()
        try:
            async with resumption.open(request) as chunks:
                async for line in streams.lines(chunks):
                    value = _object(line) if line.strip() else {}
                    match value.get("kind"):
                        case "end":
                            yield value
                            return
                        case "line" if (fresh := place.fresh(value)) is not None:
                            resumption.note_progress()
                            yield fresh
                        case "refused" if value["run"] not in refused:
                            refused.add(value["run"])
                            yield value
            await resumption.pause()  # an answer without its end was cut off
        except BROKEN as error:
            await resumption.pause(error)


def piece_of(value: Mapping[str, Any]) -> Chunk | Gap:
    """A piece or a gap, from the object that describes it."""
    common = _source(value) | {"number": int(value["number"])}
    if value.get("kind") != "gap":
        return Chunk(**common, data=bytes_of(value))
    return _gap(value, common)


def line_of(value: Mapping[str, Any]) -> Line | Gap:
    """A line, or a gap among lines, from the object that describes it."""
    common = _source(value)
    if value.get("kind") == "gap":
        return _gap(value, common | {"number": int(value.get("number") or 0)})
    return Line(
        **common,
        line=int(value["line"]),
        text=str(value["text"]),
        is_cut=bool(value.get("is_cut")),
        is_open=bool(value.get("is_open")),
        run=str(value.get("run") or ""),
        title=_title(value) if "name" in value else "",
    )


def found_of(value: Mapping[str, Any]) -> Line | Unread | Searched:
    """What a search over many runs tells, from the object that describes it."""
    if value.get("kind") == "end":
        return Searched(runs=int(value.get("runs") or 0), next=value.get("next") or None)
    if value.get("kind") == "refused":
        return Unread(title=_title(value), text=str(value["text"]))
    found = line_of(value)
    assert isinstance(found, Line), "a search passes over gaps"
    return found


def _title(value: Mapping[str, Any]) -> str:
    return f"{value['name']}#{value['number']}"


def _gap(value: Mapping[str, Any], common: Mapping[str, Any]) -> Gap:
    missing = value.get("missing")
    return Gap(
        **common,
        missing=None if missing is None else int(missing),
        reason=str(value.get("reason") or ""),
        text=str(value.get("text") or ""),
    )


def _source(value: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "task": str(value["task"]),
        "attempt": int(value["attempt"]),
        "step": str(value["step"]),
        "stream": str(value["stream"]),
        "at": str(value.get("at") or ""),
    }


def _object(line: bytes) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise PistageError(Code.INTERNAL, "the master sent output that is not JSON", hint="is it a Pistage master?")
    return value
