"""Agents that run nothing: a process with so many sessions, each of which says at once that what it gets is done.

Usage: simulated_agents.py URL TOKEN COUNT SLOTS. Prints a line `n` each time n more attempts were acknowledged. It packs
its messages by hand: on two cores it costs as little as it can of what it measures.
"""

from __future__ import annotations

import asyncio
import sys
import time
from typing import Any

import aiohttp
import msgpack

from pistage.core import ids

_HEARTBEAT_S = 2.0


def _event(kind: str, assign: dict[str, Any], **fields: Any) -> dict[str, Any]:
    about = {"kind": kind, "at": int(time.time() * 1000), "attempt_id": assign["attempt_id"], "fence": assign["fence"]}
    return about | fields


_DONE = {"state": "succeeded", "failure": None, "exit_code": 0, "reason": ""}
_STREAM = {"length": 0, "sha256": "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"}


def _events(assign: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        _event("accepted", assign, runtime="docker", notes=[]),
        _event("step_started", assign, step="1", container="c"),
        _event("step_finished", assign, step="1", result=_DONE, stdout=_STREAM, stderr=_STREAM),
        _event("finished", assign, result=_DONE),
    ]


class Agent:
    """One session."""

    def __init__(self, number: int, slots: int) -> None:
        self.number = number
        self.slots = slots
        self._reports: dict[int, int] = {}
        self._count = 0
        self._events: list[dict[str, Any]] = []
        self._news = asyncio.Event()

    async def run(self, http: aiohttp.ClientSession, url: str) -> None:
        async with http.ws_connect(url + "/agent/v1/session", max_msg_size=8 << 20) as socket:
            await socket.send_bytes(_packed("hello", protocol=1, info=self._info(), held=[], is_leaving=False))
            async with asyncio.TaskGroup() as group:
                group.create_task(self._beat(socket))
                group.create_task(self._report(socket))
                async for message in socket:
                    self._hear(message.data)
        raise ConnectionError("the master hung up")

    def _info(self) -> dict[str, Any]:
        capacity = {"cpus_milli": 64_000, "memory_bytes": 64 << 30, "gpus": 0, "slots": self.slots}
        about = {"name": f"sim-{self.number}", "incarnation": "i", "version": "sim", "runtimes": ["docker"]}
        agent_id = ids.make_id(1_700_000_000_000, self.number.to_bytes(10, "big"))
        return {"id": agent_id, "capacity": capacity, "labels": {}, "ignores_images": False} | about

    def _hear(self, raw: bytes) -> None:
        kind, fields = msgpack.unpackb(raw)
        if kind == "assign":
            self._events += _events(fields)
            self._news.set()
        elif kind == "reported":
            if fields["refused"]:
                raise AssertionError(f"refused: {fields}")
            print(self._reports.pop(fields["number"]), flush=True)

    async def _report(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        while True:
            await self._news.wait()
            self._news.clear()
            while self._events:
                batch, self._events = self._events[:256], self._events[256:]
                self._count += 1
                self._reports[self._count] = len(batch) // 4
                await socket.send_bytes(_packed("report", number=self._count, events=batch))

    async def _beat(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        number = 0
        while True:
            number += 1
            await socket.send_bytes(_packed("heartbeat", number=number))
            await asyncio.sleep(_HEARTBEAT_S)


def _packed(kind: str, **fields: Any) -> bytes:
    packed: bytes = msgpack.packb([kind, {"kind": kind} | fields])
    return packed


async def main(url: str, token: str, count: int, slots: int) -> None:
    connector = aiohttp.TCPConnector(limit=0)
    headers = {"Authorization": f"Bearer {token}"}
    async with aiohttp.ClientSession(connector=connector, headers=headers) as http, asyncio.TaskGroup() as group:
        for number in range(count):
            group.create_task(Agent(number, slots).run(http, url))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])))
