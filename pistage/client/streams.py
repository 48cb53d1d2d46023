"""Streams that outlive a connection: server-sent events, JSON lines and raw bytes, resumed without loss or repeat."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

from pistage.client.answers import Chunk, Event, Selection
from pistage.client.transport import BROKEN, Request, Transport
from pistage.errors import Code, PistageError

#: How long a stream waits for a master to come back before it gives up.
RESUME_S: Final = 300.0
_OF_USE_S: Final = 5.0
_LINE_BYTES_MAX: Final = 16 * 1024 * 1024


class Streams:
    """The streams of one run. What arrives is what the run did: nothing twice, nothing missing, in order."""

    def __init__(self, transport: Transport, path: str) -> None:
        self._transport = transport
        self._path = path

    async def follow_events(self, after: str = "") -> AsyncGenerator[Event, None]:
        """Every event behind `after`, then those to come, until the run is over."""
        resumption = _Resumption(self._transport)
        is_finished = False
        while True:
            headers = {"Accept": "text/event-stream"} | ({"Last-Event-ID": after} if after else {})
            request = Request(method="GET", path=f"{self._path}/events", headers=headers)
            try:
                async with resumption.open(request) as pieces:
                    async for event in _events(pieces):
                        after = event.id or after
                        yield event
                        is_finished = is_finished or event.kind == "run_finished"
                if is_finished or await self._is_over():
                    return
                await resumption.pause()
            except BROKEN as error:
                if is_finished:
                    return
                await resumption.pause(error)

    async def follow_chunks(
        self, selection: Selection, *, start: int = 0, is_followed: bool = True
    ) -> AsyncGenerator[Chunk, None]:
        """Output as chunks that name their stream, from chunk number `start` on."""
        resumption = _Resumption(self._transport)
        while True:
            parameters = {"offset": str(start)} | ({"follow": "1"} if is_followed else {})
            try:
                async with resumption.open(self._logs(selection, "application/x-ndjson", parameters)) as pieces:
                    async for line in _lines(pieces):
                        if line.strip() and (chunk := _chunk(line)).number >= start:
                            start = chunk.number + 1
                            yield chunk
                if not is_followed or await self._is_over():
                    return
                await resumption.pause()
            except BROKEN as error:
                await resumption.pause(error)

    async def follow_bytes(
        self, selection: Selection, *, offset: int = 0, is_followed: bool = True
    ) -> AsyncGenerator[bytes, None]:
        """Output as the bytes that the steps wrote, from byte `offset` of the selection on, in the order they came.

        The end is believed only once the run is over and asking again from where we stand brings nothing: a master
        that stops closes its streams as politely as one that is done.
        """
        resumption = _Resumption(self._transport)
        while True:
            begin = offset
            parameters = {"offset": str(offset)} | ({"follow": "1"} if is_followed else {})
            try:
                async with resumption.open(self._logs(selection, "text/plain", parameters)) as pieces:
                    async for data in pieces:
                        offset += len(data)
                        yield data
                if not is_followed or (offset == begin and await self._is_over()):
                    return
                if offset == begin:
                    await resumption.pause()
            except BROKEN as error:
                await resumption.pause(error)

    def _logs(self, selection: Selection, accept: str, parameters: dict[str, str]) -> Request:
        return Request(
            method="GET",
            path=f"{self._path}/logs",
            parameters=selection.parameters() | parameters,
            headers={"Accept": accept},
        )

    async def _is_over(self) -> bool:
        run = await self._transport.fetch_json(Request(method="GET", path=self._path))
        return bool(run.get("finished_at"))


class _Resumption:
    """Opens a stream again and again: patience starts anew at each break of a stream that had been of use."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._patience = transport.patience()
        self._opened_at = time.monotonic()
        self._is_of_use = False

    @asynccontextmanager
    async def open(self, request: Request) -> AsyncIterator[AsyncIterator[bytes]]:
        async with self._transport.open(request, patience=self._patience) as response:
            self._opened_at = time.monotonic()
            yield self._counted(response.content.iter_any())

    async def _counted(self, pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        async for data in pieces:
            self._is_of_use = True
            yield data

    async def pause(self, error: BaseException | None = None) -> None:
        """Wait before the stream is opened again; PistageError `unavailable` once that has been tried long enough."""
        if self._is_of_use or time.monotonic() - self._opened_at > _OF_USE_S:
            self._patience, self._is_of_use = self._transport.patience(RESUME_S), False
            if error is not None and not isinstance(error, TimeoutError):  # silence is no news
                self._transport.tell_of_loss()
        elif self._patience.is_over():
            reason = f": {str(error) or type(error).__name__}" if error else ""
            raise PistageError(
                Code.UNAVAILABLE,
                f"the stream broke and no master took it up again in time{reason}",
                hint="the run goes on; look again with `pistage watch`",
            ) from None
        await self._patience.pause()


async def _lines(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Lines of any length up to 16 MiB. An unfinished last line is dropped: the connection broke within it."""
    pending: list[bytes] = []
    length = 0
    async for chunk in chunks:
        *whole, rest = chunk.split(b"\n")
        for line in whole:
            yield b"".join([*pending, line])
            pending, length = [], 0
        pending.append(rest)
        length += len(rest)
        if length > _LINE_BYTES_MAX:
            raise PistageError(Code.TOO_LARGE, "the master sent a line of more than 16 MiB")


async def _events(chunks: AsyncIterator[bytes]) -> AsyncIterator[Event]:
    """Server-sent events (https://html.spec.whatwg.org/multipage/server-sent-events.html); comments are skipped."""
    fields: dict[str, str] = {}
    async for raw in _lines(chunks):
        line = raw.rstrip(b"\r").decode("utf-8", "replace")
        if line:
            name, _, value = line.partition(":")
            value = value.removeprefix(" ")
            fields[name] = f"{fields[name]}\n{value}" if name == "data" and name in fields else value
            continue
        if fields.get("data"):
            yield Event(id=fields.get("id", ""), kind=fields.get("event", "message"), fields=json.loads(fields["data"]))
        fields = {}


def _chunk(line: bytes) -> Chunk:
    value: dict[str, Any] = json.loads(line)
    return Chunk(
        number=int(value["number"]),
        task=str(value["task"]),
        attempt=int(value["attempt"]),
        step=str(value["step"]),
        stream=str(value["stream"]),
        at=str(value.get("at") or ""),
        data=base64.b64decode(value["data"]),
    )
