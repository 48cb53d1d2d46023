"""An attempt's place in an engine is closed by whoever comes first: its end, or the end of the agent's lease."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from pistage.agent.gpus import GpuPool
from pistage.agent.journal import Journal
from pistage.agent.policy import ContainerSpec
from pistage.agent.runtimes.docker import DockerRuntime
from pistage.agent.runtimes.docker_place import DockerPlace
from pistage.config import AgentConfig
from pistage.wire import new_id
from tests.agent.fake_master import an_assign, script, task


class SlowEngine:
    """Holds containers by name, and holds up each kind of call whose event is not set."""

    def __init__(self, *held_up: str) -> None:
        self.containers: set[str] = set()
        self.may = {call: asyncio.Event() for call in ("create", "listed", "remove")}
        self.asked = {call: asyncio.Event() for call in self.may}
        for call in set(self.may) - set(held_up):
            self.may[call].set()
        self.socket_path = "/run/docker.sock"

    async def create(self, name: str, body: dict[str, Any]) -> str:
        await self._held_up("create")
        self.containers.add(name)
        return name

    async def listed(self, kind: str, labels: list[str]) -> list[dict[str, Any]]:
        await self._held_up("listed")
        return [{"Id": name} for name in self.containers]

    async def remove(self, name: str) -> None:
        await self._held_up("remove")
        self.containers.discard(name)

    async def _held_up(self, call: str) -> None:
        self.asked[call].set()
        await self.may[call].wait()


@asynccontextmanager
async def a_place(directory: Path, engine: SlowEngine) -> AsyncIterator[tuple[DockerPlace, Callable[[], None]]]:
    """A place of an attempt that an agent before this one began, and what its last step does when it has ended."""
    runtime = DockerRuntime(AgentConfig(data_dir=directory), new_id)
    runtime.engine = engine  # type: ignore[assignment]
    journal = Journal(directory / "journal")
    entry = await journal.begin(an_assign(task(script("true"))))
    entry.is_inherited = True
    async with asyncio.TaskGroup() as chores:
        runtime._chores = chores
        place = DockerPlace(runtime, entry.assign, entry, GpuPool())
        yield place, lambda: place.retire(entry.assign.task.contexts[0])
    journal.close()


async def test_a_step_may_end_while_its_place_is_closed(tmp_path: Path) -> None:
    engine = SlowEngine("listed")
    async with a_place(tmp_path, engine) as (place, retire), asyncio.timeout(5):
        await place._create_step(place._assign.task.contexts[0], ContainerSpec(image="x"))
        async with asyncio.TaskGroup() as group:
            group.create_task(place.close())
            await engine.asked["listed"].wait()
            engine.may["remove"].clear()
            retire()
            engine.may["listed"].set()
            await engine.asked["remove"].wait()
            engine.may["remove"].set()
        await place.close()
    assert engine.containers == set()


async def test_what_is_made_while_its_place_is_closed_is_removed_by_the_next_who_closes_it(tmp_path: Path) -> None:
    engine = SlowEngine("create")
    async with a_place(tmp_path, engine) as (place, _), asyncio.timeout(5):
        place._notebook.is_inherited = False  # type: ignore[misc]  # nothing is known but what was made here
        async with asyncio.TaskGroup() as group:
            group.create_task(place._create_step(place._assign.task.contexts[0], ContainerSpec(image="x")))
            await engine.asked["create"].wait()
            await place.close()
            engine.may["create"].set()
        assert engine.containers
        await place.close()
    assert engine.containers == set()
