"""What runs have in the engine beside containers: networks and volumes, made once and found by our labels."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Coroutine, Mapping, Sequence
from typing import Any

from pistage.agent.runtimes.engine import Engine, EngineError

_NOT_FOUND = 404


class Objects:
    """Makes and removes; only ever what has this agent's labels.

    `whole` sees a call to its end: what is made after its caller was cancelled would come too late to be removed.
    """

    def __init__(self, engine: Engine, whole: Callable[[Coroutine[Any, Any, Any]], Awaitable[Any]]) -> None:
        self._engine = engine
        self._whole = whole
        self._locks: dict[str, asyncio.Lock] = {}

    async def make_network(self, name: str, driver: str, labels: Mapping[str, str]) -> None:
        """Make a network unless it is there: engines allow two of one name, so tasks of a run take turns."""
        async with self._locks.setdefault(name, asyncio.Lock()):
            known = await self._engine.listed("networks", _filters(labels))
            if any(network["Name"] == name for network in known):
                return
            body = {"Name": name, "Driver": driver, "CheckDuplicate": True, "Labels": dict(labels)}
            await self._whole(self._engine.json("POST", "networks/create", body=body))

    async def make_volume(self, name: str, driver: str, labels: Mapping[str, str]) -> None:
        """Make a volume unless it is there."""
        body = {"Name": name, "Driver": driver, "Labels": dict(labels)}
        await self._whole(self._engine.json("POST", "volumes/create", body=body))

    async def join(self, network: str, container: str, aliases: Sequence[str]) -> None:
        """Connect a container that has not started to one more network."""
        body = {"Container": container, "EndpointConfig": {"Aliases": list(aliases)}}
        await self._engine.json("POST", f"networks/{network}/connect", body=body)

    async def release(self, labels: Mapping[str, str]) -> None:
        """Remove networks and volumes with these labels; the error of the last that would not go is raised."""
        labels = {f"pistage.{key}": value for key, value in labels.items()}
        await self._remove("networks", labels, lambda _: True)
        await self._remove("volumes", labels, lambda _: True)

    async def sweep(self, labels: Mapping[str, str], attempts: Collection[str], runs: Collection[str]) -> None:
        """Remove what belongs to no attempt and no run among these."""
        labels = {f"pistage.{key}": value for key, value in labels.items()}
        for container in await self._engine.listed("containers", _filters(labels)):
            if container["Labels"].get("pistage.attempt") not in attempts:
                await self._engine.remove(container["Id"])
        for kind in ("networks", "volumes"):
            await self._remove(kind, labels, lambda has: not _is_live(has, attempts, runs))

    async def _remove(
        self, kind: str, labels: Mapping[str, str], is_wanted: Callable[[Mapping[str, str]], bool]
    ) -> None:
        refusal: EngineError | None = None
        for known in await self._engine.listed(kind, _filters(labels)):
            if not is_wanted(known.get("Labels") or {}):
                continue
            try:
                await self._engine.json("DELETE", f"{kind}/{known['Id'] if kind == 'networks' else known['Name']}")
            except EngineError as error:
                if error.status != _NOT_FOUND:
                    refusal = error  # in use: the others may go all the same
        if refusal is not None:
            raise refusal


def _is_live(labels: Mapping[str, str], attempts: Collection[str], runs: Collection[str]) -> bool:
    if (attempt := labels.get("pistage.attempt")) is not None:
        return attempt in attempts
    return labels.get("pistage.run") in runs


def _filters(labels: Mapping[str, str]) -> list[str]:
    return [f"{key}={value}" for key, value in labels.items()]
