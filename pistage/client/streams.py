"""Streams that outlive a connection, and the first of them: a run's events, resumed without loss or repeat."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from pistage.client.answers import Event
from pistage.client.transport import BROKEN, Request, Transport
from pistage.errors import Code, PistageError

#: How long a stream waits for a master to come back before it gives up.
RESUME_S: Final = 300.0
_OF_USE_S: Final = 5.0
_LINE_BYTES_MAX: Final = 16 * 1024 * 1024


async def follow_events(transport: Transport, path: str, after: str = "") -> AsyncGenerator[Event, None]:
    """Every event of the run at `path` behind `after`, then those to come, until the run is over."""
    resumption = Resumption(transport)
    is_finished = False
    while True:
        headers = {"Accept": "text/event-stream"} | ({"Last-Event-ID": after} if after else {})
        try:
            async with resumption.open(Request(method="GET", path=f"{path}/events", headers=headers)) as pieces:
                async for event in _events(pieces):
                    after = event.id or after
                    resumption.note_progress()
                    yield event
                    is_finished = is_finished or event.kind == "run_finished"
            if is_finished or await is_over(transport, path):
                return
            await resumption.pause()
        except BROKEN as error:
            if is_finished:
                return
            await resumption.pause(error)


async def is_over(transport: Transport, path: str) -> bool:
    """Whether the run at `path` has ended."""
    run = await transport.fetch_json(Request(method="GET", path=path))
    return bool(run.get("finished_at"))


class Resumption:
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
            yield response.content.iter_any()

    def note_progress(self) -> None:
        """What came was new."""
        self._is_of_use = True

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


async def lines(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
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
    async for raw in lines(chunks):
        line = raw.rstrip(b"\r").decode("utf-8", "replace")
        if line:
            name, _, value = line.partition(":")
            value = value.removeprefix(" ")
            fields[name] = f"{fields[name]}\n{value}" if name == "data" and name in fields else value
            continue
        if fields.get("data"):
            yield Event(id=fields.get("id", ""), kind=fields.get("event", "message"), fields=json.loads(fields["data"]))
        fields = {}
