"""Answers that are sent a piece at a time: no further ahead of their reader than a slice, no longer than it lives."""

from __future__ import annotations

import asyncio
import socket
from typing import Final

from aiohttp import web
from aiohttp.abc import AbstractStreamWriter

from pistage.core import limits
from pistage.master.reading.turns import Turns

SLICE_BYTES: Final = 16 * limits.KIB  # of an answer that may be one of thousands
_MAKE_S: Final = 8e-9  # that a byte of JSON or text takes to be made
_EVENTS: Final = "text/event-stream"


class Sender:
    """An answer of this content type: `begin`, then what there is, each slice in its turn, then `end`.

    ConnectionError from any of them once the reader is gone.
    """

    def __init__(self, request: web.Request, content_type: str, turns: Turns | None = None) -> None:
        self._request, self._turns = request, turns
        self._is_events = content_type == _EVENTS
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no", "X-Content-Type-Options": "nosniff"}
        if content_type == "application/octet-stream":
            headers["Content-Disposition"] = "attachment"
        self._response = web.StreamResponse(headers=headers)
        self._response.content_type = content_type
        if content_type != "application/octet-stream":
            self._response.charset = "utf-8"
        self._held: list[bytes] = []
        self._held_bytes = 0

    async def begin(self) -> None:
        """Send the head of the answer."""
        if self._request.transport is not None:
            _mind(self._request.transport, is_one_of_many=self._is_events)
        await self._response.prepare(self._request)

    async def send(self, data: bytes) -> None:
        """Send it now, behind what was added, and wait until the reader has room for more."""
        await self.flush()
        if data:
            await self._write_in_turn(data)
        del data  # the reader may stand still for long
        await self.drain()

    async def write(self, data: bytes) -> None:
        """Send it; up to 64 KiB without waiting for anything: `drain` before the next."""
        writer = self._writer
        writer.buffer_size = 0  # by which it would wait now and then
        await writer.write(data)

    async def drain(self) -> None:
        """Wait until the reader has room for more."""
        await self._writer.drain()

    async def _write_in_turn(self, data: bytes, *, made_s: float = 0.0) -> None:
        if self._turns is None:
            return await self.write(data)
        await self._turns.take()
        try:
            await self.write(data)
        finally:
            self._turns.done(made_s)

    @property
    def _writer(self) -> AbstractStreamWriter:
        writer = self._response._payload_writer
        if writer is None:
            raise ConnectionResetError("the answer has not begun, or the reader is gone")
        return writer

    async def add(self, text: str) -> None:
        """Send it, together with more of its kind: what is not sent by itself is by `flush`."""
        await self.add_bytes(text.encode("utf-8", "replace"))

    async def add_bytes(self, data: bytes) -> None:
        """The same for bytes."""
        self._held.append(data)
        self._held_bytes += len(data)
        if self._held_bytes >= SLICE_BYTES:
            await self.flush()

    async def flush(self) -> None:
        """Send what was added."""
        if self._held:
            data = b"".join(self._held)
            self._held.clear()
            self._held_bytes = 0
            await self._write_in_turn(data, made_s=len(data) * _MAKE_S)
            del data
            await self.drain()

    async def event(self, event_id: str, kind: str, data: str) -> None:
        """Add a server-sent event; `data` is one line."""
        await self.add(f"{f'id: {event_id}{chr(10)}' if event_id else ''}event: {kind}\ndata: {data}\n\n")

    async def end(self) -> web.StreamResponse:
        """That was all."""
        await self.flush()
        await self._response.write_eof()
        return self._response

    async def wait(self, news: asyncio.Event) -> None:
        """Wait for news. Events are sent a sign of life after a while."""
        await self.flush()
        try:
            async with asyncio.timeout(limits.SSE_HEARTBEAT_S):
                await news.wait()
        except TimeoutError:
            if self._is_events:
                await self.send(b": still here\n\n")


def _mind(transport: asyncio.Transport, *, is_one_of_many: bool) -> None:
    """See that a reader who falls silent is found to be gone, and that little waits for one who is slow."""
    transport.set_write_buffer_limits(high=SLICE_BYTES // 4 if is_one_of_many else SLICE_BYTES)
    connection = transport.get_extra_info("socket")
    if connection is None or connection.family not in {socket.AF_INET, socket.AF_INET6}:
        return
    silent_s = limits.READER_SILENT_S
    for option, value in (
        (socket.TCP_KEEPIDLE, silent_s // 4),
        (socket.TCP_KEEPINTVL, silent_s // 4),
        (socket.TCP_USER_TIMEOUT, silent_s * 1000),
    ):
        connection.setsockopt(socket.IPPROTO_TCP, option, value)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if is_one_of_many:  # the system, too, would hold megabytes for each
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 * SLICE_BYTES)
