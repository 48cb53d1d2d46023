"""What the engine itself says was made: containers, commands run in them, networks and volumes, as they were made."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp

from tests.e2e.processes import until


class Watch:
    """Fills itself from the engine's event stream; an object is inspected the moment it is made."""

    def __init__(self, http: aiohttp.ClientSession) -> None:
        self._http = http
        self.containers: dict[str, dict[str, Any]] = {}
        self._networks: dict[str, dict[str, Any]] = {}
        self._volumes: dict[str, dict[str, Any]] = {}
        self._execs: dict[str, list[str]] = {}
        self._lives: dict[str, list[int]] = {}
        self._before: set[str] = set()

    def containers_of(self, run_id: str) -> list[dict[str, Any]]:
        return [one for one in self.containers.values() if one["Config"]["Labels"].get("pistage.run") == run_id]

    @property
    def networks(self) -> list[dict[str, Any]]:
        return list(self._networks.values())

    @property
    def volumes(self) -> list[dict[str, Any]]:
        """One each, although the engine tells of a volume's creation again when it is asked for one that exists."""
        return list(self._volumes.values())

    def execs_of(self, container: dict[str, Any]) -> list[str]:
        """The command line of each exec in the container that ran a step's command, in order."""
        return self._execs.get(container["Id"], [])

    def life_of(self, container: dict[str, Any]) -> tuple[int, int]:
        """When it was started and when it died, nanoseconds."""
        started, died = self._lives[container["Id"]]
        return started, died

    async def get(self, path: str) -> Any:
        async with self._http.get(f"http://localhost{path}") as response:
            return await response.json() if response.status == 200 else None

    async def leftovers(self) -> set[str]:
        """Containers, networks and volumes with a label of ours."""
        query = json.dumps({"label": ["pistage.run"]})
        containers = await self.get(f"/containers/json?all=1&filters={query}")
        networks = await self.get(f"/networks?filters={query}")
        volumes = (await self.get(f"/volumes?filters={query}"))["Volumes"] or []
        return {each["Id"] for each in [*containers, *networks]} | {each["Name"] for each in volumes}

    async def until_clean(self) -> None:
        """Wait until nothing is left that was not there before; agents remove just after a run's end."""

        async def is_clean() -> bool:
            return await self.leftovers() <= self._before

        await until(is_clean, 20)

    async def follow(self, ready: asyncio.Event) -> None:
        self._before = await self.leftovers()
        async with self._http.get("http://localhost/events", timeout=aiohttp.ClientTimeout(total=None)) as events:
            ready.set()
            async for line in events.content:
                await self._take(json.loads(line))

    async def _take(self, event: dict[str, Any]) -> None:
        action, actor = event["Action"], event["Actor"]
        match event["Type"], action.split(":")[0]:
            case "container", "create" | "start":
                if inspected := await self.get(f"/containers/{actor['ID']}/json"):
                    self.containers[actor["ID"]] = inspected
                if action == "start":
                    self._lives[actor["ID"]] = [event["timeNano"]]
            case "container", "die":
                self._lives.setdefault(actor["ID"], [0]).append(event["timeNano"])
            case "container", "exec_create":
                self._execs.setdefault(actor["ID"], []).append(action)
            case "network", "create":
                if inspected := await self.get(f"/networks/{actor['ID']}"):
                    self._networks[inspected["Id"]] = inspected
            case "volume", "create":
                if inspected := await self.get(f"/volumes/{actor['ID']}"):
                    self._volumes[inspected["Name"]] = inspected


@asynccontextmanager
async def watching(engine: Any) -> AsyncIterator[Watch]:
    connector = aiohttp.UnixConnector(engine.socket, limit=0)
    async with aiohttp.ClientSession(connector=connector) as http, asyncio.TaskGroup() as group:
        watch = Watch(http)
        ready = asyncio.Event()
        following = group.create_task(watch.follow(ready))
        async with asyncio.timeout(10):
            await ready.wait()
        try:
            yield watch
        finally:
            following.cancel()
