"""Three masters in one process: what an agent prints goes on with the next leader, at the right byte, and is whole."""

import asyncio
import hashlib
import random
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from pistage import wire
from pistage.config import MasterConfig
from pistage.master.service import Master
from pistage.owning import running
from tests.master.fakes import TOKEN, Api, FakeAgent, an_agent


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


class Masters:
    """Each in a task of its own, so that one can be stopped while the others go on."""

    def __init__(self, directory: Path, session: aiohttp.ClientSession, settings: dict[str, Any]) -> None:
        self._settings = settings
        self.urls = [f"http://127.0.0.1:{port}" for port in free_ports(3)]
        self.up: dict[str, Master] = {}
        self._directory, self.session = directory, session
        self._stops = {url: asyncio.Event() for url in self.urls}
        self._ended = {url: asyncio.Event() for url in self.urls}
        self.all_up = asyncio.Barrier(len(self.urls) + 1)

    async def serve(self, url: str) -> None:
        settings = MasterConfig(
            data_dir=self._directory / url[-5:].strip(":"), listen=url.removeprefix("http://"), peers=tuple(self.urls),
            disk_free_min=0, heartbeat=0.5, lease=5.0, election_timeout=0.5, **self._settings,
        )  # fmt: skip
        async with Master(settings, token=TOKEN) as master:
            self.up[url] = master
            await self.all_up.wait()
            await self._stops[url].wait()
            del self.up[url]
        self._ended[url].set()

    async def stop(self, url: str) -> None:
        self._stops[url].set()
        await self._ended[url].wait()

    async def leader(self, *, other_than: str = "") -> Api:
        """The master that leads, once all that are up are of one mind."""
        async with asyncio.timeout(20):
            while True:
                told = [await self._leader_known_at(url) for url in self.up]
                if told and None not in told and len(set(told)) == 1 and told[0] != other_than:
                    return Api(self.session, str(told[0]))
                await asyncio.sleep(0.05)

    async def _leader_known_at(self, url: str) -> str | None:
        _, cluster = await Api(self.session, url).call("GET", "/api/v1/cluster")
        return next((one["url"] for one in cluster["masters"] if one.get("role") == "leader"), None)


@asynccontextmanager
async def three_masters(directory: Path, **settings: Any) -> AsyncIterator[Masters]:
    async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {TOKEN}"}) as session:
        masters = Masters(directory, session, settings)
        async with running(*(masters.serve(url) for url in masters.urls)):
            async with asyncio.timeout(20):
                await masters.all_up.wait()
            yield masters


async def say(agent: FakeAgent, assign: wire.Assign, whole: bytes, start: int) -> int:
    """Send it in frames from `start` on; the acknowledged length, once that is all of it."""
    offset = start
    for _ in range(20):
        end = len(whole) if offset + 7_000 > len(whole) else offset + 7_000
        frame = wire.LogFrame(
            attempt_id=assign.attempt_id, step="1", stream=1, offset=offset, at=wire.now_ms(), data=whole[offset:end]
        )
        await agent.send(frame)
        offset = end
    while (ack := await agent.receive(wire.LogAck)).length < offset:
        assert not ack.is_gap
    return int(ack.length)


@pytest.mark.slow
async def test_who_reads_through_another_master_is_cut_off_when_the_leader_stops_and_reads_on_at_the_next(
    tmp_path: Path,
) -> None:
    async with three_masters(tmp_path) as masters:
        first = await masters.leader()
        beside = next(url for url in masters.urls if url != first.url)
        async with an_agent(first) as (agent, _):
            run = await first.submit()
            assign = await agent.receive(wire.Assign)
            await agent.accept(assign)
            assert (await agent.print(assign, b"hello")).length == 5
            url = f"{beside}/api/v1/runs/{run['id']}/logs?follow=1"
            async with masters.session.get(url) as response:
                assert await response.content.readexactly(5) == b"hello"
                await masters.stop(first.url)
                with pytest.raises(aiohttp.ClientPayloadError):  # an end that is one would say that this was all
                    await response.content.read()
        second = await masters.leader(other_than=first.url)
        async with an_agent(second, agent.id) as (again, _), masters.session.get(url + "&offset=5") as response:
            assert (await again.print(assign, b" world", 5)).length == 11
            assert await response.content.readexactly(6) == b" world"


@pytest.mark.slow
async def test_output_goes_on_with_the_next_leader_and_nothing_acknowledged_is_lost(tmp_path: Path) -> None:
    whole = random.Random(1).randbytes(280_000)
    async with three_masters(tmp_path) as masters:
        first = await masters.leader()
        async with an_agent(first) as (agent, _):
            run = await first.submit()
            assign = await agent.receive(wire.Assign)
            await agent.accept(assign)
            acked = await say(agent, assign, whole, 0)
            assert acked == 140_000
        await masters.stop(first.url)
        second = await masters.leader(other_than=first.url)
        held = (wire.Held(attempt_id=assign.attempt_id, run_id=run["id"], fence=assign.fence),)
        async with an_agent(second, agent.id, held=held) as (again, welcome):
            assert [verdict.is_kept for verdict in welcome.verdicts] == [True]
            assert (await again.print(assign, b"")).length == acked
            assert await say(again, assign, whole, acked) == len(whole)
            await again.finish(assign, length=len(whole))
        assert (await second.ended(run["id"]))["state"] == "succeeded"
        for url in masters.up:
            exact = {"Accept": "application/octet-stream"}
            async with masters.session.get(f"{url}/api/v1/runs/{run['id']}/logs", headers=exact) as response:
                assert response.status == 200
                assert hashlib.sha256(await response.read()).digest() == hashlib.sha256(whole).digest()
