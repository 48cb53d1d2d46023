"""A receiver of notices on this machine, that answers what a test says."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from pistage.core.definition.messages import signature

Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(frozen=True, slots=True)
class Got:
    """A request as it came."""

    headers: dict[str, str]
    body: bytes

    def is_signed_with(self, secret: str) -> bool:
        at_s = int(self.headers["X-Pistage-Timestamp"])
        return self.headers["X-Pistage-Signature-256"] == signature(secret, at_s, self.body)


@dataclass(slots=True)
class FakeReceiver:
    """Answers with `statuses` in turn, then with 204; or as `answer` does."""

    url: str = ""
    statuses: list[int] = field(default_factory=list)
    headers: dict[str, str] = field(default_factory=dict)
    answer: Answer | None = None
    got: list[Got] = field(default_factory=list)
    news: asyncio.Condition = field(default_factory=asyncio.Condition)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        got = Got(dict(request.headers), await request.read())
        async with self.news:
            self.got.append(got)
            self.news.notify_all()
        if self.answer is not None:
            return await self.answer(request)
        return web.Response(status=self.statuses.pop(0) if self.statuses else 204, headers=self.headers)

    async def until(self, claim: Callable[[list[Got]], Any]) -> None:
        async with asyncio.timeout(20), self.news:
            await self.news.wait_for(lambda: claim(self.got))


@asynccontextmanager
async def a_receiver(*, tls: ssl.SSLContext | None = None, **given: Any) -> AsyncIterator[FakeReceiver]:
    receiver = FakeReceiver(**given)
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", receiver.handle)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls)
    await site.start()
    host, port = runner.addresses[0][:2]
    receiver.url = f"{'http' if tls is None else 'https'}://{host}:{port}"
    try:
        yield receiver
    finally:
        await runner.cleanup()
