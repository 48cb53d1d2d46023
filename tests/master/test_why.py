"""Why a task is where it is: what it needs, what stands in its way on each agent, and what became of it before."""

import asyncio
import dataclasses
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from pistage import wire
from pistage.core.model import Capacity
from tests.master.fakes import HELLO_YAML, Api, FakeAgent, a_master, an_agent, an_info
from tests.master.test_output_failover import three_masters

GREEDY = """
name: Greedy
image: busybox
retry: {limit: 1, backoff: {initial: 10ms}}
uses:
  first: {agent: gpu=true, resources: {memory: 6Gi}, queue_timeout: 1h, steps: [{run: echo, image: busybox}]}
  then: {needs: [first], steps: [{run: echo, image: busybox}]}
"""


@asynccontextmanager
async def an_agent_called(api: Api, name: str, *, memory_gib: int = 8, **labels: str) -> AsyncIterator[FakeAgent]:
    async with api.session.ws_connect(api.url + "/agent/v1/session", max_msg_size=8 << 20) as socket:
        agent = FakeAgent(socket, wire.new_id())
        room = Capacity(cpus_milli=8000, memory_bytes=memory_gib << 30, slots=8)
        info = dataclasses.replace(an_info(agent.id), name=name, labels=labels, capacity=room)
        await agent.send(wire.Hello(info=info, held=()))
        await agent.receive(wire.Welcome)
        yield agent


async def why(api: Api, run: str, **query: str) -> dict[str, Any]:
    status, told = await api.call("GET", f"/api/v1/runs/{run}/why", params=query)
    assert status == 200, told
    return dict(told)


async def until_waiting(api: Api, run: str, **query: str) -> dict[str, Any]:
    """The first task, once the scheduler has looked at it."""
    async with asyncio.timeout(10):
        while True:
            task: dict[str, Any] = (await why(api, run, **query))["tasks"][0]
            if task["waiting"] is not None:
                return task
            await asyncio.sleep(0)


async def test_a_task_that_waits_is_told_agent_by_agent_and_one_that_needs_it_what_it_needs(tmp_path: Path) -> None:
    async with (
        a_master(tmp_path) as api,
        an_agent_called(api, "bare") as bare,
        an_agent_called(api, "small", memory_gib=4, gpu="true"),
        an_agent_called(api, "full", gpu="true") as full,
    ):
        busy = await api.submit(GREEDY)
        await full.receive(wire.Assign)
        run = await api.submit(GREEDY)
        task = await until_waiting(api, run["id"])
        waiting = task["waiting"]
        assert (task["name"], task["state"], waiting["is_placeable"], waiting["holds"]) == ("first", "queued", True, [])
        assert {one["name"]: one["reasons"] for one in waiting["agents"]} == {
            "bare": ["label gpu=true is missing"],
            "small": ["has 4.0 GiB of memory, 6.0 are asked for"],
            "full": ["2.0 of 6.0 GiB free"],
        }
        assert (waiting["turn"]["place"], waiting["turn"]["count"]) == (1, 1)
        assert waiting["until"] > waiting["since"]
        told = await why(api, run["id"])
        assert told["tasks"][1]["needs"] == [{"task": "first", "state": "queued"}]
        assert told["tasks"][1]["waiting"] is None and told["more"] == 0
        running = (await why(api, busy["id"], task="first"))["tasks"][0]["running"]
        assert (running["agent_name"], running["attempt"], running["is_accepted"]) == ("full", 1, False)
        assert bare


async def test_a_task_that_no_agent_could_take_is_told_as_such(tmp_path: Path) -> None:
    async with a_master(tmp_path) as api, an_agent_called(api, "bare"):
        run = await api.submit(GREEDY)
        task = await until_waiting(api, run["id"])
        assert not task["waiting"]["is_placeable"]
        assert task["waiting"]["brief"] == "bare: label gpu=true is missing"


@pytest.mark.slow
async def test_every_master_tells_why_a_task_waits_and_goes_without_where_nobody_leads(tmp_path: Path) -> None:
    async with three_masters(tmp_path) as masters:
        leader = await masters.leader()
        async with an_agent_called(leader, "bare"):
            run = await leader.submit(GREEDY)
            await until_waiting(leader, run["id"])
            for url in masters.urls:
                api = Api(masters.session, url)
                task = (await api.run(run["id"]))["tasks"][0]
                assert (task["waiting"], task["is_placeable"]) == ("bare: label gpu=true is missing", False), url
                _, stale = await api.call("GET", f"/api/v1/runs/{run['id']}?stale=1", headers={"If-None-Match": "x"})
                assert stale["tasks"][0]["waiting"] == (task["waiting"] if url == leader.url else "")
        others = [url for url in masters.urls if url != leader.url]
        await masters.stop(leader.url)
        await masters.stop(others[0])
        status, alone = await Api(masters.session, others[1]).call("GET", f"/api/v1/runs/{run['id']}?stale=1")
        assert (status, alone["tasks"][0]["state"]) == (200, "queued")


