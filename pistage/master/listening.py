"""The one port of a master."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web

from pistage.core import limits
from pistage.errors import Code, PistageError

_CLOSING_S = 2.0  # for requests under way, when the master stops

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@asynccontextmanager
async def listening(
    routes: Sequence[tuple[str, str, Handler]], middlewares: Sequence[Any], host: str, port: int
) -> AsyncIterator[int]:
    """Answer (method, path, handler) at `host`:`port` until left; tells the port, which 0 leaves to the system."""
    app = web.Application(client_max_size=limits.REQUEST_BODY_BYTES_MAX, middlewares=list(middlewares))
    for method, path, handler in routes:
        app.router.add_route(method, path, handler)
    # aiohttp closes a connection that has no whole request after the keep-alive time: our header timeout.
    runner = web.AppRunner(
        app, access_log=None, keepalive_timeout=limits.REQUEST_HEADER_TIMEOUT_S, shutdown_timeout=_CLOSING_S,
        handler_cancellation=True,
    )  # fmt: skip
    await runner.setup()
    try:
        try:
            site = web.TCPSite(runner, host, port, backlog=1024)
            await site.start()
        except OSError as error:
            raise PistageError(
                Code.USAGE, f"cannot listen on {host}:{port}: {error.strerror}", hint="set listen to a free port"
            ) from None
        yield int(runner.addresses[0][1])
    finally:
        await runner.cleanup()
