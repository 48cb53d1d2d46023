"""`scripts/bench cron`: ten thousand schedules that fire once a minute, on three masters without work besides.

The floor is the same run of the same definition, submitted in batches of a hundred: what it costs the leader to have a
run made at all. Cost is processor time of the leader, less what it takes when nothing is to be done.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from benches.groups import TOKEN, Pistage, free_ports, running
from benches.load import Connection, ask, request

_EACH = 20  # schedules of one definition
_IDLE_S = 10.0
_MEASURED_S = 60.0
_BATCH = 100


@dataclass(frozen=True, slots=True)
class Options:
    """How many schedules there are."""

    schedules: int


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of `cron`."""
    parser.add_argument("--schedules", type=int, default=10_000, help="cron: how many fire once a minute")


async def crons(directory: Path, options: Options) -> None:
    """Floor and schedules on the same masters, one after the other."""
    group = Pistage(directory / "masters", free_ports(3))
    async with running(group):
        leader = await group.leader()
        url = group.urls[leader]
        await asyncio.sleep(2.0)
        before = group.cpu_of(leader)
        await asyncio.sleep(_IDLE_S)
        idle = (group.cpu_of(leader) - before) / _IDLE_S
        before, begun = group.cpu_of(leader), time.time()
        await _batches(url, options.schedules)
        spent = group.cpu_of(leader) - before - idle * (time.time() - begun)
        floor_ms = spent * 1000 / options.schedules
        await _put_all(url, options.schedules)
        await asyncio.sleep(5.0)
        before, begun = group.cpu_of(leader), time.time()
        await asyncio.sleep(_MEASURED_S)
        spent = group.cpu_of(leader) - before - idle * _MEASURED_S
        fires = await _last_fires(url)
        late = sorted(_ms(fire["at"]) - _ms(fire["nominal"]) for fire in fires)
        fired = sum(begun * 1000 <= _ms(fire["at"]) < (begun + _MEASURED_S) * 1000 for fire in fires)
        assert fired > options.schedules * 0.9, f"only {fired} of {options.schedules} fired within a minute"
    each_ms = spent * 1000 / fired
    at = [late[len(late) * part // 1000] for part in (500, 990)]
    print(f"  a run in a batch of {_BATCH}             {floor_ms:8.3f} ms of the leader's processor each")
    print(f"  a fire of {options.schedules} schedules       {each_ms:8.3f} ms, {each_ms / floor_ms:.2f} of the floor")
    print(f"  from its time to its run         p50 {at[0]}, p99 {at[1]}, most {late[-1]} ms")


async def _batches(url: str, count: int) -> None:
    connection = await Connection.to(url)
    definition = json.dumps({"name": "plain", "image": "none", "run": "true"})
    body = json.dumps({"definition": definition, "runs": [{}] * _BATCH}).encode()
    for _ in range(count // _BATCH):
        status, answer = await connection.ask(request("POST", "/api/v1/runs/batch", body, token=TOKEN))
        assert status == 201, answer
    connection.close()


async def _put_all(url: str, count: int) -> None:
    connection = await Connection.to(url)
    for number in range(count // _EACH):
        seconds = [{"cron": f"{(number * _EACH + n) % 60} * * * * *"} for n in range(_EACH)]
        definition = {"name": f"d{number}", "image": "none", "run": "true", "schedule": seconds}
        body = json.dumps(definition).encode()
        status, answer = await connection.ask(request("POST", "/api/v1/runs", body, token=TOKEN))
        assert status == 201, answer
    connection.close()


async def _last_fires(url: str) -> Sequence[dict[str, Any]]:
    fires, cursor = [], ""
    while True:
        path = f"/api/v1/schedules?limit=500{cursor}"
        page = json.loads(await ask(url, request("GET", path, token=TOKEN)))
        fires += [one["last"] for one in page["items"] if one["last"] is not None]
        if page["next"] is None:
            return fires
        cursor = f"&cursor={page['next']}"


def _ms(text: str) -> float:
    return datetime.fromisoformat(text).timestamp() * 1000
