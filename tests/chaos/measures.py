"""Measured on real processes: how long nobody answers after a leader was killed, how fast a master catches up."""

from __future__ import annotations

import asyncio
import random
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import aiohttp

from tests.chaos.faults import Scene, caught_up
from tests.chaos.group import Group
from tests.chaos.watch import Timeline

_TRY_EVERY_S = 0.02
_ACTION = "name: Measured\nimage: busybox\nrun: echo {}\n"


async def failover_gaps(group: Group, trials: int, timeline: Timeline) -> list[float]:
    """Seconds from each kill -9 of the leader to the next write that is acknowledged, tried every 20 ms."""
    gaps = []
    for trial in range(trials):
        leader = await group.leader()
        await put(group, leader, f"before {trial}", 10.0)
        survivors = [name for name in group.masters if name != leader]
        group.kill(leader)
        gap = await _first_write(group, survivors, trial)
        gaps.append(gap)
        timeline.say(f"{trial + 1:3}: {leader} killed, next write after {1000 * gap:.0f} ms")
        group.start(leader)
        await caught_up(group, leader, 60.0)
        await asyncio.sleep(0.5)  # as in a group that has been whole for a while: votes, links and addresses settled
    return gaps


async def _first_write(group: Group, survivors: Sequence[str], trial: int) -> float:
    begun = time.monotonic()
    done = asyncio.Event()
    ended = 0.0

    async def attempt(number: int) -> None:
        nonlocal ended
        if await put(group, survivors[number % len(survivors)], f"{trial} {number}", 20.0) and not done.is_set():
            ended = time.monotonic()
            done.set()

    async with asyncio.TaskGroup() as tasks:
        tries: list[asyncio.Task[None]] = []
        while not done.is_set():
            assert time.monotonic() - begun < 60, "no write for a minute"
            tries.append(tasks.create_task(attempt(len(tries))))
            await asyncio.sleep(_TRY_EVERY_S)
        for one in tries:
            one.cancel()
    return ended - begun


def in_short(seconds: Sequence[float]) -> str:
    """Median, least and most, in milliseconds."""
    told = [round(1000 * one) for one in (statistics.median(seconds), min(seconds), max(seconds))]
    return f"median {told[0]} ms, least {told[1]}, most {told[2]} (n={len(seconds)})"


async def put(group: Group, name: str, text: str, timeout_s: float) -> bool:
    """One write: a new version of an action."""
    document = _ACTION.format(text).encode()
    answer = await group.call(name, "PUT", "/api/v1/actions/Measured", data=document, timeout_s=timeout_s)
    return answer is not None


@dataclass(slots=True)
class CatchUp:
    """Use `run` as what goes on beside a load: a follower misses `entries` changes and catches up."""

    entries: int
    lines: list[str] = field(default_factory=list)

    async def run(self, scene: Scene) -> None:
        group = scene.group
        name = scene.chance.choice([one for one in group.masters if one != await group.leader()])
        scene.say(f"kill -9 {name}; {self.entries:,} changes are made without it")
        group.kill(name)
        seconds = await write_entries(group, self.entries, scene.chance)
        scene.say(f"{self.entries:,} changes in {seconds:.0f} s: {self.entries / seconds:.0f}/s")
        await asyncio.sleep(10)  # the leader's worst lag is of the last ten seconds: from here on it is the catching up
        begun = time.monotonic()
        group.start(name)
        scene.say(f"start {name}")
        lags = await self._until_caught_up(scene, name)
        took = time.monotonic() - begun
        log = group.log_path(name).read_text(errors="replace")
        how = "by a snapshot" if "installed a snapshot" in log else "from the log"
        said = f"{name} caught up {how} in {took:.1f} s under load; worst lag of the leader's loop {max(lags)} ms"
        self.lines.append(said)
        scene.say(said)

    async def _until_caught_up(self, scene: Scene, name: str) -> list[int]:
        lags = [0]

        async def look() -> None:
            while True:
                one = await scene.group.status(await scene.group.leader())
                lags.append(one["loop_lag_ms"] if one else 0)
                await asyncio.sleep(0.2)

        async with asyncio.TaskGroup() as tasks:
            looking = tasks.create_task(look())
            await caught_up(scene.group, name, 300.0)
            looking.cancel()
        return lags


async def write_entries(group: Group, entries: int, chance: random.Random) -> float:
    """That many changes, as fast as the leader takes them; the seconds that took."""
    leader, left = await group.leader(), entries
    begun = time.monotonic()
    connector = aiohttp.TCPConnector(limit=0)
    assert group.http is not None
    async with aiohttp.ClientSession(headers=group.http.headers, connector=connector) as http:

        async def write() -> None:
            nonlocal left
            while left > 0:
                left -= 1
                url = f"{group.urls[leader]}/api/v1/actions/Gone%20{chance.randrange(10**9)}"
                async with http.delete(url) as response:
                    await response.read()

        async with asyncio.TaskGroup() as tasks:
            for _ in range(64):
                tasks.create_task(write())
    return time.monotonic() - begun
