"""What a thousand readers of one log cost the step that prints it, and the masters."""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from benches.groups import TOKEN
from benches.load import spread
from benches.logs_cluster import FIRST_LINES, Cluster, CpuMeter, Gate, Options, Text, a_cluster, gates
from benches.logs_floor import printing

_STEADY_LINES, _STEADY_PER_S = 4_000, 200
_FULL_BYTES = 200_000_000
_CONNECT_S, _SAY_S, _RUN_S = 120.0, 60.0, 900.0


@dataclass(frozen=True, slots=True)
class Round:
    """Seconds from the gate to the end of the run; KiB resident of the leader, and of the three masters.

    First before anybody followed, then when all were connected, then at most.
    """

    seconds: float
    leader_kib: tuple[int, int, int]
    masters_kib: tuple[int, int, int]


async def followers(directory: Path, text: Text, options: Options) -> None:
    """Each kind of printing in turn without and with them, on the host runtime: the least there is between."""
    full = text.part(_FULL_BYTES // 100)
    kinds = {
        f"{_STEADY_LINES:,} lines, {_STEADY_PER_S}/s": _steady,
        f"{_FULL_BYTES / 1e6:,.0f} MB at full speed": lambda cluster, gate: printing(cluster.inside, gate, what=full),
    }
    print(f"{options.followers:,} SSE followers, in a process of nice 10, beside none", flush=True)
    async with a_cluster(directory, "host", text) as cluster:
        for number, (kind, script) in enumerate(kinds.items()):
            rounds: dict[int, list[Round]] = defaultdict(list)
            for turn in range(options.rounds):
                for count in (0, options.followers):
                    with gates(text.directory, f"followed-{number}-{turn}-{count}") as (gate,):
                        rounds[count].append(await _round(cluster, gate, script(cluster, gate), count))
            _print(kind, rounds[0], rounds[options.followers], options.followers)


def _steady(cluster: Cluster, gate: Gate) -> str:
    # By the clock, so that it takes as long unless somebody holds it up.
    program = (
        "import sys, time; began = time.monotonic()\n"
        f"for n in range({_STEADY_LINES}):\n"
        f"    time.sleep(max(0, began + n / {_STEADY_PER_S} - time.monotonic())); print(f'{{n:099d}}', flush=True)"
    )
    path = cluster.text.directory / "steady.py"
    path.write_text(program)
    return f"cat {cluster.inside}/first; : <{gate.path}; {sys.executable} {path}"


async def _round(cluster: Cluster, gate: Gate, script: str, count: int) -> Round:
    await cluster.find_leader()
    resident = []
    run_id = await cluster.submit(script)
    await cluster.has_printed(run_id, FIRST_LINES * 100)
    resident.append(cluster.resident_kib())
    async with _following(cluster, run_id, count) as reading:
        resident.append(cluster.resident_kib())
        cluster.forget_peaks()
        meter = CpuMeter(cluster.pids | ({"clients": reading.pid} if reading else {}))
        opened = time.time()
        gate.open()
        run = await cluster.ended(run_id, _RUN_S)
        seconds = datetime.fromisoformat(run["finished_at"]).timestamp() - opened
        used = meter.used()
        resident.append(cluster.resident_kib(peak=True))
        said = await _say(reading) if reading else None
    print(f"    {count:5,} followers: {seconds:6.2f} s; CPU s: {used}", flush=True)
    if said:
        print(f"      at its end they had {_position(said)}", flush=True)
    before, idle, most = resident
    leader = cluster.masters.pid(cluster.leader)
    return Round(seconds, (before[leader], idle[leader], most[leader]), (*(sum(found.values()) for found in resident),))


def _position(said: dict[str, Any]) -> str:
    total, middle = sum(said["bytes"]) / 1e6, statistics.median(said["last"])
    return f"{total:,.0f} MB together; last piece {said['last'][0]:,}–{said['last'][-1]:,} (median {middle:,.0f})"


def _print(kind: str, without: list[Round], followed: list[Round], count: int) -> None:
    ratios = [b.seconds / a.seconds for a, b in zip(without, followed, strict=True)]
    alone, along = ([one.seconds for one in rounds] for rounds in (without, followed))
    print(f"  {kind}: alone {spread(alone, 2)} s, followed {spread(along, 2)} s, ratio {spread(ratios, 2)} (≤ 1.10)")
    for who, kib in (("the leader", lambda one: one.leader_kib), ("all three", lambda one: one.masters_kib)):
        idle = [(kib(one)[1] - kib(one)[0]) / count for one in followed]
        most = [(kib(b)[2] - kib(a)[2]) / count for a, b in zip(without, followed, strict=True)]
        print(f"  a follower costs {who} {spread(most, 1)} KiB, connected {spread(idle, 1)} (target ≤ 64)", flush=True)


@asynccontextmanager
async def _following(cluster: Cluster, run_id: str, count: int) -> AsyncIterator[asyncio.subprocess.Process | None]:
    """The process of the followers, each of them answered; killed at the end."""
    if not count:
        yield None
        return
    program = str(Path(__file__).parent / "log_followers.py")
    path = f"/api/v1/runs/{run_id}/logs?follow=1"
    process = await asyncio.create_subprocess_exec(
        *("nice", "-n", "10", sys.executable, program, str(count), path, *cluster.masters.urls),
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=os.environ | {"PISTAGE_TOKEN": TOKEN}, limit=1 << 24,
    )  # fmt: skip
    assert process.stdout is not None
    try:
        async with asyncio.timeout(_CONNECT_S):
            assert json.loads(await process.stdout.readline())["following"] == count
        yield process
    finally:
        process.kill()
        await process.wait()


async def _say(process: asyncio.subprocess.Process) -> dict[str, Any]:
    assert process.stdin is not None and process.stdout is not None
    async with asyncio.timeout(_SAY_S):
        process.stdin.write(b"\n")
        return dict(json.loads(await process.stdout.readline()))
