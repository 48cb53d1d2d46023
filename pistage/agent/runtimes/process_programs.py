"""Scripts as child processes of the agent: their files in a directory of the attempt, their packages in one of ours."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from pathlib import Path

from pistage.agent.interpreters import Interpreters
from pistage.agent.packages import Packages
from pistage.agent.runtimes import programs
from pistage.agent.runtimes.base import Command, ExecutionError, Exit, Sink
from pistage.agent.runtimes.process import ChildProcess
from pistage.agent.runtimes.trees import remove_tree
from pistage.config import AgentConfig, Interpreter
from pistage.core import limits
from pistage.core.plan import FailureClass, Program

#: Starts an installer: its words, a directory of its own, and directories that it sees, as `Room.volumes` has them.
StartInstaller = Callable[[Sequence[str], Path, Sequence[tuple[Path, str, bool]]], Awaitable[ChildProcess]]
_NO_NETWORK = (
    "its requirements cannot be installed: a sandbox has no network. Name a directory of packages in the agent's "
    "configuration, `languages: {%s: {packages: DIRECTORY}}`, or run it in a container"
)


class ProcessPrograms:
    """Readies the scripts of an agent. `is_walled`: they see what they need in `programs.ROOT`, and have no network."""

    def __init__(self, settings: AgentConfig, interpreters: Interpreters, *, is_walled: bool) -> None:
        self.interpreters = interpreters
        self._settings = settings
        self._is_walled = is_walled
        self._root = settings.data_dir / "packages"
        self._packages = Packages(self._root, self._removed)

    def can_install(self, language: str) -> bool:
        """Whether requirements can come from somewhere: a sandbox has no network, so from a directory alone."""
        source = self._settings.languages.get(language)
        return not self._is_walled or (source is not None and source.packages is not None)

    async def readied(
        self, command: Command, program: Program, directory: Path, *, holder: str, start: StartInstaller
    ) -> Command:
        """The command as words, its files below `directory`, its requirements installed."""
        words = self.interpreters.command_of(program.language)
        packages = ""
        binds: list[tuple[Path, str]] = []
        if program.requirements:
            files = await self._installed(program, words, holder, start)
            packages = programs.PACKAGES if self._is_walled else str(files)
            binds.append((files, programs.PACKAGES))
        place = directory / "programs" / command.key
        place.mkdir(parents=True, exist_ok=True)
        for name, content in programs.files_of(program).items():
            (place / name).write_bytes(content)
        for name, target in programs.links_of(program, packages).items():
            (place / name).symlink_to(target)
        seen = f"{programs.ROOT}/{command.key}" if self._is_walled else str(place)
        binds.append((place, seen))
        return replace(
            command,
            program=None,
            command=tuple(programs.words_of(program, words, seen)),
            env=programs.variables_of(program, command.env, packages),
            binds=tuple(binds) if self._is_walled else (),
        )

    def let_go(self, holder: str) -> None:
        """The attempt uses no packages any more."""
        self._packages.let_go(holder)

    async def _installed(self, program: Program, words: Sequence[str], holder: str, start: StartInstaller) -> Path:
        source = programs.source_of(self._settings, program)
        if self._is_walled and source.packages is None:
            raise ExecutionError(FailureClass.REFUSED, _NO_NETWORK % program.language)
        interpreter = self.interpreters.file_of(program.language) or ""
        key = programs.packages_key(program, [interpreter, *words], source)
        files = self._root / key

        async def is_there() -> bool:
            return files.is_dir()

        async def make() -> None:
            await self._install(program, words, source, files, start)

        await self._packages.ensure(key, holder, is_there=is_there, make=make)
        return files

    async def _install(
        self, program: Program, words: Sequence[str], source: Interpreter, files: Path, start: StartInstaller
    ) -> None:
        index = programs.INDEX if self._is_walled else str(source.packages or "")
        seen = programs.PACKAGES if self._is_walled else str(files)
        argv = programs.install_words(program, words, source, packages=seen, index=index)
        volumes = [(files, programs.PACKAGES, False)]
        if source.packages is not None:
            if not source.packages.is_dir():
                raise programs.unreadable(source.packages, NotADirectoryError(20, "it is no directory"))
            volumes.append((source.packages.absolute(), programs.INDEX, True))
        room = self._room(files)
        try:
            heard = _Heard()
            ended = await _seen_through(await start(argv, room, volumes), heard)
            if ended.code != 0:
                raise programs.failed_install(program, ended.code, heard.tail())
        finally:
            await asyncio.to_thread(remove_tree, room)

    def _room(self, files: Path) -> Path:
        """The directory that will have the packages, and one for the installer, which is what this gives."""
        files.mkdir(mode=0o700, parents=True)
        room = Path(tempfile.mkdtemp(dir=self._root, prefix="installing-"))
        for name in ("workspace", "tmp"):
            (room / name).mkdir()
        return room

    async def _removed(self, key: str) -> bool:
        files = self._root / key
        if files.exists():
            # Out of the way in one step: whoever asked may be gone before all of it is, and another make it anew.
            aside = Path(tempfile.mkdtemp(prefix="removing-", dir=self._root))
            files.rename(aside / key)
            await asyncio.to_thread(remove_tree, aside)
        return True

    async def sweep(self) -> None:
        """Remove what an agent before this one was at when it ended."""
        for left in (*self._root.glob("installing-*"), *self._root.glob("removing-*")):
            await asyncio.to_thread(remove_tree, left)


async def _seen_through(installer: ChildProcess, heard: Sink) -> Exit:
    """Its end; it does not outlive whoever waits for it."""
    try:
        async with asyncio.timeout(limits.PACKAGES_TIMEOUT_S):
            return await installer.ended(heard)
    except TimeoutError:
        reason = f"its requirements were not installed within {limits.PACKAGES_TIMEOUT_S:g} s"
        raise ExecutionError(FailureClass.FAILURE, reason) from None
    finally:
        with contextlib.suppress(OSError):
            await installer.kill()


class _Heard:
    """The end of what an installer says, on both streams."""

    is_deaf = False

    def __init__(self) -> None:
        self._chunks: deque[bytes] = deque(maxlen=64)
        self._lengths = {1: 0, 2: 0}

    async def write(self, stream: int, offset: int, chunk: bytes) -> None:
        self._lengths[stream] = offset + len(chunk)
        self._chunks.append(chunk[-limits.KIB :])

    def length_of(self, stream: int) -> int:
        return self._lengths[stream]

    async def note_gap(self, stream: int, offset: int) -> None:
        pass

    def tail(self) -> bytes:
        return b"".join(self._chunks)
