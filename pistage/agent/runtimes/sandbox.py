"""The sandbox runtime: a process in its own namespaces, with a workspace as the only place it can write to.

It has no network, no images, an environment of its own, and ends with the agent. It is not a container, and is never
called one. Made by bubblewrap where that is installed and works, else by util-linux `unshare`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from pistage.agent.gpus import Gpu, GpuPool
from pistage.agent.interpreters import Interpreters
from pistage.agent.runtimes.base import Command, Notebook, Place
from pistage.agent.runtimes.namespaces import SYSTEM, Room, Wrapper, bubblewrapped, unshared
from pistage.agent.runtimes.process import PATH, ChildProcess, Launch, argv_of, parent_of
from pistage.agent.runtimes.process_place import Premises, ProcessPlace, ProcessRuntime
from pistage.agent.runtimes.trees import remove_tree
from pistage.config import AgentConfig
from pistage.core import ids
from pistage.core.plan import Context
from pistage.errors import Code, PistageError
from pistage.wire import Assign

_PROBE_TIMEOUT_S = 10.0
_VOLUMES = "volumes"
_ENVIRONMENT = {"PATH": PATH, "HOME": "/workspace", "TMPDIR": "/tmp", "LANG": "C.UTF-8"}


class SandboxRuntime(ProcessRuntime):
    """Processes in namespaces of their own."""

    name = "sandbox"

    def __init__(self, settings: AgentConfig) -> None:
        super().__init__(settings, Interpreters(settings, path=PATH, within=SYSTEM), is_walled=True)
        self._wrapper: Wrapper = bubblewrapped

    async def open(self, chores: asyncio.TaskGroup) -> None:
        """See `Runtime`."""
        await super().open(chores)
        self._wrapper = await find_wrapper(self._root)

    def notes(self) -> tuple[str, ...]:
        """See `Runtime`."""
        if not self._settings.ignore_images:
            return ()
        return ("images are ignored: steps run in a sandbox, with this machine's own programs and no network",)

    async def gpus(self) -> Sequence[Gpu]:
        """See `Runtime`: a sandbox has none of the machine's devices."""
        return ()

    def place(self, assign: Assign, notebook: Notebook, gpus: GpuPool) -> Place:
        """See `Runtime`."""
        return SandboxPlace(self._premises, assign, notebook, gpus, wrapper=self._wrapper)

    async def sweep(self, cluster_id: str, attempts: Collection[str], runs: Collection[str]) -> None:
        """See `Runtime`."""
        await super().sweep(cluster_id, attempts, runs)
        volumes = self._root / _VOLUMES
        for directory in list(volumes.iterdir()) if volumes.is_dir() else []:
            if directory.name not in runs:
                await asyncio.to_thread(remove_tree, directory)

    async def release(self, run_id: str) -> None:
        """See `Runtime`."""
        if ids.is_id(run_id):
            await asyncio.to_thread(remove_tree, self._root / _VOLUMES / run_id)


