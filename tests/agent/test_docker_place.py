"""An attempt's place in an engine: what comes to its end while something of it is being made, or removed."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from pistage.agent.gpus import GpuPool
from pistage.agent.journal import Journal
from pistage.agent.policy import ContainerSpec
from pistage.agent.runtimes.docker import DockerRuntime
from pistage.agent.runtimes.docker_place import DockerPlace
from pistage.agent.runtimes.engine import EngineError
from pistage.config import AgentConfig
from pistage.core.languages import Installer
from pistage.core.plan import Attachment, Network, Program, Step, Task
from pistage.wire import Assign
from tests.agent.fake_master import an_assign, script, task
from tests.waiting import until

SPEC = ContainerSpec(image="x")


class SlowEngine:
    """Has containers and networks by name, and holds up each kind of call whose event is not set."""

    def __init__(self, *held_up: str) -> None:
        self.containers: dict[str, asyncio.Event] = {}  # with what is set once one has ended
        self.networks: dict[str, dict[str, str]] = {}
        self.waited_for: list[str] = []
        self.may = {call: asyncio.Event() for call in ("create", "listed", "remove", "network")}
        self.asked = {call: asyncio.Event() for call in self.may}
        for call in set(self.may) - set(held_up):
            self.may[call].set()
        self.socket_path = "/run/docker.sock"
        self.is_away = False

    async def create(self, name: str, body: dict[str, Any]) -> str:
        await self._held_up("create")
        self.containers[name] = asyncio.Event()
        return name

    async def start(self, name: str) -> None:
        self._ended(name)

    async def wait(self, name: str) -> int:
        self.waited_for.append(name)
        await self._ended(name).wait()
        return 0

    async def inspect(self, name: str) -> None:
        return None

    async def listed(self, kind: str, labels: list[str]) -> list[dict[str, Any]]:
        await self._held_up("listed")
        if kind == "networks":
            return [{"Id": name, "Name": name, "Labels": has} for name, has in self.networks.items()]
        return [{"Id": name} for name in self.containers] if kind == "containers" else []

    async def remove(self, name: str) -> None:
        await self._held_up("remove")
        if (ended := self.containers.pop(name, None)) is not None:
            ended.set()

    async def image(self, name: str) -> dict[str, Any]:
        return {"Id": "sha256:1", "Config": {}}

    async def json(self, method: str, path: str, *, body: Any = None) -> None:
        if path == "networks/create":
            await self._held_up("network")
            self.networks[body["Name"]] = body["Labels"]
        elif method == "DELETE":
            self.networks.pop(path.removeprefix("networks/"), None)

    def _ended(self, name: str) -> asyncio.Event:
        if name not in self.containers:
            raise EngineError(404, f"No such container: {name}")
        return self.containers[name]

    async def _held_up(self, call: str) -> None:
        self.asked[call].set()
        await self.may[call].wait()


class Premises:
    """A docker runtime over such an engine, and places in it."""

    def __init__(self, directory: Path, engine: SlowEngine) -> None:
        self.runtime = DockerRuntime(AgentConfig(data_dir=directory), lambda: "agent1")
        for part in (self.runtime.images, self.runtime.objects, self.runtime.packages):
            part._engine = engine  # type: ignore[assignment]
        self.runtime.engine = engine  # type: ignore[assignment]
        self.journal = Journal(directory / "journal")

    async def place(self, body: Task, *, is_inherited: bool = False, **fields: object) -> tuple[DockerPlace, Assign]:
        entry = await self.journal.begin(an_assign(body, **fields))
        entry.is_inherited = is_inherited
        return DockerPlace(self.runtime, entry.assign, entry, GpuPool()), entry.assign


@asynccontextmanager
async def premises(directory: Path, engine: SlowEngine) -> AsyncIterator[Premises]:
    made = Premises(directory, engine)
    async with asyncio.timeout(10), asyncio.TaskGroup() as chores:
        made.runtime._chores = chores
        yield made
    made.journal.close()


async def test_a_step_may_end_while_its_place_is_closed(tmp_path: Path) -> None:
    engine = SlowEngine("listed")
    async with premises(tmp_path, engine) as there:
        place, assign = await there.place(task(script("true")), is_inherited=True)
        (context,) = assign.task.contexts
        await place._create_step(context, SPEC)
        async with asyncio.TaskGroup() as group:
            group.create_task(place.close())
            await engine.asked["listed"].wait()
            engine.may["remove"].clear()
            place.retire(context)
            engine.may["listed"].set()
            await engine.asked["remove"].wait()
            engine.may["remove"].set()
        await place.close()
    assert not engine.containers


async def test_what_is_made_while_its_place_is_closed_is_removed_by_the_next_who_closes_it(tmp_path: Path) -> None:
    engine = SlowEngine("create")
    async with premises(tmp_path, engine) as there:
        place, assign = await there.place(task(script("true")))
        async with asyncio.TaskGroup() as group:
            group.create_task(place._create_step(assign.task.contexts[0], SPEC))
            await engine.asked["create"].wait()
            await place.close()
            engine.may["create"].set()
        assert engine.containers
        await place.close()
    assert not engine.containers


async def test_a_network_whose_making_is_given_up_is_there_to_be_released(tmp_path: Path) -> None:
    engine = SlowEngine("network")
    body = task(script("true"))
    body = replace(body, contexts=tuple(replace(one, networks=(Attachment(network="n"),)) for one in body.contexts))
    async with premises(tmp_path, engine) as there:
        place, assign = await there.place(body, networks=(Network(name="n"),))
        async with asyncio.TaskGroup() as group:
            preparing = group.create_task(place.prepare())
            await engine.asked["network"].wait()
            preparing.cancel()
            await asyncio.sleep(0.02)
            assert not preparing.done(), "the engine goes on making it, whoever has hung up"
            engine.may["network"].set()
        assert engine.networks
        await there.runtime.release(assign.run_id)
    assert not engine.networks


async def test_an_installation_is_left_alone_by_the_attempt_that_began_it_before(tmp_path: Path) -> None:
    engine = SlowEngine()
    program = Program(
        language="python", text="x", command=("python",), requirements=("requests",), installer=Installer.PIP
    )
    body = task(Step(id="1", name="1", context="c1", program=program))
    async with premises(tmp_path, engine) as there:
        (first, assign), (second, _) = await there.place(body), await there.place(body)
        (context,) = assign.task.contexts
        async with asyncio.TaskGroup() as group:
            installing = group.create_task(first._create_step(context, SPEC))
            waiting = group.create_task(second._create_step(context, SPEC))
            await until(lambda: bool(engine.waited_for))
            installing.cancel()
            await asyncio.wait([installing])
            await until(lambda: len(engine.waited_for) == 2)
            (installer,) = engine.containers
            await first.kill()
            await first.close()
            assert not waiting.done()
            engine.containers[installer].set()
        assert await waiting in engine.containers
        await second.close()
    assert not engine.containers
