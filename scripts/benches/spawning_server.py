"""The server of the bare loop: spawns `true` for each request and answers with its exit code. Usage: PORT."""

from __future__ import annotations

import asyncio
import sys

from aiohttp import web


async def _spawn(request: web.Request) -> web.Response:
    await request.json()
    process = await asyncio.create_subprocess_exec("true")
    return web.json_response({"exit_code": await process.wait()})


if __name__ == "__main__":
    app = web.Application()
    app.router.add_post("/", _spawn)
    web.run_app(app, host="127.0.0.1", port=int(sys.argv[1]), print=None)
