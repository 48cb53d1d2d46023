"""A master in this process, a plain HTTP client for it, and an agent that does only what a test says."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

from pistage import raft, wire
from pistage.config import MasterConfig
from pistage.core import commands as c
from pistage.core.model import AgentInfo, Capacity, Result, State, StreamEnd
from pistage.core.plan import FailureClass
from pistage.master.replica import Replica
from pistage.master.service import Master
from pistage.master.store import DurableLog, Identity

TOKEN = "a-token-of-tests"
HELLO_YAML = "name: Hello\nimage: busybox\nrun: echo hello\nretry: 0\n"


def a_log(data_dir: Path) -> DurableLog:
    """The log in that directory; of a master that is alone, where there is none."""
    path = data_dir / "raft.db"
    if not path.exists():
        identity = Identity(node_id="m1", group_id="g", founders={"m1": "http://m1"})
        DurableLog.create(path, identity, raft.Base(config=raft.Config(voters=("m1",))))
    return DurableLog(path)


def write(store: DurableLog, entries: Sequence[raft.Entry], **changes: Any) -> None:
    """One durable write with these entries."""
    last_index = entries[-1].index if entries else store.last_index
    store.write([raft.Persist(seq=1, term=1, last_index=last_index, entries=tuple(entries), **changes)])


@asynccontextmanager
async def a_replica(data_dir: Path, *, entries_kept: int = 10_000) -> AsyncIterator[Replica]:
    """A group of one that leads."""
    async with Replica(a_log(data_dir), data_dir, entries_kept=entries_kept).running() as replica:
        await replica.until_leading()
        yield replica


class Api:
    """HTTP calls that give status and JSON."""

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self.session = session
        self.url = url

    async def call(self, method: str, path: str, **given: Any) -> tuple[int, Any]:
        async with self.session.request(method, self.url + path, **given) as response:
            is_json = "json" in response.content_type and "ndjson" not in response.content_type
            return response.status, await (response.json() if is_json else response.text())

    async def submit(self, text: str = HELLO_YAML, **given: Any) -> dict[str, Any]:
        status, run = await self.call("POST", "/api/v1/runs", data=text.encode(), **given)
        assert status in {200, 201}, run
        return dict(run)

    async def run(self, run_id: str) -> dict[str, Any]:
        status, run = await self.call("GET", f"/api/v1/runs/{run_id}")
        assert status == 200, run
        return dict(run)

    async def ended(self, run_id: str) -> dict[str, Any]:
        """The run, once it is over."""
        async with asyncio.timeout(30):
            headers = {"Accept": "text/event-stream"}
            async with self.session.get(f"{self.url}/api/v1/runs/{run_id}/events", headers=headers) as events:
                await events.read()
        return await self.run(run_id)


@asynccontextmanager
async def a_master(data_dir: Path, *, token: str | None = TOKEN, **settings: Any) -> AsyncIterator[Api]:
    given = {"data_dir": data_dir, "listen": "127.0.0.1:0", "disk_free_min": 0} | settings
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    async with (
        Master(MasterConfig(**given), token=token) as master,
        aiohttp.ClientSession(headers=headers) as session,
    ):
        api = Api(session, master.url)
        api.master = master  # type: ignore[attr-defined]
        yield api


class FakeAgent:
    """Speaks the session protocol; every message of the master waits in a queue of its kind."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse, agent_id: str) -> None:
        self.socket = socket
        self.id = agent_id
        self._number = 0
        self._kept: list[Any] = []

    async def send(self, message: wire.ToMaster) -> None:
        await self.socket.send_bytes(wire.pack_message(message))

    async def receive(self, kind: type[Any]) -> Any:
        """The next message of this kind; others before it are kept for later."""
        for kept in self._kept:
            if isinstance(kept, kind):
                self._kept.remove(kept)
                return kept
        async with asyncio.timeout(10):
            while not isinstance(message := wire.unpack_message(await self.socket.receive_bytes()), kind):
                self._kept.append(message)
        return message

    async def beat(self, every_s: float) -> None:
        """Send heartbeats until cancelled."""
        while True:
            await self.send(wire.Heartbeat(number=0))
            await asyncio.sleep(every_s)

    async def report(self, *events: c.AttemptEvent) -> wire.Reported:
        self._number += 1
        await self.send(wire.Report(number=self._number, events=events))
        reported: wire.Reported = await self.receive(wire.Reported)
        assert reported.number == self._number
        return reported

    async def print(self, assign: wire.Assign, data: bytes, offset: int = 0) -> wire.LogAck:
        frame = wire.LogFrame(
            attempt_id=assign.attempt_id, step="1", stream=1, offset=offset, at=wire.now_ms(), data=data
        )
        await self.send(frame)
        ack: wire.LogAck = await self.receive(wire.LogAck)
        return ack

    async def accept(self, assign: wire.Assign) -> None:
        at = wire.now_ms()
        key = {"at": at, "attempt_id": assign.attempt_id, "fence": assign.fence}
        await self.report(c.Accepted(**key, runtime="docker"), c.StepStarted(**key, step="1"))

    async def finish(
        self, assign: wire.Assign, *, length: int = 0, exit_code: int = 0, sha256: str = ""
    ) -> wire.Reported:
        state = State.SUCCEEDED if exit_code == 0 else State.FAILED
        result = Result(state=state, exit_code=exit_code, failure=None if exit_code == 0 else FailureClass.FAILURE)
        key = {"at": wire.now_ms(), "attempt_id": assign.attempt_id, "fence": assign.fence}
        return await self.report(
            c.StepFinished(**key, step="1", result=result, stdout=StreamEnd(length=length, sha256=sha256)),
            c.Finished(**key, result=result),
        )


def an_info(agent_id: str, incarnation: str = "i1") -> AgentInfo:
    room = Capacity(cpus_milli=8000, memory_bytes=8 << 30, slots=8)
    return AgentInfo(
        id=agent_id, name="fake", incarnation=incarnation, version="0", runtimes=("docker",), capacity=room
    )


@asynccontextmanager
async def an_agent(
    api: Api, agent_id: str | None = None, *, incarnation: str = "i1", held: tuple[wire.Held, ...] = ()
) -> AsyncIterator[tuple[FakeAgent, wire.Welcome]]:
    async with api.session.ws_connect(api.url + "/agent/v1/session", max_msg_size=8 << 20) as socket:
        agent = FakeAgent(socket, agent_id or wire.new_id())
        await agent.send(wire.Hello(info=an_info(agent.id, incarnation), held=held))
        yield agent, await agent.receive(wire.Welcome)
