"""Being stopped: why an attempt must end before its steps do, and scopes that such a stop, or a deadline, ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from pistage.core.model import Result, State
from pistage.core.plan import FailureClass


@dataclass(frozen=True, slots=True, kw_only=True)
class Stop:
    """Why the attempt ends early, and how it and the steps under way are said to have ended."""

    state: State
    reason: str
    failure: FailureClass | None = None
    #: Somebody wants it to end, rather than something broke: it is proven gone before its end is reported.
    is_ordered: bool = False

    def result(self) -> Result:
        return Result(state=self.state, failure=self.failure, reason=self.reason)


class StoppedError(Exception):
    """A scope was left because of a stop, or (`stop` None) because its own deadline passed."""

    def __init__(self, stop: Stop | None) -> None:
        super().__init__(stop.reason if stop else "out of time")
        self.stop = stop


class Brake:
    """Holds the attempt's one stop; the first that is requested stays.

    `look` is called before anything new is begun: who holds the brake may find that it is time to pull it.
    """

    def __init__(self, look: Callable[[], None] = lambda: None) -> None:
        self.stop: Stop | None = None
        self._look = look
        self._scopes: set[asyncio.Timeout] = set()

    def request(self, stop: Stop) -> None:
        """Leave every scope, now and from now on."""
        if self.stop is not None:
            return
        self.stop = stop
        for scope in self._scopes:
            if not scope.expired():  # one whose deadline has passed is left in any case, and takes no other
                scope.reschedule(0)

    @asynccontextmanager
    async def scope(self, deadline: float | None = None) -> AsyncIterator[None]:
        """What runs inside is cancelled, and StoppedError raised, at a stop or at `deadline` of the loop's clock."""
        self._look()
        if self.stop is not None:
            raise StoppedError(self.stop)
        timeout = asyncio.timeout_at(deadline)
        try:
            async with timeout:
                self._scopes.add(timeout)
                try:
                    yield
                finally:
                    self._scopes.discard(timeout)
        except TimeoutError:
            if not timeout.expired():
                raise
            raise StoppedError(self.stop) from None
