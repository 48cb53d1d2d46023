"""Requirements of scripts from an index on the network: one for pip and one for npm, both of ours and running."""

import hashlib
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from pistage.agent.runtimes.engine import Engine
from tests.e2e.processes import Processes, a_cluster
from tests.e2e.script_packages import write_both
from tests.engine import remove_packages, require_engine

pytestmark = pytest.mark.slow

PYTHON = "import greeting, sys\nprint(greeting.greet(sys.argv[1]))\n"
NODE = 'console.log(require("greeting").greet(process.argv[2]))\n'


class Index:
    """What a registry of each kind answers, of the packages in a directory; and what it was asked for."""

    def __init__(self, directory: Path) -> None:
        self.directory, self.asked, self.url = directory, list[str](), ""

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.asked.append(request.path)
        kind, _, name = request.path.strip("/").partition("/")
        if kind == "files" and (self.directory / name).is_file():
            return web.FileResponse(self.directory / name)
        if (kind, name) == ("simple", "greeting"):
            links = [f'<a href="/files/{file.name}">{file.name}</a>' for file in self.directory.glob("*.whl")]
            return web.Response(
                text=f"<!DOCTYPE html><html><body>{' '.join(links)}</body></html>", content_type="text/html"
            )
        if (kind, name) == ("npm", "greeting"):
            return web.json_response(self._npm())
        return web.json_response({"error": "not found"}, status=404)

    def _npm(self) -> dict[str, Any]:
        versions = {}
        for file in self.directory.glob("*.tgz"):
            version = file.stem.removeprefix("greeting-")
            dist = {
                "tarball": f"{self.url}/files/{file.name}",
                "shasum": hashlib.sha1(file.read_bytes(), usedforsecurity=False).hexdigest(),
            }
            versions[version] = {"name": "greeting", "version": version, "main": "index.js", "dist": dist}
        return {"name": "greeting", "dist-tags": {"latest": "1.10.0"}, "versions": versions}


@asynccontextmanager
async def an_index(directory: Path, host: str) -> AsyncIterator[Index]:
    index = Index(write_both(directory))
    app = web.Application()
    app.router.add_get("/{path:.*}", index.answer)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        await web.TCPSite(runner, host, 0).start()
        index.url = f"http://{host}:{runner.addresses[0][1]}"
        yield index
    finally:
        await runner.cleanup()


async def gateway() -> str:
    """The address under which containers reach this machine."""
    engine = Engine("")
    await engine.connect()
    try:
        network = await engine.json("GET", "networks/bridge")
    finally:
        await engine.close()
    return str(network["IPAM"]["Config"][0]["Gateway"])


@pytest.fixture(params=["host", pytest.param("docker", marks=pytest.mark.engine)])
async def cluster(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[tuple[Processes, Index]]:
    host = "127.0.0.1"
    if request.param == "docker":
        require_engine("python:3.12-slim", "node:22-slim")
        host = await gateway()
    async with an_index(tmp_path / "packages", host) as index:
        languages = {"python": {"index": f"{index.url}/simple"}, "node": {"index": f"{index.url}/npm"}}
        flags = ("--languages", json.dumps(languages), *(["--allow-host-runtime"] if request.param == "host" else []))
        async with a_cluster(tmp_path, runtime=request.param, agent_flags=flags) as (owned, _):
            yield owned, index
    if request.param == "docker":
        await remove_packages("", (tmp_path / "agent" / "id").read_text())


@pytest.mark.parametrize(
    ("file", "requirement", "version"),
    [
        ("hello.py", "greeting==1.0.0", "1.0.0"),
        ("hello.py", "greeting", "1.10.0"),
        ("hello.js", "greeting@1.0.0", "1.0.0"),
        ("hello.js", "greeting", "1.10.0"),
    ],
)
async def test_a_requirement_comes_from_the_index_of_the_language(
    cluster: tuple[Processes, Index], file: str, requirement: str, version: str
) -> None:
    owned, index = cluster
    text, asked = {"hello.py": (PYTHON, "/simple/greeting/"), "hello.js": (NODE, "/npm/greeting")}[file]
    (owned.directory / file).write_text(text, encoding="utf-8")
    code, out, err = await owned.cli("script", "--require", requirement, file, "you")
    assert (code, out) == (0, f"hello you from {version}\n".encode()), err
    assert asked in index.asked
    index.asked.clear()
    code, out, err = await owned.cli("script", "--require", requirement, file, "me")
    assert (code, out, index.asked) == (0, f"hello me from {version}\n".encode(), []), err


async def test_what_the_index_does_not_have_is_said(cluster: tuple[Processes, Index]) -> None:
    owned, index = cluster
    (owned.directory / "hello.py").write_text(PYTHON, encoding="utf-8")
    code, out, err = await owned.cli("script", "--require", "nowhere-to-be-found", "hello.py", "you")
    assert (code, out) == (1, b"")
    assert b"No matching distribution found for nowhere-to-be-found" in err
    assert "/simple/nowhere-to-be-found/" in index.asked
