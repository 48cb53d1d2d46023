"""`scripts/bench fleet`: tasks a second from their submission to their end, with agents that run nothing.

One master, then three, on the same cores; the agents are another process. The floor beside it is SQLite's commits of
the rows that a task leaves behind, in one thread, made durable a hundred tasks at a time.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sqlite3
import statistics
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from benches.groups import TOKEN, Pistage, free_ports, running
from benches.load import Connection, ask, request, spread

_HERE = Path(__file__).parent
_BATCH = 500
_WAIT_S = 120.0


@dataclass(frozen=True, slots=True)
class Options:
    """How many tasks, agents and rounds."""

    tasks: int
    agents: int
    rounds: int
    queued: int


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of `fleet`."""
    parser.add_argument("--tasks", type=int, default=20_000, help="fleet: how many no-op tasks a round")
    parser.add_argument("--agents", type=int, default=50, help="fleet: how many simulated agents, of 32 places each")
    parser.add_argument("--queued", type=int, default=100_000, help="fleet: how many are queued to measure memory")


async def fleet(directory: Path, options: Options) -> None:
    """All of it."""
    floor = [floor_per_s(directory) for _ in range(options.rounds)]
    print(f"  rows of a task, SQLite alone       {spread(floor)} tasks/s")
    for nodes in (1, 3):
        rates = []
        for number in range(options.rounds):
            masters = Pistage(directory / f"{nodes}-{number}", free_ports(nodes), nodes=nodes)
            async with running(masters):
                rates.append(await one_round(masters, options))
        ratio = statistics.median(rates) / statistics.median(floor)
        print(f"  {nodes} master{'s' * (nodes > 1):<27} {spread(rates)} tasks/s, {ratio:.2f} of the floor")
    await queued(directory / "queued", options)


async def one_round(masters: Pistage, options: Options) -> float:
    """Tasks a second, from the first submission to the last result that is acknowledged."""
    url = masters.urls[await masters.leader()]
    async with simulated(url, options.agents) as process:
        assert process.stdout is not None
        await _until_connected(url, options.agents)
        begun = time.perf_counter()
        async with asyncio.timeout(_WAIT_S), asyncio.TaskGroup() as group:
            group.create_task(submit(url, options.tasks))
            done = 0
            while done < options.tasks:
                done += int(await process.stdout.readline())
        return options.tasks / (time.perf_counter() - begun)


async def submit(url: str, count: int) -> None:
    """In batches, two at a time."""
    definition = {"name": "noop", "image": "busybox", "run": "true", "retry": 0}
    body = json.dumps({"definition": json.dumps(definition), "runs": [{}] * _BATCH}).encode()
    raw = request("POST", "/api/v1/runs/batch", body, token=TOKEN)
    left = iter(range(count // _BATCH))

    async def submit_some() -> None:
        connection = await Connection.to(url)
        for _ in left:
            status, answer = await connection.ask(raw)
            if status != 201:
                raise AssertionError(answer[:500])
        connection.close()

    async with asyncio.TaskGroup() as group:
        for _ in range(2):
            group.create_task(submit_some())


async def queued(directory: Path, options: Options) -> None:
    """What a master needs for tasks that nobody takes."""
    master = Pistage(directory, free_ports(1), nodes=1)
    async with running(master):
        url = master.urls[0]
        before, _ = master.memory_mib(0)
        await submit(url, options.queued)
        await asyncio.sleep(2)  # for what follows the last submission
        now, most = master.memory_mib(0)
        began = time.perf_counter()
        answer = json.loads(await ask(url, request("GET", "/api/v1/runs?limit=1", token=TOKEN)))
        why = await ask(url, request("GET", f"/api/v1/runs/{answer['items'][0]['id']}", token=TOKEN))
        shown_ms = (time.perf_counter() - began) * 1000
        waiting = json.loads(why)["tasks"][0]["waiting"]
    print(f"  memory of a master, {options.queued:,} queued: {now:.0f} MiB, at most {most:.0f} (empty {before:.0f})")
    print(f"  with them, a run is shown in {shown_ms:.0f} ms: {waiting}")


@asynccontextmanager
async def simulated(url: str, count: int) -> AsyncIterator[asyncio.subprocess.Process]:
    """The process of the agents; ended at the end."""
    command = [sys.executable, str(_HERE / "simulated_agents.py"), url, TOKEN, str(count), "32"]
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    try:
        yield process
    finally:
        process.terminate()
        await process.wait()


async def _until_connected(url: str, count: int) -> None:
    async with asyncio.timeout(_WAIT_S):
        while True:
            agents = json.loads(await ask(url, request("GET", "/api/v1/agents", token=TOKEN)))["items"]
            if sum(agent["is_connected"] for agent in agents) >= count:
                return
            await asyncio.sleep(0.1)


def floor_per_s(directory: Path) -> float:
    """A run, a task, an attempt, a step and eight events, as SQLite writes them, a hundred tasks a transaction."""
    path = directory / "floor.db"
    for suffix in ("", "-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    db = sqlite3.connect(path, isolation_level=None)
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("PRAGMA synchronous = FULL")
    db.execute("CREATE TABLE thing (id INTEGER PRIMARY KEY, text TEXT NOT NULL)")
    texts = [(os.urandom(size // 2).hex(),) for size in (600, 900, 200, 200, *[120] * 8)]
    begun, tasks = time.perf_counter(), 0
    while time.perf_counter() - begun < 1.0:
        db.execute("BEGIN")
        for _ in range(100):
            db.executemany("INSERT INTO thing (text) VALUES (?)", texts)
        db.execute("COMMIT")
        tasks += 100
    db.close()
    return tasks / (time.perf_counter() - begun)
