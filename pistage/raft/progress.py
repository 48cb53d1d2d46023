"""What a leader knows of another member's log, and how it feeds it."""

from __future__ import annotations

from collections import deque
from enum import StrEnum


class Feed(StrEnum):
    """`probe`: one append at a time until the logs are known to meet; `stream`: many in flight; `snapshot`: waiting."""

    PROBE = "probe"
    STREAM = "stream"
    SNAPSHOT = "snapshot"


class Progress:
    """`match`: durable there, as it said in this term. `next`: what it is sent next; always above `match`."""

    __slots__ = (
        "_in_flight",
        "differs",
        "feed",
        "heard_tick",
        "in_flight_bytes",
        "is_paused",
        "match",
        "next",
        "offered_tick",
        "round",
        "same_at",
    )

    def __init__(self, next_index: int, tick: int) -> None:
        self.feed = Feed.PROBE
        self.match = 0
        self.next = next_index
        self.is_paused = False  # a probe is on its way
        self._in_flight: deque[tuple[int, int]] = deque()  # of each append on its way: its last index, its bytes
        self.in_flight_bytes = 0
        self.heard_tick = tick
        self.offered_tick = 0
        self.same_at = 0  # where its state was found to be ours, as it said
        self.differs = False  # or not to be
        self.round = 0  # the newest round of reads that it has answered

    def has_room(self, appends_max: int, bytes_max: int) -> bool:
        """Whether another append may be sent now; with so much on its way a slow follower only gets slower."""
        match self.feed:
            case Feed.PROBE:
                return not self.is_paused
            case Feed.STREAM:
                return len(self._in_flight) < appends_max and self.in_flight_bytes < bytes_max
            case Feed.SNAPSHOT:
                return False

    def sent(self, last_index: int, size: int) -> None:
        """An append with entries through `last_index`, of so many bytes, left."""
        if self.feed is Feed.STREAM:
            self.next = last_index + 1
            self._in_flight.append((last_index, size))
            self.in_flight_bytes += size
        else:
            self.is_paused = True

    def acknowledged(self, index: int, first_index: int) -> None:
        """It holds the log through `index`; `first_index` is where ours begins."""
        self.is_paused = False
        self.match = max(self.match, index)
        self.next = max(self.next, self.match + 1)
        while self._in_flight and self._in_flight[0][0] <= index:
            self.in_flight_bytes -= self._in_flight.popleft()[1]
        if self.feed is not Feed.STREAM and self.match + 1 >= first_index:
            self.feed = Feed.STREAM
            self.next = self.match + 1

    def probe_from(self, index: int) -> None:
        """The logs do not meet where we thought: try there, never below what is known to match."""
        self.feed = Feed.PROBE
        self.is_paused = False
        self._forget_in_flight()
        self.next = max(self.match + 1, index)

    def wait_for_snapshot(self, tick: int) -> None:
        """It was offered a snapshot; nothing else helps it."""
        self.feed = Feed.SNAPSHOT
        self._forget_in_flight()
        self.offered_tick = tick

    def _forget_in_flight(self) -> None:
        self._in_flight.clear()
        self.in_flight_bytes = 0
