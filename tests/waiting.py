"""Waiting for what nobody tells of: what is in files and fields is looked at again and again, for so long."""

import asyncio
from collections.abc import Callable


async def until(claim: Callable[[], bool], timeout_s: float = 20) -> None:
    """Return once `claim` holds; TimeoutError where it never does."""
    async with asyncio.timeout(timeout_s):
        while not claim():  # noqa: ASYNC110
            await asyncio.sleep(0.002)
