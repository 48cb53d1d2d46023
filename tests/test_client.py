"""The client against a master that misbehaves on purpose: away, elsewhere, cut off in the middle."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer, unused_port

from pistage.client import Chunk, Client, Gap, Line, Pattern, Selection
from pistage.client.transport import Transport
from pistage.errors import Code, PistageError
from tests.cli.printed import Piece, Printed, gap

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Serve = Callable[[dict[str, Handler]], Awaitable[str]]


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    """Start a master whose routes ("GET /path") are the test's."""
    async with AsyncExitStack() as stack:

        async def start(routes: dict[str, Handler]) -> str:
            app = web.Application()
            for route, handler in routes.items():
                method, path = route.split()
                app.router.add_route(method, f"/api/v1{path}", handler)
            server = await stack.enter_async_context(TestServer(app))
            return str(server.make_url("")).rstrip("/")

        yield start


def problem(error: PistageError) -> web.Response:
    return web.json_response(error.to_problem(), status=error.http_status, content_type="application/problem+json")


def cut(request: web.Request) -> None:
    """Drop the connection as a kill -9 does."""
    assert request.transport is not None
    request.transport.abort()


async def collect(stream: AsyncIterator[bytes]) -> bytes:
    return b"".join([data async for data in stream])


def over(is_over: bool = True) -> Handler:
    async def run(request: web.Request) -> web.Response:
        return web.json_response({"id": "r", "finished_at": "2024-01-01T00:00:00Z" if is_over else None})

    return run


async def test_the_token_travels_in_a_header_and_never_in_the_url(serve: Serve) -> None:
    seen: list[web.Request] = []

    async def cluster(request: web.Request) -> web.Response:
        seen.append(request)
        return web.json_response({})

    async with Client([await serve({"GET /cluster": cluster})], "secret") as client:
        await client.fetch_cluster()
    assert seen[0].headers["Authorization"] == "Bearer secret"
    assert "secret" not in str(seen[0].url)


async def test_a_submission_that_is_retried_keeps_its_key(serve: Serve) -> None:
    keys: list[str] = []

    async def submit(request: web.Request) -> web.StreamResponse:
        keys.append(request.headers["Idempotency-Key"])
        if len(keys) == 1:
            return problem(PistageError(Code.UNAVAILABLE, "no leader"))
        if len(keys) == 2:
            await request.read()
            cut(request)
        return web.json_response({"id": "r", "name": "n", "number": 1, "state": "queued"}, status=201)

    async with Client([await serve({"POST /runs": submit})]) as client:
        assert (await client.submit_run({"definition": "name: n"}))["id"] == "r"
        await client.submit_run({"definition": "name: n"})
    assert len(set(keys[:3])) == 1
    assert keys[3] != keys[0]


async def test_a_dead_master_is_passed_over(serve: Serve) -> None:
    async def cluster(request: web.Request) -> web.Response:
        return web.json_response({"node": "b"})

    dead = f"http://127.0.0.1:{unused_port()}"
    async with Client([dead, await serve({"GET /cluster": cluster})]) as client:
        assert (await client.fetch_cluster())["node"] == "b"
        assert client.server != dead


async def test_a_redirect_and_a_hint_lead_to_the_leader_with_the_token(serve: Serve) -> None:
    asked: list[str | None] = []

    async def leader(request: web.Request) -> web.Response:
        asked.append(request.headers.get("Authorization"))
        return web.json_response({"node": "leader"})

    leader_url = await serve({"GET /cluster": leader})

    async def redirects(request: web.Request) -> web.Response:
        return web.Response(status=307, headers={"Location": f"{leader_url}/api/v1/cluster"})

    async def hints(request: web.Request) -> web.Response:
        return problem(PistageError(Code.UNAVAILABLE, "not the leader", details={"leader": leader_url}))

    for follower in (redirects, hints):
        async with Client([await serve({"GET /cluster": follower})], "t") as client:
            assert (await client.fetch_cluster())["node"] == "leader"
    assert asked == ["Bearer t", "Bearer t"]


