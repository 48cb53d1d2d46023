"""How fast output goes from a step to `pistage logs -f`: one that prints a gigabyte, and a hundred at once."""

from __future__ import annotations

import asyncio
import hashlib
import statistics
import subprocess
import time
from collections import defaultdict
from pathlib import Path

from benches.load import spread
from benches.logs_cluster import (
    FIRST_LINES,
    LINE_BYTES,
    Cluster,
    CpuMeter,
    Gate,
    Options,
    Text,
    a_cluster,
    engine_pid,
    gates,
)  # fmt: skip
from benches.logs_floor import bare_attach, docker_logs, printing, until_written

_FIRST_BYTES = FIRST_LINES * LINE_BYTES
_AT_ONCE = 100


async def throughput(directory: Path, text: Text, options: Options) -> None:
    """The floor, `docker logs -f` and Pistage in turn, then a round more of Pistage that is hashed."""
    print(f"{text.length / 1e6:,.0f} MB of 100-byte lines from one container, three masters, two copies", flush=True)
    rates: dict[str, list[float]] = defaultdict(list)
    async with a_cluster(directory, "docker", text) as cluster:
        for number in range(options.rounds):
            with gates(text.directory, f"bare-{number}", f"docker-{number}", f"ours-{number}") as (bare, docker, gate):
                for name, (rate, cpu) in (
                    ("bare attach", bare_attach(text, bare)),
                    ("docker logs -f", docker_logs(text, docker)),
                    ("pistage logs -f", await ours(cluster, [printing(cluster.inside, gate)], gate, text.length)),
                ):
                    rates[name].append(rate)
                    print(f"    {name:<16} {rate:6.1f} MB/s; CPU s: {cpu}", flush=True)
        with gates(text.directory, "passed-on") as (gate,):
            script = printing(cluster.inside, gate)
            rate, cpu = await ours(cluster, [script], gate, text.length, asks_leader=False)
            print(f"    through a master that does not lead {rate:.1f} MB/s; CPU s: {cpu}", flush=True)
        await verify(cluster, text)
    for name, values in rates.items():
        print(f"  {name:<34} {spread(values, 1)} MB/s, n={len(values)}")
    floors, others, figures = rates.values()
    ratios = [ours / floor for ours, floor in zip(figures, floors, strict=True)]
    print(f"  of the bare attach {spread(ratios, 2)} (target ≥ 0.7)")
    ratios = [ours / other for ours, other in zip(figures, others, strict=True)]
    print(f"  of docker logs -f {spread(ratios, 2)} (target ≥ 2)", flush=True)


async def ours(
    cluster: Cluster, scripts: list[str], gate: Gate, length: int, *, asks_leader: bool = True
) -> tuple[float, str]:
    """MB/s from the gate to the last byte that `pistage logs -f` writes, and the CPU that it took."""
    await cluster.find_leader()
    await cluster.calm()
    run_id = await cluster.submit(*scripts)
    client = cluster.follow(run_id, subprocess.DEVNULL, asks_leader=asks_leader)
    try:
        until_written(client, len(scripts) * _FIRST_BYTES)
        engine = {"engine": engine_pid()} if cluster.runtime == "docker" else {}
        meter = CpuMeter(cluster.pids | {"CLI": client.pid} | engine)
        begun = time.perf_counter()
        gate.open()
        if (written := until_written(client, length)) < length:
            print(f"    NOT COMPLETE: {written:,} of {length:,} bytes", flush=True)
        taken = time.perf_counter() - begun
        used = meter.used()
        assert client.wait(timeout=60) == 0, "pistage logs -f failed"
    finally:
        client.kill()
        client.wait()
    await cluster.ended(run_id)
    return (length - len(scripts) * _FIRST_BYTES) / 1e6 / taken, str(used)


async def verify(cluster: Cluster, text: Text) -> None:
    """Count and SHA-256 of what the CLI prints, while the step prints it, and once more when it is over."""
    with gates(text.directory, "verified") as (gate,):
        run_id = await cluster.submit(printing(cluster.inside, gate))
        gate.open()
        live = await asyncio.to_thread(_hashed, cluster, run_id)
        await cluster.ended(run_id)
    again = await asyncio.to_thread(_hashed, cluster, run_id)
    for when, found in (("while it was printed", live), ("afterwards", again)):
        is_same = found == (text.length, text.digest())
        print(f"  {found[0]:,} bytes {when}, {'complete' if is_same else 'NOT COMPLETE'} by SHA-256", flush=True)


def _hashed(cluster: Cluster, run_id: str) -> tuple[int, str]:
    client = cluster.follow(run_id, subprocess.PIPE)
    assert client.stdout is not None
    count, digest = 0, hashlib.sha256()
    while data := client.stdout.read(1 << 18):
        count += len(data)
        digest.update(data)
    assert client.wait() == 0, "pistage logs -f failed"
    return count, digest.hexdigest()


async def many(directory: Path, text: Text, options: Options) -> None:
    """A hundred tasks that print at once, and one that prints as much alone; as containers, and as processes."""
    for runtime in ("docker", "host"):
        await _many(directory / runtime, text, options, runtime)


async def _many(directory: Path, text: Text, options: Options, runtime: str) -> None:
    what = {"docker": "containers", "host": "processes"}[runtime]
    print(f"{text.length / 1e6:,.0f} MB by {_AT_ONCE} {what} at once, and by one alone", flush=True)
    part = text.part(text.lines // _AT_ONCE - FIRST_LINES)
    alone, together = [], []
    async with a_cluster(directory, runtime, text) as cluster:
        for number in range(options.rounds):
            with gates(text.directory, f"one-{number}", f"many-{number}") as (one, all_of_them):
                rate, cpu = await ours(cluster, [printing(cluster.inside, one)], one, text.length)
                alone.append(rate)
                print(f"    one {rate:6.1f} MB/s; CPU s: {cpu}", flush=True)
                scripts = [printing(cluster.inside, all_of_them, what=part)] * _AT_ONCE
                rate, cpu = await ours(cluster, scripts, all_of_them, text.lines // _AT_ONCE * LINE_BYTES * _AT_ONCE)
                together.append(rate)
                print(f"    {_AT_ONCE} {rate:6.1f} MB/s; CPU s: {cpu}", flush=True)
    ratio = statistics.median(rate / floor for rate, floor in zip(together, alone, strict=True))
    print(f"  one alone {spread(alone, 1)} MB/s, {_AT_ONCE} together {spread(together, 1)} MB/s")
    print(f"  ratio {ratio:.2f} (target ≥ 0.7)", flush=True)
