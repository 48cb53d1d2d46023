"""Tasks and threads with an owner: they run for as long as a block does, and nobody leaves what they still use."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from typing import Any, TypeVar

T = TypeVar("T")


@asynccontextmanager
async def running(*services: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Run `services` while the block runs and cancel them at its end.

    The error of the block, or of the first service that failed (which cancels the block), is raised as it is,
    not in a group: who writes `async with Master(...)` should meet the error that happened.
    """
    block_error: BaseException | None = None
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(service) for service in services]
            try:
                yield
            except BaseException as error:  # raised again below
                block_error = error
            for task in tasks:
                task.cancel()
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None
    if block_error is not None:
        raise block_error


async def seen_through(work: asyncio.Future[T], *, unwanted: Callable[[T], object] | None = None) -> T:
    """The result of work whose end is waited for also by who is cancelled: no thread can be, nor a call on its way.

    What it uses may be closed, removed or used by others from then on. A result that nobody is there to take is given
    to `unwanted`.
    """
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        while not work.done():
            with suppress(asyncio.CancelledError):
                await asyncio.wait([work])
        if not work.cancelled() and work.exception() is None and unwanted is not None:
            unwanted(work.result())
        raise


async def in_a_thread(work: Callable[..., T], *arguments: Any) -> T:
    """As `asyncio.to_thread`, but what it uses is not left before it is done: see `seen_through`."""
    return await seen_through(asyncio.get_running_loop().run_in_executor(None, work, *arguments))