@pytest.mark.parametrize("is_known", [True, False])
async def test_output_is_asked_of_the_leader_where_it_is_one_of_the_servers(serve: Serve, is_known: bool) -> None:
    asked: list[str] = []

    def master(name: str, leader: str) -> Handler:
        async def answer(request: web.Request) -> web.Response:
            asked.append(name)
            headers = {"Pistage-Leader": leader} if leader else {}
            if request.path.endswith("/logs"):
                return web.Response(body=b"hello" if request.query.get("offset", "0") == "0" else b"", headers=headers)
            return web.json_response({"id": "r", "finished_at": "2024-01-01T00:00:00Z"}, headers=headers)

        return answer

    def routes(answer: Handler) -> dict[str, Handler]:
        return {"GET /runs/r": answer, "GET /runs/r/logs": answer}

    leader = await serve(routes(master("leader", "")))
    other = await serve(routes(master("other", leader + "/")))
    async with Client([other, leader] if is_known else [other]) as client:
        await client.fetch_run("r")
        assert await collect(client.follow_bytes("r")) == b"hello"
    assert asked[:2] == ["other", "leader" if is_known else "other"]


async def test_what_the_master_refuses_arrives_as_the_same_error(serve: Serve) -> None:
    findings = [{"severity": "error", "message": "no name", "line": 1}]

    async def submit(request: web.Request) -> web.Response:
        return problem(PistageError(Code.INVALID, "1 error", hint="mend it", details={"findings": findings}))

    async with Client([await serve({"POST /runs": submit})]) as client:
        with pytest.raises(PistageError, match="1 error") as caught:
            await client.submit_run({"definition": ""})
    assert caught.value.code == Code.INVALID
    assert caught.value.hint == "mend it"
    assert caught.value.details["findings"] == findings


async def test_an_answer_that_is_not_ours_is_named_by_its_status(serve: Serve) -> None:
    async def teapot(request: web.Request) -> web.Response:
        return web.Response(status=403, text="<html>")

    async with Client([await serve({"GET /cluster": teapot})]) as client:
        with pytest.raises(PistageError, match="answered 403") as caught:
            await client.fetch_cluster()
        assert caught.value.exit_code == 4


async def test_no_master_is_known_soon_and_says_what_to_do() -> None:
    async with Client([f"http://127.0.0.1:{unused_port()}"], first_patience_s=0.2) as client:
        with pytest.raises(PistageError, match="no master answers") as caught:
            await client.fetch_cluster()
    assert caught.value.exit_code == 7
    assert caught.value.message.endswith(": connection refused")
    assert caught.value.hint


def test_streams_that_break_together_are_told_of_once(caplog: pytest.LogCaptureFixture) -> None:
    transport = Transport(["http://127.0.0.1:1"], None)
    transport.tell_of_loss()
    transport.tell_of_loss()
    assert [record.message for record in caplog.records] == ["the master went away; waiting for one to go on with"]


def test_a_server_that_is_no_url_is_refused() -> None:
    with pytest.raises(PistageError, match="expected a URL") as caught:
        Client(["localhost:8470"])
    assert caught.value.exit_code == 2


async def test_names_of_runs_and_actions_are_one_segment_of_the_path(serve: Serve) -> None:
    names: list[str] = []

    async def show(request: web.Request) -> web.Response:
        names.append(request.match_info["id"])
        return web.json_response({"id": "r"})

    async with Client([await serve({"GET /runs/{id}": show})]) as client:
        for name in ("Clone Repo, Pistages if omitted#42", "a/b#1", "../../x", "ü%2F?#3"):
            await client.fetch_run(name)
            assert names[-1] == name


