"""The outbox: output on its way to the master, bounded over the whole agent and kept until it is acknowledged.

Full means that `put` waits, so that nobody reads the engine or the pipe, so that the command itself waits: nothing
is ever dropped. A stream is known by attempt, step and number; each knows up to where the master has it.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import NamedTuple

from pistage.core import limits
from pistage.wire import LogAck, LogFrame, LogRefused, now_ms

_RETRY_REFUSED_S = 1.0


class StreamKey(NamedTuple):
    """Which stream."""

    attempt_id: str
    step: str
    stream: int


class OutputRefusedError(Exception):
    """No master could keep a stream for too long, or none ever will; the message is the master's reason."""


@dataclass(slots=True)
class _Chunk:
    offset: int
    at: int  # milliseconds UTC
    due: float  # monotonic seconds: until then it may wait for company
    data: bytearray

    @property
    def end(self) -> int:
        return self.offset + len(self.data)


@dataclass(slots=True)
class _Stream:
    is_known: bool  # whether the master's length is known in this session; if not, it is asked for first
    acked: int = 0
    sent: int = 0
    chunks: deque[_Chunk] = field(default_factory=deque)
    is_asked: bool = False
    is_urgent: bool = False  # the step ended: no more company will come
    refusal: str = ""
    refused_since: float = 0.0
    is_hopeless: bool = False
    retry_at: float = 0.0


