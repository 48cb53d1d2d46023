"""Masters and agents that are killed while they work: nothing is lost, nothing runs twice, nothing is left behind."""

import asyncio
import hashlib
import json
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.processes import a_cluster, ended, has_agent, output_of, until
from tests.master.fakes import Api

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(180)]

LINES = 80
COUNTING = f"i=0; while [ $i -lt {LINES} ]; do i=$((i+1)); echo line $i; sleep 0.1; done"
EXPECTED = "".join(f"line {n}\n" for n in range(1, LINES + 1)).encode()
OWN_PROCESS = json.dumps({"name": "Counting", "image": "busybox", "run": COUNTING, "retry": 0})
SHARED_CONTEXT = json.dumps(
    {"name": "Counting", "retry": 0, "uses": {"main": [{"run": "true", "image": "busybox"}, {"run": COUNTING}]}}
)


async def printed(api: Api, run_id: str, count: int) -> None:
    """Return once the run has printed some lines."""

    async def has_printed() -> bool:
        return (await output_of(api, run_id)).count(b"\n") >= count

    await until(has_printed)


def attempts_of(run: dict[str, Any]) -> list[dict[str, Any]]:
    return [attempt for task in run["tasks"] for attempt in task["attempts"]]


def assert_whole(run: dict[str, Any], output: bytes) -> None:
    assert run["state"] == "succeeded", run
    (attempt,) = attempts_of(run)
    step = attempt["steps"][-1]
    assert output == EXPECTED
    assert (step["stdout_bytes"], step["stdout_sha256"]) == (len(EXPECTED), hashlib.sha256(EXPECTED).hexdigest())


@pytest.mark.parametrize("definition", [OWN_PROCESS, SHARED_CONTEXT], ids=["own process", "shared context"])
async def test_a_master_killed_while_a_step_prints_loses_nothing(tmp_path: Path, engine: Any, definition: str) -> None:
    async with a_cluster(tmp_path) as (owned, api):
        run = await api.submit(definition)
        await printed(api, run["id"], 5)
        for _ in range(2):
            owned.kill("master")
            await asyncio.sleep(1)  # the step goes on printing meanwhile
            owned.start_master()
            await until(lambda: has_agent(api))
        done = await ended(api, run["id"])
        assert_whole(done, await output_of(api, run["id"]))
        await nothing_left(engine)


@pytest.mark.parametrize("definition", [OWN_PROCESS, SHARED_CONTEXT], ids=["own process", "shared context"])
async def test_an_agent_killed_while_a_step_prints_adopts_it(tmp_path: Path, engine: Any, definition: str) -> None:
    async with a_cluster(tmp_path) as (owned, api):
        run = await api.submit(definition)
        await printed(api, run["id"], 5)
        for _ in range(2):
            owned.kill("agent")
            await asyncio.sleep(1)
            owned.start_agent()
        done = await ended(api, run["id"])
        assert_whole(done, await output_of(api, run["id"]))
        await nothing_left(engine)


async def test_both_killed_at_once_lose_nothing(tmp_path: Path, engine: Any) -> None:
    async with a_cluster(tmp_path) as (owned, api):
        run = await api.submit(OWN_PROCESS)
        await printed(api, run["id"], 5)
        owned.kill("agent")
        owned.kill("master")
        owned.start_agent()
        owned.start_master()
        done = await ended(api, run["id"])
        assert_whole(done, await output_of(api, run["id"]))
        await nothing_left(engine)


async def test_a_step_that_ended_while_its_agent_was_away_is_not_run_again(tmp_path: Path, engine: Any) -> None:
    async with a_cluster(tmp_path) as (owned, api):
        run = await api.submit(
            json.dumps({"name": "Short", "image": "busybox", "run": "echo a; sleep 2; echo b; exit 7", "retry": 0})
        )
        await printed(api, run["id"], 1)
        owned.kill("agent")
        await asyncio.sleep(3)
        owned.start_agent()
        done = await ended(api, run["id"])
        (attempt,) = attempts_of(done)
        assert (done["state"], attempt["exit_code"]) == ("failed", 7)
        assert await output_of(api, run["id"]) == b"a\nb\n"
        await nothing_left(engine)


async def test_a_cancel_while_the_agent_is_away_is_carried_out_when_it_returns(tmp_path: Path, engine: Any) -> None:
    async with a_cluster(tmp_path, agent_flags=("--stop-grace", "1s")) as (owned, api):
        run = await api.submit(OWN_PROCESS)
        await printed(api, run["id"], 2)
        owned.kill("agent")
        await api.call("POST", f"/api/v1/runs/{run['id']}/cancel")
        owned.start_agent("--stop-grace", "1s")
        done = await ended(api, run["id"])
        assert done["state"] == "cancelled"
        await nothing_left(engine)


async def test_an_ordered_stop_of_the_agent_leaves_its_containers_to_the_next_one(tmp_path: Path, engine: Any) -> None:
    async with a_cluster(tmp_path) as (owned, api):
        run = await api.submit(OWN_PROCESS)
        await printed(api, run["id"], 5)
        assert owned.kill("agent", signal.SIGTERM) == 0
        owned.start_agent()
        done = await ended(api, run["id"])
        assert_whole(done, await output_of(api, run["id"]))


async def nothing_left(engine: Any) -> None:
    """No container, network or volume of ours is on the engine; the agent removes them just after a run's end."""

    async def is_clean() -> bool:
        return not await engine.leftovers()

    await until(is_clean, 20)
