"""What the runtimes of plain processes have in common, the sandbox and the host: directories, programs, their end."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pistage.agent.gpus import GpuPool
from pistage.agent.interpreters import Interpreters
from pistage.agent.runtimes.base import Command, ExecutionError, Notebook, Running
from pistage.agent.runtimes.devices import AttemptGpus
from pistage.agent.runtimes.process import ChildProcess, started_at
from pistage.agent.runtimes.process_programs import ProcessPrograms
from pistage.agent.runtimes.trees import remove_tree
from pistage.config import AgentConfig
from pistage.core import ids
from pistage.core.plan import Context, FailureClass
from pistage.wire import Assign


@dataclass(frozen=True, slots=True, kw_only=True)
class Premises:
    """What the attempts of a runtime share: where their directories are, who of them is there, and its scripts."""

    root: Path
    ignores_images: bool
    places: set[ProcessPlace]
    programs: ProcessPrograms


class ProcessRuntime:
    """Processes in directories of the agent. They cannot be found again by their output, so they end with the agent."""

    is_lasting = False

    def __init__(self, settings: AgentConfig, interpreters: Interpreters, *, is_walled: bool) -> None:
        self._settings = settings
        self._root = settings.data_dir / "workspaces"
        self._programs = ProcessPrograms(settings, interpreters, is_walled=is_walled)
        self._premises = Premises(
            root=self._root, ignores_images=settings.ignore_images, places=set(), programs=self._programs
        )

    async def open(self, chores: asyncio.TaskGroup) -> None:
        """See `Runtime`."""
        self._root.mkdir(mode=0o700, parents=True, exist_ok=True)

    async def close(self) -> None:
        """See `Runtime`."""
        for place in list(self._premises.places):
            await place.kill()

    def languages(self) -> tuple[str, ...]:
        """See `Runtime`."""
        return self._programs.interpreters.names()

    def installs(self) -> tuple[str, ...]:
        """See `Runtime`."""
        return tuple(name for name in self.languages() if self._programs.can_install(name))

    async def sweep(self, cluster_id: str, attempts: Collection[str], runs: Collection[str]) -> None:
        """See `Runtime`."""
        await self._programs.sweep()
        for directory in list(self._root.iterdir()):
            if ids.is_id(directory.name) and directory.name not in attempts:
                await asyncio.to_thread(remove_tree, directory)


class ProcessPlace(ABC):
    """An attempt's directories, one for each context, and its processes. One of the `places` until it is closed."""

    def __init__(self, premises: Premises, assign: Assign, notebook: Notebook, gpus: GpuPool) -> None:
        self._premises = premises
        self._gpus = AttemptGpus(gpus, assign.attempt_id, notebook)
        self._assign = assign
        self._notebook = notebook
        assert ids.is_id(assign.attempt_id), "the directory is named by an id of ours"
        self._root = premises.root / assign.attempt_id
        premises.places.add(self)
        self._children: list[ChildProcess] = []

    @abstractmethod
    async def launch(self, directory: Path, context: Context, command: Command) -> ChildProcess:
        """Start `command`, for which `directory` holds a workspace and a tmp."""

    @abstractmethod
    async def start_installer(
        self, words: Sequence[str], directory: Path, volumes: Sequence[tuple[Path, str, bool]]
    ) -> ChildProcess:
        """Start what installs requirements: see `StartInstaller`."""

    @abstractmethod
    def refusals(self) -> Iterator[tuple[bool, str]]:
        """Whether the task asks for something that this runtime does not have, and the sentence that says so."""

    async def prepare(self) -> None:
        """See `Place`."""
        reason = next((reason for is_asked, reason in self.refusals() if is_asked), None) or self._image_refusal()
        if reason is not None:
            raise ExecutionError(FailureClass.REFUSED, reason)

    def _image_refusal(self) -> str | None:
        task = self._assign.task
        image = next((context.image for context in task.contexts if task.needs_image(context)), None)
        if image is None or self._premises.ignores_images:
            return None
        return f"this agent runs no containers, so it cannot run {image}; it can ignore images: set ignore_images"

    async def start(self, context: Context, command: Command) -> Running:
        """See `Place`."""
        note = f"process:{command.key}"
        is_of_before = self._notebook.is_inherited and not self._notebook.is_of_this_boot
        if command.is_resumed or is_of_before or self._notebook.read(note):
            raise ExecutionError(FailureClass.LOST, "the agent was restarted, and its processes ended with it")
        has_words = bool(command.script is not None or command.program or command.entrypoint or command.command)
        if not has_words:
            raise ExecutionError(FailureClass.REFUSED, "without an image there is no command to take from it")
        assert context.id.isalnum(), "contexts are named by the planner"
        directory = self._root / context.id
        try:
            for path in (self._root, directory, directory / "workspace", directory / "tmp"):
                path.mkdir(exist_ok=True)
            if command.program is not None:
                command = await self._premises.programs.readied(
                    command, command.program, directory, holder=self._assign.attempt_id, start=self.start_installer
                )
            await self._gpus.of(context)  # which may take long: while it waits for them, nothing has begun
            self._notebook.write(note, [0, 0])  # never twice, whatever happens from here on
            command.launch.begin()
            child = await self.launch(directory, context, command)
        except OSError as error:
            raise ExecutionError(FailureClass.FAILURE, f"no workspace could be made: {error}") from None
        self._children.append(child)
        self._notebook.write(note, [child.pid, started_at(child.pid)])
        return child

    def retire(self, context: Context) -> None:
        """See `Place`: directories go with the attempt."""
        self._gpus.give_back(context)

    async def kill(self) -> None:
        """See `Place`; the directories stay."""
        for child in self._children:
            await child.kill()

    async def close(self) -> None:
        """See `Place`."""
        await self.kill()
        for child in self._children:
            child.close()
        if not self._is_removed_as_empty():
            await asyncio.to_thread(remove_tree, self._root)
        self._gpus.give_all_back()
        self._premises.programs.let_go(self._assign.attempt_id)
        self._premises.places.discard(self)

    def _is_removed_as_empty(self) -> bool:
        """Steps that left no file behind leave directories that cost less to remove than to ask a thread to do it."""
        contexts = [self._root / context.id for context in self._assign.task.contexts]
        try:
            for directory in contexts:
                if directory.exists():
                    for path in (directory / "workspace", directory / "tmp", directory):
                        path.rmdir()
            self._root.rmdir()
        except FileNotFoundError:
            return not self._root.exists()
        except OSError:
            return False
        return True
