"""Tasks with an owner: they run for as long as a block does, and whichever fails first ends the other."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any


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
