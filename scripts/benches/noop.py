"""`scripts/bench noop`: real steps that do nothing, as plain processes, 200 at one time, beside a bare loop.

The bare loop does what cannot be left out: commits a row for each, posts it to a local aiohttp server in a process of
its own, which spawns `true` and answers, and commits the result.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import sqlite3
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp

from benches.groups import TOKEN, Pistage, free_ports, running
from benches.load import Connection, ask, request, spread

_HERE = Path(__file__).parent
_AT_ONCE = 200
_WAIT_S = 120.0


@dataclass(frozen=True, slots=True)
class Options:
    """How many steps a round, and how many rounds."""

    steps: int
    rounds: int


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of `noop`."""
    parser.add_argument("--steps", type=int, default=2_000, help="noop: how many a round")


async def noop(directory: Path, options: Options) -> None:
    """Floor and Pistage in turn."""
    floors, rates = [], []
    for number in range(options.rounds):
        floors.append(await bare(directory / f"bare-{number}.db", options.steps))
        rates.append(await ours(directory / str(number), options.steps))
    ratio = statistics.median(rates) / statistics.median(floors)
    print(f"  bare loop: commit, POST, `true`    {spread(floors)} steps/s")
    print(f"  no-op steps on the host runtime    {spread(rates)} steps/s, {ratio:.2f} of the floor")


# --- the floor --------------------------------------------------------------------------------------------------------


async def bare(path: Path, steps: int) -> float:
    """Steps a second."""
    (port,) = free_ports(1)
    server = subprocess.Popen([sys.executable, str(_HERE / "spawning_server.py"), str(port)])
    db = sqlite3.connect(path, isolation_level=None)
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("PRAGMA synchronous = FULL")
    db.execute("CREATE TABLE step (id INTEGER PRIMARY KEY, state TEXT NOT NULL)")
    left = iter(range(steps))
    url = f"http://127.0.0.1:{port}/"
    try:
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as http:
            await _answering(http, url)

            async def one_by_one() -> None:
                for number in left:
                    db.execute("INSERT INTO step (id, state) VALUES (?, 'running')", (number,))
                    async with http.post(url, json={"id": number}) as answer:
                        assert (await answer.json())["exit_code"] == 0
                    db.execute("UPDATE step SET state = 'succeeded' WHERE id = ?", (number,))

            begun = time.perf_counter()
            async with asyncio.TaskGroup() as group:
                for _ in range(_AT_ONCE):
                    group.create_task(one_by_one())
            return steps / (time.perf_counter() - begun)
    finally:
        db.close()
        server.terminate()
        server.wait()


async def _answering(http: aiohttp.ClientSession, url: str) -> None:
    async with asyncio.timeout(_WAIT_S):
        while True:
            try:
                async with http.post(url, json={}):
                    return
            except aiohttp.ClientConnectionError:
                await asyncio.sleep(0.02)


# --- ours -------------------------------------------------------------------------------------------------------------


async def ours(directory: Path, steps: int) -> float:
    """Steps a second, from the submission to the last result in the state."""
    master = Pistage(directory, free_ports(1), nodes=1)
    async with running(master), an_agent(master, directory / "agent"):
        connection = await Connection.to(master.urls[0])
        definition = {"name": "noop", "image": "none", "run": "true", "retry": 0}
        begun = time.perf_counter()
        for _ in range(steps // 500):
            body = json.dumps({"definition": json.dumps(definition), "runs": [{}] * 500}).encode()
            status, answer = await connection.ask(request("POST", "/api/v1/runs/batch", body, token=TOKEN))
            assert status == 201, answer
        async with asyncio.timeout(_WAIT_S):
            while await _are_open(master.urls[0]):
                await asyncio.sleep(0.05)
        seconds = time.perf_counter() - begun
        connection.close()
        failed = json.loads(await ask(master.urls[0], request("GET", "/api/v1/runs?state=failed", token=TOKEN)))
        assert not failed["items"], failed["items"][0]
        return steps / seconds


async def _are_open(url: str) -> bool:
    for state in ("running", "queued"):
        path = f"/api/v1/runs?state={state}&limit=1"
        if json.loads(await ask(url, request("GET", path, token=TOKEN)))["items"]:
            return True
    return False


@asynccontextmanager
async def an_agent(master: Pistage, directory: Path) -> AsyncIterator[None]:
    """One with 200 places, connected."""
    where = ["--data-dir", str(directory), "--masters", master.urls[0], "--slots", str(_AT_ONCE)]
    how = ["--runtime", "host", "--allow-host-runtime", "--ignore-images"]
    command = [sys.executable, "-m", "pistage", "serve", "--role", "agent", *where, *how]
    with (master.directory / "agent.log").open("wb") as log:
        process = subprocess.Popen(command, env=master.environ(), stdout=log, stderr=log)
    try:
        async with asyncio.timeout(_WAIT_S):
            while not json.loads(await ask(master.urls[0], request("GET", "/api/v1/agents", token=TOKEN)))["items"]:
                await asyncio.sleep(0.05)
        yield
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(timeout=30)