class SandboxPlace(ProcessPlace):
    """A workspace and a /tmp for each context; a directory for each volume of the run."""

    def __init__(
        self, premises: Premises, assign: Assign, notebook: Notebook, gpus: GpuPool, *, wrapper: Wrapper
    ) -> None:
        super().__init__(premises, assign, notebook, gpus)
        self._volumes = premises.root / _VOLUMES / assign.run_id
        self._wrapper = wrapper

    async def start_installer(
        self, words: Sequence[str], directory: Path, volumes: Sequence[tuple[Path, str, bool]]
    ) -> ChildProcess:
        """See `ProcessPlace`."""
        argv = self._wrapper(Room(directory=directory, volumes=volumes), words)
        return await SandboxedProcess.launch(Launch(argv=argv, env=dict(_ENVIRONMENT), directory=directory))

    async def launch(self, directory: Path, context: Context, command: Command) -> ChildProcess:
        env = _ENVIRONMENT | dict(command.env)
        # The working directory is made inside, where no link can lead out of the workspace.
        words = ["/bin/sh", "-c", 'mkdir -p -- "$1" && cd -- "$1" && shift && exec "$@"', "sh", command.workdir]
        binds = [(source, target, True) for source, target in command.binds]
        room = Room(directory=directory, volumes=[*self._mounts(context), *binds])
        argv = self._wrapper(room, [*words, *argv_of(command)])
        return await SandboxedProcess.launch(Launch(argv=argv, env=env, directory=directory))

    def _mounts(self, context: Context) -> list[tuple[Path, str, bool]]:
        numbers = {volume.name: number for number, volume in enumerate(self._assign.volumes)}
        mounts = []
        for mount in context.mounts:
            source = self._volumes / str(numbers[mount.source])
            source.mkdir(parents=True, exist_ok=True)
            mounts.append((source, mount.target, mount.is_read_only))
        return mounts

    def refusals(self) -> Iterator[tuple[bool, str]]:
        task = self._assign.task
        contexts = task.contexts
        mounts = [mount for context in contexts for mount in context.mounts]
        has_networks = any(context.networks for context in contexts) and not self._premises.ignores_images
        yield bool(task.services), "services need containers: a sandbox has no network"
        yield has_networks, "networks need containers: a sandbox has none"
        yield any(mount.kind == "bind" for mount in mounts), "directories of the host are not mounted into a sandbox"
        yield any(volume.is_external for volume in self._assign.volumes), "external volumes need containers"
        yield any(context.resources.gpus for context in contexts), "a sandbox is given no GPUs"
        yield any(step.user for step in task.steps()), "a sandbox has one user only: `user` needs containers"


class SandboxedProcess(ChildProcess):
    """A sandbox: a process that made it, its process 1, and below those the command."""

    async def signal(self, name: str) -> None:
        """See `Running`: a stop signal goes to the command, a kill to the sandbox, with which everything in it ends."""
        if name == "KILL":
            await super().signal(name)
            return
        for pid in await asyncio.to_thread(_below, self.pid):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.Signals[f"SIG{name}"])


def _below(outer: int) -> list[int]:
    """The processes below the sandbox's process 1."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (parent := parent_of(int(entry.name))):
            children.setdefault(parent, []).append(int(entry.name))
    found: list[int] = []
    pending = [grandchild for init in children.get(outer, []) for grandchild in children.get(init, [])]
    while pending:
        pid = pending.pop()
        found.append(pid)
        pending += children.get(pid, [])
    return found


async def find_wrapper(root: Path) -> Wrapper:
    """The first way to make a sandbox that works here; PistageError `usage` says why none does."""
    complaints = []
    for wrapper in (bubblewrapped, unshared):
        complaint = await complaint_about(wrapper, root)
        if complaint is None:
            return wrapper
        complaints.append(complaint)
    raise PistageError(
        Code.USAGE,
        f"no sandbox can be made here: {'; '.join(complaints)}",
        hint="install bubblewrap, or allow unprivileged user namespaces, or use a Docker engine",
    )


async def complaint_about(wrapper: Wrapper, root: Path) -> str | None:
    """Why `wrapper` does not work on this machine, or None."""
    probe = root / "probe"
    await asyncio.to_thread(_make_room, probe)
    closed = " && ".join(f"! test -w {path}" for path in ("/", "/usr", "/proc/sys/kernel/core_pattern"))
    words = ["/bin/sh", "-c", f"test -w /workspace && {closed} && echo works"]
    argv = wrapper(Room(directory=probe), words)
    if shutil.which(argv[0]) is None:
        return f"{argv[0]} is not installed"
    process = await asyncio.create_subprocess_exec(
        *argv,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={"PATH": PATH},
    )
    try:
        async with asyncio.timeout(_PROBE_TIMEOUT_S):
            stdout, stderr = await process.communicate()
    except TimeoutError:
        process.kill()
        await process.wait()
        return f"{argv[0]} did not answer"
    finally:
        await asyncio.to_thread(remove_tree, probe)
    if stdout.strip() == b"works":
        return None
    lines = stderr.decode(errors="replace").strip().splitlines() or [f"exit code {process.returncode}"]
    return f"{argv[0]}: {lines[0]}"


def _make_room(directory: Path) -> None:
    for name in ("workspace", "tmp"):
        (directory / name).mkdir(parents=True, exist_ok=True)
