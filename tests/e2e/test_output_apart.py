"""Two hundred steps that print at the same time: each log holds what its own step printed, and no foreign line."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest

from tests.chaos.group import Shape, a_group
from tests.e2e.printing import Sum, sum_of
from tests.e2e.processes import ended
from tests.e2e.readback import kept_in
from tests.engine import require_engine
from tests.master.fakes import Api

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

LINES = 10_000
DOCKER = {"a1": ("--runtime", "docker")}


def definition(groups: int, steps: int, barrier: str, waits_for: int) -> dict[str, Any]:
    """So many tasks of so many parallel steps, which print once all that meet at the barrier have begun."""
    script = f"""
mkdir -p {barrier}; : >{barrier}/%s; until [ $(ls {barrier} | wc -l) -ge {waits_for} ]; do sleep 0.2; done
i=0; while [ $i -lt {LINES} ]; do i=$((i+1)); echo "%s $i"; done"""
    uses = {}
    for group in range(groups):
        names = [name_of(group, step) for step in range(steps)]
        uses[f"g{group}"] = [{"image": "busybox", "name": "first", "run": "true"}] + [
            {"name": name, "async": True, "run": script % (name, name)} for name in names
        ]
    return {"name": "Apart", "retry": 0, "uses": uses}


def name_of(group: int, step: int) -> str:
    return f"s{group}x{step}"


def printed_by(name: str) -> Sum:
    return sum_of(f"{name} {number}\n".encode() for number in range(1, LINES + 1))


async def print_apart(directory: Path, groups: int, steps: int, *, is_host: bool) -> None:
    flags = ("--slots", "400", "--cpus", "400", "--memory", "64Gi")
    shape = Shape(masters=1, agents=1, agent_flags=flags, runtimes={} if is_host else DOCKER)
    async with a_group(directory, shape) as group:
        assert group.http is not None
        api = Api(group.http, group.urls["m1"])
        # On the host all of them meet, in containers those of one.
        meeting = (str(directory / "barrier"), groups * steps) if is_host else ("/tmp/barrier", steps)
        began = time.monotonic()
        status, run = await api.call("POST", "/api/v1/runs", json=definition(groups, steps, *meeting))
        assert status == 201, run
        run = await ended(api, run["id"], 180)
        print(f"{groups} x {steps} steps, {time.monotonic() - began:.1f} s")
        assert run["state"] == "succeeded", run["reason"]
        kept = await asyncio.to_thread(kept_in, group.data_dir("m1") / "logs" / run["id"])
        assert len(run["tasks"]) == groups
        for task in run["tasks"]:
            (attempt,) = task["attempts"]
            assert len(attempt["steps"]) == steps + 1
            for step in attempt["steps"][1:]:
                printed = printed_by(step["name"])
                assert await read(api, run["id"], task["name"], step["id"]) == printed, step["name"]
                assert (step["stdout_bytes"], step["stdout_sha256"]) == (printed.length, printed.sha256), step["name"]
                assert kept[attempt["id"], step["id"], 1].sum == printed, step["name"]


async def read(api: Api, run_id: str, task: str, step: str) -> Sum:
    query = {"task": task, "step": step}
    headers = {"Accept": "application/octet-stream"}
    async with api.session.get(f"{api.url}/api/v1/runs/{run_id}/logs", params=query, headers=headers) as response:
        assert response.status == 200, await response.text()
        return sum_of([await response.read()])


async def test_two_hundred_steps_on_the_host_have_no_foreign_line_in_their_logs(tmp_path: Path) -> None:
    await print_apart(tmp_path, 50, 4, is_host=True)


@pytest.mark.engine
async def test_two_hundred_steps_in_ten_containers_have_no_foreign_line_in_their_logs(tmp_path: Path) -> None:
    require_engine()
    await print_apart(tmp_path, 10, 20, is_host=False)
