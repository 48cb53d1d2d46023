"""Readers that are slow, dead or gone: whoever prints does not wait for them, and they cost a master little memory."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.chaos.group import TOKEN, Group, Shape, a_group
from tests.e2e import printing
from tests.e2e.printing import Program
from tests.e2e.processes import ended, until
from tests.e2e.readback import wrong_as_reported, wrong_when_read
from tests.master.fakes import Api

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

HALF_OPEN = 500
GONE = 20
EACH_BYTES = 64 * 1024
STANDING = HALF_OPEN // 3  # that have asked, and read nothing
PIECE_BYTES = 384 * 1024  # what such a one holds: a piece of output, 256 KiB, as it is and a part of it as text


@contextlib.contextmanager
def connections() -> Iterator[list[socket.socket]]:
    """Closed with the block, those that are added too."""
    opened: list[socket.socket] = []
    try:
        yield opened
    finally:
        for one in opened:
            one.close()


def connected(url: str) -> socket.socket:
    """With as little room for what it does not read as there can be."""
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.settimeout(10)
    connection.connect((urlsplit(url).hostname, urlsplit(url).port))
    return connection


def asking(run_id: str, accept: str) -> bytes:
    """A request for all that the run prints, while it prints."""
    return (
        f"GET /api/v1/runs/{run_id}/logs?follow=1 HTTP/1.1\r\nHost: m\r\nAccept: {accept}\r\n"
        f"Authorization: Bearer {TOKEN}\r\n\r\n"
    ).encode()


ACCEPTS = ("application/octet-stream", "text/plain", "application/x-ndjson", "text/event-stream")


def half_open(url: str, run_id: str) -> Iterator[socket.socket]:
    """One that says nothing, one that stops within its request, one that reads no answer; each kind in turn."""
    for number in range(HALF_OPEN):
        connection = connected(url)
        if number % 3 == 1:
            connection.sendall(asking(run_id, "text/plain")[:-20])
        elif number % 3 == 2:
            connection.sendall(asking(run_id, ACCEPTS[number % 4]))
        yield connection


async def slow_reader(url: str, run_id: str) -> None:
    """A byte a second, until cancelled."""
    connection = connected(url)
    connection.setblocking(False)
    loop = asyncio.get_running_loop()
    with contextlib.closing(connection):
        await loop.sock_sendall(connection, asking(run_id, ACCEPTS[0]))
        while True:
            assert await loop.sock_recv(connection, 1), "the master has hung up on a reader that reads"
            await asyncio.sleep(1)  # there is nothing to wait for: that is how slow it is


async def gone_readers(url: str, run_id: str) -> None:
    """Each reads the beginning, and is gone without a word."""
    loop = asyncio.get_running_loop()
    for number in range(GONE):
        connection = connected(url)
        connection.setblocking(False)
        await loop.sock_sendall(connection, asking(run_id, ACCEPTS[number % 4]))
        assert await loop.sock_recv(connection, 1000)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.close()


@contextlib.asynccontextmanager
async def bad_readers(url: str, run_id: str) -> AsyncIterator[None]:
    """All of them, for as long as the block runs."""
    with connections() as opened:
        async with asyncio.TaskGroup() as tasks:
            slow = tasks.create_task(slow_reader(url, run_id))
            await gone_readers(url, run_id)
            for connection in half_open(url, run_id):
                opened.append(connection)
                await asyncio.sleep(0)
            yield
            assert not slow.done()
            slow.cancel()


@contextlib.asynccontextmanager
async def no_readers(url: str, run_id: str) -> AsyncIterator[None]:
    yield


def peak_bytes(pid: int) -> int:
    """The most memory that it has held since `forget_peak`."""
    (line,) = [one for one in Path(f"/proc/{pid}/status").read_text().splitlines() if one.startswith("VmHWM:")]
    return int(line.split()[1]) * 1024


def forget_peak(pid: int) -> None:
    Path(f"/proc/{pid}/clear_refs").write_text("5")


async def printed_beside(group: Group, api: Api, program: Program, readers: Any) -> tuple[float, int]:
    """Seconds that the run took, and the most memory that the master held meanwhile."""
    forget_peak(group.pid("m1"))
    began = time.monotonic()
    status, run = await api.call("POST", "/api/v1/runs", json=program.own())
    assert status == 201, run

    async def has_begun() -> bool:
        _, text = await api.call("GET", f"/api/v1/runs/{run['id']}/logs?limit=1")
        return bool(text)

    await until(has_begun)
    async with readers(api.url, run["id"]):
        done = await ended(api, run["id"])
        took_s, held = time.monotonic() - began, peak_bytes(group.pid("m1"))
    assert done["state"] == "succeeded", done
    assert wrong_as_reported(done, program) + await wrong_when_read(api.session, api.url, done, program) == []
    return took_s, held


async def test_who_reads_slowly_or_not_at_all_holds_nothing_up_and_costs_little_memory(tmp_path: Path) -> None:
    async with a_group(tmp_path, Shape(masters=1, agents=1)) as group:
        assert group.http is not None
        api, program = Api(group.http, group.urls["m1"]), printing.flood(50)
        await printed_beside(group, api, printing.flood(10), no_readers)  # the first one finds a master that is cold
        alone_s, alone = await printed_beside(group, api, program, no_readers)
        beside_s, beside = await printed_beside(group, api, program, bad_readers)
        print(f"alone {alone_s:.1f} s, {alone >> 10:,} KiB; beside all these {beside_s:.1f} s, {beside >> 10:,} KiB")
        assert beside - alone < (HALF_OPEN + GONE + 1) * EACH_BYTES + STANDING * PIECE_BYTES
