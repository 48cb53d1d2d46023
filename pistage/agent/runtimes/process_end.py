"""When a container's own process ends, by the word of the kernel: the engine's comes after it has closed the output."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from pistage.agent.runtimes.engine import Engine, EngineError, EngineGoneError


async def process_end(engine: Engine, container: str) -> bool:
    """Wait until the container's process has ended; False at once where the kernel cannot be asked for it.

    That is where the engine is on another machine, or sees other processes than we do.
    """
    if engine.socket_path is None:
        return False
    try:
        known = await engine.inspect(container) or {}
        pid = int(known["State"]["Pid"])
        if not pid:
            return True
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    except (OSError, KeyError, TypeError, ValueError, EngineError, EngineGoneError):
        return False
    try:
        if not _is_of(pid, container):
            return False
        ended = asyncio.Event()
        loop = asyncio.get_running_loop()
        loop.add_reader(descriptor, ended.set)
        try:
            await ended.wait()
        finally:
            loop.remove_reader(descriptor)
    finally:
        os.close(descriptor)
    return True


def _is_of(pid: int, container: str) -> bool:
    """Whether the process that has the number here is the container's: we may see others, or it may have ended."""
    try:
        return container in Path(f"/proc/{pid}/cgroup").read_text()
    except OSError:
        return False
