"""The contract of a runtime: what an attempt asks for, what it is answered, and how it hears of a failure."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from pistage.agent.gpus import Gpu, GpuPool
from pistage.core.plan import Context, FailureClass, Program
from pistage.wire import Assign

STDOUT = 1
STDERR = 2
_WORD_BYTES_MAX = 120_000  # characters of four bytes still fit when there are a quarter as many


class ExecutionError(Exception):
    """A step or an attempt cannot go on; `reason` is a sentence for the person who wrote the pipeline."""

    def __init__(self, failure: FailureClass, reason: str, *, exit_code: int | None = None) -> None:
        super().__init__(reason)
        self.failure = failure
        self.reason = reason
        self.exit_code = exit_code


class Launch:
    """Whether a command may run: from `begin` on it is stopped as what runs, and not given up as what never did."""

    __slots__ = ("has_begun",)

    def __init__(self) -> None:
        self.has_begun = False

    def begin(self) -> None:
        """To be called before the first word that may start it, whatever comes of that."""
        self.has_begun = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """One command to run in a context. `key` is unique in its attempt and made of our ids only ("3", "3-retry1").

    `script` is for `/bin/sh -e`; `program` is what a runtime makes words of; with both None the image runs with
    `entrypoint` and `command`, each None for its own. `env` is complete. What a program then needs is an `archive` to
    be unpacked in its container, or `binds`: directories, and where they are seen, for reading. `is_resumed` says that
    an agent before this one has reported the command as started; a runtime tells `launch` when it is.
    """

    key: str
    script: str | None
    program: Program | None = None
    entrypoint: tuple[str, ...] | None = None
    command: tuple[str, ...] | None = None
    env: Mapping[str, str] = field(default_factory=dict)
    workdir: str = "/workspace"
    user: str | None = None
    is_resumed: bool = False
    archive: bytes = b""
    binds: tuple[tuple[Path, str], ...] = ()
    launch: Launch = field(default_factory=Launch, compare=False)


def script_argv(script: str) -> list[str]:
    """The words that run a script with `/bin/sh -e`.

    The kernel takes no single word of 128 KiB; a longer script comes in pieces, which the shell puts together.
    """
    if len(script.encode()) <= _WORD_BYTES_MAX:
        return ["/bin/sh", "-ec", script]
    pieces = [script[at : at + _WORD_BYTES_MAX // 4] for at in range(0, len(script), _WORD_BYTES_MAX // 4)]
    joined = "".join(f"${{{number}}}" for number in range(1, len(pieces) + 1))
    return ["/bin/sh", "-ec", f'__script="{joined}"; set --; eval "$__script"', "/bin/sh", *pieces]


@dataclass(frozen=True, slots=True, kw_only=True)
class Exit:
    """How a command ended: its code (128 + n where signal n killed it), and whether memory was why."""

    code: int
    is_oom: bool = False


class Sink(Protocol):
    """Where the output of one command goes."""

    @property
    def is_deaf(self) -> bool:
        """Whether it keeps nothing, so that what can be read later need not be read at all."""

    async def write(self, stream: int, offset: int, chunk: bytes) -> None:
        """Take bytes of `stream` that begin at `offset` of this command's output; what it already has is skipped.

        Waits while the outbox is full: the caller then reads no further, which is what holds the command back.
        """

    def length_of(self, stream: int) -> int:
        """How many bytes of this command's `stream` it has."""

    async def note_gap(self, stream: int, offset: int) -> None:
        """The engine was away when `offset` bytes of this command's output had come; a repeat is skipped.

        What it cost is not known: what comes next is written at `offset`.
        """


class Running(Protocol):
    """A command under way."""

    @property
    def container(self) -> str:
        """The engine's id of the container, or "" where there is none."""

    async def ended(self, sink: Sink) -> Exit:
        """Bring all output to `sink` and return how the command ended. Called again only after `sink` raised."""

    async def signal(self, name: str) -> None:
        """Send "TERM" or "KILL" to every process of the command; nothing happens if it has ended."""


class Notebook(Protocol):
    """The attempt's notes: what a later agent must know to find its processes again."""

    @property
    def is_inherited(self) -> bool:
        """Whether an agent before this one began the attempt."""

    @property
    def is_of_this_boot(self) -> bool:
        """Whether the machine has not been started since the attempt began."""

    def read(self, key: str) -> Any:
        """What was written under `key`, or None."""

    def notes(self, prefix: str) -> Iterable[tuple[str, Any]]:
        """Every key that begins with `prefix`, and what was written under it."""

    def write(self, key: str, note: Any) -> None:
        """Survives this process; the machine only once `flush` returned."""

    async def flush(self) -> None:
        """Before an effect that could not be found again if the notes were lost, or that removes what they are of."""


class Place(Protocol):
    """Everything that one attempt has on this machine."""

    async def prepare(self) -> None:
        """Make what all contexts need: networks, volumes, services. ExecutionError if that is not possible."""

    async def start(self, context: Context, command: Command) -> Running:
        """Start `command`, or find it again if an agent before this one started it. ExecutionError if it cannot."""

    def retire(self, context: Context) -> None:
        """Nothing more will run in `context`, and how its steps ended is journalled: it may go, in the background."""

    async def kill(self) -> None:
        """End every process of the attempt without grace; what it printed can still be read. May be called again."""

    async def close(self) -> None:
        """Remove everything of the attempt; on return nothing of it runs. May be called more than once."""


class Runtime(Protocol):
    """A way to run steps."""

    name: str
    #: Whether what runs goes on without the agent, and is found again by the next one.
    is_lasting: bool

    async def open(self, chores: asyncio.TaskGroup) -> None:
        """Wait until it can be used; PistageError `usage` if it never will be, with what to do about it.

        What it does in the background is a task of `chores`.
        """

    async def close(self) -> None:
        """Let go of connections; nothing that runs is stopped, unless it cannot outlive the agent."""

    def notes(self) -> tuple[str, ...]:
        """What a person must know of every attempt here, such as that images are ignored."""

    def languages(self) -> tuple[str, ...]:
        """The languages in which scripts run here without an image."""

    def installs(self) -> tuple[str, ...]:
        """Of these, the ones whose requirements can be installed."""

    async def gpus(self) -> Sequence[Gpu]:
        """The GPUs of this machine that it could hand out."""

    def place(self, assign: Assign, notebook: Notebook, gpus: GpuPool) -> Place:
        """The place of an attempt, whose contexts get their GPUs from the pool; nothing is made yet."""

    async def sweep(self, cluster_id: str, attempts: Collection[str], runs: Collection[str]) -> None:
        """Remove what this agent made in this cluster for attempts and runs that are not among these."""

    async def release(self, run_id: str) -> None:
        """Remove the networks and volumes of a run that ended."""