async def test_events_go_on_where_a_broken_stream_ended(serve: Serve) -> None:
    resumed_after: list[str | None] = []

    async def events(request: web.Request) -> web.StreamResponse:
        resumed_after.append(request.headers.get("Last-Event-ID"))
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        if len(resumed_after) == 1:
            await response.write(b": hello\n\nid: 1\nevent: run_started\ndata: {}\n\nid: 2\nevent: task_q")
            cut(request)
        elif len(resumed_after) == 2:  # a master that stops politely, in the middle
            await response.write(b'id: 2\nevent: task_queued\ndata: {"task":\ndata: "a"}\n\n')
        else:
            await response.write(b"id: 3\nevent: run_finished\ndata: {}\n\n")
        return response

    async with Client([await serve({"GET /runs/r/events": events, "GET /runs/r": over(False)})]) as client:
        got = [(event.id, event.kind, event.fields) async for event in client.follow_events("r")]
    assert got == [("1", "run_started", {}), ("2", "task_queued", {"task": "a"}), ("3", "run_finished", {})]
    assert resumed_after == [None, "1", "2"]


async def test_bytes_arrive_once_however_often_the_stream_breaks(serve: Serve) -> None:
    payload = bytes(range(256)) * 64
    offsets: list[int] = []

    async def logs(request: web.Request) -> web.StreamResponse:
        offset = int(request.query["offset"])
        offsets.append(offset)
        assert request.headers["Accept"] == "application/octet-stream"
        assert request.query["stream"] == "stdout"
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(payload[offset : offset + 5000])
        if len(offsets) % 2:
            cut(request)
        return response

    async with Client([await serve({"GET /runs/r/logs": logs, "GET /runs/r": over()})]) as client:
        got = await collect(client.follow_bytes("r", Selection(stream="stdout")))
    assert got == payload
    assert offsets[0] == 0


class Breaking:
    """The output of a run whose every answer is cut off, but for the last; it grows from each to the next."""

    def __init__(self, *stages: Printed, cut_at: float = 0.6) -> None:
        self.stages = list(stages)
        self.cut_at = cut_at
        self.queries: list[dict[str, str]] = []

    async def logs(self, request: web.Request) -> web.StreamResponse:
        query = dict(request.query)
        self.queries.append(query)
        is_followed = "follow" in query  # what is not is no more than a question before it
        stage = self.stages[0]
        body = b"".join(stage.answer(request.headers["Accept"], query))
        response = web.StreamResponse()
        await response.prepare(request)
        if is_followed and len(self.stages) > 1:
            self.stages.pop(0)
            await response.write(body[: int(len(body) * self.cut_at)])
            cut(request)
        await response.write(body)
        return response

    def routes(self) -> dict[str, Handler]:
        return {"GET /runs/r/logs": self.logs, "GET /runs/r": over()}


def growing(pieces: list[Piece], *counts: int, part_bytes: int = 64 * 1024) -> list[Printed]:
    """The same output, more of it each time; with the last stage the run is over."""
    stages = [Printed(pieces[:count], part_bytes, is_over=False) for count in counts]
    return [*stages, Printed(pieces, part_bytes)]


async def test_chunks_go_on_behind_the_last_one_that_was_whole(serve: Serve) -> None:
    pieces = [Piece("t", "1", "stdout", b"%d\xff" % number + b"x" * 200) for number in range(5)]
    master = Breaking(*growing(pieces, 2, 4))
    async with Client([await serve(master.routes())]) as client:
        got = [chunk async for chunk in client.follow_chunks("r")]
    assert [(one.number, one.data) for one in got if isinstance(one, Chunk)] == [
        (number, piece.data) for number, piece in enumerate(pieces)
    ]
    assert [query["offset"] for query in master.queries[:3]] == ["0", "0", "1"]


async def test_a_piece_in_parts_is_gone_on_with_in_the_middle(serve: Serve) -> None:
    pieces = [Piece("t", "1", "stdout", "ü✓".encode() * 50), Piece("t", "1", "stdout", b"end")]
    master = Breaking(*growing(pieces, 1, 2, part_bytes=7))
    async with Client([await serve(master.routes())]) as client:
        got = [chunk async for chunk in client.follow_chunks("r") if isinstance(chunk, Chunk)]
    assert b"".join(chunk.data for chunk in got) == pieces[0].data + b"end"
    assert {chunk.number for chunk in got} == {0, 1}


