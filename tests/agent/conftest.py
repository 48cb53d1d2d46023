import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from pistage.agent.service import Agent
from pistage.config import AgentConfig
from tests.agent.fake_master import TOKEN, FakeMaster, fake_master
from tests.engine import leftovers, require_engine

StartAgent = Callable[..., Awaitable[Agent]]
StopAgent = Callable[[Agent], Awaitable[None]]


@pytest.fixture(scope="session")
def engine() -> str:
    return require_engine()


@pytest.fixture
async def master() -> AsyncIterator[FakeMaster]:
    async with fake_master() as fake:
        yield fake


@pytest.fixture
def running() -> dict[Agent, asyncio.Task[None]]:
    return {}


@pytest.fixture
def stop_agent(running: dict[Agent, asyncio.Task[None]]) -> StopAgent:
    async def stop(agent: Agent) -> None:
        agent.request_stop()
        await running[agent]

    return stop


@pytest.fixture
async def start_agent(
    master: FakeMaster, tmp_path: Path, running: dict[Agent, asyncio.Task[None]]
) -> AsyncIterator[StartAgent]:
    """Starts agents in this process, each connected on return; they are stopped after the test."""
    async with AsyncExitStack() as stack:

        async def start(runtime: str = "sandbox", **settings: object) -> Agent:
            values: dict[str, object] = {
                "data_dir": tmp_path / "agent", "masters": (master.url,), "runtime": runtime, "stop_grace": 1.0,
                "allow_host_runtime": True, "ignore_images": runtime != "docker",
            } | settings  # fmt: skip
            agent = Agent(AgentConfig.model_validate(values), token=TOKEN)
            group = await stack.enter_async_context(asyncio.TaskGroup())
            running[agent] = group.create_task(agent.run())
            stack.callback(agent.request_stop)
            before = len(master.hellos)
            await master.until(lambda: len(master.hellos) > before and bool(master.sockets))
            return agent

        yield start


@pytest.fixture
async def docker_agent(start_agent: StartAgent, engine: str) -> AsyncIterator[Agent]:
    """An agent on the engine, which must have left nothing there when the test is over."""
    agent = await start_agent("docker", engine=engine)
    yield agent
    await nothing_left(engine, agent.agent_id)


async def nothing_left(engine: str, agent_id: str) -> None:
    async with asyncio.timeout(30):
        while left := await leftovers(engine, agent_id):
            try:
                await asyncio.sleep(0.1)
            except asyncio.CancelledError:
                raise AssertionError(f"left in the engine: {left}") from None


@pytest.fixture(autouse=True)
def _no_wait_for_a_release(monkeypatch: pytest.MonkeyPatch) -> None:
    """The master of these tests never releases a run, so an agent that stops need not wait for that."""
    monkeypatch.setattr("pistage.agent.service._TIDY_S", 0.0)
