"""How fast something is found in a gigabyte of output: a line by its number, lines by what they hold; live and sealed."""

from __future__ import annotations

import asyncio
import json
import random
import re
import subprocess
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from benches.groups import TOKEN
from benches.load import Connection, request, spread
from benches.logs_cluster import FIRST_LINES, Cluster, CpuMeter, Options, Text, a_cluster, gates
from benches.logs_floor import printing
from benches.logs_latency import percentile

_ASKED = 50  # lines, each another
_PRINT_S, _SEAL_S, _GREP_S = 300.0, 300.0, 300.0

Asked = Callable[[Cluster, str], Awaitable[None]]


async def line(directory: Path, text: Text, options: Options) -> None:
    """Lines by their number, over one connection."""
    print(f"a line of {text.lines:,} by its number, {_ASKED * options.rounds} times, each another", flush=True)
    taken = [_sed(text, random.randrange(text.lines)) for _ in range(5)]
    print(f"  {'sed -n on the plain file':<34} p50 {percentile(taken, 50):6.1f} ms, most {max(taken):6.1f}")

    async def ask_all(cluster: Cluster, when: str) -> None:
        await _ask_lines(cluster, text, when, _ASKED * options.rounds)

    await _live_and_sealed(directory, text, ask_all)


async def _ask_lines(cluster: Cluster, text: Text, when: str, count: int) -> None:
    connection = await Connection.to(cluster.url)
    run_id = cluster.kept_run_id
    taken = []
    for number in [text.lines // 2, *(random.randrange(text.lines) for _ in range(count))]:
        path = f"/api/v1/runs/{run_id}/logs?by=line&offset={number}&limit=1"
        raw = request("GET", path, token=TOKEN).replace(b"\r\n\r\n", b"\r\nAccept: application/x-ndjson\r\n\r\n", 1)
        begun = time.perf_counter()
        async with asyncio.timeout(60):
            status, body = await connection.ask(raw)
        taken.append((time.perf_counter() - begun) * 1000)
        assert status == 200, body
        found = [json.loads(one) for one in body.splitlines() if one]
        assert [one["line"] for one in found] == [number] and found[0]["text"].startswith(f"{number:010d} "), found
    connection.close()
    p50, p99 = percentile(taken[1:], 50), percentile(taken[1:], 99)
    print(f"  {when:<34} p50 {p50:6.1f} ms, p99 {p99:6.1f}, the first {taken[0]:6.1f}  (target ≤ 50)", flush=True)


def _sed(text: Text, number: int) -> float:
    begun = time.perf_counter()
    subprocess.run(
        ["sed", "-n", f"{max(1, number - FIRST_LINES + 1)}{{p;q}}", str(text.rest)],
        stdout=subprocess.DEVNULL,
        check=True,
    )
    return (time.perf_counter() - begun) * 1000


# --- grep -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Pattern:
    name: str
    text: str
    is_regex: bool = False
    has_target: bool = True


_PATTERNS = (
    _Pattern("literal, a few lines of a million", "fetch request=0bad"),
    _Pattern("expression, thirty of a million", "took=(dead|beef) us", is_regex=True),
    _Pattern("expression with classes, as few", "WARN [a-z]+ request=[0-9a-f]{8}00[0-9a-f]+ took=f", is_regex=True),
    _Pattern("literal, one line of 64", "WARN store", has_target=False),
)


async def grep(directory: Path, text: Text, options: Options) -> None:
    """`grep=` beside `grep -c` on the plain file in the page cache, in turn."""
    print(f"lines of {text.length / 1e6:,.0f} MB by what they hold, beside grep -c on the plain file", flush=True)

    async def ask_all(cluster: Cluster, when: str) -> None:
        floors: dict[_Pattern, list[float]] = defaultdict(list)
        rates: dict[_Pattern, list[float]] = defaultdict(list)
        for _ in range(options.rounds):
            for pattern in _PATTERNS:
                count, seconds = await asyncio.to_thread(_grep, text, pattern)
                floors[pattern].append(text.length / 1e6 / seconds)
                meter = CpuMeter(cluster.pids)
                found, seconds = await _ask_grep(cluster, pattern)
                used = meter.used()
                rates[pattern].append(text.length / 1e6 / seconds)
                assert found == count, f"{pattern.text}: {found:,} lines, and by grep {count:,}"
                print(f"    {pattern.text}: {found:,} lines in {seconds:.2f} s; CPU s: {used}", flush=True)
        for pattern in _PATTERNS:
            ratios = [ours / floor for ours, floor in zip(rates[pattern], floors[pattern], strict=True)]
            target = " (target ≥ 0.3)" if pattern.has_target else ""
            print(f"  {when}, {pattern.name:<34} {spread(rates[pattern])} MB/s, grep {spread(floors[pattern])}")
            print(f"    ratio {spread(ratios, 2)}{target}", flush=True)

    await _live_and_sealed(directory, text, ask_all)


def _grep(text: Text, pattern: _Pattern) -> tuple[int, float]:
    how = "-E" if pattern.is_regex else "-F"
    begun = time.perf_counter()
    files = [str(text.first), str(text.rest)]
    done = subprocess.run(["grep", "-ch", how, "-e", pattern.text, *files], stdout=subprocess.PIPE, check=True)
    return sum(map(int, done.stdout.split())), time.perf_counter() - begun


async def _ask_grep(cluster: Cluster, pattern: _Pattern) -> tuple[int, float]:
    parameters = {"grep": pattern.text} | ({"regex": "1"} if pattern.is_regex else {})
    headers = {"Authorization": f"Bearer {TOKEN}", "Accept": "application/x-ndjson"}
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=_GREP_S)) as http:
        url = f"{cluster.url}/api/v1/runs/{cluster.kept_run_id}/logs"
        begun = time.perf_counter()
        async with http.get(url, params=parameters, headers=headers) as response:
            body = await response.read()
        taken = time.perf_counter() - begun
        assert response.status == 200, body
    found: list[dict[str, Any]] = [json.loads(one) for one in body.splitlines() if one]
    lines = [one["text"] for one in found if one["kind"] == "line"]
    wanted = re.compile(pattern.text if pattern.is_regex else re.escape(pattern.text))
    assert all(wanted.search(one) for one in lines), "a line that does not hold it"
    return len(lines), taken


