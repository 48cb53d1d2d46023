"""An event loop in simulated time: where nothing is left to do now, the clock jumps to what comes next."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

_EVENTS_IN_A_MOMENT_MAX = 20_000


class SimLoop(asyncio.BaseEventLoop):
    """Runs real coroutines. The first exception that nobody caught stops it, and is raised by `run_until`."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 0.0
        self.events = 0
        self._events_in_moment = 0
        self._selector = self  # BaseEventLoop asks it how long to wait
        self._clock_resolution = 1e-9
        self._error: BaseException | None = None
        self._is_reached: Callable[[], bool] = lambda: False
        self.set_exception_handler(lambda _, context: self.fail(_error_in(context)))

    def time(self) -> float:
        return self.now_s

    def fail(self, error: BaseException) -> None:
        """Stop; only the first counts."""
        while isinstance(error, BaseExceptionGroup):  # of a task group: the first says what fell
            error = error.exceptions[0]
        self._error = self._error or error
        self.stop()

    def run_until(self, at_s: float, is_reached: Callable[[], bool] = lambda: False) -> None:
        """Let happen what happens until then, or until that is so."""
        self._is_reached = is_reached
        timer = self.call_at(at_s, self.stop)
        self.run_forever()
        timer.cancel()
        if self._error is not None:
            raise self._error

    def finish(self) -> None:
        """Cancel what is left, and close."""
        self._is_reached = lambda: False
        for task in asyncio.all_tasks(self):
            task.cancel()
        for _ in range(20):
            self._events_in_moment = 0
            self.call_soon(self.stop)
            self.run_forever()
        self.close()

    # --- what the base class asks of a selector ---------------------------------------------------------------------

    def select(self, timeout: float | None) -> tuple[()]:
        self.events += 1
        if timeout is None:
            raise AssertionError("nothing will ever happen any more")
        self._events_in_moment += 1
        if self._events_in_moment > _EVENTS_IN_A_MOMENT_MAX:
            raise AssertionError("something turns round and round, and time stands still")
        if timeout > 0:
            self._events_in_moment = 0
            self.now_s = max(self.now_s, self._scheduled[0]._when)  # exactly: a sum could fall short of it
            if self._is_reached():
                self.stop()
        return ()

    def _process_events(self, event_list: Any) -> None:
        pass

    def _write_to_self(self) -> None:
        pass


def _error_in(context: dict[str, Any]) -> BaseException:
    return context.get("exception") or RuntimeError(str(context.get("message")))
