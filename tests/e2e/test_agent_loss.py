"""Agents that are killed in the middle of their containers: taken up again in time, tried elsewhere if not."""

from __future__ import annotations

import asyncio
import hashlib
import signal
import subprocess
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from pistage import wire
from pistage.core.commands import Finished
from pistage.core.model import Result, State
from tests.e2e.fleets import (
    EngineClient,
    Fleet,
    a_fleet,
    all_ended,
    attempts_of,
    connected,
    submit_batch,
    the_engine,
)
from tests.e2e.processes import output_of, until
from tests.master.fakes import Api, an_agent

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(180)]

COUNT = 20
SLOTS = ("--slots", str(COUNT), "--cpus", "8", "--memory", "4Gi", "--stop-grace", "1s")
COUNTING = {
    "name": "Counting",
    "image": "busybox",
    "retry": 0,
    "with": {"lines": None},
    "run": 'i=0; while [ $i -lt {{ .lines }} ]; do i=$((i+1)); echo "line $i"; sleep 0.2; done',
}
#: The first attempt takes its time, whoever tries it again does not.
STAYING = COUNTING | {"run": f"[ $PISTAGE_ATTEMPT = 1 ] || exec echo again; {COUNTING['run']}"}


def counted(lines: int) -> bytes:
    return "".join(f"line {n}\n" for n in range(1, lines + 1)).encode()


async def test_an_agent_killed_in_the_middle_of_20_containers_adopts_all_and_runs_none_twice(
    tmp_path: Path, engine: Any
) -> None:
    lines = [25 + 2 * n for n in range(COUNT)]
    flags = ("--lease", "10s", "--heartbeat", "500ms")
    async with (
        a_fleet(tmp_path, master_flags=flags, socket=engine.socket) as (fleet, api),
        the_engine(engine.socket, is_followed=True) as docker,
    ):
        fleet.start_agent(*SLOTS, name="d1", runtime="docker")
        await connected(api, "d1")
        run_ids = await submit_batch(api, COUNTING, [{"lines": one} for one in lines])

        def happened(action: str) -> list[str]:
            return docker.happened(action, "pistage.cluster", fleet.cluster_id)

        await until(lambda: len(happened("start")) >= 8)  # the others are made, or assigned, or not even that
        fleet.kill("d1")
        fleet.again("d1")
        await until(lambda: len(happened("start")) == COUNT)
        fleet.start_agent(*SLOTS, name="d2", runtime="docker")  # there would be room elsewhere
        await connected(api, "d2")
        ended = len(happened("die"))
        fleet.kill("d1")
        await until(lambda: len(happened("die")) >= min(ended + 3, COUNT))  # some end while nobody looks
        running = COUNT - len(happened("die"))
        fleet.again("d1")
        runs = await all_ended(api, run_ids)
        print(f"killed twice: {ended} had ended, {running} ran on while it was started again")
        assert running >= 5, "the kill was to come in the middle"
        for run, count in zip(runs, lines, strict=True):
            (attempt,) = attempts_of(run)
            (step,) = attempt["steps"]
            expected = counted(count)
            digest = hashlib.sha256(expected).hexdigest()
            assert (run["state"], attempt["number"], attempt["agent_name"]) == ("succeeded", 1, "d1"), run
            assert (step["stdout_bytes"], step["stdout_sha256"]) == (len(expected), digest)
            assert await output_of(api, run["id"]) == expected
        containers = {attempt["steps"][0]["container"] for run in runs for attempt in attempts_of(run)}
        assert len(containers) == COUNT
        for action in ("create", "start", "die"):
            assert sorted(Counter(happened(action)).values()) == [1] * COUNT, action
        await until(lambda: len(happened("destroy")) == COUNT)
        await none_left(docker, fleet.cluster_id)


async def test_what_a_dead_agent_ran_is_done_elsewhere_and_what_it_comes_back_with_is_refused(
    tmp_path: Path, engine: Any
) -> None:
    flags = ("--lease", "3s", "--heartbeat", "500ms")
    async with (
        a_fleet(tmp_path, master_flags=flags, socket=engine.socket) as (fleet, api),
        the_engine(engine.socket, is_followed=True) as docker,
        foreign_containers(docker, fleet) as foreign,
    ):
        fleet.start_agent(*SLOTS, name="d1", runtime="docker")
        await connected(api, "d1")
        dead = fleet.agent_id("d1")
        # Some end before their agent is back, and before it is lost; others would run for very long.
        run_ids = await submit_batch(api, STAYING, [{"lines": 20 if n % 2 else 1000} for n in range(COUNT)])
        await until(lambda: len(docker.happened("start", "pistage.agent", dead)) == COUNT)
        fleet.kill("d1")
        fleet.start_agent(*SLOTS, name="d2", runtime="docker")
        runs = await all_ended(api, run_ids)
        for run in runs:
            first, second = attempts_of(run)
            assert (first["state"], first["failure"], first["agent_name"]) == ("lost", "lost", "d1"), first
            assert (run["state"], second["state"], second["agent_name"]) == ("succeeded", "succeeded", "d2"), second
            assert second["fence"] > first["fence"]
        here = await docker.containers(f"pistage.agent={dead}")
        alive = {one["Names"][0][1:] for one in here if one["State"] == "running"}
        assert len(here) == COUNT and 0 < len(alive) < COUNT, "some run on without their agent, some have ended"

        refused = await late_results(api, dead, runs)
        assert refused == {attempts_of(run)[0]["id"] for run in runs}

        fleet.again("d1")
        await none_left(docker, fleet.cluster_id)
        killed, gone = (set(docker.happened(what, "pistage.agent", dead)) for what in ("kill", "destroy"))
        assert alive <= killed and len(gone) == COUNT
        assert fleet.log_of("d1").count("is given up") == COUNT
        await connected(api, "d1", "d2")
        assert [await api.run(run_id) | {"applied_index": 0} for run_id in run_ids] == [
            run | {"applied_index": 0} for run in runs
        ]
        assert {one["Id"] for one in await docker.containers("tests.foreign") if one["State"] == "running"} == foreign
        (again,) = await all_ended(api, await submit_batch(api, COUNTING, [{"lines": 1}]))
        assert again["state"] == "succeeded"


