"""Reports: events on their way to the master, in order, kept until they are committed."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Awaitable, Callable
from itertools import islice

from pistage.core import limits
from pistage.core.commands import AttemptEvent
from pistage.wire import Report

#: Each report is a change that the masters agree on: what comes together goes together. So what comes while an earlier
#: report is on its way waits for the answer to that, within bounds.
_GATHER_S = 0.002
_GATHER_MAX_S = 0.1


class Reports:
    """A queue whose front is what was sent and not answered; at most `limits.REPORT_BATCH_MAX` events a report."""

    def __init__(self) -> None:
        self._events: deque[AttemptEvent] = deque()
        self._sent: deque[tuple[int, int]] = deque()  # number of a report, how many events it held
        self._under_way = 0  # the sum of those
        self._number = 0
        self._changed = asyncio.Event()
        self._answered = asyncio.Event()

    @property
    def has_any(self) -> bool:
        """Whether anything was not answered yet."""
        return bool(self._events)

    def add(self, event: AttemptEvent) -> None:
        """Report `event`, which is in the journal already."""
        self._events.append(event)
        self._changed.set()

    def begin_session(self) -> None:
        """What was not answered is sent again, to whoever leads now."""
        self._sent.clear()
        self._under_way = 0
        self._changed.set()

    def forget(self, attempt_id: str) -> None:
        """The masters want to hear nothing more of this attempt; what is under way is answered for nothing."""
        kept = [e for i, e in enumerate(self._events) if i < self._under_way or e.attempt_id != attempt_id]
        self._events = deque(kept)

    async def pump(self, send: Callable[[Report], Awaitable[None]]) -> None:
        """Send events as they come, for as long as the session lives."""
        while True:
            self._changed.clear()
            if len(self._events) == self._under_way:
                await self._changed.wait()
                await self._gather()
                continue
            batch = tuple(islice(self._events, self._under_way, self._under_way + limits.REPORT_BATCH_MAX))
            self._number += 1
            self._under_way += len(batch)
            self._sent.append((self._number, len(batch)))
            await send(Report(number=self._number, events=batch))

    async def _gather(self) -> None:
        await asyncio.sleep(_GATHER_S)
        if self._sent:
            self._answered.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_GATHER_MAX_S):
                    await self._answered.wait()

    def on_reported(self, number: int) -> list[AttemptEvent]:
        """The events that report `number`, and any before it, carried: they are committed."""
        self._answered.set()
        done: list[AttemptEvent] = []
        while self._sent and self._sent[0][0] <= number:
            _, count = self._sent.popleft()
            self._under_way -= count
            done += [self._events.popleft() for _ in range(count)]
        return done
