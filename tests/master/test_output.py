"""Output over HTTP: each form, gaps and what is lost, long lines, many runs at once, and who may not ask."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from pistage import wire
from pistage.core import commands as c
from pistage.core.model import Result, State, StreamEnd
from tests.master import printed
from tests.master.fakes import Api, FakeAgent, a_master, an_agent
from tests.master.printed import BEGIN

JSON = {"Accept": "application/x-ndjson"}
EVENTS = {"Accept": "text/event-stream"}
BYTES = {"Accept": "application/octet-stream"}


async def frame(
    agent: FakeAgent, assign: wire.Assign, data: bytes, offset: int, *, stream: int = 1, at: int = 0
) -> None:
    place = {"attempt_id": assign.attempt_id, "step": "1", "stream": stream, "offset": offset}
    await agent.send(wire.LogFrame(**place, at=BEGIN + at, data=data))
    await agent.receive(wire.LogAck)


async def gap(agent: FakeAgent, assign: wire.Assign, offset: int, length: int, reason: str) -> None:
    place = {"attempt_id": assign.attempt_id, "step": "1", "stream": 1, "offset": offset}
    await agent.send(wire.LogGap(**place, length=length, at=BEGIN, reason=wire.GapReason(reason)))
    await agent.receive(wire.LogAck)


@asynccontextmanager
async def a_run(directory: Path) -> AsyncIterator[tuple[Api, FakeAgent, wire.Assign, str]]:
    async with a_master(directory) as api, an_agent(api) as (agent, _):
        run = await api.submit()
        assign = await agent.receive(wire.Assign)
        await agent.accept(assign)
        yield api, agent, assign, run["id"]


async def read(api: Api, run_id: str, query: str = "", headers: dict[str, str] | None = None) -> str:
    async with api.session.get(f"{api.url}/api/v1/runs/{run_id}/logs?{query}", headers=headers) as response:
        assert response.status == 200, await response.text()
        return (await response.read()).decode()


async def objects(api: Api, path: str) -> list[dict[str, Any]]:
    async with api.session.get(f"{api.url}/api/v1/{path}", headers=JSON) as response:
        assert response.status == 200, await response.text()
        return [json.loads(line) for line in (await response.read()).splitlines()]


async def ended(agent: FakeAgent, assign: wire.Assign, *, length: int, missing: int = 0) -> None:
    """The step says that it printed so much."""
    result = Result(state=State.SUCCEEDED, exit_code=0)
    key = {"at": BEGIN + 9_000, "attempt_id": assign.attempt_id, "fence": assign.fence}
    stdout = StreamEnd(length=length, sha256="", missing=missing)
    await agent.report(c.StepFinished(**key, step="1", result=result, stdout=stdout), c.Finished(**key, result=result))


async def test_text_is_for_people_and_bytes_are_what_was_printed(tmp_path: Path) -> None:
    async with a_run(tmp_path) as (api, agent, assign, run_id):
        whole = "\x1b[32mgrün\x1b[0m\r\n".encode() + b"\xff\n"
        await frame(agent, assign, whole[:7], 0)
        await frame(agent, assign, whole[7:], 7)  # in the middle of the ü
        assert await read(api, run_id) == "grün\n\ufffd\n"
        assert await read(api, run_id, "ansi=1") == "\x1b[32mgrün\x1b[0m\r\n\ufffd\n"
        stamp = "2026-09-21T14:13:20.000Z"
        assert await read(api, run_id, "timestamps=1") == f"{stamp} grün\n{stamp} \ufffd\n"
        async with api.session.get(f"{api.url}/api/v1/runs/{run_id}/logs", headers=BYTES) as response:
            assert await response.read() == whole
            assert response.content_type == "application/octet-stream"
            assert response.headers["Content-Disposition"] == "attachment"
            assert response.headers["X-Content-Type-Options"] == "nosniff"


async def test_a_gap_is_told_where_it_is_in_each_form_but_the_bytes(tmp_path: Path) -> None:
    async with a_run(tmp_path) as (api, agent, assign, run_id):
        await frame(agent, assign, b"head\nbroken", 0)
        await gap(agent, assign, 11, 0, "limit")
        await gap(agent, assign, 11, 4321, "limit")
        await frame(agent, assign, b"off\ntail", 4332)
        full = "the step or its run has printed as much as is kept: what follows is left out"
        assert await read(api, run_id) == f"head\nbroken\n[{full}]\n[4,321 bytes were left out]\noff\ntail"
        assert await read(api, run_id, headers=BYTES) == "head\nbrokenoff\ntail"
        pieces = await objects(api, f"runs/{run_id}/logs")
        assert [(one["kind"], one["number"], one["offset"]) for one in pieces] == [
            ("output", 0, 0), ("gap", 1, 11), ("gap", 2, 11), ("output", 3, 4332),
        ]  # fmt: skip
        assert [(one["missing"], one["reason"]) for one in pieces[1:3]] == [(None, "limit"), (4321, "limit")]
        lines = await objects(api, f"runs/{run_id}/logs?by=line")
        told = [(one.get("line"), one["text"], one.get("is_open")) for one in lines]
        assert told == [
            (0, "head", None), (1, "broken", True), (None, full, None), (None, "4,321 bytes were left out", None),
            (1, "off", None), (2, "tail", True),
        ]  # fmt: skip
        await ended(agent, assign, length=4340, missing=4321)
        events = await read(api, run_id, headers=EVENTS)
        assert [line for line in events.splitlines() if line.startswith("event: ")] == [
            "event: output", "event: gap", "event: gap", "event: output", "event: end",
        ]  # fmt: skip


async def test_what_was_acknowledged_and_is_nowhere_is_told_as_lost(tmp_path: Path) -> None:
    async with a_run(tmp_path) as (api, agent, assign, run_id):
        await frame(agent, assign, b"all that is left", 0)
        assert "lost" not in await read(api, run_id)
        await ended(agent, assign, length=1016, missing=0)
        assert await read(api, run_id) == (
            "all that is left\n[1,000 bytes are lost: the masters that had them are gone]\n"
        )
        *_, last = await objects(api, f"runs/{run_id}/logs")
        assert (last["kind"], last["reason"], last["missing"], last["offset"]) == ("gap", "lost", 1000, 16)
        assert [one["kind"] for one in await objects(api, f"runs/{run_id}/logs?by=line")] == ["line", "gap"]
        again = await objects(api, f"runs/{run_id}/logs?offset={last['number']}")
        assert again == [last], "its number is where it stands"
        assert await objects(api, f"runs/{run_id}/logs?offset={last['number'] + 1}") == []
        assert await read(api, run_id, headers=BYTES) == "all that is left"


async def test_a_large_piece_is_several_events_and_each_is_a_place_to_go_on_from(tmp_path: Path) -> None:
    data = ("ä" * 20_000 + "\x00" * 9_000).encode() + b"\xff" * 20_000
    async with a_run(tmp_path) as (api, agent, assign, run_id):
        await frame(agent, assign, b"first\n", 0)
        await frame(agent, assign, data, 6)
        await ended(agent, assign, length=6 + len(data))
        events = _events(await read(api, run_id, headers=EVENTS))
        assert len(events) > 5 and all(len(raw) < 17_000 for _, _, raw in events)
        assert (
            b"".join(printed.bytes_of(json.loads(raw)) for _, kind, raw in events if kind == "output")
            == b"first\n" + data
        )
        assert [event_id for event_id, *_ in events[:2]] == ["0", "1.8192"] and events[-2][0] == "1"
        for number, (event_id, _, _) in enumerate(events[:-1]):
            rest = _events(await read(api, run_id, headers=EVENTS | {"Last-Event-ID": event_id}))
            assert rest == events[number + 1 :], event_id


def _events(text: str) -> list[tuple[str, str, str]]:
    """Id, kind and data."""
    found = []
    for raw in text.split("\n\n")[:-1]:
        fields = dict(line.partition(": ")[::2] for line in raw.splitlines())
        found.append((fields.get("id", ""), fields["event"], fields["data"]))
    return found


async def test_a_long_line_comes_in_parts_that_have_its_number(tmp_path: Path) -> None:
    line = ("0123456789" * 6_553 + "é€" * 10).encode() * 3
    async with a_run(tmp_path) as (api, agent, assign, run_id):
        whole = b"short\n" + line + b"\nopen"
        for start in range(0, len(whole), 50_000):
            await frame(agent, assign, whole[start : start + 50_000], start)
        for query in ("by=line", "by=line&offset=1"):
            parts = [one for one in await objects(api, f"runs/{run_id}/logs?{query}") if one["line"] == 1]
            assert "".join(part["text"] for part in parts) == line.decode()
            assert [part.get("is_cut", False) for part in parts] == [True] * (len(parts) - 1) + [False]
            assert all(len(part["text"].encode()) > 65_000 for part in parts[:-1])
        last = await objects(api, f"runs/{run_id}/logs?by=line&offset=-1")
        assert [(one["line"], one["text"], one["is_open"]) for one in last] == [(2, "open", True)]
        assert await read(api, run_id, "by=line&offset=-1", BYTES) == "open"
        assert (await read(api, run_id, "by=line")).encode() == whole + b"\n"


@pytest.mark.parametrize("by", ["piece", "line", "byte"])
async def test_what_is_followed_goes_on_from_any_place_until_the_run_is_over(tmp_path: Path, by: str) -> None:
    async with a_run(tmp_path) as (api, agent, assign, run_id):
        await frame(agent, assign, b"one\ntwo\n", 0)
        offset = {"piece": 2, "line": 3, "byte": 10}[by]  # which is not there yet
        url = f"{api.url}/api/v1/runs/{run_id}/logs?follow=1&by={by}&offset={offset}"
        async with asyncio.timeout(10), api.session.get(url, headers=BYTES) as response:
            await frame(agent, assign, b"three\n", 8)
            await frame(agent, assign, b"four\nfive\n", 14)
            await ended(agent, assign, length=24)
            found = await response.read()
        assert found == {"piece": b"four\nfive\n", "line": b"four\nfive\n", "byte": b"ree\nfour\nfive\n"}[by]


@pytest.mark.parametrize(
    ("query", "headers", "status"),
    [
        ("by=word", {}, 400),
        ("order=random", {}, 400),
        ("order=time&follow=1", {}, 400),
        ("since=yesterday", {}, 400),
        ("since=2026-01-01T00:00:00", {}, 400),
        ("offset=1.5", {}, 400),
        ("limit=0", {}, 400),
        ("grep=%0A", {}, 400),
        ("grep=(&regex=1", {}, 400),
        ("grep=x", EVENTS, 400),
        ("by=line", EVENTS, 400),
        ("task=none", {}, 404),
        ("since=2026-01-01T00:00:00%2B02:00&until=1790000000000", {}, 200),
    ],
)
async def test_what_cannot_be_asked_is_refused_before_the_answer_begins(
    tmp_path: Path, query: str, headers: dict[str, str], status: int
) -> None:
    async with a_run(tmp_path) as (api, _, _, run_id):
        found = await api.call("GET", f"/api/v1/runs/{run_id}/logs?{query}", headers=headers)
        assert found[0] == status, found


async def test_a_search_over_many_runs_goes_through_the_newest_first_and_on_from_where_it_ended(tmp_path: Path) -> None:
    async with a_master(tmp_path) as api, an_agent(api) as (agent, _):
        titles = []
        for number in range(5):
            run = await api.submit()
            titles.append((run["id"], "Hello", run["number"]))
            assign = await agent.receive(wire.Assign)
            await agent.accept(assign)
            text = b"".join(
                b"run %d line %d %s\n" % (number, line, b"even" if line % 2 == 0 else b"odd") for line in range(6)
            )
            await agent.print(assign, text)
            await agent.finish(assign, length=len(text))
        found = await objects(api, "logs?grep=even")
        assert found[-1] == {"kind": "end", "next": None, "runs": 5}
        expected = [(*title, line) for title in reversed(titles) for line in (0, 2, 4)]
        assert [(one["run"], one["name"], one["number"], one["line"]) for one in found[:-1]] == expected
        some: list[tuple[Any, ...]] = []
        cursor = ""
        while True:
            *lines, end = await objects(api, f"logs?grep=EVEN&ignore_case=1&limit=2{cursor}")
            some += [(one["run"], one["name"], one["number"], one["line"]) for one in lines]
            if end["next"] is None:
                break
            cursor = f"&cursor={end['next']}"
        assert some == expected
        assert len(await objects(api, "logs?grep=run&name=Other")) == 1
        assert len(await objects(api, "logs?grep=run&state=failed")) == 1
        assert len(await objects(api, "logs?grep=line&since=2100-01-01T00:00:00Z")) == 1
        assert len(await objects(api, "logs?grep=^run+[0-2]+line+5&regex=1")) == 1 + 3
        assert (await api.call("GET", "/api/v1/logs"))[0] == 400
        assert (await api.call("GET", "/api/v1/logs?grep=x&cursor=abc"))[0] == 400


@pytest.mark.parametrize("limit", [1, 2, 3])
async def test_a_search_goes_on_behind_a_line_that_a_gap_has_broken_off(tmp_path: Path, limit: int) -> None:
    async with a_run(tmp_path) as (api, agent, assign, _):
        texts = [b"x 0\nx 1 broken", b"x 1 again", b"x 1\nx 2\n"]
        at = 0
        for number, text in enumerate(texts):
            if number:
                await gap(agent, assign, at, 10, "engine")
                at += 10
            await frame(agent, assign, text, at)
            at += len(text)
        found: list[tuple[int, str]] = []
        cursor = ""
        while True:
            *lines, end = await objects(api, f"logs?grep=x&limit={limit}{cursor}")
            assert len(lines) == limit or end["next"] is None
            found += [(one["line"], one["text"]) for one in lines]
            if end["next"] is None:
                break
            cursor = f"&cursor={end['next']}"
        assert found == [(0, "x 0"), (1, "x 1 broken"), (1, "x 1 again"), (1, "x 1"), (2, "x 2")]
