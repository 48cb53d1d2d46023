"""Masters and named agents as processes, on an engine that may be shared, and what it says has happened there."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

from tests.e2e.masters import Asking, Masters, asking
from tests.e2e.processes import until
from tests.master.fakes import Api

_END_S = 20.0


class Fleet(Masters):
    """A group of masters, and agents by name that know all of them."""

    def __init__(self, directory: Path, masters: int = 1) -> None:
        super().__init__(directory, masters)
        self.agents: dict[str, tuple[str, tuple[str, ...]]] = {}
        self.cluster_id = ""

    def start_agent(self, *flags: str, name: str = "agent", runtime: str = "host") -> None:
        """Start it; `again` starts it with the same flags."""
        self.agents[name] = (runtime, flags)
        allowed = ("--allow-host-runtime", "--ignore-images") if runtime == "host" else ()
        urls = ",".join(self.urls.values())
        self._start(
            name, "serve", "--role", "agent", "--name", name, "--masters", urls, "--runtime", runtime, *allowed, *flags
        )

    def again(self, name: str) -> None:
        runtime, flags = self.agents[name]
        self.start_agent(*flags, name=name, runtime=runtime)

    def agent_id(self, name: str) -> str:
        return (self.data(name) / "id").read_text(encoding="ascii").strip()

    def stop_all(self) -> None:
        """Agents first, so that they end their steps."""
        ending = {name: self.running.pop(name) for name in self.agents if name in self.running}
        for process in ending.values():
            process.send_signal(signal.SIGTERM)
        for process in ending.values():
            try:
                process.wait(_END_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        super().stop_all()


@asynccontextmanager
async def a_fleet(
    directory: Path, *, masters: int = 1, master_flags: Sequence[str] = (), socket: str = ""
) -> AsyncIterator[tuple[Fleet, Api]]:
    """Masters with a leader and no agent yet, and an API client for the first of them.

    What a test that failed leaves on the engine behind `socket` is removed, as far as it is of this cluster.
    """
    fleet = Fleet(directory, masters)
    try:
        for name in fleet.founders:
            fleet.serve(name, *master_flags)
        async with asking(fleet) as ask:
            fleet.cluster_id = await _founded(ask)
            try:
                yield fleet, Api(ask.session, fleet.urls[fleet.founders[0]])
            except BaseException:
                for name in fleet.agents:
                    print(f"--- {name}\n{fleet.log_of(name)[-4000:]}")
                raise
    finally:
        fleet.stop_all()
        if socket:
            await _remove_leftovers(socket, f"pistage.cluster={fleet.cluster_id}")


async def _founded(ask: Asking) -> str:
    """The id of the cluster, once there is one."""

    async def founded() -> str | None:
        status = await ask.cluster(await ask.leader())
        return status and status["cluster_id"]

    return str(await until(founded))


async def _remove_leftovers(socket: str, label: str) -> None:
    async with the_engine(socket) as engine:
        for one in await engine.containers(label):
            await engine.call("DELETE", f"/containers/{one['Id']}?force=1")
        for kind, key in (("networks", "Id"), ("volumes", "Name")):
            found = await engine.call("GET", f"/{kind}?filters={json.dumps({'label': [label]})}") or []
            for one in (found["Volumes"] or []) if kind == "volumes" else found:
                await engine.call("DELETE", f"/{kind}/{one[key]}")


async def connected(api: Api, *names: str) -> None:
    """Return once these agents are there."""

    async def are_there() -> bool:
        return set(names) <= {item["name"] for item in await agents_of(api) if item["is_connected"]}

    await until(are_there)


async def agents_of(api: Api) -> list[dict[str, Any]]:
    status, found = await api.call("GET", "/api/v1/agents")
    return list(found["items"]) if status == 200 else []


async def submit_batch(api: Api, definition: dict[str, Any], parameters: Iterable[dict[str, Any]]) -> list[str]:
    """One run for each of the parameters, in one request; their ids."""
    body = {"definition": json.dumps(definition), "runs": [{"with": one} for one in parameters]}
    status, made = await api.call("POST", "/api/v1/runs/batch", json=body)
    assert status == 201, made
    return [run["id"] for run in made["items"]]


async def all_ended(api: Api, run_ids: Sequence[str], timeout_s: float = 60.0) -> list[dict[str, Any]]:
    """The runs in their order, once all are over."""
    ended: dict[str, dict[str, Any]] = {}

    async def are_over() -> bool:
        for run_id in run_ids:
            if run_id not in ended:
                run = await api.run(run_id)
                if not run["finished_at"]:
                    return False
                ended[run_id] = run
        return True

    try:
        await until(are_over, timeout_s)
    except TimeoutError:
        waiting = next(run_id for run_id in run_ids if run_id not in ended)
        raise AssertionError(f"{len(ended)} of {len(run_ids)} ended; not {await api.run(waiting)}") from None
    return [ended[run_id] for run_id in run_ids]


def attempts_of(run: dict[str, Any]) -> list[dict[str, Any]]:
    return [attempt for task in run["tasks"] for attempt in task["attempts"]]


class EngineClient:
    """The engine's own API, and what has happened to containers since it was opened, oldest first."""

    def __init__(self, http: aiohttp.ClientSession) -> None:
        self._http = http
        self.events: list[dict[str, Any]] = []

    async def call(self, method: str, path: str, body: Any = None) -> Any:
        """The JSON that it answers; None where it refuses, or says nothing."""
        async with self._http.request(method, f"http://localhost{path}", json=body) as response:
            return await response.json() if response.status < 300 and "json" in response.content_type else None

    async def containers(self, *labels: str) -> list[dict[str, Any]]:
        """All with these labels, those that have ended too."""
        return list(await self.call("GET", f"/containers/json?all=1&filters={json.dumps({'label': labels})}") or [])

    def happened(self, action: str, label: str, value: str) -> list[str]:
        """The names of the containers with such a label that this has happened to, once for each time."""
        own = [one["Actor"]["Attributes"] for one in self.events if one["Action"] == action]
        return [one["name"] for one in own if one.get(label) == value]

    def time_of(self, action: str, label: str, value: str) -> int:
        """When this happened to the one container with such a label, nanoseconds."""
        own = [one for one in self.events if one["Action"] == action]
        (found,) = [one for one in own if one["Actor"]["Attributes"].get(label) == value]
        return int(found["timeNano"])

    async def follow(self, ready: asyncio.Event) -> None:
        path = f"http://localhost/events?filters={json.dumps({'type': ['container']})}"
        async with self._http.get(path, timeout=aiohttp.ClientTimeout(total=None)) as events:
            ready.set()
            async for line in events.content:
                self.events.append(json.loads(line))


@asynccontextmanager
async def the_engine(socket: str, *, is_followed: bool = False) -> AsyncIterator[EngineClient]:
    """The engine behind the socket."""
    connector = aiohttp.UnixConnector(socket, limit=0)
    async with aiohttp.ClientSession(connector=connector) as http, asyncio.TaskGroup() as group:
        client = EngineClient(http)
        if not is_followed:
            yield client
            return
        ready = asyncio.Event()
        following = group.create_task(client.follow(ready))
        async with asyncio.timeout(10):
            await ready.wait()
        try:
            yield client
        finally:
            following.cancel()
