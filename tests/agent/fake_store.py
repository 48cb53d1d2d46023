"""The store of a master, as far as an agent can tell it from the real one: `test_fake_store` compares the two."""

from collections import defaultdict
from dataclasses import dataclass, field

from pistage.core import limits
from pistage.wire import GapReason, LogAck, LogFrame, LogGap

Key = tuple[str, str, int]
RECORD_BYTES = 64


@dataclass
class FakeStream:
    """What is kept of a stream: `kept` bytes, with `gaps` where some are missing."""

    end: int = 0
    kept: bytearray = field(default_factory=bytearray)
    gaps: list[tuple[GapReason, int, int]] = field(default_factory=list)  # reason, offset, length
    tail: int | None = None
    cuts: list[tuple[int, int, int, int | None]] = field(default_factory=list)  # before each record, for `lose`

    @property
    def missing(self) -> int:
        return self.end - len(self.kept)

    def pieces(self) -> list[tuple[int, bytes]]:
        """Offset and bytes of what stands between the gaps."""
        found, offset, place = [], 0, 0
        for _, at, length in [*self.gaps, (None, self.end, 0)]:
            if at > offset:
                found.append((offset, bytes(self.kept[place : place + at - offset])))
                place += at - offset
            offset = at + length
        return found

    def lose(self, records: int) -> None:
        """The newest records are gone with the masters that had them."""
        for _ in range(min(records, len(self.cuts))):
            self.end, kept, gaps, self.tail = self.cuts.pop()
            del self.kept[kept:]
            del self.gaps[gaps:]


class FakeStore:
    """Output of one run."""

    def __init__(self, *, run_bytes_max: int = 1 << 40, step_bytes_max: int = 1 << 40) -> None:
        self.run_bytes_max, self.step_bytes_max = run_bytes_max, step_bytes_max
        self.streams: defaultdict[Key, FakeStream] = defaultdict(FakeStream)
        self.records = self.tails = 0

    def append(self, frame: LogFrame | LogGap) -> LogAck:
        key = (frame.attempt_id, frame.step, frame.stream)
        stream = self.streams[key]
        is_gap = frame.offset > stream.end
        is_full = not is_gap and not self._take(stream, frame)
        return LogAck(
            attempt_id=frame.attempt_id, step=frame.step, stream=frame.stream,
            length=stream.end, missing=stream.missing, is_gap=is_gap, is_full=is_full,
        )  # fmt: skip

    def _take(self, stream: FakeStream, frame: LogFrame | LogGap) -> bool:
        known = stream.end - frame.offset
        before = (stream.end, len(stream.kept), len(stream.gaps), stream.tail)
        match frame:
            case LogFrame():
                if not (data := frame.data[known:]):
                    return True
                if not self._has_room(stream, frame, len(data)):
                    return False
                stream.kept += data
                stream.end += len(data)
                if stream.tail is not None:
                    stream.tail += len(data)
            case LogGap():
                length = max(0, frame.length - known)
                last = stream.gaps[-1] if stream.gaps else None
                is_known = last is not None and (last[0], last[1] + last[2]) == (frame.reason, stream.end)
                if not length and (known > 0 or is_known):
                    return True
                makes_room = frame.reason is GapReason.LIMIT and length > 0
                if makes_room and self.tails >= max(64, self.run_bytes_max // limits.LOG_TAIL_BYTES_MAX):
                    return False
                stream.gaps.append((frame.reason, stream.end, length))
                stream.end += length
                if makes_room:
                    stream.tail = 0
                    self.tails += 1
        stream.cuts.append(before)
        self.records += 1
        return True

    def _has_room(self, stream: FakeStream, frame: LogFrame, length: int) -> bool:
        if stream.tail is not None:
            return stream.tail + length <= limits.LOG_TAIL_BYTES_MAX
        attempt_step = (frame.attempt_id, frame.step)
        of_step = sum(len(other.kept) for key, other in self.streams.items() if key[:2] == attempt_step)
        of_run = sum(len(other.kept) for other in self.streams.values()) + self.records * RECORD_BYTES
        return of_run + length <= self.run_bytes_max and of_step + length <= self.step_bytes_max
