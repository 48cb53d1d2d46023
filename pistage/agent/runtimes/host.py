"""The host runtime: steps as plain processes of the agent's user, for those who allow it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from pistage.agent.gpus import Gpu, GpuPool, found_below
from pistage.agent.interpreters import Interpreters
from pistage.agent.runtimes.base import Command, Notebook, Place
from pistage.agent.runtimes.process import (
    PATH,
    ChildProcess,
    Launch,
    ProcessPlace,
    argv_of,
    remove_tree,
    started_at,
)
from pistage.agent.runtimes.process_programs import ProcessPrograms
from pistage.config import AgentConfig
from pistage.core import ids
from pistage.core.plan import Context, Program
from pistage.wire import Assign


class HostRuntime:
    """Plain processes; nothing keeps them from anything that the agent's user may do."""

    name = "host"
    is_lasting = False

    def __init__(self, settings: AgentConfig) -> None:
        self._settings = settings
        self._root = settings.data_dir / "workspaces"
        self._places: set[ProcessPlace] = set()
        self._programs = ProcessPrograms(settings, Interpreters(settings, path=_path()), is_walled=False)

    async def open(self, chores: asyncio.TaskGroup) -> None:
        """See `Runtime`."""
        self._root.mkdir(mode=0o700, parents=True, exist_ok=True)

    async def close(self) -> None:
        """See `Runtime`: plain processes cannot be found again by their output, so they end with the agent."""
        for place in list(self._places):
            await place.kill()

    def notes(self) -> tuple[str, ...]:
        """See `Runtime`."""
        return ("runs as plain processes of the agent's user, not in a container",) + (
            ("images are ignored",) if self._settings.ignore_images else ()
        )

    def languages(self) -> tuple[str, ...]:
        """See `Runtime`."""
        return self._programs.interpreters.names()

    async def gpus(self) -> Sequence[Gpu]:
        """See `Runtime`: nothing keeps a process from the others, but its tools heed what they are told."""
        return await asyncio.to_thread(found_below)

    def place(self, assign: Assign, notebook: Notebook, gpus: GpuPool) -> Place:
        """See `Runtime`."""
        return HostPlace(
            self._root, assign, notebook, gpus,
            ignores_images=self._settings.ignore_images, places=self._places, programs=self._programs,
        )  # fmt: skip

    async def sweep(self, cluster_id: str, attempts: Collection[str], runs: Collection[str]) -> None:
        """See `Runtime`."""
        await self._programs.sweep()
        for directory in self._root.iterdir():
            if ids.is_id(directory.name) and directory.name not in attempts:
                await asyncio.to_thread(remove_tree, directory)

    async def release(self, run_id: str) -> None:
        """See `Runtime`: runs have nothing here."""


class HostPlace(ProcessPlace):
    """Directories under the agent's own."""

    def __init__(
        self,
        root: Path,
        assign: Assign,
        notebook: Notebook,
        gpus: GpuPool,
        *,
        ignores_images: bool,
        places: set[ProcessPlace],
        programs: ProcessPrograms,
    ) -> None:
        super().__init__(root, assign, notebook, gpus, ignores_images=ignores_images, places=places)
        self._programs = programs

    async def readied(self, command: Command, program: Program, directory: Path) -> Command:
        """See `ProcessPlace`."""
        return await self._programs.readied(
            command, program, directory, holder=self._assign.attempt_id, start=self._start_installer
        )

    async def _start_installer(
        self, words: Sequence[str], directory: Path, volumes: Sequence[tuple[Path, str, bool]]
    ) -> ChildProcess:
        env = {"PATH": _path(), "HOME": str(directory / "workspace"), "TMPDIR": str(directory / "tmp")}
        return await ChildProcess.launch(Launch(argv=words, env=env, directory=directory))

    async def close(self) -> None:
        """See `Place`."""
        await super().close()
        self._programs.let_go(self._assign.attempt_id)

    async def prepare(self) -> None:
        """See `Place`; first of all, what a crashed agent left running is killed."""
        self._kill_inherited()
        await super().prepare()

    async def kill(self) -> None:
        """See `Place`: also where nothing was prepared, because the attempt is to end."""
        self._kill_inherited()
        await super().kill()

    def _kill_inherited(self) -> None:
        if not self._notebook.is_inherited:
            return
        for _, (pid, started) in self._notebook.notes("process:"):
            if started and started_at(pid) == started:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(pid, signal.SIGKILL)

    async def launch(self, directory: Path, context: Context, command: Command) -> ChildProcess:
        where = Path(command.workdir)
        if where.is_relative_to("/workspace") and ".." not in where.parts:
            below = where.relative_to("/workspace")
            where = directory / "workspace" / below
            if below.parts:
                where.mkdir(parents=True, exist_ok=True)
        inherited = {name: os.environ[name] for name in ("HOME", "LANG", "TZ") if name in os.environ}
        gpus = self._gpus.environment(await self._gpus.of(context))
        env = {"PATH": _path(), "TMPDIR": str(directory / "tmp")} | inherited | dict(command.env)
        env |= gpus  # last: a job that named others' devices would have them
        return await ChildProcess.launch(Launch(argv=argv_of(command), env=env, directory=where))

    def refusals(self) -> Iterator[tuple[bool, str]]:
        task = self._assign.task
        contexts = task.contexts
        yield bool(task.services), "services need containers, and this agent runs plain processes"
        yield any(context.networks for context in contexts), "networks need containers"
        yield (
            any(context.mounts for context in contexts),
            "volumes need containers: a plain process has none",
        )
        yield (
            any(step.user for step in task.steps()),
            "plain processes run as the agent's user: `user` needs containers",
        )


def _path() -> str:
    return os.environ.get("PATH", PATH)