async def test_a_gap_comes_once_and_in_its_place(serve: Serve) -> None:
    pieces = [
        Piece("t", "1", "stdout", b"head"),
        gap("t", "1", "7 bytes are not kept"),
        Piece("t", "1", "stdout", b"tail"),
    ]
    master = Breaking(*growing(pieces, 2), cut_at=1.0)
    async with Client([await serve(master.routes())]) as client:
        got = [chunk async for chunk in client.follow_chunks("r")]
    assert [type(one) for one in got] == [Chunk, Gap, Chunk]
    assert isinstance(got[1], Gap)
    assert (got[1].missing, got[1].reason, got[1].text) == (7, "limit", "7 bytes are not kept")


LINES = [Piece("t", "1", "stdout", b"%d " % number + b"x" * 40 + b"\nhalf ") for number in range(20)]


@pytest.mark.parametrize("tail", [0, 1, 3, 50])
async def test_the_last_lines_and_those_that_follow_are_told_once(serve: Serve, tail: int) -> None:
    master = Breaking(*growing(LINES, 5, 10, 15))
    async with Client([await serve(master.routes())]) as client:
        got = [line async for line in client.follow_lines("r", tail=tail) if isinstance(line, Line)]
    first = max(0, 6 - max(tail, 1))  # five were whole, and a sixth was begun: it is the last one
    assert [line.line for line in got] == list(range(first, 21))
    assert [line.text for line in got[-2:]] == ["half 19 " + "x" * 40, "half "]


@pytest.mark.parametrize("tail", [0, 1, 3, 50])
async def test_the_bytes_of_the_last_lines_and_those_that_follow_come_once(serve: Serve, tail: int) -> None:
    whole = b"".join(piece.data for piece in LINES)
    there = b"".join(piece.data for piece in LINES[:5])
    master = Breaking(*growing(LINES, 5, 10, 15))
    async with Client([await serve(master.routes())]) as client:
        got = await collect(client.output("r").follow_bytes(Selection(), tail=tail))
    last = b"".join(there.splitlines(keepends=True)[-tail:]) if tail else b""
    assert got == last + whole[len(there) :]


async def test_lines_of_steps_that_are_all_open_are_none_of_them_left_behind(serve: Serve) -> None:
    """The last line is that of b; then b ends first, and takes the number that the open line of a had."""
    pieces = [
        Piece("a", "1", "stdout", b"whole\na opens"), Piece("b", "1", "stdout", b"b opens"),
        Piece("b", "1", "stdout", b", b ends\n"), Piece("a", "1", "stdout", b", a ends\n"),
    ]  # fmt: skip
    master = Breaking(*growing(pieces, 2))
    async with Client([await serve(master.routes())]) as client:
        got = [line.text async for line in client.follow_lines("r", tail=1) if isinstance(line, Line)]
    assert got == ["b opens, b ends", "a opens, a ends"]


async def test_matches_are_looked_for_from_where_the_last_one_was(serve: Serve) -> None:
    pieces = [Piece("t", "1", "stdout", b"ERROR %d\nfine\n" % number) for number in range(12)]
    master = Breaking(*growing(pieces, 4, 8))
    pattern = Pattern(text="error [0-9]+$", is_regex=True, ignores_case=True)
    async with Client([await serve(master.routes())]) as client:
        lines = client.follow_lines("r", pattern=pattern, limit=10)
        got = [line.text async for line in lines if isinstance(line, Line)]
    assert got == [f"ERROR {number}" for number in range(10)]
    assert master.queries[0] | {"grep": "error [0-9]+$", "regex": "1", "ignore_case": "1"} == master.queries[0]
    assert master.queries[-1]["offset"] != "0"


