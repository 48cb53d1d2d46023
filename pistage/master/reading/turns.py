"""Whose turn it is to use the loop, of many who read: what it does for agents comes before them.

A reader that follows does little at a time, but a thousand of them do it for each line that is printed. So they queue,
each for one slice; a few are let in at each round of the loop, and together they get a share of its time that shrinks
to a twentieth while the process is busy with anything else.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from typing import Final

_FREE: Final = 16  # so few readers never wait: what they do is not worth queueing for
_SHARE_MOST, _SHARE_LEAST = 0.6, 0.05
_AT_ONCE: Final = 4  # a round of the loop
_CREDIT_MOST_S: Final = 0.002
_TURN_S: Final = 30e-6  # that a turn costs beside what is done in it
_WINDOW_S: Final = 0.01  # over which it is measured how busy the process is
_CALM_S: Final = 0.3  # in which it is taken to be half as busy as it was

Waiting = deque["asyncio.Future[None]"]


class Turns:
    """`take` a turn, do what is to be done without waiting, and say that it is `done`; or use it as a block."""

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, cpu: Callable[[], float] = time.process_time
    ) -> None:
        self._clock, self._cpu = clock, cpu
        self._queue: Waiting = deque()
        self._granted = 0
        self._is_scheduled = False
        self._began = 0.0
        self._credit_s, self._credit_at = _CREDIT_MOST_S, clock()
        self._busy = 0.0  # of one core, what is done for others
        self._window_at, self._window_cpu, self._window_s = clock(), cpu(), 0.0
        self.readers = 0  # that there are

    @property
    def share(self) -> float:
        """How much of the loop's time readers may have."""
        # Were it all that is left, they would slow down the others, who would seem less busy then.
        return max(_SHARE_LEAST, _SHARE_MOST - self._busy)

    async def take(self) -> None:
        """Wait for a turn."""
        if self.readers <= _FREE:
            await asyncio.sleep(0)
            self._granted += 1
        else:
            await self.granted(self.queue())
        self._began = self._clock()

    def queue(self) -> asyncio.Future[None]:
        """A place at the end of the queue, for `granted`."""
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queue.append(place)
        self._schedule()
        return place

    def admit(self, waiting: Waiting) -> None:
        """Put those who waited for something else at the end of the queue."""
        self._queue.extend(waiting)
        self._schedule()

    async def granted(self, place: asyncio.Future[None]) -> None:
        """Wait until it is the turn of that place."""
        try:
            await place
        except asyncio.CancelledError:
            if place.done() and not place.cancelled():
                self._granted -= 1
                self._schedule()
            raise
        self._began = self._clock()

    def done(self, before_s: float = 0.0) -> None:
        """The turn is over, for which so much was done before it."""
        self._granted -= 1
        spent = self._clock() - self._began + _TURN_S + before_s
        self._began = self._clock()
        self._credit_s -= spent
        self._window_s += spent
        self._schedule()

    async def __aenter__(self) -> None:
        await self.take()

    async def __aexit__(self, *_: object) -> None:
        self.done()

    # --- below ---------------------------------------------------------------------------------------------------

    def _schedule(self) -> None:
        if self._is_scheduled or self._granted > 0 or not self._queue:
            return
        self._is_scheduled = True
        self._earn()
        loop = asyncio.get_running_loop()
        if self._credit_s > 0:
            loop.call_soon(self._grant)
        else:
            loop.call_later(min(1.0, (0.001 - self._credit_s) / self.share), self._grant)

    def _grant(self) -> None:
        self._is_scheduled = False
        self._earn()
        while self._queue and self._granted < _AT_ONCE:
            place = self._queue.popleft()
            if not place.done():
                place.set_result(None)
                self._granted += 1

    def _earn(self) -> None:
        now = self._clock()
        self._credit_s = min(_CREDIT_MOST_S, self._credit_s + (now - self._credit_at) * self.share)
        self._credit_at = now
        if (window := now - self._window_at) >= _WINDOW_S:
            cpu = self._cpu()
            busy = max(0.0, cpu - self._window_cpu - self._window_s) / window
            # What agents send comes in bursts: at the first sign of one all make way, and only slowly come back.
            self._busy = max(busy, self._busy * 0.5 ** (window / _CALM_S))
            self._window_at, self._window_cpu, self._window_s = now, cpu, 0.0
