"""The load generator: requests made beforehand, sent over kept connections, each timed; the same for every group.

It speaks as little HTTP as it needs: on two cores a client library costs as much as the servers that it measures.
"""

from __future__ import annotations

import asyncio
import math
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from typing import Any
from urllib.parse import urlsplit

_HEAD_END = b"\r\n\r\n"
Request = Callable[[int], bytes]


class RefusedError(Exception):
    """An answer that is no success."""


def request(method: str, path: str, body: bytes = b"", *, token: str = "") -> bytes:
    """A request as it goes over the wire."""
    head = [f"{method} {path} HTTP/1.1", "Host: bench", "Content-Type: application/json"]
    if token:
        head.append(f"Authorization: Bearer {token}")
    head += [f"Content-Length: {len(body)}", "", ""]
    return "\r\n".join(head).encode() + body


class Connection(asyncio.Protocol):
    """One kept connection; one request at a time."""

    def __init__(self) -> None:
        self._received = bytearray()
        self._answer: asyncio.Future[tuple[int, bytes]] | None = None
        self._transport: Any = None
        self.is_closed = False

    @staticmethod
    async def to(url: str) -> Connection:
        where = urlsplit(url)
        assert where.hostname and where.port, url
        _, protocol = await asyncio.get_running_loop().create_connection(Connection, where.hostname, where.port)
        return protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def connection_lost(self, error: Exception | None) -> None:
        self.is_closed = True
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(error or ConnectionError("the server hung up"))

    def data_received(self, data: bytes) -> None:
        self._received += data
        whole = _whole_answer(self._received)
        if whole is not None and self._answer is not None and not self._answer.done():
            self._received.clear()
            self._answer.set_result(whole)

    async def ask(self, raw: bytes) -> tuple[int, bytes]:
        """Status and body of the answer."""
        if self.is_closed:
            raise ConnectionError("the server hung up")
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(raw)
        return await self._answer

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()


def _whole_answer(received: bytearray) -> tuple[int, bytes] | None:
    end = received.find(_HEAD_END)
    if end < 0:
        return None
    head, start = bytes(received[:end]).lower(), end + len(_HEAD_END)
    status = int(head[9:12])
    at = head.find(b"content-length:")
    if at >= 0:
        size = int(head[at + 15 :].split(b"\r\n", 1)[0])
        return (status, bytes(received[start : start + size])) if len(received) >= start + size else None
    if b"transfer-encoding: chunked" in head:
        return (status, _dechunked(received[start:])) if received.endswith(b"0" + _HEAD_END) else None
    return status, b""


def _dechunked(raw: bytearray) -> bytes:
    body = b""
    while raw:
        size, _, raw = raw.partition(b"\r\n")
        body, raw = body + raw[: int(size, 16)], raw[int(size, 16) + 2 :]
    return body


async def ask(url: str, raw: bytes, timeout_s: float = 5.0) -> bytes:
    """One request over a connection of its own; RefusedError, OSError or TimeoutError if it fails."""
    async with asyncio.timeout(timeout_s):
        connection = await Connection.to(url)
        try:
            status, body = await connection.ask(raw)
        finally:
            connection.close()
    if status >= 300:
        raise RefusedError(f"{url} answered {status}: {body[:300]!r}")
    return body


@dataclass(slots=True)
class Load:
    """What came of it: how long each answered request took, in seconds, and how long all of it."""

    latencies: list[float]
    seconds: float
    refused: int = 0

    @property
    def per_s(self) -> float:
        return len(self.latencies) / self.seconds

    def ms(self, percent: float) -> float:
        """A percentile of the latencies."""
        ordered = sorted(self.latencies)
        return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)] * 1000 if ordered else math.nan


async def drive(url: str, make: Request, *, writers: int, seconds: float) -> Load:
    """So many writers, each sending its next request when the one before is answered, for so long."""
    connections = [await Connection.to(url) for _ in range(writers)]
    numbers = iter(range(1 << 40))
    load = Load([], 0.0)
    started = time.perf_counter()

    async def write(connection: Connection) -> None:
        while (sent := time.perf_counter()) - started < seconds:
            status, body = await connection.ask(make(next(numbers)))
            if status < 300:
                load.latencies.append(time.perf_counter() - sent)
            else:
                load.refused += 1
                if load.refused > 100 and not load.latencies:
                    raise RefusedError(f"{url} answered {status}: {body[:300]!r}")

    try:
        async with asyncio.timeout(seconds + 60), asyncio.TaskGroup() as group:
            for connection in connections:
                group.create_task(write(connection))
    finally:
        for connection in connections:
            connection.close()
    load.seconds = time.perf_counter() - started
    return load


class Prober:
    """A writer that tries every `every_s` at the next of `urls`, whatever became of the tries before."""

    def __init__(self, urls: Sequence[str], make: Request, *, every_s: float = 0.02) -> None:
        self._urls, self._make, self._every_s = urls, make, every_s
        self._free: dict[str, list[Connection]] = {url: [] for url in urls}
        self.acknowledged: list[float] = []  # when, by the monotonic clock

    async def run(self) -> None:
        """Until cancelled."""
        number, due = 0, time.monotonic()
        try:
            async with asyncio.TaskGroup() as group:
                while True:
                    group.create_task(self._try(self._urls[number % len(self._urls)], self._make(number)))
                    number, due = number + 1, due + self._every_s
                    await asyncio.sleep(max(0.0, due - time.monotonic()))
        finally:
            for free in self._free.values():
                for connection in free:
                    connection.close()

    async def _try(self, url: str, raw: bytes) -> None:
        connection = None
        with suppress(OSError, TimeoutError):
            async with asyncio.timeout(10):
                free = self._free[url]
                connection = free.pop() if free else await Connection.to(url)
                status, _ = await connection.ask(raw)
            if status < 300:
                self.acknowledged.append(time.monotonic())
            free.append(connection)
            return
        if connection is not None:
            connection.close()

    def longest_gap_s(self, since: float) -> float:
        """Between acknowledged writes, from the last one before `since` on."""
        before = [at for at in self.acknowledged if at <= since]
        times = [*before[-1:], *(at for at in self.acknowledged if at > since)]
        return max((b - a for a, b in pairwise(times)), default=math.nan)


def spread(values: Iterable[float], digits: int = 0) -> str:
    """`median (least–most)`."""
    ordered = sorted(values)
    middle = statistics.median(ordered)
    return f"{middle:,.{digits}f} ({ordered[0]:,.{digits}f}–{ordered[-1]:,.{digits}f})"