async def test_runs_that_hold_a_group_are_told_by_name_and_number(tmp_path: Path) -> None:
    async with a_master(tmp_path) as api, an_agent(api) as (agent, _):
        text = HELLO_YAML + "concurrency: deploy\n"
        first = await api.submit(text)
        assert first["concurrency"] == {"group": "deploy", "limit": 1}
        await agent.receive(wire.Assign)
        second = await api.submit(text)
        task = await until_waiting(api, second["id"])
        hold = "concurrency group deploy: 1 of 1 running (Hello#1)"
        assert (task["waiting"]["holds"], task["waiting"]["brief"]) == ([hold], hold)
        assert (await api.run(second["id"]))["tasks"][0]["waiting"] == hold


async def test_earlier_attempts_are_told_with_why_they_ended(tmp_path: Path) -> None:
    async with a_master(tmp_path) as api, an_agent_called(api, "box", gpu="true") as agent:
        run = await api.submit(GREEDY)
        assign = await agent.receive(wire.Assign)
        await agent.accept(assign)
        await agent.finish(assign, exit_code=3)
        await agent.accept(await agent.receive(wire.Assign))
        task = (await why(api, run["id"]))["tasks"][0]
        assert (task["running"]["attempt"], task["running"]["is_accepted"]) == (2, True)
        first, second = task["attempts"]
        assert (first["agent_name"], first["state"], first["exit_code"], second["state"]) == (
            "box",
            "failed",
            3,
            "running",
        )
        assert first["retried_at"] is not None and second["retried_at"] is None


async def test_a_cancellation_says_who_and_why_and_a_skip_what_it_follows_from(tmp_path: Path) -> None:
    async with a_master(tmp_path) as api:
        run = await api.submit(GREEDY)
        await api.call("POST", f"/api/v1/runs/{run['id']}/cancel?task=first&reason=too+greedy")
        first, then = (await why(api, run["id"]))["tasks"]
        assert (first["state"], first["cancelled"]["reason"], first["cancelled"]["of"]) == (
            "cancelled",
            "too greedy",
            "task",
        )
        assert first["cancelled"]["by"] == "cluster"
        assert (then["state"], then["cancelled"]) == ("skipped", None)
        assert then["reason"] == "needs 'first', which ended cancelled"
        other = await api.submit(GREEDY)
        await api.call("POST", f"/api/v1/runs/{other['id']}/cancel")
        assert {task["cancelled"]["of"] for task in (await why(api, other["id"]))["tasks"]} == {"run"}


async def test_of_a_run_that_succeeded_there_is_nothing_to_tell_but_of_a_task_of_it(tmp_path: Path) -> None:
    async with a_master(tmp_path) as api, an_agent(api) as (agent, _):
        run = await api.submit()
        assign = await agent.receive(wire.Assign)
        await agent.accept(assign)
        await agent.finish(assign)
        await api.ended(run["id"])
        told = await why(api, run["id"])
        assert (told["state"], told["tasks"]) == ("succeeded", [])
        [task] = (await why(api, run["id"], task=run["tasks"][0]["name"]))["tasks"]
        assert (task["state"], len(task["attempts"])) == ("succeeded", 1)
        status, refused = await api.call("GET", f"/api/v1/runs/{run['id']}/why?task=x")
        assert status == 404 and refused["hint"].startswith("it has ")


async def test_an_agent_is_drained_until_a_deadline_and_resumed(tmp_path: Path) -> None:
    async with a_master(tmp_path) as api, an_agent(api) as (agent, _):
        path = f"/api/v1/agents/{agent.id}"
        status, shown = await api.call("POST", f"{path}/drain", json={"deadline_s": 600})
        assert status == 200 and shown["is_draining"] and shown["drain_until"] > shown["last_seen"]
        status, shown = await api.call("POST", f"{path}/drain")
        assert (status, shown["is_draining"], shown["drain_until"]) == (200, True, None)
        status, shown = await api.call("POST", f"{path}/resume")
        assert (status, shown["is_draining"]) == (200, False)
        for body in ('{"deadline_s": -1}', '{"deadline_s": "10m"}', '{"deadline_s": 1e9}', '{"deadline_s": NaN}', "[]"):
            assert (await api.call("POST", f"{path}/drain", data=body))[0] == 422, body


async def test_an_agent_that_is_connected_is_removed_by_force_alone(tmp_path: Path) -> None:
    async with a_master(tmp_path) as api:
        async with an_agent(api) as (agent, _):
            await api.submit()
            await agent.receive(wire.Assign)
            status, refused = await api.call("DELETE", f"/api/v1/agents/{agent.id}")
            assert status == 409 and "is connected" in refused["detail"] and "stop it first" in refused["hint"]
            status, removed = await api.call("DELETE", f"/api/v1/agents/{agent.id}?force=1")
            assert (status, removed["was_connected"], len(removed["attempts_lost"])) == (200, True, 1)
            async with asyncio.timeout(5):
                while not agent.socket.closed:
                    await agent.socket.receive()
        assert (await api.call("GET", "/api/v1/agents"))[1]["items"] == []
        assert (await api.call("DELETE", f"/api/v1/agents/{agent.id}"))[0] == 404


async def test_an_agent_that_is_gone_is_removed(tmp_path: Path) -> None:
    async with a_master(tmp_path) as api:
        async with an_agent(api) as (agent, _):
            pass
        async with asyncio.timeout(10):
            while (await api.call("GET", "/api/v1/agents"))[1]["items"][0]["is_connected"]:
                pass
        status, removed = await api.call("DELETE", "/api/v1/agents/fake")
        assert (status, removed["id"], removed["was_connected"]) == (200, agent.id, False)