async def test_a_search_that_was_cut_off_tells_the_rest(serve: Serve) -> None:
    lines = [
        {"kind": "line", "run": run, "name": "demo", "number": 3 - place, "task": "t", "attempt": 1, "step": "1",
         "stream": "stdout", "line": line, "at": "", "text": f"{run} {line}"}
        for place, run in enumerate("zyx") for line in (4, 7)
    ]  # fmt: skip
    end = {"kind": "end", "next": "more", "runs": 3}
    asked: list[dict[str, str]] = []

    async def logs(request: web.Request) -> web.StreamResponse:
        asked.append(dict(request.query))
        body = b"".join(json.dumps(value).encode() + b"\n" for value in [*lines, end])
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(body[: len(body) * len(asked) // 3])
        if len(asked) == 2:
            cut(request)
        return response  # the first is cut off politely: an answer without its end is none

    async with Client([await serve({"GET /logs": logs})]) as client:
        found = client.search_output(Pattern(text="x y"), name="demo", state=None, limit=6)
        got = [value async for value in found]
    assert got == [*lines, end]
    assert asked == [{"grep": "x y", "name": "demo", "limit": "6"}] * 3


async def test_a_search_goes_on_until_enough_is_found_or_all_was_looked_at(serve: Serve) -> None:
    """A master looks for ten seconds at a time, and says where it stopped."""
    asked: list[dict[str, str]] = []

    async def logs(request: web.Request) -> web.StreamResponse:
        asked.append(dict(request.query))
        page = len(asked)
        line = {"kind": "line", "run": f"r{page}", "name": "demo", "number": page, "task": "t", "attempt": 1,
                "step": "1", "stream": "stdout", "line": 0, "at": "", "text": "x"}  # fmt: skip
        cut = [line | {"is_cut": True}, line]
        end = {"kind": "end", "next": f"c{page}" if page < 4 else None, "runs": 2}
        return web.Response(body=b"".join(json.dumps(value).encode() + b"\n" for value in [*cut, end]))

    async with Client([await serve({"GET /logs": logs})]) as client:
        *lines, end = [value async for value in client.search_output(Pattern(text="x"), limit=3)]
        assert [line["number"] for line in lines] == [1, 1, 2, 2, 3, 3]
        assert end == {"kind": "end", "next": "c3", "runs": 6}
        assert [(one["limit"], one.get("cursor")) for one in asked] == [("3", None), ("2", "c1"), ("1", "c2")]
        *lines, end = [value async for value in client.search_output(Pattern(text="x"), cursor="c3")]
    assert (len(lines), end) == (2, {"kind": "end", "next": None, "runs": 2})
    assert asked[-1]["cursor"] == "c3"


async def test_a_line_that_no_newline_ends_is_never_held(serve: Serve) -> None:
    """10 MB in parts: what is asked for again after a break is the line, and only its rest is told."""
    pieces = [Piece("t", "1", "stdout", b"x" * 10_000_000)]
    master = Breaking(*growing(pieces, 1))
    longest = total = 0
    async with Client([await serve(master.routes())]) as client:
        async for line in client.follow_lines("r"):
            assert isinstance(line, Line)
            longest, total = max(longest, len(line.text)), total + len(line.text)
    assert longest <= 64 * 1024
    assert total == 10_000_000


async def test_a_follower_outlives_the_master_it_follows() -> None:
    """The master goes away whole and another process takes its port."""
    port = unused_port()
    is_back = asyncio.Event()

    async def logs(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"abcdef"[int(request.query["offset"]) : 6 if is_back.is_set() else 3])
        if not is_back.is_set():
            cut(request)
        return response

    def app() -> web.Application:
        made = web.Application()
        made.router.add_get("/api/v1/runs/r/logs", logs)
        made.router.add_get("/api/v1/runs/r", over())
        return made

    async with Client([f"http://127.0.0.1:{port}"]) as client:
        stream = client.follow_bytes("r")
        async with TestServer(app(), port=port):
            assert await anext(stream) == b"abc"
        async with asyncio.TaskGroup() as group:
            rest = group.create_task(collect(stream))
            is_back.set()
            async with TestServer(app(), port=port):
                assert await rest == b"def"
