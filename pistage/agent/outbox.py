"""The outbox: output on its way to the master, bounded over the whole agent and kept until it is acknowledged.

Full means that `put` waits, so that nobody reads the engine or the pipe, so that the command itself waits: nothing is
dropped but what the master will not keep. Of a stream of which it keeps no more, the end is held here until its step
is over; that, too, is bounded over the whole agent. A stream is known by attempt, step and number.
"""

from __future__ import annotations

import asyncio
import heapq
import logging
import math
import time
from collections import OrderedDict, defaultdict, deque
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from itertools import count

from pistage.agent.outgoing import Outgoing, StreamKey
from pistage.core import limits
from pistage.wire import GapReason, LogAck, LogFrame, LogGap, LogRefused, now_ms

__all__ = ["Outbox", "OutputRefusedError", "StreamKey"]

log = logging.getLogger(__name__)

_RETRY_REFUSED_S = 1.0


class OutputRefusedError(Exception):
    """No master could keep a stream for too long, or none ever will; the message is the master's reason."""


@dataclass(slots=True, eq=False)
class _Entrant:
    """Who waits for room, and has it once `is_in`."""

    key: StreamKey
    length: int
    is_in: bool = False


class Outbox:
    """Bounded by `bytes_max`, and its tails by `tails_bytes_max`; `wait_s` is how long a refusal may hold a step up."""

    def __init__(
        self,
        *,
        wait_s: float,
        bytes_max: int = limits.OUTBOX_BYTES_MAX,
        tails_bytes_max: int = limits.LOG_TAILS_BYTES_MAX,
    ) -> None:
        self._wait_s = wait_s
        self._bytes_max = bytes_max
        self._tails_bytes_max = tails_bytes_max
        self._held = 0  # and the room of those who were let in
        self._streams: dict[StreamKey, Outgoing] = {}
        self._full: dict[StreamKey, Outgoing] = {}  # those that have a tail
        self._entrants: deque[_Entrant] = deque()  # in the order in which they came
        self._waiters: defaultdict[StreamKey, list[asyncio.Future[None]]] = defaultdict(list)
        self._ready: OrderedDict[StreamKey, Outgoing] = OrderedDict()  # something to send now; they take turns
        self._alarms: list[tuple[float, int, Outgoing]] = []  # something to send from then on
        self._alarm_of: dict[StreamKey, float] = {}
        self._numbers = count()
        self._has_work = asyncio.Event()  # for the pump

    @property
    def held_bytes(self) -> int:
        """How much waits to be acknowledged; tails are kept beside it."""
        return self._held

    # --- the side of the attempts ---------------------------------------------------------------------------

    def open(self, key: StreamKey, *, is_new: bool) -> None:
        """Begin a stream; with `is_new` False the master may already have some of it and is asked how much."""
        self._streams[key] = Outgoing(key, is_new=is_new)

    def drop(self, keys: Iterable[StreamKey]) -> None:
        """Forget streams and what they hold."""
        for key in keys:
            if stream := self._streams.pop(key, None):
                self._held -= stream.held
                self._full.pop(key, None)
                self._ready.pop(key, None)
                self._alarm_of.pop(key, None)
                self._ring(key)
        self._let_in()

    async def put(self, key: StreamKey, offset: int, data: bytes) -> None:
        """Take over `data`, which begins at byte `offset` of the stream; waits while the outbox is full."""
        stream = self._checked(key)
        reserved = 0
        if not stream.takes_all and (self._entrants or not self._has_room(len(data))):
            reserved = await self._enter(stream, len(data))
        held = stream.held + reserved
        if stream.add(offset, data, at=now_ms(), now=time.monotonic()) or stream.is_full or reserved:
            self._changed(stream, held)
        else:  # the common case: one more piece of a frame that waits for company
            self._held += stream.held - held

    def note_gap(self, key: StreamKey, offset: int, reason: GapReason) -> None:
        """At `offset`, which is where the stream ends so far, output is missing, and nobody knows how much."""
        stream = self._checked(key)
        stream.add_gap(offset, reason, at=now_ms())
        self._changed(stream, stream.held)

    def end(self, key: StreamKey) -> None:
        """Nothing more will be put into the stream."""
        if stream := self._streams.get(key):
            held, stream.is_ended = stream.held, True
            self._changed(stream, held)

    async def kept(self, key: StreamKey) -> None:
        """Wait until the master holds durably what it will hold of the stream; OutputRefusedError if it will not."""
        self.end(key)
        while not (stream := self._checked(key)).is_settled:
            await self._change_of(stream)

    def kept_of(self, key: StreamKey) -> tuple[int, int]:
        """Up to where the master holds the stream, as far as that is known, and how much is missing before that."""
        stream = self._streams.get(key)
        return (stream.acked, stream.missing) if stream else (0, 0)

    def _checked(self, key: StreamKey) -> Outgoing:
        stream = self._streams.get(key)
        if stream is None:
            raise OutputRefusedError("the attempt was given up")
        if stream.is_hopeless or (stream.refusal and self._left_s(stream) <= 0):
            raise OutputRefusedError(stream.refusal)
        return stream

    def _left_s(self, stream: Outgoing) -> float:
        return stream.refused_since + self._wait_s - time.monotonic()

    async def _enter(self, stream: Outgoing, length: int) -> int:
        """Wait for room behind all who came before; how much of it was taken."""
        entrant = _Entrant(stream.key, length)
        self._entrants.append(entrant)
        try:
            while not entrant.is_in and not stream.takes_all:
                await self._change_of(stream)
            self._checked(stream.key)
        except BaseException:
            self._held -= length if entrant.is_in else 0
            raise
        finally:
            if not entrant.is_in:
                self._entrants.remove(entrant)
            self._let_in()
        return length if entrant.is_in else 0

    async def _change_of(self, stream: Outgoing) -> None:
        self._checked(stream.key)
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiters = self._waiters[stream.key]
        waiters.append(waiter)
        try:
            async with asyncio.timeout(max(0.0, self._left_s(stream)) if stream.refusal else None):
                await waiter
        except TimeoutError:
            raise OutputRefusedError(stream.refusal) from None
        finally:
            if waiter in waiters:
                waiters.remove(waiter)

    def _ring(self, key: StreamKey) -> None:
        """Something changed that somebody of this stream may wait for."""
        for waiter in self._waiters.pop(key, ()):
            if not waiter.done():
                waiter.set_result(None)

    def _has_room(self, length: int) -> bool:
        return not self._held or self._held + length <= self._bytes_max

    def _let_in(self) -> None:
        while self._entrants and self._has_room(self._entrants[0].length):
            entrant = self._entrants.popleft()
            entrant.is_in = True
            self._held += entrant.length
            self._ring(entrant.key)

    def _changed(self, stream: Outgoing, held: int) -> None:
        """After anything that may change what a stream holds, which was `held`, and when it has something to send."""
        if stream.is_full:
            self._bound_tail(stream)
        else:
            self._full.pop(stream.key, None)
        self._held += stream.held - held
        self._schedule(stream, time.monotonic())
        if self._entrants:
            self._let_in()

    def _bound_tail(self, stream: Outgoing) -> None:
        is_new = stream.key not in self._full
        self._full[stream.key] = stream
        bytes_max = min(limits.LOG_TAIL_BYTES_MAX, self._tails_bytes_max // len(self._full))
        for one in list(self._full.values()) if is_new else [stream]:
            one.trim_tail(bytes_max)
        if stream.is_ended:
            stream.end_tail(now_ms())
            del self._full[stream.key]

    # --- the side of the session ----------------------------------------------------------------------------

    def begin_session(self) -> None:
        """Another session, perhaps with another master: ask anew what it has of every stream."""
        for stream in self._streams.values():
            stream.begin_session()
            self._schedule(stream, time.monotonic())

    async def pump(self, send: Callable[[LogFrame | LogGap], Awaitable[None]]) -> None:
        """Send what is due, for as long as the session lives; `send` waits while the socket is full."""
        while True:
            self._has_work.clear()
            if (message := self._next_message(time.monotonic())) is not None:
                await send(message)
                continue
            first = self._alarms[0][0] if self._alarms else None
            with suppress(TimeoutError):
                async with asyncio.timeout(None if first is None else max(0.0, first - time.monotonic())):
                    await self._has_work.wait()

    def _next_message(self, now: float) -> LogFrame | LogGap | None:
        while self._alarms and self._alarms[0][0] <= now:
            _, _, stream = heapq.heappop(self._alarms)
            if self._streams.get(stream.key) is stream:
                self._alarm_of.pop(stream.key, None)
                self._schedule(stream, now)
        while self._ready:
            _, stream = self._ready.popitem(last=False)
            due = stream.due()
            message = stream.take(at=now_ms(), now=now) if due is not None and due <= now else None
            self._schedule(stream, now)
            if message is not None:
                return message
        return None

    def _schedule(self, stream: Outgoing, now: float) -> None:
        """Give a stream its turn, or an alarm for it."""
        if stream.key in self._ready or (due := stream.due()) is None:
            return
        if due <= now:
            self._ready[stream.key] = stream
        elif due < self._alarm_of.get(stream.key, math.inf):
            self._alarm_of[stream.key] = due
            heapq.heappush(self._alarms, (due, next(self._numbers), stream))
        else:
            return
        self._has_work.set()

    def on_ack(self, ack: LogAck) -> None:
        """The master holds the stream up to `ack.length`, and says whether it wants more."""
        stream = self._streams.get(StreamKey(ack.attempt_id, ack.step, ack.stream))
        if stream is None:
            return
        held, acked, was_free = stream.held, stream.acked, stream.takes_all
        stream.on_ack(ack, at=now_ms())
        if stream.acked < acked:
            log.warning("attempt=%s step=%s the masters lost %d bytes of output", *stream.key[:2], acked - stream.acked)
        if stream.takes_all and not was_free:
            log.info("attempt=%s step=%s of more output only the end is kept", *stream.key[:2])
        self._changed(stream, held)
        self._ring(stream.key)

    def on_refused(self, refused: LogRefused) -> None:
        """The master cannot keep the stream: wait and try again, until `wait_s` has passed."""
        stream = self._streams.get(StreamKey(refused.attempt_id, refused.step, refused.stream))
        if stream is None:
            return
        stream.on_refused(refused.reason, is_final=refused.is_final, now=time.monotonic(), retry_s=_RETRY_REFUSED_S)
        self._changed(stream, stream.held)
        self._ring(stream.key)
