"""Clients that read along by server-sent events and keep nothing, many in one process: `log_followers.py COUNT PATH URL…`.

Prints a line once all of them are answered, and at the end of its stdin one with what they had.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys
from typing import Any
from urllib.parse import urlsplit

_AT_ONCE = 50  # connections that are being made
_TRIES = 40
_ID = re.compile(rb"^id: (\d+)", re.MULTILINE)
_TAIL_BYTES = 1 << 12


class Follower(asyncio.Protocol):
    """One of them."""

    def __init__(self, raw: bytes) -> None:
        self._raw = raw
        self._head = b""
        self._tail = b""
        self.count = 0
        self.has_end = False
        self.location = ""
        self.answered: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: Any = transport
        self._transport.write(self._raw)

    def data_received(self, data: bytes) -> None:
        self.count += len(data)
        if self.answered.done():
            self._tail = (
                (self._tail + data[-_TAIL_BYTES:])[-_TAIL_BYTES:] if len(data) < _TAIL_BYTES else data[-_TAIL_BYTES:]
            )
            return
        self._head += data
        head, end, _ = self._head.partition(b"\r\n\r\n")
        if end:
            status = int(head[9:12])
            if found := re.search(rb"(?i)\r\nlocation: ([^\r]+)", head):
                self.location = found[1].decode()
            self.answered.set_result(status)

    def connection_lost(self, error: Exception | None) -> None:
        self.has_end = b"event: end" in self._tail
        if not self.answered.done():
            self.answered.set_exception(error or ConnectionError("the server hung up"))

    def last(self) -> int:
        """The last piece that it had; -1 if none."""
        return max((int(number) for number in _ID.findall(self._tail)), default=-1)

    def close(self) -> None:
        self._transport.abort()


async def follow(url: str, path: str) -> Follower:
    """One that is answered, by whichever master it is sent to."""
    where = f"{url}{path}"
    for _ in range(_TRIES):
        parts = urlsplit(where)
        head = f"GET {parts.path}?{parts.query} HTTP/1.1\r\nHost: {parts.netloc}\r\nAccept: text/event-stream\r\n"
        raw = f"{head}Authorization: Bearer {os.environ['PISTAGE_TOKEN']}\r\n\r\n".encode()
        loop = asyncio.get_running_loop()
        _, follower = await loop.create_connection(lambda raw=raw: Follower(raw), parts.hostname, parts.port)
        if await follower.answered == 200:
            return follower
        follower.close()
        if follower.location:
            where = follower.location if "://" in follower.location else f"{url}{follower.location}"
        else:
            await asyncio.sleep(0.5)  # nobody leads just now
    raise SystemExit(f"{where} answered {follower.answered.result()} again and again")


async def main() -> None:
    count, path, *urls = int(sys.argv[1]), *sys.argv[2:]
    few = asyncio.Semaphore(_AT_ONCE)

    async def one(number: int) -> Follower:
        async with few:
            return await follow(urls[number % len(urls)], path)

    followers = await asyncio.gather(*(one(number) for number in range(count)))
    print(json.dumps({"following": len(followers)}), flush=True)
    commands = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(commands), sys.stdin)
    while await commands.readline():
        print(
            json.dumps(
                {
                    "ended": sum(follower.has_end for follower in followers),
                    "bytes": sorted(follower.count for follower in followers),
                    "last": sorted(follower.last() for follower in followers),
                }
            ),
            flush=True,
        )
    for follower in followers:
        follower.close()


asyncio.run(main())