class Outbox:
    """Bounded by `bytes_max`; `wait_s` is how long a refusal by the master may hold a step up."""

    def __init__(self, *, wait_s: float, bytes_max: int = limits.OUTBOX_BYTES_MAX) -> None:
        self._wait_s = wait_s
        self._bytes_max = bytes_max
        self._held = 0
        self._streams: dict[StreamKey, _Stream] = {}
        self._waiting: list[asyncio.Future[None]] = []  # attempts that wait for room, or to be acknowledged
        self._has_work = asyncio.Event()  # for the pump

    @property
    def held_bytes(self) -> int:
        """How much waits to be acknowledged."""
        return self._held

    # --- the side of the attempts ---------------------------------------------------------------------------

    def open(self, key: StreamKey, *, is_new: bool) -> None:
        """Begin a stream; with `is_new` False the master may already have some of it and is asked how much."""
        self._streams[key] = _Stream(is_known=is_new)

    def drop(self, keys: Iterable[StreamKey]) -> None:
        """Forget streams and what they hold."""
        for key in keys:
            if (stream := self._streams.pop(key, None)) and stream.chunks:
                self._held -= sum(len(chunk.data) for chunk in stream.chunks)
        self._ring()

    async def put(self, key: StreamKey, offset: int, data: bytes) -> None:
        """Take over `data`, which begins at byte `offset` of the stream; waits while the outbox is full."""
        stream = self._streams.get(key)
        self._check(key, stream)
        assert stream is not None, "checked"
        while self._held and self._held + len(data) > self._bytes_max:
            await self._wait_for_change(key, stream)
            self._check(key, stream)
        skipped = max(0, stream.acked - offset)
        if skipped >= len(data):
            return
        data, offset = data[skipped:], offset + skipped
        self._held += len(data)
        last = stream.chunks[-1] if stream.chunks else None
        if last and last.offset >= stream.sent and len(last.data) + len(data) <= limits.FRAME_BYTES_MAX:
            last.data += data
        else:
            due = time.monotonic() + limits.FRAME_DELAY_S
            stream.chunks.append(_Chunk(offset, now_ms(), due, bytearray(data)))
        self._has_work.set()

    async def kept(self, key: StreamKey, length: int) -> None:
        """Wait until the master holds `length` bytes durably; OutputRefusedError if it will not."""
        stream = self._streams.get(key)
        if stream is None:
            raise OutputRefusedError("the attempt was given up")
        stream.is_urgent = True
        if stream.chunks:
            self._has_work.set()
        while stream.acked < length:
            await self._wait_for_change(key, stream)

    def _check(self, key: StreamKey, stream: _Stream | None) -> None:
        if stream is None or self._streams.get(key) is not stream:
            raise OutputRefusedError("the attempt was given up")
        if stream.is_hopeless or (stream.refusal and self._left_s(stream) <= 0):
            raise OutputRefusedError(stream.refusal)

    def _left_s(self, stream: _Stream) -> float:
        return stream.refused_since + self._wait_s - time.monotonic()

    async def _wait_for_change(self, key: StreamKey, stream: _Stream) -> None:
        self._check(key, stream)
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(waiter)
        try:
            async with asyncio.timeout(max(0.0, self._left_s(stream)) if stream.refusal else None):
                await waiter
        except TimeoutError:
            raise OutputRefusedError(stream.refusal) from None
        finally:
            if waiter in self._waiting:
                self._waiting.remove(waiter)

    def _ring(self) -> None:
        """Something changed that somebody may wait for."""
        for waiter in self._waiting:
            if not waiter.done():
                waiter.set_result(None)
        self._waiting.clear()

    # --- the side of the session ----------------------------------------------------------------------------

    def begin_session(self) -> None:
        """Another session, perhaps with another master: ask anew what it has of every stream."""
        for stream in self._streams.values():
            stream.is_known = stream.is_asked = False
            stream.sent = stream.acked
        self._has_work.set()

    async def pump(self, send: Callable[[LogFrame], Awaitable[None]]) -> None:
        """Send what is due, for as long as the session lives; `send` waits while the socket is full."""
        while True:
            self._has_work.clear()
            frame, due = self._next_frame(time.monotonic())
            if frame:
                await send(frame)
                continue
            with suppress(TimeoutError):
                async with asyncio.timeout(due and max(0.0, due - time.monotonic())):
                    await self._has_work.wait()

    def _next_frame(self, now: float) -> tuple[LogFrame | None, float | None]:
        """A frame to send now, or else the time at which there will be one (None: not before something changes)."""
        earliest: float | None = None
        for key, stream in self._streams.items():
            if not stream.chunks or (stream.is_asked and not stream.is_known):
                continue
            if not stream.is_known and stream.retry_at > now:
                earliest = stream.retry_at if earliest is None else min(earliest, stream.retry_at)
                continue
            if not stream.is_known:
                stream.is_asked = True
                return _frame(key, 0, now_ms(), b""), None
            chunk = next((chunk for chunk in stream.chunks if chunk.end > stream.sent), None)
            if chunk is None:
                continue
            is_ripe = stream.is_urgent or len(chunk.data) * 2 > limits.FRAME_BYTES_MAX or chunk is not stream.chunks[-1]
            due = max(stream.retry_at, 0.0 if is_ripe else chunk.due)
            if due <= now:
                skipped = max(0, stream.sent - chunk.offset)
                stream.sent = chunk.end
                # A turn for each: the streams take turns by moving to the end.
                self._streams[key] = self._streams.pop(key)
                return _frame(key, chunk.offset + skipped, chunk.at, bytes(chunk.data[skipped:])), None
            earliest = due if earliest is None else min(earliest, due)
        return None, earliest

    def on_ack(self, ack: LogAck) -> None:
        """The master holds the stream up to `ack.length`."""
        stream = self._streams.get(StreamKey(ack.attempt_id, ack.step, ack.stream))
        if stream is None:
            return
        if not stream.is_known or ack.is_gap:
            stream.is_known = True
            stream.sent = ack.length
        if ack.length < stream.acked:
            stream.refusal = "the masters lost output that they had acknowledged"
            stream.is_hopeless = True
        else:
            if ack.length > stream.acked:
                stream.refusal = ""
            self._forget(stream, ack.length)
        self._has_work.set()
        self._ring()

    def _forget(self, stream: _Stream, length: int) -> None:
        stream.acked = length
        stream.sent = max(stream.sent, length)
        while stream.chunks and stream.chunks[0].offset < length:
            chunk = stream.chunks[0]
            gone = min(len(chunk.data), length - chunk.offset)
            self._held -= gone
            if gone == len(chunk.data):
                stream.chunks.popleft()
            else:
                del chunk.data[:gone]
                chunk.offset += gone

    def on_refused(self, refused: LogRefused) -> None:
        """The master cannot keep the stream: wait and try again, until `wait_s` has passed."""
        stream = self._streams.get(StreamKey(refused.attempt_id, refused.step, refused.stream))
        if stream is None:
            return
        if not stream.refusal:
            stream.refused_since = time.monotonic()
        stream.refusal = refused.reason
        stream.is_hopeless = refused.is_final
        stream.is_asked = stream.is_known = False
        stream.retry_at = time.monotonic() + _RETRY_REFUSED_S
        self._has_work.set()
        self._ring()


def _frame(key: StreamKey, offset: int, at: int, data: bytes) -> LogFrame:
    return LogFrame(attempt_id=key.attempt_id, step=key.step, stream=key.stream, offset=offset, at=at, data=data)
