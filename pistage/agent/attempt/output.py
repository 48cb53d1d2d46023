"""The output of one step: its two streams on their way into the outbox, counted and hashed as they pass."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterable

from pistage.agent.outbox import Outbox, StreamKey
from pistage.agent.runtimes.base import STDERR, STDOUT, ExecutionError
from pistage.core import limits
from pistage.core.model import StreamEnd
from pistage.core.plan import FailureClass


class StepOutput:
    """Owns the streams of a step, of which each of its commands (a retry, a hook) writes the next part."""

    def __init__(self, outbox: Outbox, attempt_id: str, step: str, *, is_new: bool) -> None:
        self._outbox = outbox
        self._streams = {number: _Stream(StreamKey(attempt_id, step, number)) for number in (STDOUT, STDERR)}
        for stream in self._streams.values():
            outbox.open(stream.key, is_new=is_new)

    @property
    def keys(self) -> Iterable[StreamKey]:
        return [stream.key for stream in self._streams.values()]

    def begin_part(self) -> None:
        """The next command's output begins here."""
        for stream in self._streams.values():
            stream.base = stream.length

    def length_of(self, stream: int) -> int:
        """How much the current command has written to `stream`."""
        return self._streams[stream].length - self._streams[stream].base

    async def write(self, stream: int, offset: int, chunk: bytes) -> None:
        """Take a command's bytes; `offset` counts from the start of its part, and a repeat is skipped."""
        target = self._streams[stream]
        async with target.lock:
            skipped = target.length - target.base - offset
            if skipped < 0:
                raise ExecutionError(FailureClass.LOST, f"the engine lost {-skipped} bytes of the step's output")
            await self._append(target, memoryview(chunk)[skipped:])

    async def _append(self, target: _Stream, rest: memoryview) -> None:
        while len(rest):
            part = bytes(rest[: limits.FRAME_BYTES_MAX])
            await self._outbox.put(target.key, target.length, part)
            target.length += len(part)
            target.digest.update(part)
            rest = rest[len(part) :]

    async def say(self, text: str) -> None:
        """A line of ours on stderr, as a part of its own."""
        await self.write(STDERR, self.length_of(STDERR), text.encode())

    async def kept(self) -> None:
        """Wait until the master holds all of it; OutputRefusedError if it will not."""
        for stream in self._streams.values():
            await self._outbox.kept(stream.key, stream.length)

    def ends(self) -> tuple[StreamEnd, StreamEnd]:
        """How much stdout and stderr held."""
        stdout, stderr = (self._streams[number].end() for number in (STDOUT, STDERR))
        return stdout, stderr


class _Stream:
    def __init__(self, key: StreamKey) -> None:
        self.key = key
        self.length = 0
        self.base = 0
        self.digest = hashlib.sha256()
        self.lock = asyncio.Lock()

    def end(self) -> StreamEnd:
        return StreamEnd(length=self.length, sha256=self.digest.hexdigest())
