"""The client and a real master, with a line between them that breaks: what is read is what is there, once."""

import asyncio
import random
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from pistage.client import Client, Pattern, Selection
from tests.master import printed
from tests.master.fakes import TOKEN, Api, a_master, an_agent


class BreakingLine:
    """A port that leads to the master; after each of `cuts` bytes of answers the connection that brought them ends."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.cuts: list[int] = []
        self.breaks = 0
        self._served: set[asyncio.Task[Any]] = set()

    async def close(self) -> None:
        """End what is still open."""
        for task in self._served:
            task.cancel()
        await asyncio.gather(*self._served, return_exceptions=True)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._served.add(task)
        there, back = await asyncio.open_connection("127.0.0.1", self._port)
        try:
            async with asyncio.TaskGroup() as group:
                asking = group.create_task(self._ask(reader, back))
                await self._answer(there, writer)
                asking.cancel()
        except* ConnectionError:
            pass
        finally:
            writer.transport.abort()
            back.transport.abort()

    async def _ask(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(4096):
            writer.write(data)

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(min(4096, self.cuts[-1]) if self.cuts else 4096):
            writer.write(data)
            await writer.drain()
            if self.cuts:
                self.cuts[-1] -= len(data)
                if self.cuts[-1] <= 0:
                    self.cuts.pop()
                    self.breaks += 1
                    return


@asynccontextmanager
async def through_a_breaking_line(api: Api) -> AsyncIterator[tuple[Client, BreakingLine]]:
    line = BreakingLine(int(api.url.rpartition(":")[2]))
    server = await asyncio.start_server(line.serve, "127.0.0.1", 0)
    async with server:
        async with Client([f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"], TOKEN) as client:
            yield client, line
        await line.close()


async def collected(stream: AsyncGenerator[Any, None]) -> list[Any]:
    return [value async for value in stream]


def readings(
    client: Client, run_id: str, chance: random.Random, *, is_followed: bool
) -> list[AsyncGenerator[Any, None]]:
    """Every way of reading, with what differs from one call to another drawn once."""
    out = client.output(run_id)
    some = Selection(task=chance.choice([None, *printed.TASKS]), stream=chance.choice([None, "stdout"]))
    since = str(printed.BEGIN + chance.randrange(6000))
    timed = Selection(since=since, until=chance.choice([None, str(printed.BEGIN + 9000)]))
    tail, limit = chance.randrange(1, 12), chance.randrange(1, 30)
    given = {"is_followed": is_followed}
    ways = [
        out.follow_bytes(some, **given),
        out.follow_bytes(some, tail=tail, **given),
        out.follow_bytes(timed, **given),
        out.follow_bytes(some, tail=tail, limit=limit, **given),
        out.follow_pieces(some, **given),
        out.follow_pieces(timed, start=chance.randrange(30), **given),
        out.follow_lines(some, **given),
        out.follow_lines(some, tail=tail, **given),
        out.follow_lines(timed, limit=limit, **given),
        out.follow_lines(some, pattern=Pattern(text="needle"), tail=tail * 10, **given),
        out.follow_lines(some, pattern=Pattern(text="^a|X.x$", is_regex=True, ignores_case=True), limit=limit, **given),
    ]
    if not is_followed:
        ways += [
            out.follow_pieces(Selection(is_by_time=True), **given),
            out.follow_lines(Selection(is_by_time=True), tail=tail, **given),
            out.follow_lines(Selection(is_by_time=True), pattern=Pattern(text="x"), **given),
        ]
    return ways


def joined(values: Sequence[Any]) -> Any:
    """What was read, whatever it was cut into."""
    if all(isinstance(value, bytes) for value in values):
        return b"".join(values)
    texts: dict[Any, str] = {}
    for value in values:
        name = (value["attempt_id"], value["step"], value["stream"])
        end = f"#{value['line']}\n" if value["kind"] == "line" and not {"is_open", "is_cut"} & value.keys() else ""
        texts[name] = texts.get(name, "") + str(value.get("data") or value["text"]) + end
    return sorted(texts.items())


def some_cuts(chance: random.Random) -> list[int]:
    """How many bytes of answers there are from one break to the next: a head has some 300."""
    return [chance.randrange(200, 4000) for _ in range(chance.randrange(5))]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
async def test_what_is_read_over_a_line_that_breaks_is_what_is_there(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    async with a_master(tmp_path) as api, an_agent(api) as (agent, _):
        run = await printed.a_printed_run(api, agent, printed.some_frames(chance, 400))
        async with Client([api.url], TOKEN) as direct, through_a_breaking_line(api) as (client, line):
            expected = [
                await collected(way) for way in readings(direct, run.id, random.Random(seed), is_followed=False)
            ]
            for number, way in enumerate(readings(client, run.id, random.Random(seed), is_followed=False)):
                line.cuts = some_cuts(chance)
                assert joined(await collected(way)) == joined(expected[number]), number
        assert line.breaks > 3


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
async def test_what_is_followed_over_a_line_that_breaks_is_what_was_printed(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    frames = printed.some_frames(chance, 300)
    async with a_master(tmp_path) as api, an_agent(api) as (agent, _):
        run = await printed.a_printed_run(api, agent, frames[:60])
        async with through_a_breaking_line(api) as (client, line):
            line.cuts = [chance.randrange(200, 9000) for _ in range(40)]
            tails = [chance.randrange(8) for _ in range(2)]
            out = client.output(run.id)
            followed: list[AsyncGenerator[Any, None]] = [
                out.follow_bytes(Selection()),
                out.follow_pieces(Selection()),
                out.follow_lines(Selection()),
                out.follow_bytes(Selection(), tail=tails[0]),
                out.follow_lines(Selection(), tail=tails[1]),
                out.follow_lines(Selection(), pattern=Pattern(text="x")),
            ]
            async with asyncio.TaskGroup() as group:
                reading = [group.create_task(collected(way)) for way in followed]
                for start in range(60, 300, 20):
                    await printed.print_all(agent, run.assigns, frames[start : start + 20])
                for assign in run.assigns.values():
                    await agent.finish(assign)
            assert line.breaks > 3
            whole = [task.result() for task in reading]
            now = [out.follow_bytes(Selection(), is_followed=False), out.follow_pieces(Selection(), is_followed=False)]
            now += [out.follow_lines(Selection(), is_followed=False)]
            now += [out.follow_lines(Selection(), pattern=Pattern(text="x"), is_followed=False)]
            there = [joined(await collected(way)) for way in now]
    assert [joined(values) for values in [*whole[:3], whole[5]]] == there
    assert there[0] == b"".join(frame.data for frame in frames)
    last = joined(whole[3])
    assert last
    assert there[0].endswith(last)
    numbers = [line["line"] for line in whole[4] if line["kind"] == "line" and not {"is_open", "is_cut"} & line.keys()]
    end = there[0].count(b"\n")
    assert numbers == list(range(numbers[0] if numbers else end, end))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
async def test_a_search_over_a_line_that_breaks_finds_what_is_there(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    async with a_master(tmp_path) as api, an_agent(api) as (agent, _):
        for _ in range(2):  # as many as the agent has room for
            await printed.a_printed_run(api, agent, printed.some_frames(chance, 150))
        pattern = Pattern(text="x|a line", is_regex=True)
        async with Client([api.url], TOKEN) as direct, through_a_breaking_line(api) as (client, line):
            whole = await collected(direct.search_output(pattern))
            assert len({value["run"] for value in whole[:-1]}) == 2
            line.cuts = [chance.randrange(500, 20_000) for _ in range(8)]
            assert await collected(client.search_output(pattern)) == whole
            assert line.breaks > 3
            pages, cursor = [], None
            while True:
                *found, end = await collected(
                    client.search_output(pattern, limit=chance.randrange(1, 40), cursor=cursor)
                )
                pages += found
                if (cursor := end["next"]) is None:
                    break
            assert pages == whole[:-1]
