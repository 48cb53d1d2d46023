"""Running a verb's coroutine: one error out of a task group, and signals that end it as Ctrl-C does."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from pistage.errors import PistageError

Result = TypeVar("Result")


@asynccontextmanager
async def one_error() -> AsyncIterator[None]:
    """What a task group inside raises leaves as the one error that a person can act on."""
    try:
        yield
    except BaseExceptionGroup as group:
        raise _first(group) from None


def run(main: Coroutine[Any, Any, Result]) -> Result:
    """`asyncio.run`, where SIGTERM and SIGHUP end the verb as Ctrl-C does: tidied up, then KeyboardInterrupt."""

    async def guarded() -> Result:
        task = asyncio.current_task()
        assert task is not None
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) != signal.SIG_IGN:  # nohup asked for that
                loop.add_signal_handler(number, task.cancel)
        return await main

    try:
        return asyncio.run(guarded())
    except BaseExceptionGroup as group:  # a service that was left by an error had its task group around it
        raise _first(group) from None
    except asyncio.CancelledError:
        raise KeyboardInterrupt from None


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    leaves = [leaf for error in group.exceptions for leaf in _leaves(error)]
    return next((leaf for leaf in leaves if isinstance(leaf, PistageError)), leaves[0])


def _leaves(error: BaseException) -> list[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        return [leaf for inner in error.exceptions for leaf in _leaves(inner)]
    return [error]
