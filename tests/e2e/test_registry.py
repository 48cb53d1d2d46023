"""Pulling from a private registry: with credentials it works, without it says so, and nobody ever sees them."""

import base64
import json
import shutil
import subprocess
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.e2e.conftest import Engine
from tests.e2e.processes import a_cluster, ended, free_port, until
from tests.e2e.test_recovery import nothing_left

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(120)]

USER, PASSWORD = "tester", "tester-password"
HTPASSWD = "tester:$2b$05$ulwA5p7riCe.VZ0i2RQB3.oaJYIu0izPZG/cY0pEjODVZfoUoyMIO"
AUTH = {"username": USER, "password": PASSWORD}


@dataclass(frozen=True, slots=True)
class Registry:
    """A registry on loopback that asks for a password."""

    address: str
    image: str


@pytest.fixture
async def registry(tmp_path: Path, engine: Engine) -> AsyncIterator[Registry]:
    program = shutil.which("docker-registry")
    if program is None:
        pytest.skip("no docker-registry; scripts/engine install")
    port = free_port()
    (tmp_path / "htpasswd").write_text(HTPASSWD + "\n")
    config = {
        "version": 0.1,
        "storage": {"filesystem": {"rootdirectory": str(tmp_path / "images")}},
        "http": {"addr": f"127.0.0.1:{port}"},
        "auth": {"htpasswd": {"realm": "test", "path": str(tmp_path / "htpasswd")}},
    }
    (tmp_path / "registry.yml").write_text(json.dumps(config))
    with (tmp_path / "registry.log").open("wb") as log:
        process = subprocess.Popen([program, "serve", tmp_path / "registry.yml"], stdout=log, stderr=log)  # noqa: ASYNC220
    found = Registry(f"127.0.0.1:{port}", f"127.0.0.1:{port}/team/tool")
    try:
        async with aiohttp.ClientSession(connector=aiohttp.UnixConnector(engine.socket)) as http:
            await until(lambda: answers(port))
            await push_busybox(http, found)
            yield found
            async with http.delete(f"http://localhost/images/{found.image}:1?force=1"):
                pass
    finally:
        process.terminate()
        process.wait(timeout=10)


async def answers(port: int) -> bool:
    async with aiohttp.ClientSession() as http, http.get(f"http://127.0.0.1:{port}/v2/") as response:
        return response.status == 401


async def push_busybox(http: aiohttp.ClientSession, registry: Registry) -> None:
    base = "http://localhost/images"
    async with http.post(f"{base}/busybox/tag?repo={registry.image}&tag=1") as response:
        assert response.status == 201
    headers = {"X-Registry-Auth": encoded(AUTH | {"serveraddress": registry.address})}
    async with http.post(f"{base}/{registry.image}/push?tag=1", headers=headers) as response:
        assert "error" not in await response.text()
    async with http.delete(f"{base}/{registry.image}:1?force=1") as response:
        assert response.status == 200


def encoded(auth: dict[str, str]) -> str:
    return base64.urlsafe_b64encode(json.dumps(auth).encode()).decode()


def a_pipeline(registry: Registry, auth: dict[str, str]) -> str:
    step = {"name": "use", "image": f"{registry.image}:1", "command": ["echo", "pulled"], "authConfig": auth}
    return json.dumps({"name": "Private", "pipelineTasks": [{"name": "only", "steps": [step]}]})


async def test_credentials_pull_and_are_seen_nowhere(tmp_path: Path, engine: Engine, registry: Registry) -> None:
    async with a_cluster(tmp_path) as (owned, api):
        document = a_pipeline(registry, AUTH | {"serveraddress": registry.address})
        done = await ended(api, (await api.submit(document))["id"])
        assert done["state"] == "succeeded", done
        for path in ("", "/plan", "/events", "/logs"):
            _, shown = await api.call("GET", f"/api/v1/runs/{done['id']}{path}")
            assert PASSWORD not in json.dumps(shown)
        assert PASSWORD not in owned.log_of("agent") + owned.log_of("master")
        await nothing_left(engine)


@pytest.mark.parametrize("auth", [{}, {"username": USER, "password": "wrong-password"}])
async def test_without_the_right_credentials_the_run_says_why(
    tmp_path: Path, engine: Engine, registry: Registry, auth: dict[str, Any]
) -> None:
    async with a_cluster(tmp_path) as (owned, api):
        made = await api.submit(a_pipeline(registry, auth))
        done = await ended(api, made["id"])
        assert done["tasks"][0]["attempts"][0]["failure"] == "pull"
        assert f"{registry.image}:1" in done["reason"]
        assert "auth" in done["reason"] or "unauthorized" in done["reason"]
        assert "wrong-password" not in json.dumps(done) + owned.log_of("agent") + owned.log_of("master")
