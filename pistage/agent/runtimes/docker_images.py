"""Images: pulled if they are missing, once for everybody who asks at the same time."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

from pistage.agent.runtimes.base import ExecutionError
from pistage.agent.runtimes.engine import Engine, EngineError, EngineGoneError
from pistage.core.plan import FailureClass, RegistryAuth

log = logging.getLogger(__name__)

_KNOWN_FOR_S = 30.0  # a second task on the same image asks the engine nothing; a removed one is noticed at creation


class Images:
    """What is known of the engine's images."""

    def __init__(self, engine: Engine, *, timeout_s: float) -> None:
        self._engine = engine
        self._timeout_s = timeout_s
        self._known: dict[str, tuple[float, dict[str, Any]]] = {}
        self._locks: dict[str, asyncio.Lock] = {}

    async def ensure(self, name: str, auth: RegistryAuth | None) -> dict[str, Any]:
        """The image as the engine describes it, pulled first if need be; ExecutionError `pull` if that fails."""
        if not name:
            raise ExecutionError(FailureClass.REFUSED, "this agent runs containers, and the step names no image")
        async with self._locks.setdefault(name, asyncio.Lock()):
            at, image = self._known.get(name, (0.0, {}))
            if not image or time.monotonic() - at > _KNOWN_FOR_S:
                image = await self._engine.image(name) or await self._pull(name, auth)
                self._known[name] = (time.monotonic(), image)
            return image

    def forget(self, name: str) -> None:
        """It is not there any more."""
        self._known.pop(name, None)

    async def _pull(self, name: str, auth: RegistryAuth | None) -> dict[str, Any]:
        log.info("image=%s pull", name)
        try:
            await self._engine.pull(name, auth, timeout_s=self._timeout_s)
            image = await self._engine.image(name)
        except EngineError as error:
            raise ExecutionError(
                FailureClass.PULL, f"image {name} could not be pulled: {_without(error.message, auth)}"
            ) from None
        except EngineGoneError as gone:
            raise ExecutionError(
                FailureClass.LOST, f"the engine went away while image {name} was pulled: {gone}"
            ) from None
        if image is None:
            raise ExecutionError(FailureClass.PULL, f"image {name} was pulled and is not there")
        return image


def _without(message: str, auth: RegistryAuth | None) -> str:
    """The message without the password, should a registry ever repeat it."""
    return message.replace(auth.password, "***") if auth and auth.password else message
