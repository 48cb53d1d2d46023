"""One stream on its way to the master: what waits, what was sent, and what each answer means for it.

It does not wait and reads no clock: the outbox does. Every message is answered once, and answers that take something
come in order, so counting tells which message an answer is to. A gap travels alone: it is sent once everything before
it is answered, and what follows waits for its own answer, so that a gap is never taken for what stands around it.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import NamedTuple

from pistage.core import limits
from pistage.wire import GapReason, LogAck, LogFrame, LogGap

#: A tail is kept for long: pieces of it that are smaller than this share a time, so that there are not too many.
_TAIL_CHUNK_BYTES_MIN = 4 * limits.KIB
#: Frames of one stream, up to 4 MiB, that are not answered yet: more than that, a master only holds in memory.
_UNDER_WAY_MAX = 16


class StreamKey(NamedTuple):
    """Which stream."""

    attempt_id: str
    step: str
    stream: int


@dataclass(slots=True)
class Chunk:
    """Bytes from `offset` on, in pieces that are put together once, when they are sent."""

    offset: int
    at: int  # milliseconds UTC
    due: float  # monotonic seconds: until then it may wait for company
    pieces: list[bytes]
    length: int

    @property
    def end(self) -> int:
        return self.offset + self.length

    def add(self, data: bytes) -> None:
        """Bytes that follow."""
        self.pieces.append(data)
        self.length += len(data)

    def whole(self) -> bytes:
        """All of it; kept as it is for when it must be sent again."""
        if len(self.pieces) > 1:
            self.pieces = [b"".join(self.pieces)]
        return self.pieces[0]

    def cut(self, count: int) -> None:
        """Forget so many bytes, which are not all, at its beginning."""
        self.offset += count
        self.length -= count
        whole = 0
        while count >= len(self.pieces[whole]):
            count -= len(self.pieces[whole])
            whole += 1
        del self.pieces[:whole]
        if count:
            self.pieces[0] = self.pieces[0][count:]


@dataclass(slots=True)
class Gap:
    """Bytes that will not come; nobody knows how many where `length` is 0."""

    offset: int
    at: int
    length: int
    reason: GapReason

    @property
    def end(self) -> int:
        return self.offset + self.length

    def cut(self, count: int) -> None:
        """It begins so much later."""
        self.offset += count
        self.length -= count


class Outgoing:
    """Made for each stream of a step. Who calls anything but `due` asks for `due` afterwards: it may have changed.

    Once the master keeps no more of it (`is_full`), the rest is `tail`: at most what `trim_tail` leaves, until
    `end_tail` sends it.
    """

    def __init__(self, key: StreamKey, *, is_new: bool) -> None:
        self.key = key
        self.acked = 0  # the master holds it durably up to here
        self.missing = 0  # so much of that is in gaps
        self.end = 0  # so much was printed
        self.held = 0  # bytes that wait to be sent, or for an answer
        self.held_back = 0  # bytes of the tail
        self.tail: deque[Chunk | Gap] | None = None
        self.is_ended = False  # nothing more is printed: no company is waited for
        self.is_over = False  # the master takes nothing more at all
        self.refusal = ""
        self.refused_since = 0.0
        self.is_hopeless = False  # the refusal is for good
        self._is_new = is_new
        self._is_known = is_new  # whether this master's length is known; if not, it is asked for first
        self._is_asked = False
        self._waiting: deque[Chunk | Gap] = deque()
        self._under_way: deque[Chunk | Gap] = deque()
        self._sent = self._answered = 0  # messages of this session
        self._stale = 0  # answers up to this one are to what was sent before something was sent again
        self._retry_at = 0.0
        self._sent_at = 0.0  # monotonic seconds

    @property
    def is_full(self) -> bool:
        """Whether only the end of what comes is kept."""
        return self.tail is not None

    @property
    def takes_all(self) -> bool:
        """Whether what is printed need not wait for room: little of it, or nothing, will be held."""
        return self.is_full or self.is_over

    @property
    def is_settled(self) -> bool:
        """Whether the master has all there is, or never will."""
        if self.is_over:
            return True
        if self._waiting or self._under_way or self.tail is not None or self.acked < self.end:
            return False
        return self._is_known or (self._is_new and not self.end)  # a master that is new may lack what another had

    # --- what is printed ----------------------------------------------------------------------------------------

    def add(self, offset: int, data: bytes, *, at: int, now: float) -> bool:
        """Take over what was printed, but for what the master has already; whether `due` may be earlier now."""
        self.end = offset + len(data)
        if (known := self.acked - offset) > 0:
            data, offset = data[known:], offset + known
        if not data or self.is_over:
            return False
        queue = self._waiting if self.tail is None else self.tail
        last = queue[-1] if queue else None
        if isinstance(last, Chunk) and self._is_company(last, len(data), now):
            last.add(data)
            is_earlier = _is_large(last.length)
        else:
            is_earlier = True
            # The first frame in a while does not wait for company: whoever watches a slow command sees it at once.
            since = now if self.is_full else min(now, self._sent_at)
            queue.append(Chunk(offset, at, since + limits.FRAME_DELAY_S, [data], len(data)))
        if self.tail is None:
            self.held += len(data)
        else:
            self.held_back += len(data)
        return is_earlier

    def _is_company(self, last: Chunk, length: int, now: float) -> bool:
        if last.length + length > limits.FRAME_BYTES_MAX:
            return False
        return self.tail is None or now < last.due or last.length < _TAIL_CHUNK_BYTES_MIN

    def add_gap(self, offset: int, reason: GapReason, *, at: int) -> None:
        """Nobody knows how much is missing at `offset`, which is where the stream ends so far."""
        if self.acked <= offset and not self.is_over:
            (self._waiting if self.tail is None else self.tail).append(Gap(offset, at, 0, reason))

    # --- the tail -----------------------------------------------------------------------------------------------

    def trim_tail(self, bytes_max: int) -> None:
        """Keep no more than this of it."""
        while self.tail and self.held_back > bytes_max:
            first, excess = self.tail[0], self.held_back - bytes_max
            if first.length <= excess:
                self.tail.popleft()
                self.held_back -= first.length
            else:
                first.cut(excess)
                self.held_back -= excess

    def end_tail(self, at: int) -> None:
        """Nothing more is printed: send the tail, behind a gap that says how much is missing before it."""
        assert self.tail is not None, "the stream is not full"
        base = self._waiting[-1].end if self._waiting else self.acked
        if self.end - self.held_back == base:
            self.trim_tail(self.held_back - 1)  # the master takes a tail behind a gap only
        at = self.tail[0].at if self.tail else at
        self._waiting.append(Gap(base, at, self.end - self.held_back - base, GapReason.LIMIT))
        self._waiting.extend(self.tail)
        self.held += self.held_back
        self.held_back, self.tail = 0, None

    def _fill(self) -> None:
        self._rewind()
        at = self._waiting[0].at if self._waiting else 0
        self.tail, self._waiting = self._waiting, deque([Gap(self.acked, at, 0, GapReason.LIMIT)])
        self.held_back, self.held = self.held, 0

    # --- what is sent -------------------------------------------------------------------------------------------

    def due(self) -> float | None:
        """From when on `take` has something to send, in monotonic seconds; None: not before something changes."""
        if self.is_hopeless or self.is_over:
            return None
        if not self._is_known:
            has_question = bool(self._waiting) or (self.is_ended and not self.is_settled)
            return self._retry_at if has_question and not self._is_asked else None
        is_alone = bool(self._under_way) and isinstance(self._under_way[0], Gap)
        if not self._waiting or is_alone or len(self._under_way) >= _UNDER_WAY_MAX:
            return None
        first = self._waiting[0]
        if isinstance(first, Gap):
            return self._retry_at if self._answered >= self._sent else None
        if self.is_ended or len(self._waiting) > 1 or _is_large(first.length):
            return self._retry_at
        # As RFC 896 has it: while an answer is awaited, what is small waits for company. The busier the masters, the
        # later they answer, and the fewer frames they get.
        return None if self._under_way else max(self._retry_at, first.due)

    def take(self, *, at: int, now: float) -> LogFrame | LogGap:
        """What is to be sent next; `at` is now in milliseconds UTC, `now` in monotonic seconds."""
        self._sent += 1
        self._sent_at = now
        if not self._is_known:
            self._is_asked = True
            return self._frame(0, at, b"")
        item = self._waiting.popleft()
        self._under_way.append(item)
        match item:
            case Chunk():
                return self._frame(item.offset, item.at, item.whole())
            case Gap():
                return LogGap(
                    attempt_id=self.key.attempt_id, step=self.key.step, stream=self.key.stream,
                    offset=item.offset, length=item.length, at=item.at, reason=item.reason,
                )  # fmt: skip

    def _frame(self, offset: int, at: int, data: bytes) -> LogFrame:
        attempt_id, step, stream = self.key
        return LogFrame(attempt_id=attempt_id, step=step, stream=stream, offset=offset, at=at, data=data)

    def _rewind(self) -> None:
        """What was not taken is sent again."""
        self._waiting.extendleft(reversed(self._under_way))
        self._under_way.clear()
        self._stale = self._sent

    # --- what the master says -----------------------------------------------------------------------------------

    def begin_session(self) -> None:
        """Another session, perhaps with another master: it is asked anew what it has."""
        self._rewind()
        self._sent = self._answered = self._stale = 0
        self._is_known = self._is_asked = False
        self._retry_at = 0.0

    def on_ack(self, ack: LogAck, *, at: int) -> None:
        """The master holds the stream up to `ack.length`."""
        self._answered += 1
        if ack.length > self.acked:
            self.refusal = ""
        if self._answered <= self._stale:
            if ack.length > self.acked:
                self._forget(ack)
            return
        if not self._is_known:
            self._is_known, self._is_asked = True, False
        elif ack.is_gap:
            self._rewind()
        if ack.length < self.acked:
            self._lose(ack, at)
            return
        if self._under_way and isinstance(gap := self._under_way[0], Gap):
            self.refusal = ""
            if not gap.length:
                self._under_way.popleft()
            elif ack.is_full:
                self._give_up(ack)
                return
            self._forget(ack)
            return
        self._forget(ack)
        if ack.is_full:
            self.refusal = ""
            self._fill()

    def on_refused(self, reason: str, *, is_final: bool, now: float, retry_s: float) -> None:
        """The master cannot keep it now: try again later, unless it never will."""
        self._answered += 1
        self._rewind()
        if not self.refusal:
            self.refused_since = now
        self.refusal = reason
        self.is_hopeless = is_final
        self._is_known = self._is_asked = False
        self._retry_at = now + retry_s

    def _forget(self, ack: LogAck) -> None:
        """What the master has need not be held. It has a gap of length 0 when it has what came behind it."""
        self.acked, self.missing = ack.length, ack.missing
        for queue in (self._under_way, self._waiting):
            while queue and queue[0].offset < self.acked:
                first = queue[0]
                taken = min(first.length, self.acked - first.offset)
                if isinstance(first, Chunk):
                    self.held -= taken
                if taken < first.length:
                    first.cut(taken)
                    return
                queue.popleft()

    def _lose(self, ack: LogAck, at: int) -> None:
        """The masters that acknowledged more are gone with it: say so in its place, and go on."""
        self._rewind()
        first = self._waiting[0] if self._waiting else None
        if isinstance(first, Gap) and first.reason is GapReason.LOST and first.offset == self.acked:
            first.cut(ack.length - self.acked)
        else:
            self._waiting.appendleft(Gap(ack.length, at, self.acked - ack.length, GapReason.LOST))
        self.acked, self.missing = ack.length, ack.missing

    def _give_up(self, ack: LogAck) -> None:
        """Not even a gap is taken: all that comes is missing."""
        self.acked, self.missing = ack.length, ack.missing
        self._waiting.clear()
        self._under_way.clear()
        self.held = self.held_back = 0
        self.tail, self.is_over = None, True


def _is_large(length: int) -> bool:
    return length * 4 > limits.FRAME_BYTES_MAX * 3
