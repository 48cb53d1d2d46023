"""Where tasks go, and when: what no agent can take is said at once, what one that joins can take starts at once."""

from __future__ import annotations

import json
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.fleets import Fleet, a_fleet, all_ended, attempts_of, connected
from tests.e2e.processes import until
from tests.master.fakes import Api

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

_CONNECTED = re.compile(r"^(\S+ \S+) INFO \S+ master=\S+ epoch=\d+ connected$", re.MULTILINE)


def task(script: str, **keys: Any) -> str:
    return json.dumps({"name": "Task", "image": "busybox", "run": script, "retry": 0, **keys})


@asynccontextmanager
async def two_agents(directory: Path, *flags: str) -> AsyncIterator[tuple[Fleet, Api]]:
    async with a_fleet(directory) as (fleet, api):
        for name in ("a1", "a2"):
            fleet.start_agent("--memory", "4Gi", "--cpus", "4", "--labels", f"me={name}", *flags, name=name)
        await connected(api, "a1", "a2")
        yield fleet, api


async def test_what_no_agent_is_large_enough_for_is_said_at_once_and_ends_a_waiting_command(tmp_path: Path) -> None:
    async with two_agents(tmp_path) as (fleet, api):
        (tmp_path / "large.yaml").write_text(task("true", resources={"memory": "8Gi"}))
        began = time.monotonic()
        code, _, told = await fleet.cli("run", "--wait", "large.yaml")
        took_s = time.monotonic() - began
        print(f"exit {code} after {took_s:.2f} s: {told.decode()}")
        assert code == 6, told
        assert "has 4.0 GiB of memory, 8.0 are asked for" in told.decode() and "cannot be placed" in told.decode()
        assert took_s < 5

        asked = time.monotonic()
        run = await api.submit(task("true", resources={"memory": "8Gi"}))
        explained = await until(lambda: unplaceable(api, run["id"]))
        assert time.monotonic() - asked < 1
        assert "has 4.0 GiB of memory, 8.0 are asked for" in explained["waiting"]


async def unplaceable(api: Api, run_id: str) -> dict[str, Any] | None:
    (found,) = (await api.run(run_id))["tasks"]
    return found if not found["is_placeable"] else None


async def test_a_task_for_a_gpu_starts_within_a_second_of_an_agent_that_has_one(tmp_path: Path) -> None:
    async with two_agents(tmp_path) as (fleet, api):
        run = await api.submit(task("echo $CUDA_VISIBLE_DEVICES", resources={"gpus": 1}))
        waiting = await until(lambda: unplaceable(api, run["id"]))
        assert "has no GPUs, 1 asked for" in waiting["waiting"]
        fleet.start_agent("--gpus", "1", name="g1")
        (run,) = await all_ended(api, [run["id"]])
        (attempt,) = attempts_of(run)
        assert (run["state"], attempt["agent_name"]) == ("succeeded", "g1"), run
        (line,) = _CONNECTED.findall(fleet.log_of("g1"))
        joined = datetime.strptime(line, "%Y-%m-%d %H:%M:%S,%f").astimezone(UTC)
        took_s = (datetime.fromisoformat(attempt["steps"][0]["started_at"]) - joined).total_seconds()
        print(f"started {took_s * 1000:.0f} ms after its agent was connected")
        assert took_s < 1


async def test_a_drain_with_a_deadline_moves_work_elsewhere(tmp_path: Path) -> None:
    async with two_agents(tmp_path) as (fleet, api):
        short = await api.submit(task("sleep 1", agent="me=a1"))
        long = await api.submit(task("[ $PISTAGE_ATTEMPT != 1 ] || sleep 60", agent="me in [a1, a3]"))
        await until(lambda: has_started(api, long["id"]))
        drained = time.monotonic()
        status, agent = await api.call("POST", f"/api/v1/agents/{fleet.agent_id('a1')}/drain", json={"deadline_s": 2})
        assert (status, agent["is_draining"]) == (200, True), agent
        later = await api.submit(task("true"))
        fleet.start_agent("--labels", "me=a3", name="a3")
        short, long, later = await all_ended(api, [short["id"], long["id"], later["id"]])
        first, second = attempts_of(long)
        assert [attempt["agent_name"] for attempt in attempts_of(short)] == ["a1"]
        assert short["state"] == later["state"] == long["state"] == "succeeded"
        assert [attempt["agent_name"] for attempt in attempts_of(later)] != ["a1"]
        assert (first["state"], first["failure"], first["agent_name"]) == ("lost", "lost", "a1")
        assert (second["agent_name"], second["fence"] > first["fence"]) == ("a3", True)
        print(f"drained: {first['reason']}; all was over {time.monotonic() - drained:.1f} s after")
        assert 2 <= time.monotonic() - drained < 10

        blocked = await api.submit(task("true", agent="me=a1"))
        await until(lambda: is_held_by(api, blocked["id"], "draining"))
        await api.call("POST", f"/api/v1/agents/{fleet.agent_id('a1')}/resume")
        (blocked,) = await all_ended(api, [blocked["id"]])
        assert blocked["state"] == "succeeded"


async def test_an_agent_that_is_asked_to_stop_ends_its_work_and_takes_no_more(tmp_path: Path) -> None:
    async with two_agents(tmp_path, "--drain-timeout", "30s") as (fleet, api):
        run = await api.submit(task("sleep 2; echo done", agent="me=a1"))
        await until(lambda: has_started(api, run["id"]))
        leaving = fleet.running.pop("a1")
        leaving.terminate()
        await until(lambda: "takes no more work" in fleet.log_of("m1"))
        others = [await api.submit(task("true")) for _ in range(4)]
        ended = await all_ended(api, [run["id"], *(one["id"] for one in others)])
        assert [one["state"] for one in ended] == ["succeeded"] * 5
        assert [[attempt["agent_name"] for attempt in attempts_of(one)] for one in ended] == [["a1"], *[["a2"]] * 4]
        assert await until(lambda: leaving.poll() is not None) and leaving.returncode == 0


async def test_what_an_agent_cannot_end_before_it_stops_is_tried_elsewhere_at_once(tmp_path: Path) -> None:
    async with two_agents(tmp_path, "--drain-timeout", "1s", "--stop-grace", "1s") as (fleet, api):
        run = await api.submit(task("[ $PISTAGE_ATTEMPT != 1 ] || sleep 60"))
        name = await until(lambda: has_started(api, run["id"]))
        asked = time.monotonic()
        leaving = fleet.running.pop(name)
        leaving.terminate()
        (run,) = await all_ended(api, [run["id"]])
        took_s = time.monotonic() - asked
        first, second = attempts_of(run)
        assert (first["state"], first["reason"], run["state"]) == ("lost", "its agent was stopped", "succeeded"), run
        assert {first["agent_name"], second["agent_name"]} == {"a1", "a2"}
        print(f"tried elsewhere {took_s:.1f} s after the stop")
        assert took_s < 10, "long before its lease would have ended"
        assert await until(lambda: leaving.poll() is not None) and leaving.returncode == 0


async def has_started(api: Api, run_id: str) -> str | None:
    """The name of the agent that runs a step of it."""
    attempts = attempts_of(await api.run(run_id))
    running = [attempt for attempt in attempts if any(step["state"] == "running" for step in attempt["steps"])]
    return running[0]["agent_name"] if running else None


async def is_held_by(api: Api, run_id: str, word: str) -> bool:
    (found,) = (await api.run(run_id))["tasks"]
    return word in found["waiting"]
