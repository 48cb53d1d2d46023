"""A replicated dict of PySyncObj's behind aiohttp: `pysyncobj_server.py HTTP_PORT JOURNAL SELF PARTNER...`.

PUT /{key} with the value as the body; POST /batch with a JSON object of many. Runs in a virtual environment of its own.
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any

from aiohttp import web
from pysyncobj import FAIL_REASON, SyncObj, SyncObjConf
from pysyncobj.batteries import ReplDict


class Server:
    def __init__(self, own: str, partners: list[str], journal: str) -> None:
        self.values = ReplDict()
        configuration = SyncObjConf(journalFile=journal, fullDumpFile=f"{journal}.dump")
        self.group = SyncObj(own, partners, conf=configuration, consumers=[self.values])

    async def put(self, request: web.Request) -> web.Response:
        value = await request.text()
        return await self._answered(lambda told: self.values.set(request.match_info["key"], value, callback=told))

    async def put_many(self, request: web.Request) -> web.Response:
        values = await request.json()
        return await self._answered(lambda told: self.values.update(values, callback=told))

    async def _answered(self, change: Any) -> web.Response:
        loop = asyncio.get_running_loop()
        outcome: asyncio.Future[int] = loop.create_future()

        def tell(reason: int) -> None:
            if not outcome.done():
                outcome.set_result(reason)

        change(lambda result, reason: loop.call_soon_threadsafe(tell, reason))
        reason = await outcome
        return web.Response(status=200 if reason == FAIL_REASON.SUCCESS else 503)

    async def status(self, request: web.Request) -> web.Response:
        leader = self.group._getLeader()
        own = self.group.selfNode
        return web.json_response({"is_leading": leader == own, "is_ready": self.group.isReady()})


def main() -> None:
    port, journal, own, *partners = sys.argv[1:]
    server = Server(own, partners, journal)
    app = web.Application()
    app.router.add_put("/kv/{key}", server.put)
    app.router.add_post("/batch", server.put_many)
    app.router.add_get("/status", server.status)
    web.run_app(app, host="127.0.0.1", port=int(port), access_log=None, print=None)


if __name__ == "__main__":
    main()
