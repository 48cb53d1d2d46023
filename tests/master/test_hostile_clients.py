"""Clients that are slow, half-open or in great number take nothing from the others (S9)."""

import asyncio
import contextlib
import statistics
import time
from pathlib import Path

import pytest

from pistage import wire
from pistage.core import limits
from tests.master.fakes import TOKEN, Api, a_master, an_agent

Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def dial(api: Api, head: bytes) -> Stream:
    host, port = api.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(head)
    return reader, writer


async def is_closed(stream: Stream) -> bool:
    """Whether the master ends the connection within a few seconds."""
    reader, writer = stream
    async with asyncio.timeout(10):
        await reader.read()
    writer.close()
    return True


@pytest.mark.slow
@pytest.mark.parametrize("head", [b"", b"GET /livez HTTP/1.1\r\nHost: x\r\nX-Slow: "])
async def test_a_connection_without_a_whole_request_is_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, head: bytes
) -> None:
    monkeypatch.setattr(limits, "REQUEST_HEADER_TIMEOUT_S", 0.3)
    async with a_master(tmp_path) as api:
        assert await is_closed(await dial(api, head))


async def test_a_body_that_trickles_is_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "REQUEST_HEADER_TIMEOUT_S", 0.3)
    async with a_master(tmp_path) as api:
        head = (
            f"POST /api/v1/runs HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\nContent-Length: 9000\r\n\r\nx"
        )
        assert await is_closed(await dial(api, head.encode()))


async def test_a_body_without_end_is_cut_off_at_its_limit(tmp_path: Path) -> None:
    async with a_master(tmp_path) as api:
        head = f"POST /api/v1/runs HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\n"
        reader, writer = await dial(api, head.encode() + b"Transfer-Encoding: chunked\r\n\r\n")
        chunk = b"100000\r\n" + b"x" * 0x100000 + b"\r\n"
        async with asyncio.timeout(20):
            with contextlib.suppress(ConnectionError):  # cut off while it was still sending, as it should be
                for _ in range(64):
                    writer.write(chunk)
                    await writer.drain()
                pytest.fail("64 MiB were taken")
            with contextlib.suppress(ConnectionError):
                assert b"413" in await reader.read(100) or reader.at_eof()
        writer.close()


@pytest.mark.slow
async def test_clients_that_hang_up_in_the_middle_leave_reading_as_it_was(tmp_path: Path) -> None:
    async with a_master(tmp_path) as api:
        head = f"GET /api/v1/runs HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\n\r\n".encode()
        for number in range(300):
            _, writer = await dial(api, head)
            await asyncio.sleep(number % 5 / 1000)  # at each point of a read, a little later each time
            writer.transport.abort()
        answers = await asyncio.gather(*(api.call("GET", "/api/v1/runs") for _ in range(20)))
        assert {status for status, _ in answers} == {200}


async def test_a_reader_that_goes_away_is_no_error_of_ours(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with a_master(tmp_path) as api, an_agent(api) as (agent, _):
        run = await api.submit()
        assign = await agent.receive(wire.Assign)
        await agent.accept(assign)
        path = f"/api/v1/runs/{run['id']}/logs?follow=1"
        reader, writer = await dial(
            api, f"GET {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\n\r\n".encode()
        )
        await reader.readline()
        writer.transport.abort()
        for offset in range(50):
            await agent.print(assign, b"x" * 1000, 1000 * offset)
        await agent.finish(assign, length=50_000)
        assert (await api.ended(run["id"]))["state"] == "succeeded"
    assert [record.getMessage() for record in caplog.records if record.levelname == "ERROR"] == []


@pytest.mark.slow
async def test_five_hundred_half_open_connections_leave_the_others_their_answers(tmp_path: Path) -> None:
    async with a_master(tmp_path) as api:

        async def answers() -> float:
            taken = []
            for _ in range(200):
                started = time.perf_counter()
                assert (await api.call("GET", "/api/v1/runs"))[0] == 200
                taken.append(time.perf_counter() - started)
            return statistics.quantiles(taken, n=100)[98]

        before = await answers()
        slow = await asyncio.gather(*(dial(api, b"GET /livez HTTP/1.1\r\nX: ") for _ in range(500)))
        beside = await answers()
        for _, writer in slow:
            writer.close()
        print(f"p99 of a read: {before * 1000:.1f} ms alone, {beside * 1000:.1f} ms beside 500 half-open connections")
