"""The engine that tests use: whatever DOCKER_HOST names, with the images that scripts/engine makes."""

import asyncio
import json
import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from pistage.agent.runtimes.engine import Engine, EngineError, EngineGoneError

_IMAGES = ("busybox", "java-pipeline:1.0.1", "nonroot:1")


async def _missing(more: tuple[str, ...]) -> str | None:
    engine = Engine("")
    try:
        await engine.connect()
        for image in _IMAGES + more:
            if await engine.image(image) is None:
                return f"the engine has no image {image}: scripts/engine images"
    except (EngineGoneError, EngineError) as error:
        return f"no engine answers ({error}): eval $(scripts/engine start)"
    finally:
        await engine.close()
    return None


def require_engine(*more: str) -> str:
    """The engine's address; without it, or `more` images beside what all tests use, skips the test, but fails in CI."""
    if not os.environ.get("DOCKER_HOST"):
        missing: str | None = "DOCKER_HOST is not set: eval $(scripts/engine start)"
    else:
        # In a thread of its own: a fixture that asks may be inside a loop already.
        with ThreadPoolExecutor(1) as pool:
            missing = pool.submit(lambda: asyncio.run(_missing(more))).result()
    if missing is None:
        return os.environ["DOCKER_HOST"]
    if os.environ.get("CI") == "true":
        pytest.fail(missing)
    pytest.skip(missing)


async def leftovers(address: str, agent_id: str) -> dict[str, list[str]]:
    """What the engine still has of an agent, by kind."""
    engine = Engine(address)
    await engine.connect()
    try:
        found: dict[str, list[dict[str, Any]]] = {
            kind: await engine.listed(kind, [f"pistage.agent={agent_id}"])
            for kind in ("containers", "networks", "volumes")
        }
    finally:
        await engine.close()
    return {kind: [json.dumps(one["Labels"]) for one in known] for kind, known in found.items() if known}


async def remove_packages(address: str, agent_id: str) -> None:
    """What an agent keeps in the engine for longer than any run, and with it whatever still uses that."""
    engine = Engine(address)
    await engine.connect()
    try:
        for container in await engine.listed("containers", [f"pistage.agent={agent_id}"]):
            await engine.remove(container["Id"])
        for volume in await engine.listed("volumes", [f"pistage.packages={agent_id}"]):
            await engine.json("DELETE", f"volumes/{volume['Name']}")
    finally:
        await engine.close()
