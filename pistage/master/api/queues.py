"""Routes of queues: list them with what runs and waits in each, say how one is served, forget what was said."""

from __future__ import annotations

import re
from typing import Any, Final

from aiohttp import web
from pydantic import Field

from pistage import wire
from pistage.core import limits
from pistage.core.changes import Placing, QueueSettings
from pistage.core.commands import DeleteQueue, PutQueue
from pistage.errors import Code, PistageError
from pistage.master import reads
from pistage.master.api import bodies, http
from pistage.master.api.context import Context

#: As the definitions have it (`priority`, `queue`); a test compares.
PRIORITY_MAX: Final = 1000
NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")


class _Queue(bodies.Body):
    """How a queue is served; what is not said has its default."""

    priority: int = Field(0, ge=0, le=PRIORITY_MAX)
    limit: int | None = Field(None, ge=1, le=limits.CONCURRENCY_MAX)
    placing: Placing = "spread"


class QueueRoutes:
    """Handlers under /api/v1/queues."""

    def __init__(self, context: Context) -> None:
        self._context = context

    async def list(self, request: web.Request) -> web.Response:
        """Every queue that was set or has runs: how it is served, and how many of its runs run and wait."""
        async with self._context.replica.reader.snapshot() as snapshot:
            items = [_view(*queue) for queue in await reads.queues(snapshot)]
            applied_index = await snapshot.applied_index()
        return http.answer({"items": items, "next": None, "applied_index": applied_index})

    async def put(self, request: web.Request) -> web.Response:
        """Serve the queue so from now on: {"priority", "limit", "placing"}; what is left out has its default."""
        name = _name_in(request)
        expected = (
            f'{{"priority": 0 to {PRIORITY_MAX}, "limit": number of runs or null, "placing": "spread" or "pack"}}'
        )
        asked = await bodies.read(request, _Queue, expected=expected)
        queue = QueueSettings(name=name, priority=asked.priority, limit=asked.limit, placing=asked.placing)
        await self._context.replica.propose(PutQueue(at=wire.now_ms(), queue=queue))
        return await self._answer(name)

    async def delete(self, request: web.Request) -> web.Response:
        """Serve the queue with the defaults again; runs in it stay."""
        await self._context.replica.propose(DeleteQueue(at=wire.now_ms(), name=request.match_info["name"]))
        return web.Response(status=204)

    async def _answer(self, name: str) -> web.Response:
        async with self._context.replica.reader.snapshot() as snapshot:
            found = [queue for queue in await reads.queues(snapshot) if queue[0].name == name]
        # Between the change and this look somebody else may have taken it back.
        return http.answer(_view(*found[0]) if found else _view(QueueSettings(name=name), False, 0, 0))


def _name_in(request: web.Request) -> str:
    name = request.match_info["name"]
    if not NAME.fullmatch(name):
        raise PistageError(
            Code.INVALID,
            f"{name[:100]!r} cannot be the name of a queue",
            hint="a name has letters, digits, '_', '.' and '-', at most 100 of them",
        )
    return name


def _view(queue: QueueSettings, is_set: bool, running: int, waiting: int) -> dict[str, Any]:
    return {
        "name": queue.name,
        "priority": queue.priority,
        "limit": queue.limit,
        "placing": queue.placing,
        "is_set": is_set,
        "running": running,
        "waiting": waiting,
    }
