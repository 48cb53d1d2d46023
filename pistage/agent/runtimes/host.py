"""The host runtime: steps as plain processes of the agent's user, for those who allow it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path

from pistage.agent.gpus import Gpu, GpuPool, found_below
from pistage.agent.interpreters import Interpreters
from pistage.agent.runtimes.base import Command, Notebook, Place
from pistage.agent.runtimes.process import PATH, ChildProcess, Launch, argv_of, started_at
from pistage.agent.runtimes.process_place import ProcessPlace, ProcessRuntime
from pistage.config import AgentConfig
from pistage.core.plan import Context
from pistage.wire import Assign


class HostRuntime(ProcessRuntime):
    """Plain processes; nothing keeps them from anything that the agent's user may do."""

    name = "host"

    def __init__(self, settings: AgentConfig) -> None:
        super().__init__(settings, Interpreters(settings, path=_path()), is_walled=False)

    def notes(self) -> tuple[str, ...]:
        """See `Runtime`."""
        return ("runs as plain processes of the agent's user, not in a container",) + (
            ("images are ignored",) if self._settings.ignore_images else ()
        )

    async def gpus(self) -> Sequence[Gpu]:
        """See `Runtime`: nothing keeps a process from the others, but its tools heed what they are told."""
        return await asyncio.to_thread(found_below)

    def place(self, assign: Assign, notebook: Notebook, gpus: GpuPool) -> Place:
        """See `Runtime`."""
        return HostPlace(self._premises, assign, notebook, gpus)

    async def release(self, run_id: str) -> None:
        """See `Runtime`: runs have nothing here."""


class HostPlace(ProcessPlace):
    """Directories under the agent's own."""

    async def start_installer(
        self, words: Sequence[str], directory: Path, volumes: Sequence[tuple[Path, str, bool]]
    ) -> ChildProcess:
        """See `ProcessPlace`."""
        env = {"PATH": _path(), "HOME": str(directory / "workspace"), "TMPDIR": str(directory / "tmp")}
        return await ChildProcess.launch(Launch(argv=words, env=env, directory=directory))

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
