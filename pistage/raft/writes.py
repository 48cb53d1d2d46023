"""What was given to the disk and is not yet known to be durable."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass


@dataclass(slots=True)
class _Write:
    seq: int
    last_index: int  # how much of the log, as it is now, is durable with this write
    tick: int


class Writes:
    """Writes are durable in the order of their `seq`; `stable_index` is how far the log is."""

    __slots__ = ("_in_flight", "is_disk_full", "last_seq", "stable_index")

    def __init__(self, stable_index: int) -> None:
        self.stable_index = stable_index
        self.last_seq = 0
        self.is_disk_full = False
        self._in_flight: deque[_Write] = deque()

    @property
    def newest_in_flight(self) -> int | None:
        """What a promise made now has to wait for."""
        return self._in_flight[-1].seq if self._in_flight else None

    def issue(self, last_index: int, tick: int) -> int:
        """A new write, after which the log is durable through `last_index`."""
        self.last_seq += 1
        self._in_flight.append(_Write(self.last_seq, last_index, tick))
        return self.last_seq

    def truncate_from(self, index: int) -> None:
        """What is durable beyond this is no longer the log, even if other entries take its place (the ABA of etcd)."""
        self.stable_index = min(self.stable_index, index - 1)
        for write in self._in_flight:
            write.last_index = min(write.last_index, index - 1)

    def settle(self, seq: int, *, is_of_this_term: bool) -> None:
        """`seq` and all before it are durable. Of an older term it says nothing of the log: a newer write follows."""
        self.is_disk_full = False
        while self._in_flight and self._in_flight[0].seq <= seq:
            write = self._in_flight.popleft()
            if is_of_this_term:
                self.stable_index = max(self.stable_index, write.last_index)

    def is_stalled(self, tick: int, ticks_max: int) -> bool:
        """Whether the oldest write has been in flight for longer than this."""
        return bool(self._in_flight) and tick - self._in_flight[0].tick > ticks_max
