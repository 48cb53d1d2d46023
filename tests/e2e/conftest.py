"""The engine that the end-to-end tests run their steps on."""

from __future__ import annotations

from dataclasses import dataclass, replace

import aiohttp
import pytest

from tests.e2e.watching import Watch
from tests.engine import require_engine


@dataclass(frozen=True, slots=True)
class Engine:
    """A Docker-compatible engine that answers; `before` is what of ours it held when the test began."""

    socket: str
    before: frozenset[str] = frozenset()

    async def leftovers(self) -> set[str]:
        """Containers, networks and volumes of ours that have come since."""
        async with aiohttp.ClientSession(connector=aiohttp.UnixConnector(self.socket)) as http:
            return await Watch(http).leftovers() - self.before


@pytest.fixture
async def engine() -> Engine:
    found = Engine(require_engine().removeprefix("unix://"))
    return replace(found, before=frozenset(await found.leftovers()))
