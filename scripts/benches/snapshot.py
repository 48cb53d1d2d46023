"""A snapshot of a large state while writes go on: how long the leader's loop stands still, and what writes feel."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import math
import os
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from benches.groups import TOKEN, Pistage, free_ports, running
from benches.load import Connection, Load, ask, request

_BATCH = 1_000
_SCRIPT_BYTES = 900  # it stands in the document and in the task of each run
_WRITERS = 8
_FORGOTTEN_AFTER_S = 10.5  # loop_lag_ms is the worst of the last ten seconds


@dataclass(slots=True)
class _Felt:
    """What was felt from outside while something went on."""

    writes: Load = field(default_factory=lambda: Load([], 0.0))
    livez_s: list[float] = field(default_factory=list)
    lag_ms: list[int] = field(default_factory=list)


async def snapshot(directory: Path, runs: int) -> None:
    """Queue the runs, then make a snapshot three times while writes go on; beside it the same without one."""
    print(f"a snapshot with {runs:,} queued runs, {_WRITERS} writers at the leader meanwhile", flush=True)
    group = Pistage(directory, free_ports(3))
    async with running(group):
        leader = await group.leader()
        url = group.urls[leader]
        began = time.monotonic()
        await _queue(group, url, runs)
        taken = time.monotonic() - began
        await group.leader()
        print(f"  {runs:,} runs queued in {taken:.1f} s; state.db {_state_mib(directory / str(leader)):,.0f} MiB")
        await asyncio.sleep(_FORGOTTEN_AFTER_S)
        await _report("without a snapshot", group, leader, asyncio.sleep(5))
        for _ in range(3):
            await asyncio.sleep(_FORGOTTEN_AFTER_S)
            await _report("during a snapshot", group, leader, _make_snapshot(group, leader))
        await asyncio.sleep(_FORGOTTEN_AFTER_S)
        await _report("during a backup", group, leader, _back_up(url, directory / "backup"))
        now, most = group.memory_mib(leader)
        print(f"  the leader holds {now:,.0f} MiB resident, at most {most:,.0f}", flush=True)


async def _queue(group: Pistage, url: str, runs: int) -> None:
    text = json.dumps({"name": "Queued", "uses": {"main": [{"run": "#" * _SCRIPT_BYTES, "image": "busybox"}]}})
    for _ in range(-(-runs // _BATCH)):
        await ask(url, group.submit_many(_BATCH, text), timeout_s=30)


def _state_mib(directory: Path) -> float:
    return sum(file.stat().st_size for file in directory.glob("state/*/state.db*")) / (1 << 20)


async def _make_snapshot(group: Pistage, leader: int) -> None:
    """As another master would ask for one: at the index where the leader is now."""
    credential = hmac.new(TOKEN.encode(), b"pistage masters", hashlib.sha256).hexdigest()
    index = (await group.cluster(leader))["applied_index"]
    await ask(group.urls[leader], request("GET", f"/raft/v1/snapshot?index={index}", token=credential), timeout_s=300)


async def _back_up(url: str, file: Path) -> None:
    """As an operator would make one: all of it is sent to a client."""
    environ = os.environ | {"PISTAGE_TOKEN": TOKEN, "PISTAGE_SERVER": url}
    command = [sys.executable, "-m", "pistage", "cluster", "snapshot", str(file)]
    process = await asyncio.create_subprocess_exec(*command, env=environ, stderr=asyncio.subprocess.PIPE)
    _, said = await process.communicate()
    if process.returncode != 0:
        raise RuntimeError(said.decode())


async def _report(label: str, group: Pistage, leader: int, during: object) -> None:
    felt = _Felt()
    began = time.monotonic()
    async with _feeling(felt, group, leader):
        await during  # type: ignore[misc]
        taken = time.monotonic() - began
        await asyncio.sleep(0.5)
    worst = max(felt.writes.latencies, default=math.nan) * 1000
    print(
        f"  {label:<20} {taken:5.1f} s: loop_lag_ms {max(felt.lag_ms)} (target ≤ 50),"
        f" /livez at most {max(felt.livez_s) * 1000:.0f} ms;"
        f" {len(felt.writes.latencies) / (taken + 0.5):,.0f} writes/s,"
        f" p50 {felt.writes.ms(50):.1f}, p99 {felt.writes.ms(99):.1f}, worst {worst:.0f} ms",
        flush=True,
    )


@asynccontextmanager
async def _feeling(felt: _Felt, group: Pistage, leader: int) -> AsyncIterator[None]:
    url = group.urls[leader]
    async with asyncio.TaskGroup() as tasks:
        watching = [tasks.create_task(_write(felt, group, url, n)) for n in range(_WRITERS)]
        watching.append(tasks.create_task(_ask_if_alive(felt, url)))
        watching.append(tasks.create_task(_watch_lag(felt, group, leader)))
        try:
            yield
        finally:
            for task in watching:
                task.cancel()


async def _write(felt: _Felt, group: Pistage, url: str, writer: int) -> None:
    connection, number = await Connection.to(url), time.monotonic_ns() // 1000 * 1000 + writer
    try:
        while True:
            number += _WRITERS
            sent = time.perf_counter()
            await connection.ask(group.put(number))
            felt.writes.latencies.append(time.perf_counter() - sent)
    finally:
        connection.close()


async def _ask_if_alive(felt: _Felt, url: str) -> None:
    connection, raw = await Connection.to(url), request("GET", "/livez")
    try:
        while True:
            sent = time.perf_counter()
            await connection.ask(raw)
            felt.livez_s.append(time.perf_counter() - sent)
            await asyncio.sleep(0.002)
    finally:
        connection.close()


async def _watch_lag(felt: _Felt, group: Pistage, leader: int) -> None:
    while True:
        felt.lag_ms.append((await group.cluster(leader))["loop_lag_ms"])
        await asyncio.sleep(0.2)
