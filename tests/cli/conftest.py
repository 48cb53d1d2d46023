"""A master made of canned answers, in a thread of its own, since a verb owns the event loop of its own."""

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from pistage.cli.root import execute
from pistage.errors import Code, PistageError
from tests.cli.printed import Piece, Printed

AT = "2024-01-01T00:00:0{}.000Z"


def step(step_id: str, name: str) -> dict[str, Any]:
    return {"kind": "step", "id": step_id, "name": name, "context": "c1"}


def task(name: str, *steps: dict[str, Any], needs: tuple[str, ...] = ()) -> dict[str, Any]:
    body = {"kind": "sequence", "name": name, "children": list(steps)}
    return {"name": name, "needs": list(needs), "body": body, "contexts": [{"id": "c1", "image": "alpine"}]}


class FakeMaster:
    """One run, `demo#1`, whose state, plan, events and output the test sets; everything asked is in `requests`."""

    def __init__(self) -> None:
        self.url = ""
        self.state = "succeeded"
        self.is_held = False  # events stay open until `release`
        self.plan: dict[str, Any] = {
            "name": "demo",
            "dialect": "pistages",
            "tasks": [task("a", step("1", "one")), task("b", step("1", "two"), needs=("a",))],
        }
        self.events: list[dict[str, Any]] = []
        self.printed = Printed([Piece("a", "1", "stdout", b"hello\n")])
        self.found: list[dict[str, Any]] = []  # what a search over many runs answers
        self.missing = 0  # of what `a` printed on stdout
        self.refusal: PistageError | None = None
        self.log_refusal: PistageError | None = None  # of output alone
        self.requests: list[tuple[str, str, Any]] = []
        self.queries: list[dict[str, str]] = []  # of each request

    def run(self) -> dict[str, Any]:
        is_over = self.state in {"succeeded", "failed", "cancelled", "lost"}
        steps = [{"id": "1", "name": "one", "state": self.state, "image": "alpine", "stdout_bytes": 6, "reason": ""}]
        steps[0]["stdout_missing"] = self.missing
        attempt = {"id": "at", "number": 1, "agent_name": "x", "state": self.state, "steps": steps}
        tasks = [{"name": "a", "state": self.state, "needs": [], "attempts": [attempt], "reason": ""}]
        return {
            "id": "01hq", "number": 1, "name": "demo", "state": self.state, "reason": "", "owner": "me", "notes": [],
            "created_at": AT.format(0), "started_at": AT.format(0),
            "finished_at": AT.format(2) if is_over else None, "tasks": tasks, "warnings": [],
        }  # fmt: skip

    async def handle(self, request: web.Request) -> web.StreamResponse:  # noqa: PLR0911, PLR0912 - a table
        body = await request.text()
        path = request.path.removeprefix("/api/v1")
        self.requests.append((request.method, path, json.loads(body) if body[:1] == "{" else body))
        self.queries.append(dict(request.query))
        refusal = self.refusal or (self.log_refusal if path.endswith("/logs") else None)
        if refusal is not None:
            return web.json_response(refusal.to_problem(), status=refusal.http_status)
        match request.method, path.strip("/").split("/"):
            case "POST", ["runs" | "scripts"]:
                return web.json_response(self.run(), status=201)
            case "GET", ["runs"]:
                return web.json_response({"items": [self.run()], "next": None})
            case "GET", ["runs", "demo#1" | "01hq" | "01"]:
                return web.json_response(self.run())
            case "GET", ["runs", "01hq", "plan"]:
                return web.json_response({"plan": self.plan})
            case "GET", ["runs", "01hq", "events"]:
                return await self._send_events(request)
            case "GET", ["runs", "01hq", "logs"]:
                return await _send(request, self.printed.answer(request.headers["Accept"], request.query))
            case "GET", ["logs"]:
                return await _send(request, (json.dumps(value).encode() + b"\n" for value in self.found))
            case "POST", ["runs", _, "cancel"]:
                self.state = "cancelled"
                return web.json_response(self.run())
            case "GET", ["agents"]:
                agent = {"id": "ag1", "name": "box", "state": "up", "runtimes": ["docker"], "labels": {"gpu": "true"}}
                more = {"capacity": {"slots": 8, "cpus_milli": 2000, "memory_bytes": 2**30}, "used": {"slots": 1}}
                return web.json_response({"items": [agent | more]})
            case "POST", ["agents", _, "drain" | "resume"]:
                return web.json_response({"id": "ag1", "name": "box"})
            case "GET", ["actions"]:
                item = {"name": "Clone Repo", "version": 2, "is_predefined": False, "sha256": "ab" * 32}
                return web.json_response({"items": [item | {"updated_at": None}]})
            case "GET", ["actions", name]:
                return web.json_response({"name": name, "version": 2, "text": "name: Clone\x1b[31m Repo\n"})
            case "GET", ["actions", name, "schema"]:
                return web.json_response({"title": name, "type": "object", "additionalProperties": True})
            case "PUT", ["actions", name]:
                return web.json_response({"name": name, "version": 1, "is_new": True, "warnings": []}, status=201)
            case "POST", ["plan"]:
                return web.json_response({"plan": self.plan, "findings": []})
            case "DELETE", ["actions", _]:
                return web.Response(status=204)
        error = PistageError(Code.NOT_FOUND, f"no {path}", hint="look elsewhere")
        return web.json_response(error.to_problem(), status=404)

    async def _send_events(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        finished = {"kind": "run_finished", "state": self.state, "at": AT.format(2), "reason": ""}
        for number, event in enumerate([*self.events, *([] if self.is_held else [finished])], 1):
            await response.write(f"id: {number}\nevent: {event['kind']}\ndata: {json.dumps(event)}\n\n".encode())
        if self.is_held:
            await asyncio.Event().wait()
        return response


async def _send(request: web.Request, pieces: Iterator[bytes]) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    for piece in pieces:
        await response.write(piece)
    return response


@pytest.fixture
def new_master() -> FakeMaster:
    """The master that is served; a module that needs another kind has a fixture of this name."""
    return FakeMaster()


@pytest.fixture
def master(new_master: FakeMaster) -> Iterator[FakeMaster]:
    fake = new_master
    started, stopped = threading.Event(), asyncio.Event()
    loop = asyncio.new_event_loop()

    async def serve() -> None:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", fake.handle)
        runner = web.AppRunner(app, shutdown_timeout=0.0, handler_cancellation=True)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        fake.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        started.set()
        await stopped.wait()
        await runner.cleanup()

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()))
    thread.start()
    started.wait(10)
    yield fake
    loop.call_soon_threadsafe(stopped.set)
    thread.join(10)
    loop.close()


@pytest.fixture(autouse=True)
def clean_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No verb of a test sees the settings or the data of whoever runs the tests."""
    for name in ("PISTAGE_SERVER", "PISTAGE_TOKEN", "PISTAGE_TOKEN_FILE", "PISTAGE_DATA_DIR", "DOCKER_HOST"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "share"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("TERM", "dumb")


Pistage = Callable[..., int]


@pytest.fixture
def pistage(master: FakeMaster, monkeypatch: pytest.MonkeyPatch) -> Pistage:
    """Call a verb as the shell would, with the fake master as the configured server; gives the exit code."""
    monkeypatch.setenv("PISTAGE_SERVER", master.url)
    return lambda *argv: execute(argv)
