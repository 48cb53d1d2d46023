"""Many who follow one run: each has all that it asked for, whoever is slow or hangs up. And turns, by our own clock."""

import asyncio
import json
import random
import socket
from collections import deque
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from pistage.core import limits
from pistage.master.api import answering, eventstream
from pistage.master.api.sending import Sender
from pistage.master.api.tails import Page, Tails
from pistage.master.reading.turns import Turns
from tests.master import printed
from tests.master.fakes import TOKEN, Api, a_master, an_agent
from tests.master.printed import Frame, Wanted
from tests.waiting import until

EVENTS = {"Accept": "text/event-stream"}


async def events_of(api: Api, run_id: str, wanted: Wanted, chance: random.Random) -> list[tuple[str, dict[str, Any]]]:
    """Kind and object of each event; now and then it is cut off, and goes on behind the last that it had."""
    found: list[tuple[str, dict[str, Any]]] = []
    last: dict[str, str] = {}
    while not found or found[-1][0] != "end":
        url = f"{api.url}/api/v1/runs/{run_id}/logs"
        async with api.session.get(url, params=wanted, headers=EVENTS | last) as response:
            assert response.status == 200, await response.text()
            patience = chance.choice([3, 30, 10_000])
            while patience and (event := await _event(response.content)) is not None:
                event_id, kind, told = event
                found.append((kind, told))
                last = {"Last-Event-ID": event_id} if event_id else last
                patience -= 1
    return found[:-1]


async def _event(content: aiohttp.StreamReader) -> tuple[str, str, dict[str, Any]] | None:
    fields: dict[str, str] = {}
    while line := (await content.readline()).decode():
        if line == "\n":
            if "data" in fields:
                return fields.get("id", ""), fields["event"], json.loads(fields["data"])
            continue
        name, _, value = line.rstrip("\n").partition(": ")
        fields[name] = value
    return None


def put_together(events: list[tuple[str, dict[str, Any]]]) -> list[tuple[Any, ...]]:
    """Pieces, of which large ones come in several events."""
    whole: list[tuple[Any, ...]] = []
    for kind, told in events:
        assert told["kind"] == kind
        if kind == "gap":
            whole.append((told["number"], told["offset"], told["reason"]))
        elif whole and whole[-1][0] == told["number"]:
            number, offset, data = whole[-1]
            assert told["offset"] == offset + len(data)
            whole[-1] = (number, offset, data + printed.bytes_of(told))
        else:
            whole.append((told["number"], told["offset"], printed.bytes_of(told)))
    return whole


def expected(frames: list[Frame], wanted: Wanted) -> list[tuple[Any, ...]]:
    return [(frame.number, frame.offset, frame.reason or frame.data) for frame in printed.pieces(frames, wanted)]


@pytest.mark.slow
async def test_each_of_many_followers_has_all_that_it_asked_for(tmp_path: Path) -> None:
    chance = random.Random(3)
    pieces = [*[b"a line\n"] * 12, b"\xff" * 3000, b"x" * 40_000, b"\x00" * 9000, "é".encode() * 9000]
    frames = printed.some_frames(chance, 300, pieces=pieces, reasons=["lost"])
    async with a_master(tmp_path) as api, an_agent(api) as (agent, _):
        run = await printed.a_printed_run(api, agent, frames[:100])
        async with asyncio.timeout(60), asyncio.TaskGroup() as group:
            asked: list[Wanted] = [{}] * 20
            asked += [{"task": chance.choice(printed.TASKS), "offset": chance.randrange(100)} for _ in range(20)]
            reading = [
                group.create_task(events_of(api, run.id, wanted, random.Random(n))) for n, wanted in enumerate(asked)
            ]
            gone = [await api.session.get(f"{api.url}/api/v1/runs/{run.id}/logs", headers=EVENTS) for _ in range(5)]
            for start in range(100, 300, 40):
                await printed.print_all(agent, run.assigns, frames[start : start + 40])
                if gone:
                    gone.pop().close()
            for assign in run.assigns.values():
                await agent.finish(assign, length=0)
        for wanted, one in zip(asked, reading, strict=True):
            assert put_together(one.result()) == expected(frames, wanted), wanted


@pytest.mark.slow
async def test_who_reads_nothing_holds_nobody_up_and_is_let_go_when_gone(tmp_path: Path) -> None:
    async with a_master(tmp_path) as api, an_agent(api) as (agent, _):
        frames = printed.some_frames(random.Random(1), 50, pieces=[b"z" * 20_000 + b"\n"], reasons=["lost"])
        run = await printed.a_printed_run(api, agent, [])
        host, port = api.url.removeprefix("http://").split(":")
        stuck = []
        for _ in range(40):
            connection = socket.socket()
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.connect((host, int(port)))
            connection.sendall(
                f"GET /api/v1/runs/{run.id}/logs HTTP/1.1\r\nHost: x\r\nAccept: text/event-stream\r\n"
                f"Authorization: Bearer {TOKEN}\r\n\r\n".encode()
            )
            stuck.append(connection)
        async with asyncio.timeout(30):
            await printed.print_all(agent, run.assigns, frames)
            for assign in run.assigns.values():
                await agent.finish(assign, length=0)
            assert put_together(await events_of(api, run.id, {}, random.Random(1))) == expected(frames, {})
        for connection in stuck:
            connection.close()


