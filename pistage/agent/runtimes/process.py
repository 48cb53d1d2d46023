"""Commands as child processes of the agent."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pistage.agent.runtimes.base import (
    STDERR,
    STDOUT,
    Command,
    ExecutionError,
    Exit,
    Sink,
    script_argv,
)
from pistage.agent.runtimes.spawned import Spawned
from pistage.core import limits
from pistage.core.plan import FailureClass

_READ_BYTES = 64 * limits.KIB
#: A process that its command left behind may hold the pipe for ever: once the command has ended, this long a silence
#: is the end of its output.
_DRAIN_S = 0.25
_KILLED_DRAIN_S = 2.0
_LEFT_IN_PIPES_MAX = 4 * limits.MIB  # two pipes of the largest size there is, and what was read ahead of them
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """A child process to be: its words, its whole environment, the directory it starts in."""

    argv: Sequence[str]
    env: Mapping[str, str]
    directory: Path


class ChildProcess:
    """A command under way, the leader of a session and process group of its own."""

    container = ""

    def __init__(self, process: Spawned, pipes: Mapping[int, asyncio.StreamReader], mark: bytes) -> None:
        self._process = process
        self._mark = mark
        self._pipes = pipes
        self._offsets = dict.fromkeys(pipes, 0)
        self._is_writing: set[int] = set()
        self._transports: list[asyncio.BaseTransport] = []
        self._is_killed = False

    @classmethod
    async def launch(cls, launch: Launch) -> ChildProcess:
        """Start it; ExecutionError if there is no such program."""
        pipes = {STDOUT: os.pipe2(os.O_CLOEXEC), STDERR: os.pipe2(os.O_CLOEXEC)}
        try:
            stdout, stderr = pipes[STDOUT][1], pipes[STDERR][1]
            process = Spawned(launch.argv, env=launch.env, directory=launch.directory, stdout=stdout, stderr=stderr)
        except OSError as error:
            for read_end, _ in pipes.values():
                os.close(read_end)
            code = 127 if isinstance(error, FileNotFoundError) else 126
            reason = f"{launch.argv[0]!r} could not be started: {error.strerror}"
            raise ExecutionError(FailureClass.FAILURE, reason, exit_code=code) from None
        finally:
            for _, write_end in pipes.values():
                os.close(write_end)
        readers = {number: asyncio.StreamReader(limit=_READ_BYTES) for number in pipes}
        child = cls(process, readers, f"PISTAGE_RUN_ID={launch.env.get('PISTAGE_RUN_ID', '')}".encode())
        ends = {number: read_end for number, (read_end, _) in pipes.items()}
        try:
            for number in pipes:
                await child._connect(number, ends.pop(number))
        except BaseException:  # nobody else knows of it yet
            await child.kill()
            child.close()
            for read_end in ends.values():
                os.close(read_end)
            raise
        return child

    async def _connect(self, number: int, read_end: int) -> None:
        loop = asyncio.get_running_loop()
        reader = self._pipes[number]
        transport, _ = await loop.connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(read_end, "rb", buffering=0)
        )
        self._transports.append(transport)

    @property
    def pid(self) -> int:
        return self._process.pid

    async def ended(self, sink: Sink) -> Exit:
        """See `Running`."""
        try:
            async with asyncio.TaskGroup() as group:
                pumps = [group.create_task(self._pump(number, sink)) for number in self._pipes]
                code = await self._process.wait()
                await self._drain(pumps)
        except BaseExceptionGroup as errors:  # the sink takes no more: who waits for the end knows that error
            raise errors.exceptions[0] from None
        finally:
            self.close()
        return Exit(code=code if code >= 0 else 128 - code)

    async def _drain(self, pumps: Sequence[asyncio.Task[None]]) -> None:
        """Until the pipes are at their end, or silent, or more came out of them than the command can have left.

        After a kill also once they were read for a while, and nothing of it waited: what still comes is of a process
        that was not killed.
        """
        at_end, calm_s = self._taken(), 0.0
        while pending := [pump for pump in pumps if not pump.done()]:
            before = self._taken()
            await asyncio.wait(pending, timeout=_DRAIN_S)
            is_silent = self._taken() == before and not self._is_writing
            calm_s = 0.0 if self._is_writing else calm_s + _DRAIN_S
            is_read = self._is_killed and calm_s >= _KILLED_DRAIN_S
            if is_silent or is_read or self._taken() - at_end > _LEFT_IN_PIPES_MAX:
                for pump in pending:
                    pump.cancel()
                return

    def _taken(self) -> int:
        return sum(self._offsets.values())

    async def _pump(self, number: int, sink: Sink) -> None:
        while chunk := await self._pipes[number].read(_READ_BYTES):
            self._is_writing.add(number)
            await sink.write(number, self._offsets[number], chunk)
            self._is_writing.discard(number)
            self._offsets[number] += len(chunk)

    async def signal(self, name: str) -> None:
        """See `Running`."""
        self._is_killed |= name == "KILL"
        if self._process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.Signals[f"SIG{name}"])

    async def kill(self) -> None:
        """Kill the whole group, also what the command left behind; return when the command is gone.

        What it printed can still be read.
        """
        self._is_killed = True
        if self._process.returncode is None:
            await self.signal("KILL")
            await self._process.wait()
        elif _has_members(self.pid) and await asyncio.to_thread(_is_left_behind, self.pid, self._mark):
            # The leader is gone, so its number could be a stranger's by now; what it left carries its environment.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)

    def close(self) -> None:
        """Nobody reads what it printed any more."""
        for transport in self._transports:
            transport.close()


def argv_of(command: Command) -> list[str]:
    """The words to execute."""
    if command.script is not None:
        return script_argv(command.script)
    return [*(command.entrypoint or ()), *(command.command or ())]


def started_at(pid: int) -> int:
    """When the process started, in ticks since boot: together with its number it names a process; 0 if it is gone."""
    return int(_stat_of(pid)[19])


def parent_of(pid: int) -> int:
    """The process's parent; 0 if it is gone."""
    return int(_stat_of(pid)[1])


def _has_members(group: int) -> bool:
    """Whether there is a process group of that number, of whomever: a look that costs nothing, before one that does."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _is_left_behind(group: int, mark: bytes) -> bool:
    """Whether the process group still has a process whose environment holds `mark`."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(_stat_of(int(entry.name))[2]) == group:
            with contextlib.suppress(OSError):
                if mark in (entry / "environ").read_bytes().split(b"\0"):
                    return True
    return False


def _stat_of(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the third on, or zeros."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ["0"] * 50
    return text.rpartition(")")[2].split()