# --- live, then sealed ------------------------------------------------------------------------------------------------


async def _live_and_sealed(directory: Path, text: Text, ask_all: Asked) -> None:
    """The same of a step that has printed all of it and goes on, and once its attempt is one file."""
    async with a_cluster(directory, "host", text) as cluster:
        with gates(text.directory, "print", "end") as (gate, end):
            gate.open()
            cluster.kept_run_id = await cluster.submit(printing(cluster.inside, gate, then=end))
            await cluster.has_printed(cluster.kept_run_id, text.length, _PRINT_S)
            await asyncio.sleep(1)  # until the last of it is safe
            await ask_all(cluster, "live")
            end.open()
            await cluster.ended(cluster.kept_run_id)
        begun = time.perf_counter()
        sealed = await _sealed(cluster)
        if sealed is None:
            print(f"  not sealed after {_SEAL_S:g} s: what follows is not measured", flush=True)
            return
        size = sum(path.stat().st_size for path in sealed) / 1e6
        print(
            f"  sealed within {time.perf_counter() - begun:.1f} s of its end, {size:,.0f} MB on the leader", flush=True
        )
        await ask_all(cluster, "sealed")


async def _sealed(cluster: Cluster) -> list[Path] | None:
    """The sealed files of the run on the leader, once every master is done with it; None if that takes too long."""
    directories = [cluster.logs_of(cluster.kept_run_id, node) for node in range(cluster.masters.nodes)]
    deadline = time.monotonic() + _SEAL_S
    while time.monotonic() < deadline:
        if all(list(path.glob("*.sealed")) and not list(path.glob("*/*.1")) for path in directories):
            return list(directories[cluster.leader].glob("*.sealed"))
        await asyncio.sleep(0.2)
    return None
