"""Chores: what an agent does beside its attempts, and what becomes of one that fails."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from pistage.agent.runtimes.base import ExecutionError

log = logging.getLogger(__name__)

_RETRY_MIN_S = 0.1
_RETRY_MAX_S = 5.0


async def until_done(job: Callable[[], Awaitable[None]], what: str) -> None:
    """Again until it worked: what cannot be removed now, because it is in use or the engine is away, can be later."""
    wait_s = _RETRY_MIN_S
    while True:
        try:
            await kept_apart(job(), what)
            return
        except ExecutionError as failure:
            log.debug("%s waits: %s", what, failure.reason)
        await asyncio.sleep(wait_s)
        wait_s = min(wait_s * 2, _RETRY_MAX_S)


async def kept_apart(job: Awaitable[None], what: str) -> None:
    """A bug of ours that it meets is told in the log: it must not end the agent, and all that the agent runs.

    ExecutionError is none.
    """
    try:
        await job
    except ExecutionError:
        raise
    except Exception:
        log.exception("%s leaves something behind", what)
