"""How long a line takes from the moment that a step prints it until somebody who reads along has it."""

from __future__ import annotations

import asyncio
import json
import math
import random
import subprocess
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp

from benches.groups import TOKEN
from benches.logs_cluster import INSIDE, Cluster, Gate, Options, Text, a_cluster, engine_socket, gates
from benches.logs_floor import a_container, start

_LINES = 100  # a round
_WAIT_S = 60.0


async def first(directory: Path, text: Text, options: Options) -> None:
    """Lines at random moments on a cluster that does nothing else: to an SSE reader, to the CLI, to a bare attach."""
    lines = max(200, _LINES * options.rounds)
    print(
        f"{lines} lines, one each 10 to 150 ms, from the moment before they are printed until they are read", flush=True
    )
    with gates(text.directory, "floor") as (gate,), a_container(text, f"cat {INSIDE}/{gate.path.name}") as container:
        reader, writer = await _attached(container)
        start(container)
        floor = await _timed(gate, lines, {"bare attach to a container": _frames(reader)})
        writer.close()
    _print(floor)
    for runtime in ("docker", "host"):
        async with a_cluster(directory / runtime, runtime, text) as cluster:
            with gates(text.directory, f"lines-{runtime}") as (gate,):
                await _print_cluster(cluster, gate, lines)


async def _print_cluster(cluster: Cluster, gate: Gate, lines: int) -> None:
    what = {"docker": "a container", "host": "a process"}[cluster.runtime]
    run_id = await cluster.submit(f"cat {cluster.inside}/{gate.path.name}")
    client = cluster.follow(run_id, subprocess.PIPE)
    assert client.stdout is not None
    try:
        async with _events(cluster, run_id) as events:
            piped = asyncio.StreamReader()
            loop = asyncio.get_running_loop()
            await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(piped), client.stdout)
            found = await _timed(gate, lines, {f"events, {what}": events, f"CLI, {what}": _plain(piped)})
        await cluster.ended(run_id)
        assert client.wait(timeout=30) == 0, "pistage logs -f failed"
    finally:
        client.kill()
        client.wait()
    _print(found)


async def _timed(gate: Gate, lines: int, readers: dict[str, AsyncIterator[bytes]]) -> dict[str, list[float]]:
    """Milliseconds, for each reader: `N TIME` goes through the FIFO to `cat`, and from there to all of them."""
    found: dict[str, list[float]] = {name: [] for name in readers}
    heard = {name: asyncio.Event() for name in readers}

    async def read(name: str) -> None:
        rest = b""
        async for data in readers[name]:
            now = time.time_ns()
            *whole, rest = (rest + data).split(b"\n")
            for line in whole:
                number, at = line.split()
                if int(number) >= 0:
                    found[name].append((now - int(at)) / 1e6)
                heard[name].set()
            if len(found[name]) == lines:
                return

    async def write() -> None:
        gate.open()
        while not all(event.is_set() for event in heard.values()):  # until everybody is connected
            gate.write(f"-1 {time.time_ns()}\n")
            await asyncio.sleep(0.2)
        for number in range(lines):
            await asyncio.sleep(random.uniform(0.01, 0.15))
            gate.write(f"{number} {time.time_ns()}\n")

    async with asyncio.timeout(_WAIT_S + lines * 0.15), asyncio.TaskGroup() as group:
        for name in readers:
            group.create_task(read(name))
        group.create_task(write())
    gate.close()
    return found


def _print(found: dict[str, list[float]]) -> None:
    for name, values in found.items():
        p50, p99 = percentile(values, 50), percentile(values, 99)
        target = "" if "attach" in name else "  (target: p99 ≤ 100)"
        print(f"  {name:<34} p50 {p50:6.1f} ms, p99 {p99:6.1f}, most {max(values):6.1f}{target}", flush=True)


def percentile(values: list[float], percent: float) -> float:
    """The value that so many percent are not above."""
    return sorted(values)[max(0, math.ceil(len(values) * percent / 100) - 1)]


# --- readers ----------------------------------------------------------------------------------------------------------


async def _plain(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    while data := await reader.read(1 << 16):
        yield data


async def _frames(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    """What the frames of an attach hold."""
    while True:
        head = await reader.readexactly(8)
        yield await reader.readexactly(int.from_bytes(head[4:], "big"))


async def _attached(container: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_unix_connection(engine_socket())
    head = f"POST /v1.41/containers/{container}/attach?stream=1&stdout=1 HTTP/1.1\r\nHost: bench\r\n"
    writer.write((head + "Connection: Upgrade\r\nUpgrade: tcp\r\nContent-Length: 0\r\n\r\n").encode())
    answer = await reader.readuntil(b"\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 101"), answer
    return reader, writer


@asynccontextmanager
async def _events(cluster: Cluster, run_id: str) -> AsyncIterator[AsyncIterator[bytes]]:
    """The text of each event of output."""
    headers = {"Authorization": f"Bearer {TOKEN}", "Accept": "text/event-stream"}
    async with (
        aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=None)) as http,
        http.get(f"{cluster.url}/api/v1/runs/{run_id}/logs", params={"follow": "1"}, headers=headers) as response,
    ):
        assert response.status == 200, await response.text()
        yield _texts(response.content)


async def _texts(content: aiohttp.StreamReader) -> AsyncIterator[bytes]:
    rest = b""
    async for data in content.iter_any():
        *whole, rest = (rest + data).split(b"\n")
        for line in whole:
            if line.startswith(b"data: ") and (piece := json.loads(line[6:])).get("text"):
                yield piece["text"].encode()
