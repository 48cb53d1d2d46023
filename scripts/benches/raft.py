"""`scripts/bench raft`: what the masters' log costs, beside etcd, PySyncObj and the disk, all in one run on one disk.

Every group has three nodes, each a process; every request of a table goes to the leader, over kept connections.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import signal
import statistics
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benches import floor, groups
from benches.groups import Etcd, Group, Pistage, PySyncObj, free_ports, running
from benches.load import Load, Prober, Request, ask, drive, spread
from benches.snapshot import snapshot

PARTS = ("writes", "kills", "batches", "snapshot")
_PER_REQUEST = 100  # writes in one request, where there are several


@dataclass(frozen=True, slots=True)
class Options:
    """How long and how often."""

    rounds: int
    seconds: float
    trials: int
    runs: int  # queued before the snapshot
    parts: tuple[str, ...]


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of `raft`."""
    parser.add_argument("--rounds", type=int, default=3, help="raft: how often each is measured, one after the other")
    parser.add_argument("--seconds", type=float, default=4.0, help="raft: how long each time")
    parser.add_argument("--trials", type=int, default=30, help="raft: how often each leader is killed")
    parser.add_argument("--runs", type=int, default=100_000, help="raft: how many are queued before the snapshot")
    parser.add_argument("--parts", default=",".join(PARTS), help=f"raft: which of {','.join(PARTS)}")
    parser.add_argument("--quick", action="store_true", help="raft: does it work? The figures mean nothing")


def options_of(arguments: argparse.Namespace) -> Options:
    """What was asked for; SystemExit for a part that there is not."""
    parts = tuple(arguments.parts.split(","))
    if unknown := set(parts) - set(PARTS):
        raise SystemExit(f"raft has no part {', '.join(sorted(unknown))}: expected some of {','.join(PARTS)}")
    if arguments.quick:
        return Options(1, 1.0, 1, 3_000, parts)
    return Options(arguments.rounds, arguments.seconds, arguments.trials, arguments.runs, parts)


async def raft(directory: Path, options: Options) -> None:
    """All the parts, one after the other. A SIGTERM stops what was started, too."""
    task = asyncio.current_task()
    assert task is not None, "inside asyncio.run"
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    if set(options.parts) & {"writes", "kills"}:
        groups.need_etcd()
    if "writes" in options.parts:
        await writes(directory / "writes", options)
    if "kills" in options.parts:
        await kills(directory / "kills", options)
    if "batches" in options.parts:
        await batches(directory / "batches", options)
    if "snapshot" in options.parts:
        await snapshot(directory / "snapshot", options.runs)


# --- writes ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Row:
    """A line of the table: what is asked of whom, by how many at once."""

    group: Group
    label: str
    make: Request
    writers: int
    per_request: int = 1


@dataclass(slots=True)
class _Measured:
    load: Load
    cpu_s: float


async def writes(directory: Path, options: Options) -> None:
    """The smallest write of each, by 1, 64 and 256 writers, and a hundred in one request."""
    directory.mkdir()
    python = await asyncio.to_thread(groups.make_pysyncobj_venv, directory / "venv")
    pistage = Pistage(directory / "pistage", free_ports(3))
    etcd = Etcd(directory / "etcd", free_ports(6))
    pysyncobj = PySyncObj(directory / "pysyncobj", free_ports(6), python)
    rows = _rows(pistage, etcd, pysyncobj)
    measured: dict[_Row, list[_Measured]] = defaultdict(list)
    floors: dict[str, list[Load]] = defaultdict(list)
    async with running(pistage, etcd, pysyncobj):
        leader = await pistage.leader()
        await ask(pistage.urls[leader], pistage.put(0))  # the action that runs are made of
        for _ in range(options.rounds):
            floors["append 512 bytes + fdatasync"].append(floor.append_and_sync(directory, options.seconds / 4))
            floors["SQLite, one row a commit, FULL"].append(floor.commit_row(directory, options.seconds / 4))
            for row in rows:
                measured[row].append(await _measure(row, options.seconds))
        idle = await _idle(pistage, etcd, pysyncobj)
    print(f"writes at the leader, median of {options.rounds} rounds of {options.seconds:g} s (least–most)")
    print(f"  {'':<44} {'writes/s':>24} {'p50 ms':>9} {'p99 ms':>9} {'CPU ms a write':>16}")
    for name, loads in floors.items():
        _print_row(name, [load.per_s for load in loads], loads, None)
    for row, results in measured.items():
        loads = [one.load for one in results]
        rates = [load.per_s * row.per_request for load in loads]
        cpu = [1000 * one.cpu_s / max(1, len(one.load.latencies) * row.per_request) for one in results]
        _print_row(f"{row.group.name}, {row.label}", rates, loads, cpu)
    print("  CPU of the three nodes together; idle they take " + ", ".join(idle))
    _print_ratios(measured)


def _rows(pistage: Pistage, etcd: Group, pysyncobj: Group) -> list[_Row]:
    rows = []
    for writers in (1, 64, 256):
        label = f"{writers} writer{'s' if writers > 1 else ''}"
        rows += [_Row(group, label, group.put, writers) for group in (etcd, pistage, pysyncobj)]
        rows.append(_Row(pistage, f"{label}, one run each", pistage.submit, writers))
    for writers in (1, 4):
        label = f"{_PER_REQUEST} in one request, {writers} at once"
        rows += [_Row(group, label, group.put_many, writers, _PER_REQUEST) for group in (etcd, pistage, pysyncobj)]
    return rows


