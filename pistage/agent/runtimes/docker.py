"""The docker runtime: steps in containers of a Docker-compatible engine."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Coroutine, Sequence
from typing import Any, TypeVar

from pistage.agent import gpus
from pistage.agent.gpus import Gpu, GpuPool
from pistage.agent.journal import JournalError
from pistage.agent.runtimes.base import Notebook, Place
from pistage.agent.runtimes.binds import BindPolicy
from pistage.agent.runtimes.docker_images import Images
from pistage.agent.runtimes.docker_objects import Objects
from pistage.agent.runtimes.docker_place import DockerPlace, translated
from pistage.agent.runtimes.docker_programs import DockerPackages
from pistage.agent.runtimes.engine import Engine, EngineError, EngineGoneError
from pistage.config import AgentConfig
from pistage.owning import seen_through
from pistage.wire import Assign

T = TypeVar("T")

log = logging.getLogger(__name__)

_CONNECT_RETRY_S = 2.0
_NO_LOCAL_DRIVER = "podman"
#: The first API version whose `local` log driver keeps the newline of a line longer than 16 KiB.
_KEEPS_NEWLINES = (1, 42)


class DockerRuntime:
    """Containers of one engine."""

    name = "docker"
    is_lasting = True

    def __init__(self, settings: AgentConfig, agent_id: Callable[[], str]) -> None:
        self.engine = Engine(settings.engine)
        self.images = Images(self.engine, timeout_s=settings.pull_timeout)
        self.objects = Objects(self.engine, self.whole)
        self.binds = BindPolicy(settings.bind_paths, settings.data_dir / "binds", self.engine.socket_path)
        self.packages = DockerPackages(self.engine, settings, agent_id)
        self.log_driver = "local"
        self.loses_newlines = False
        self._agent_id = agent_id
        self._chores: asyncio.TaskGroup | None = None

    @property
    def agent_id(self) -> str:
        return self._agent_id()

    async def open(self, chores: asyncio.TaskGroup) -> None:
        """See `Runtime`: says once what is missing, and waits for it."""
        self._chores = chores
        has_said = False
        while True:
            try:
                version = await self.engine.connect()
                break
            except (EngineGoneError, EngineError) as error:
                self.engine.note_absence()  # of what an agent before this one had started
                if not has_said:
                    log.warning("%s", missing_engine(self.engine.address, error))
                has_said = True
                await asyncio.sleep(_CONNECT_RETRY_S)
        components = [str(part.get("Name", "")).lower() for part in version.get("Components") or ()]
        if any(_NO_LOCAL_DRIVER in name for name in components):
            self.log_driver = "json-file"
        self.loses_newlines = self.log_driver == "local" and self.engine.api_version < _KEEPS_NEWLINES
        chores.create_task(self.engine.watch())
        log.info("engine=%s version=%s", self.engine.address, version.get("Version"))

    async def close(self) -> None:
        """See `Runtime`: containers run on."""
        await self.engine.close()

    def notes(self) -> tuple[str, ...]:
        """See `Runtime`."""
        return ()

    def languages(self) -> tuple[str, ...]:
        """See `Runtime`: images bring them."""
        return ()

    def installs(self) -> tuple[str, ...]:
        """See `Runtime`: images bring what installs."""
        return ()

    async def gpus(self) -> Sequence[Gpu]:
        """See `Runtime`: those of this machine, if the engine is on it and can hand them out."""
        found = await asyncio.to_thread(gpus.found_below)
        if not found or self.engine.socket_path is None:
            return ()
        try:
            info = await self.engine.json("GET", "info")
        except (EngineGoneError, EngineError):
            return ()
        # An AMD device is a device like any other to the engine; NVIDIA's need its runtime, or its description (CDI).
        names = [*(info.get("Runtimes") or {}), *(str(one.get("ID")) for one in info.get("DiscoveredDevices") or ())]
        return found if found[0].vendor == "amd" or any("nvidia" in name for name in names) else ()

    def place(self, assign: Assign, notebook: Notebook, gpus: GpuPool) -> Place:
        """See `Runtime`."""
        return DockerPlace(self, assign, notebook, gpus)

    async def sweep(self, cluster_id: str, attempts: Collection[str], runs: Collection[str]) -> None:
        """See `Runtime`."""
        self.binds.sweep(attempts)
        with translated():
            await self.objects.sweep({"agent": self.agent_id, "cluster": cluster_id}, attempts, runs)

    async def release(self, run_id: str) -> None:
        """See `Runtime`."""
        with translated():
            await self.objects.release({"agent": self.agent_id, "run": run_id})

    async def whole(self, call: Coroutine[Any, Any, T]) -> T:
        """Make a call that is seen to its end even if the caller is cancelled: what it makes can then be removed."""
        assert self._chores is not None, "containers are made after `open`"
        outcome = await seen_through(self._chores.create_task(_outcome(call)))
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def in_background(self, container: str, notebook: Notebook) -> asyncio.Task[bool]:
        """Remove a container without making anybody wait; the task tells whether it is gone."""
        assert self._chores is not None, "containers are made after `open`"
        return self._chores.create_task(self._removed(container, notebook))

    async def _removed(self, container: str, notebook: Notebook) -> bool:
        try:
            await notebook.flush()  # that its steps ended: who finds neither container nor note runs them again
            await self.engine.remove(container)
        except (JournalError, EngineGoneError, EngineError) as error:
            log.debug("container=%s is removed later: %s", container, error)
            return False
        return True


async def _outcome(call: Coroutine[Any, Any, T]) -> T | Exception:
    try:
        return await call
    except Exception as error:
        return error


def missing_engine(address: str, error: Exception) -> str:
    """What to say when no engine answers."""
    return (
        f"no engine answers at {address} ({error}): install Docker (https://docs.docker.com/engine/install/) or "
        "Podman, start it, let this user use its socket, or name another with `engine`; without one, use "
        "runtime: sandbox. Waiting for it."
    )
