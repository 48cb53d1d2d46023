"""Losses: one agent that falls silent is lost; many at one time make the leader suspect itself first. And drains."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from pistage import wire
from pistage.core.commands import SetAgentDrain
from pistage.master.losses import patience_s
from tests.master.fakes import Api, a_master, an_agent

SHORT = {"lease": 0.5, "heartbeat": 0.1}


async def states(api: Api) -> list[str]:
    _, agents = await api.call("GET", "/api/v1/agents")
    return sorted(agent["state"] for agent in agents["items"])


async def until_lost(api: Api, count: int) -> float:
    """Seconds until so many are."""
    began = asyncio.get_running_loop().time()
    async with asyncio.timeout(20):
        while (await states(api)).count("lost") < count:  # noqa: ASYNC110 - the API has no event of it
            await asyncio.sleep(0.05)
    return asyncio.get_running_loop().time() - began


def test_patience_outlasts_a_lease_on_a_slow_clock_and_the_time_to_kill() -> None:
    for lease_s in (0.5, 20.0, 300.0):
        assert patience_s(lease_s) > 1.1 * lease_s + lease_s / 4


@pytest.mark.slow
async def test_two_agents_that_fall_silent_are_lost_without_more_ado(tmp_path: Path) -> None:
    async with a_master(tmp_path, **SHORT) as api:
        async with an_agent(api), an_agent(api):
            pass
        assert await until_lost(api, 2) < 2 * patience_s(0.5)


@pytest.mark.slow
async def test_many_at_one_time_make_the_leader_wait_once_and_then_they_are_lost(tmp_path: Path) -> None:
    async with a_master(tmp_path, **SHORT) as api:
        async with AsyncExitStack() as stack:
            for _ in range(4):
                await stack.enter_async_context(an_agent(api))
        taken = await until_lost(api, 4)
        assert taken > 2 * patience_s(0.5) - 1.0
        replica = api.master.context.replica  # type: ignore[attr-defined]
        async with replica.reader.snapshot() as snapshot:
            assert await snapshot.value("SELECT value FROM meta WHERE key = 'losses_paused_until'") is not None


@pytest.mark.slow
async def test_many_that_come_back_in_time_were_never_lost(tmp_path: Path) -> None:
    async with a_master(tmp_path, **SHORT) as api:
        names = [wire.new_id() for _ in range(4)]
        async with AsyncExitStack() as stack:
            for name in names:
                await stack.enter_async_context(an_agent(api, name))
        await paused(api)
        async with AsyncExitStack() as stack:
            agents = [(await stack.enter_async_context(an_agent(api, name)))[0] for name in names]
            async with asyncio.TaskGroup() as group:
                beats = [group.create_task(agent.beat(0.1)) for agent in agents]
                await asyncio.sleep(patience_s(0.5) + 1.5)  # the pause is over by then, and a look was taken
                assert await states(api) == ["up"] * 4
                for beat in beats:
                    beat.cancel()


async def paused(api: Api) -> None:
    replica = api.master.context.replica  # type: ignore[attr-defined]
    async with asyncio.timeout(10):
        while True:
            async with replica.reader.snapshot() as snapshot:
                if await snapshot.value("SELECT value FROM meta WHERE key = 'losses_paused_until'"):
                    return
            await asyncio.sleep(0.05)


@pytest.mark.slow
async def test_what_a_drained_agent_runs_is_stopped_when_its_time_is_over(tmp_path: Path) -> None:
    async with a_master(tmp_path) as api, an_agent(api) as (agent, _):
        await api.submit()
        assign: Any = await agent.receive(wire.Assign)
        await agent.accept(assign)
        replica = api.master.context.replica  # type: ignore[attr-defined]
        command = SetAgentDrain(at=0, agent_id=agent.id, is_draining=True, until=wire.now_ms() - 1)
        await replica.propose(command)
        evict = await agent.receive(wire.Evict)
        assert evict == wire.Evict(attempt_id=assign.attempt_id, reason="its agent was drained")


@pytest.mark.slow
async def test_what_an_agent_does_not_take_up_in_time_is_asked_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pistage.master.losses._ACCEPT_MS", 500)
    async with a_master(tmp_path) as api, an_agent(api) as (agent, _):
        await api.submit()
        taken: Any = await agent.receive(wire.Assign)
        await agent.accept(taken)
        await api.submit()
        left: Any = await agent.receive(wire.Assign)
        evict = await agent.receive(wire.Evict)
        assert evict == wire.Evict(attempt_id=left.attempt_id, reason="its agent did not take it up in time")
