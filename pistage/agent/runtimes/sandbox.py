"""The sandbox runtime: a process in its own namespaces, with a workspace as the only place it can write to.

It has no network, no images, an environment of its own, and ends with the agent. It is not a container, and is never
called one. Made by bubblewrap where that is installed and works, else by util-linux `unshare`.
"""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from pistage.agent.runtimes.base import Command, Notebook, Place
from pistage.agent.runtimes.process import PATH, Launch, ProcessPlace, argv_of, remove_tree
from pistage.config import AgentConfig
from pistage.core import ids
from pistage.errors import Code, PistageError
from pistage.wire import Assign

_PROBE_TIMEOUT_S = 10.0
#: What of the machine a sandbox sees, read-only. Of /etc only what programs need to start and to check certificates.
_SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/opt")
_ETC = (
    "alternatives", "ca-certificates", "group", "ld.so.cache", "ld.so.conf", "ld.so.conf.d", "localtime",
    "nsswitch.conf", "passwd", "pki", "protocols", "services", "ssl", "mime.types",
)  # fmt: skip

#: Makes argv of a sandbox from (context directory, working directory, words to run).
Wrapper = Callable[[Path, str, Sequence[str]], list[str]]


class SandboxRuntime:
    """Processes in namespaces of their own."""

    name = "sandbox"

    def __init__(self, settings: AgentConfig) -> None:
        self._settings = settings
        self._root = settings.data_dir / "workspaces"
        self._wrapper: Wrapper = bubblewrapped
        self._places: list[ProcessPlace] = []

    async def open(self, chores: asyncio.TaskGroup) -> None:
        """See `Runtime`."""
        self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._wrapper = await find_wrapper(self._root)

    async def close(self) -> None:
        """See `Runtime`."""
        for place in self._places:
            await place.end()

    def notes(self) -> tuple[str, ...]:
        """See `Runtime`."""
        if not self._settings.ignore_images:
            return ()
        return ("images are ignored: steps run in a sandbox, with this machine's own programs and no network",)

    async def gpus(self) -> int:
        """See `Runtime`."""
        return 0

    def place(self, assign: Assign, notebook: Notebook) -> Place:
        """See `Runtime`."""
        place = SandboxPlace(
            self._root, assign, notebook, ignores_images=self._settings.ignore_images, wrapper=self._wrapper
        )
        self._places.append(place)
        return place

    async def sweep(self, cluster_id: str, attempts: Collection[str], runs: Collection[str]) -> None:
        """See `Runtime`."""
        for directory in self._root.iterdir():
            if ids.is_id(directory.name) and directory.name not in attempts:
                await asyncio.to_thread(remove_tree, directory)

    async def release(self, run_id: str) -> None:
        """See `Runtime`: runs have nothing here."""


class SandboxPlace(ProcessPlace):
    """A workspace and a /tmp for each context."""

    def __init__(
        self, root: Path, assign: Assign, notebook: Notebook, *, ignores_images: bool, wrapper: Wrapper
    ) -> None:
        super().__init__(root, assign, notebook, ignores_images=ignores_images)
        self._wrapper = wrapper

    def launch_of(self, workspace: Path, command: Command) -> Launch:
        env = {"PATH": PATH, "HOME": "/workspace", "TMPDIR": "/tmp", "LANG": "C.UTF-8"} | dict(command.env)
        # The directory is made inside, where no link can lead out of the workspace.
        words = ["/bin/sh", "-c", 'mkdir -p -- "$1" && cd -- "$1" && shift && exec "$@"', "sh", command.workdir]
        argv = self._wrapper(workspace, "/workspace", [*words, *argv_of(command)])
        return Launch(argv=argv, env=env, directory=workspace)

    def refusal(self) -> str | None:
        task = self._assign.task
        if task.services:
            return "services need containers, and this agent runs steps in a sandbox without a network"
        if any(context.networks for context in task.contexts) and not self._ignores_images:
            return "networks need containers, and this agent runs steps in a sandbox without a network"
        if any(context.mounts for context in task.contexts):
            return "volumes need containers, and this agent runs steps in a sandbox"
        if any(context.resources.gpus for context in task.contexts):
            return "this agent hands out no GPUs: it runs steps in a sandbox"
        if any(step.user for step in task.steps()):
            return "a sandbox has one user only: `user` needs containers"
        return None


def bubblewrapped(context: Path, directory: str, words: Sequence[str]) -> list[str]:
    """The words in a sandbox made by bubblewrap."""
    argv = ["bwrap", "--unshare-all", "--die-with-parent", "--new-session", "--cap-drop", "ALL"]
    argv += ["--hostname", "pistage"]
    for path in _SYSTEM:
        if Path(path).is_symlink():
            argv += ["--symlink", str(Path(path).readlink()), path]
        else:
            argv += ["--ro-bind-try", path, path]
    for name in _ETC:
        argv += ["--ro-bind-try", f"/etc/{name}", f"/etc/{name}"]
    argv += ["--proc", "/proc", "--dev", "/dev"]
    argv += ["--bind", str(context / "tmp"), "/tmp", "--bind", str(context / "workspace"), "/workspace"]
    return [*argv, "--chdir", directory, "--", *words]


async def find_wrapper(root: Path) -> Wrapper:
    """The first way to make a sandbox that works here; PistageError `usage` says why none does."""
    complaints = []
    probe = root / "probe"
    for wrapper in (bubblewrapped,):
        complaint = await _try_out(wrapper, probe)
        if complaint is None:
            return wrapper
        complaints.append(complaint)
    raise PistageError(
        Code.USAGE,
        f"no sandbox can be made here: {'; '.join(complaints)}",
        hint="install bubblewrap, or allow unprivileged user namespaces, or use a Docker engine",
    )


async def _try_out(wrapper: Wrapper, probe: Path) -> str | None:
    """Why `wrapper` does not work on this machine, or None."""
    argv = wrapper(probe, "/workspace", ["/bin/sh", "-c", "test -w /workspace && echo works"])
    if shutil.which(argv[0], path=os.environ.get("PATH", PATH)) is None:
        return f"{argv[0]} is not installed"
    for name in ("workspace", "tmp"):
        (probe / name).mkdir(parents=True, exist_ok=True)
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
