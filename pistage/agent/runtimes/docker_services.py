"""Services: the sidecars of a task, started before its first step, reachable by name, removed after its last."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping

from pistage.agent import policy
from pistage.agent.runtimes.base import ExecutionError
from pistage.agent.runtimes.docker_images import Images
from pistage.agent.runtimes.engine import Engine
from pistage.core import limits
from pistage.core.plan import FailureClass, Service
from pistage.wire import Assign

_POLL_S = 0.2
_LOG_CHARS_MAX = 300


class Services:
    """Starts the services of one attempt."""

    def __init__(
        self,
        engine: Engine,
        images: Images,
        assign: Assign,
        create: Callable[[str, policy.ContainerSpec], Awaitable[str | None]],
        *,
        network: str,
    ) -> None:
        self._engine = engine
        self._images = images
        self._assign = assign
        self._create = create
        self._network = network

    async def start(self) -> None:
        """All of them at once, until each is ready."""
        waiting = [self._start(service, f"s{index}") for index, service in enumerate(self._assign.task.services)]
        results = await asyncio.gather(*waiting, return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                raise result

    async def _start(self, service: Service, suffix: str) -> None:
        await self._images.ensure(service.image, service.auth)
        spec = policy.ContainerSpec(
            image=service.image,
            command=service.command,
            env=_environment(service.env),
            networks=[(self._network, (service.name,))],
            health=service.health,
        )
        container = await self._create(suffix, spec) or f"{self._network}-{suffix}"
        await self._engine.start(container)
        try:
            async with asyncio.timeout(limits.SERVICE_READY_TIMEOUT_S):
                await self._ready(service, container)
        except TimeoutError:
            reason = f"service {service.name} was not ready within {limits.SERVICE_READY_TIMEOUT_S} s"
            raise ExecutionError(FailureClass.FAILURE, reason) from None

    async def _ready(self, service: Service, container: str) -> None:
        while True:
            state = (await self._engine.inspect(container) or {}).get("State", {})
            health = state.get("Health") or {}
            if state.get("Status") != "running":
                code = state.get("ExitCode")
                raise ExecutionError(FailureClass.FAILURE, f"service {service.name} ended with exit code {code}")
            if service.health is None or health.get("Status") == "healthy":
                return
            if health.get("Status") == "unhealthy":
                output = str(((health.get("Log") or [{}])[-1]).get("Output", "")).strip()[:_LOG_CHARS_MAX]
                raise ExecutionError(FailureClass.FAILURE, f"service {service.name} is not healthy: {output}")
            await asyncio.sleep(_POLL_S)


def _environment(env: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in env.items() if not name.startswith("PISTAGE_")}