async def test_an_agent_that_stood_still_for_longer_than_its_lease_gives_up_what_went_on_elsewhere(
    tmp_path: Path, engine: Any
) -> None:
    flags = ("--lease", "3s", "--heartbeat", "500ms")
    async with (
        a_fleet(tmp_path, master_flags=flags, socket=engine.socket) as (fleet, api),
        the_engine(engine.socket, is_followed=True) as docker,
    ):
        fleet.start_agent(*SLOTS, name="d1", runtime="docker")
        await connected(api, "d1")
        still = fleet.agent_id("d1")
        run_ids = await submit_batch(api, STAYING, [{"lines": 20 if n % 2 else 1000} for n in range(6)])
        await until(lambda: len(docker.happened("start", "pistage.agent", still)) == 6)
        with stopped(fleet.running["d1"]):
            fleet.start_agent(*SLOTS, name="d2", runtime="docker")
            runs = await all_ended(api, run_ids)
            await until(lambda: len(docker.happened("die", "pistage.agent", still)) == 3)  # it has results to tell
        await none_left(docker, fleet.cluster_id)
        await connected(api, "d1", "d2")
        for run in runs:
            first, second = attempts_of(run)
            assert (first["state"], first["agent_name"], second["agent_name"]) == ("lost", "d1", "d2"), run
            assert (run["state"], await api.run(run["id"]) | {"applied_index": 0}) == (
                "succeeded", run | {"applied_index": 0}
            )  # fmt: skip


async def test_what_a_drained_agent_runs_is_gone_before_it_is_begun_elsewhere(tmp_path: Path, engine: Any) -> None:
    async with (
        a_fleet(tmp_path, socket=engine.socket) as (fleet, api),
        the_engine(engine.socket, is_followed=True) as docker,
    ):
        fleet.start_agent(*SLOTS, name="d1", runtime="docker")
        await connected(api, "d1")
        run_ids = await submit_batch(api, STAYING, [{"lines": 5 if n == 0 else 1000} for n in range(4)])
        await until(lambda: len(docker.happened("start", "pistage.agent", fleet.agent_id("d1"))) == 4)
        fleet.start_agent(*SLOTS, name="d2", runtime="docker")
        await connected(api, "d2")
        await api.call("POST", f"/api/v1/agents/{fleet.agent_id('d1')}/drain", json={"deadline_s": 3})
        short, *others = await all_ended(api, run_ids)
        assert [attempt["agent_name"] for attempt in attempts_of(short)] == ["d1"], "it had the time to end"
        for run in others:
            first, second = attempts_of(run)
            assert (first["state"], first["reason"]) == ("lost", "its agent was drained"), run
            assert (run["state"], second["agent_name"], second["fence"] > first["fence"]) == ("succeeded", "d2", True)
            gone = docker.time_of("destroy", "pistage.attempt", first["id"])
            assert gone < docker.time_of("create", "pistage.attempt", second["id"])
        await none_left(docker, fleet.cluster_id)


@contextmanager
def stopped(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """As if its machine had been suspended."""
    process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        process.send_signal(signal.SIGCONT)


async def late_results(api: Api, agent_id: str, runs: list[dict[str, Any]]) -> set[str]:
    """Tell, as the agent that was lost, that each first attempt succeeded after all; those that are refused."""
    at = wire.now_ms()
    result = Result(state=State.SUCCEEDED, exit_code=0)
    async with an_agent(api, agent_id, incarnation="late") as (ghost, _):
        firsts = [attempts_of(run)[0] for run in runs]
        events = [Finished(at=at, attempt_id=one["id"], fence=one["fence"], result=result) for one in firsts]
        return set((await ghost.report(*events)).refused)


class foreign_containers:  # noqa: N801 - used as a context manager is
    """What somebody else started on the engine, with labels much like ours; the ids of what runs."""

    def __init__(self, docker: EngineClient, fleet: Fleet) -> None:
        self._docker = docker
        ours = {"pistage.run": "r", "pistage.attempt": "a", "pistage.fence": "1"}
        other = wire.new_id()
        self._labels: list[dict[str, str]] = [
            {},
            {"pistage": "yes", "com.pistage.cluster": fleet.cluster_id},
            ours | {"pistage.cluster": other, "pistage.agent": other},
            ours | {"pistage.agent": other},
        ]
        self._ids: set[str] = set()

    async def __aenter__(self) -> set[str]:
        for labels in self._labels:
            body = {"Image": "busybox", "Cmd": ["sleep", "600"], "Labels": labels | {"tests.foreign": "1"}}
            made = await self._docker.call("POST", "/containers/create?name=pistage-" + wire.new_id(), body)
            self._ids.add(made["Id"])
            await self._docker.call("POST", f"/containers/{made['Id']}/start")
        return self._ids

    async def __aexit__(self, *_: object) -> None:
        await asyncio.gather(*(self._docker.call("DELETE", f"/containers/{one}?force=1") for one in self._ids))


async def none_left(docker: EngineClient, cluster_id: str) -> None:
    """No container of the cluster is on the engine; agents remove them just after the end of their runs."""

    async def is_clean() -> bool:
        return not await docker.containers(f"pistage.cluster={cluster_id}")

    await until(is_clean, 20)
