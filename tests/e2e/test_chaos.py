"""Masters and agents killed again and again under a stream of submissions: each run is there once, whole, run once."""

import asyncio
import json
import random
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.e2e.conftest import Engine
from tests.e2e.processes import Processes, a_cluster, ended, output_of
from tests.e2e.test_recovery import attempts_of, nothing_left
from tests.master.fakes import Api

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(240)]

RUNS = 10
KILLS = 8
SLOTS = ("--slots", "12")
DEFINITION = json.dumps(
    {
        "name": "Chaos",
        "retry": 0,
        "uses": {
            "one": [
                {"run": "for i in 1 2 3 4 5 6 7 8 9 10; do echo a$i; sleep 0.2; done", "image": "busybox"},
                {"run": "for i in 1 2 3 4 5; do echo b$i; sleep 0.2; done"},
            ],
            "two": {"needs": ["one"], "steps": [{"run": "echo c; sleep 1; echo d", "image": "busybox"}]},
        },
    }
)
EXPECTED = "".join([f"a{n}\n" for n in range(1, 11)] + [f"b{n}\n" for n in range(1, 6)])


async def submit_all(api: Api) -> list[str]:
    """Ids of the runs; a submission that is not answered is made again under its key."""
    made: list[str] = []
    while len(made) < RUNS:
        try:
            made.append((await api.submit(DEFINITION, headers={"Idempotency-Key": f"chaos-{len(made)}"}))["id"])
            await asyncio.sleep(1)
        except aiohttp.ClientError:
            await asyncio.sleep(0.2)
    return made


async def kill_at_random(owned: Processes, chance: random.Random) -> None:
    for _ in range(KILLS):
        await asyncio.sleep(chance.uniform(0.5, 3))
        victims = chance.choice([["master"], ["agent"], ["master", "agent"]])
        for victim in victims:
            owned.kill(victim)
        await asyncio.sleep(chance.uniform(0, 1.5))
        if "master" in victims:
            owned.start_master()
        if "agent" in victims:
            owned.start_agent(*SLOTS)


def states_of(run: dict[str, Any]) -> list[str]:
    return [attempt["state"] for attempt in attempts_of(run)]


@pytest.mark.parametrize("seed", [1])
async def test_nothing_is_lost_doubled_or_left_behind(tmp_path: Path, engine: Engine, seed: int) -> None:
    async with a_cluster(tmp_path, agent_flags=SLOTS) as (owned, api):
        made, _ = await asyncio.gather(submit_all(api), kill_at_random(owned, random.Random(seed)))
        assert len(set(made)) == RUNS
        for run_id in made:
            done = await ended(api, run_id, 120)
            assert (done["state"], states_of(done)) == ("succeeded", ["succeeded", "succeeded"]), done
            assert (await output_of(api, run_id, task="one")).decode() == EXPECTED
        _, listed = await api.call("GET", "/api/v1/runs?limit=100")
        assert len(listed["items"]) == RUNS
        await nothing_left(engine)
