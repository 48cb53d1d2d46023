"""Arrivals: assignments on their way into the journal, what is said of them meanwhile, and which were here before.

The disk may take long, and nobody waits for it but they: what is to become of one is kept until it is begun.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from pistage.agent.journal import Entry, Journal
from pistage.wire import Assign, Cancel, Evict

_SETTLED_MAX = 4096


@dataclass(slots=True)
class Arrival:
    """One assignment that is being recorded."""

    assign: Assign
    #: To be heeded once it is begun; of several the first.
    stop: Cancel | Evict | None = None
    #: The masters want nothing of it any more.
    is_abandoned: bool = False


class Arrivals:
    """By attempt, oldest first."""

    def __init__(self) -> None:
        self._arrivals: dict[str, Arrival] = {}
        self._settled: dict[str, None] = {}

    def __len__(self) -> int:
        return len(self._arrivals)

    def __iter__(self) -> Iterator[Arrival]:
        return iter(list(self._arrivals.values()))

    def knows(self, attempt_id: str) -> bool:
        """Whether an assignment of it is a repeat: it is arriving, or nothing of it is left here."""
        return attempt_id in self._arrivals or attempt_id in self._settled

    def add(self, assign: Assign) -> Arrival:
        """An assignment that will be recorded by `begin`."""
        arrival = self._arrivals[assign.attempt_id] = Arrival(assign)
        return arrival

    async def begin(self, arrival: Arrival, journal: Journal) -> Entry:
        """Record it; JournalError if that is not possible. On return it has arrived."""
        try:
            return await journal.begin(arrival.assign)
        finally:
            del self._arrivals[arrival.assign.attempt_id]

    def stop(self, message: Cancel | Evict) -> None:
        """Keep what is said of one that is arriving."""
        if (arrival := self._arrivals.get(message.attempt_id)) is not None and arrival.stop is None:
            arrival.stop = message

    def abandon(self, attempt_id: str) -> None:
        """One that is arriving, if it is, is not wanted any more."""
        if (arrival := self._arrivals.get(attempt_id)) is not None:
            arrival.is_abandoned = True

    def settle(self, attempt_id: str) -> None:
        """Nothing of it is left here: a repeat of its assignment, which may come late, is not to begin it again."""
        self._settled[attempt_id] = None
        if len(self._settled) > _SETTLED_MAX:
            del self._settled[next(iter(self._settled))]