async def test_who_is_gone_when_it_is_told_that_we_live_leaves_its_turn_to_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Turns] = []
    told: list[bytes] = []

    def kept() -> Turns:
        made.append(Turns())
        return made[-1]

    async def broken(sender: Sender, data: bytes) -> None:
        if data == eventstream._SIGN_OF_LIFE:
            told.append(data)
            raise aiohttp.ClientConnectionResetError("Cannot write to closing transport")
        await write(sender, data)

    write = Sender.write
    monkeypatch.setattr(answering, "Turns", kept)
    monkeypatch.setattr(Sender, "write", broken)
    monkeypatch.setattr(limits, "SSE_HEARTBEAT_S", 0.05)
    async with a_master(tmp_path) as api, an_agent(api) as (agent, _):
        run = await printed.a_printed_run(api, agent, [])
        async with api.session.get(f"{api.url}/api/v1/runs/{run.id}/logs", headers=EVENTS):
            (turns,) = made
            await until(lambda: bool(told) and not turns.readers)
            assert turns._granted == 0


def test_a_page_that_two_have_read_counts_once() -> None:
    tails = Tails(None, Turns())  # type: ignore[arg-type]
    for start in range(500):
        for size in (5_000, 90_000, 40_000):
            tails.keep("run", Page(start, [], [], size))
        assert tails._size == sum(page.size for page in tails._pages.values()) <= 16 * limits.MIB
    assert len(tails._pages) > 400


class Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.now = self.cpu = 0.0


async def test_turns_are_in_the_order_of_coming_and_a_hundred_get_the_share_that_is_left() -> None:
    clock = Clock()
    turns = Turns(lambda: clock.now, lambda: clock.cpu)
    turns.readers = 100
    order: deque[int] = deque()

    async def reader(number: int) -> None:
        for _ in range(3):
            async with turns:
                clock.now += 0.0001
                clock.cpu += 0.0001
                order.append(number)

    async with asyncio.timeout(10), asyncio.TaskGroup() as group:
        for number in range(100):
            group.create_task(reader(number))
        while len(order) < 300:
            clock.now += 0.0001
            await asyncio.sleep(0)
    assert list(order) == [*range(100)] * 3


@pytest.mark.parametrize(("busy", "share"), [(0.0, 0.6), (0.3, 0.3), (0.7, 0.05), (1.9, 0.05)])
async def test_the_share_of_readers_shrinks_while_the_process_is_busy(busy: float, share: float) -> None:
    clock = Clock()
    turns = Turns(lambda: clock.now, lambda: clock.cpu)
    turns.readers = 100
    async with asyncio.timeout(10):
        for _ in range(20):
            clock.now += 0.1
            clock.cpu += 0.1 * busy
            async with turns:
                clock.now += 0.0005
                clock.cpu += 0.0005
    assert turns.share == pytest.approx(share, abs=0.02)


async def test_readers_that_have_used_their_share_wait_until_it_is_earned() -> None:
    clock = Clock()
    turns = Turns(lambda: clock.now, lambda: clock.cpu)
    turns.readers = 100
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(10):
        async with turns:
            clock.now += 0.03
        began = loop.time()
        async with asyncio.TaskGroup() as group:
            waiting = group.create_task(turns.take())
            await asyncio.sleep(0)
            assert not waiting.done()
        assert loop.time() - began > 0.015, "30 ms of 50 are six tenths"


async def test_who_gives_up_in_the_queue_leaves_the_turn_to_the_next() -> None:
    turns = Turns()
    turns.readers = 100
    async with asyncio.timeout(5), asyncio.TaskGroup() as group:
        waiting = [group.create_task(turns.take()) for _ in range(20)]
        await asyncio.sleep(0)
        for task in waiting[:10]:
            task.cancel()
        for task in waiting[10:]:
            await task
            turns.done()


async def test_more_readers_than_there_may_be_are_told_to_try_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "READERS_MAX", 2)
    async with a_master(tmp_path) as api:
        run = await api.submit()
        url = f"{api.url}/api/v1/runs/{run['id']}/logs?follow=1"
        async with api.session.get(url), api.session.get(url) as second:
            status, problem = await api.call("GET", f"/api/v1/runs/{run['id']}/logs")
            assert (status, problem["code"]) == (503, "unavailable")
            second.close()
            async with asyncio.timeout(10):
                while (await api.call("GET", f"/api/v1/runs/{run['id']}/logs"))[0] != 200:  # noqa: ASYNC110
                    await asyncio.sleep(0)