async def _measure(row: _Row, seconds: float) -> _Measured:
    group = row.group
    url = group.urls[await group.leader()]
    offset = random.randrange(1 << 30) * 1000  # texts that no round before had
    before = group.cpu_s()
    load = await drive(url, lambda n: row.make(offset + n), writers=row.writers, seconds=seconds)
    if load.refused:
        print(f"  {group.name}, {row.label}: {load.refused} refused")
    return _Measured(load, group.cpu_s() - before)


async def _idle(*each: Group) -> list[str]:
    await asyncio.sleep(1)
    before = {group: group.cpu_s() for group in each}
    await asyncio.sleep(3)
    return [f"{group.name} {(group.cpu_s() - before[group]) / 3:.1%} of a core" for group in each]


def _print_row(name: str, rates: list[float], loads: list[Load], cpu: list[float] | None) -> None:
    p50, p99 = (statistics.median(load.ms(percent) for load in loads) for percent in (50, 99))
    spent = spread(cpu, 2) if cpu else ""
    print(f"  {name:<44} {spread(rates):>24} {p50:9.2f} {p99:9.2f} {spent:>20}")


def _print_ratios(measured: dict[_Row, list[_Measured]]) -> None:
    def of(group: str, writers: int, value: Callable[[Load], float]) -> float:
        rows = [row for row in measured if row.group.name == group and row.label.startswith(f"{writers} writer")]
        return statistics.median(value(one.load) for one in measured[rows[0]])

    slower = of("Pistage", 1, lambda load: load.ms(50)) / of("etcd", 1, lambda load: load.ms(50))
    share = of("Pistage", 256, lambda load: load.per_s) / of("etcd", 256, lambda load: load.per_s)
    print(f"  p50 of one writer {slower:.2f} of etcd's (target ≤ 2)")
    print(f"  writes/s of 256 writers {share:.2f} of etcd's (target ≥ 0.5)")


# --- a leader that dies ------------------------------------------------------------------------------------------


async def kills(directory: Path, options: Options) -> None:
    """kill -9 of the leader while a writer tries every 20 ms at the others: how long nothing is acknowledged."""
    print(f"leader kill -9, longest gap between acknowledged writes, {options.trials} times each", flush=True)
    each = [
        Pistage(directory / "pistage", free_ports(3)),
        Pistage(directory / "pistage-1s", free_ports(3), election_timeout="1s"),
        Etcd(directory / "etcd", free_ports(6)),
    ]
    gaps: dict[Group, list[float]] = defaultdict(list)
    async with running(*each):
        for _ in range(options.trials):
            for group in each:
                gaps[group].append(await _kill_leader(group))
    for group in each:
        print(f"  {group.name:<44} {spread([1000 * gap for gap in gaps[group]]):>24} ms")
    ours, equal, etcds = (statistics.median(gaps[group]) for group in each)
    print(f"  at our defaults {ours * 1000:,.0f} ms (target ≤ 1,000)")
    print(f"  at etcd's timeouts {equal / etcds:.2f} of etcd's (target ≤ 1)", flush=True)


async def _kill_leader(group: Group) -> float:
    leader = await group.leader()
    others = [url for node, url in enumerate(group.urls) if node != leader]
    offset = random.randrange(1 << 30) * 1000
    prober = Prober(others, lambda n: group.put(offset + n))
    async with _in_background(prober):
        await asyncio.sleep(1 + random.random() / 2)  # the heartbeats are at another place each time
        killed_at = time.monotonic()
        group.kill(leader)
        await _until_acknowledged(prober, killed_at)
    group.start(leader)
    await group.leader()
    return prober.longest_gap_s(killed_at)


async def _until_acknowledged(prober: Prober, since: float) -> None:
    """Until writes go on for a second."""
    while time.monotonic() < since + 30:
        await asyncio.sleep(0.1)
        now = time.monotonic()
        after = [at for at in prober.acknowledged if at > now - 1]
        if now > since + 1.5 and len(after) >= 25:
            return
    raise TimeoutError("nothing was acknowledged for 30 s")


@asynccontextmanager
async def _in_background(prober: Prober) -> AsyncIterator[None]:
    async with asyncio.TaskGroup() as group:
        task = group.create_task(prober.run())
        try:
            yield
        finally:
            task.cancel()


# --- submissions -------------------------------------------------------------------------------------------------


async def batches(directory: Path, options: Options) -> None:
    """Runs a second, in batches of a hundred and of a thousand."""
    print(f"runs submitted in batches at the leader, median of {options.rounds} rounds (least–most)", flush=True)
    group = Pistage(directory, free_ports(3))
    rates: dict[str, list[float]] = defaultdict(list)
    async with running(group):
        url = group.urls[await group.leader()]
        await ask(url, group.put(0))
        for _ in range(options.rounds):
            for count, writers in ((100, 1), (100, 8), (1000, 1), (1000, 4)):
                raw = group.submit_many(count)
                before = group.cpu_s()
                load = await drive(url, partial(_always, raw), writers=writers, seconds=options.seconds)
                label = f"batches of {count:,}, {writers} at once"
                rates[label].append(load.per_s * count)
                cpu_ms = 1000 * (group.cpu_s() - before) / max(1, len(load.latencies) * count)
                rates[f"{label}: CPU"].append(cpu_ms)
    _print_batches(rates)


def _always(raw: bytes, number: int) -> bytes:
    return raw


def _print_batches(rates: dict[str, list[float]]) -> None:
    for label, values in rates.items():
        if not label.endswith("CPU"):
            cpu = spread(rates[f"{label}: CPU"], 3)
            print(f"  {label:<44} {spread(values):>24} runs/s, CPU {cpu} ms a run")
    print("  (target ≥ 5,000 runs/s)", flush=True)
