"""Agents that share an engine: each knows its own containers, and no other is ever touched."""

import asyncio
from collections.abc import Mapping
from pathlib import Path

import pytest

from pistage.agent.runtimes.engine import Engine
from pistage.core.model import State
from pistage.wire import new_id
from tests.agent.conftest import StartAgent, StopAgent, nothing_left
from tests.agent.fake_master import FakeMaster, script, task
from tests.agent.test_docker import client_of

pytestmark = [pytest.mark.engine, pytest.mark.timeout(120)]


async def a_container(client: Engine, labels: Mapping[str, str]) -> str:
    body = {"Image": "busybox", "Entrypoint": ["sleep"], "Cmd": ["1000"], "Labels": {"pistage.test": "yes", **labels}}
    container = await client.create(f"neighbour-{new_id()}", body)
    await client.start(container)
    return container


async def test_an_agent_that_starts_removes_its_own_that_nobody_knows_and_nothing_of_others(
    master: FakeMaster, engine: str, start_agent: StartAgent, stop_agent: StopAgent
) -> None:
    agent = await start_agent("docker", engine=engine)
    await stop_agent(agent)
    own = {"pistage.agent": agent.agent_id, "pistage.cluster": master.cluster_id, "pistage.run": new_id()}
    async with client_of(engine) as client:
        unknown = await a_container(client, own | {"pistage.attempt": new_id()})
        others = [
            await a_container(client, labels)
            for labels in (
                {},
                own | {"pistage.agent": new_id(), "pistage.attempt": new_id()},
                own | {"pistage.cluster": new_id(), "pistage.attempt": new_id()},
            )
        ]
        try:
            await start_agent("docker", engine=engine)
            async with asyncio.timeout(20):
                while await client.inspect(unknown) is not None:  # noqa: ASYNC110 - the engine is asked
                    await asyncio.sleep(0.1)
            for container in others:
                known = await client.inspect(container)
                assert known is not None and known["State"]["Running"]
        finally:
            for container in others:
                await client.remove(container)


async def test_two_agents_adopt_each_its_own(
    master: FakeMaster, engine: str, start_agent: StartAgent, stop_agent: StopAgent, tmp_path: Path
) -> None:
    text = "echo on; i=0; while [ $i -lt 30 ]; do sleep 0.1; i=$((i+1)); done; echo off"
    agents, assigns = [], []
    for name in ("one", "two"):
        agents.append(await start_agent("docker", engine=engine, data_dir=tmp_path / name))
        # The fake master sends to whoever came last.
        assigns.append(await master.assign(task(script(text))))
    for assign in assigns:
        await master.until(lambda assign=assign: b"on" in master.stdout(assign.attempt_id))
    await stop_agent(agents[0])
    again = await start_agent("docker", engine=engine, data_dir=tmp_path / "one")
    assert again.agent_id == agents[0].agent_id != agents[1].agent_id
    assert [held.attempt_id for held in master.hellos[-1].held] == [assigns[0].attempt_id]
    for assign in assigns:
        assert (await master.finished(assign)).result.state is State.SUCCEEDED
        assert master.stdout(assign.attempt_id) == b"on\noff\n"
    for agent in agents:
        await nothing_left(engine, agent.agent_id)
