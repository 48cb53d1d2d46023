"""The engine that the end-to-end tests run their steps on."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from dataclasses import dataclass

import aiohttp
import pytest

from tests.e2e.watching import Watch


@dataclass(frozen=True, slots=True)
class Engine:
    """A Docker-compatible engine that answers."""

    socket: str

    async def leftovers(self) -> set[str]:
        async with aiohttp.ClientSession(connector=aiohttp.UnixConnector(self.socket)) as http:
            return await Watch(http).leftovers()


@pytest.fixture
async def engine() -> AsyncIterator[Engine]:
    url = os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock")
    socket = url.removeprefix("unix://")
    try:
        async with (
            aiohttp.ClientSession(connector=aiohttp.UnixConnector(socket)) as http,
            http.get("http://localhost/_ping") as response,
        ):
            response.raise_for_status()
    except aiohttp.ClientError:
        pytest.skip(f"no engine answers at {url}; scripts/engine start")
    yield Engine(socket)
