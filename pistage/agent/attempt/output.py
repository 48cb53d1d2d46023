"""The output of one step: its two streams on their way into the outbox, masked, counted and hashed as they pass.

The engine counts what a command printed, the stream what is sent: all commands of the step one after the other, with
their secrets masked. Here is where the one becomes the other.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterable

from pistage.agent.masking import Masker, Masks
from pistage.agent.outbox import Outbox, StreamKey
from pistage.agent.runtimes.base import STDERR, STDOUT, ExecutionError
from pistage.core import limits
from pistage.core.model import StreamEnd
from pistage.core.plan import FailureClass
from pistage.wire import GapReason


class StepOutput:
    """Owns the streams of a step, of which each of its commands (a retry, a hook) writes the next part."""

    is_deaf = False

    def __init__(self, outbox: Outbox, attempt_id: str, step: str, *, is_new: bool, masks: Masks) -> None:
        self._outbox = outbox
        self._masks = masks
        self._streams = {number: _Stream(StreamKey(attempt_id, step, number)) for number in (STDOUT, STDERR)}
        for stream in self._streams.values():
            outbox.open(stream.key, is_new=is_new)

    @property
    def keys(self) -> Iterable[StreamKey]:
        return [stream.key for stream in self._streams.values()]

    def begin_part(self) -> None:
        """The next command's output begins here."""
        for stream in self._streams.values():
            stream.taken, stream.gap_at = 0, -1
            stream.masker = Masker(self._masks) if self._masks else None

    async def end_part(self) -> None:
        """The command has ended: what was held back because it might have begun a secret did not."""
        for stream in self._streams.values():
            async with stream.lock:
                if stream.masker is not None:
                    await self._send(stream, stream.masker.finish())

    def length_of(self, stream: int) -> int:
        """How much of what the current command has written to `stream` was taken."""
        return self._streams[stream].taken

    async def write(self, stream: int, offset: int, chunk: bytes) -> None:
        """Take a command's bytes; `offset` counts from the start of its part, and a repeat is skipped."""
        target = self._streams[stream]
        async with target.lock:
            skipped = target.taken - offset
            if skipped < 0:
                raise ExecutionError(FailureClass.LOST, f"the engine lost {-skipped} bytes of the step's output")
            fresh = chunk[skipped:] if skipped else chunk
            target.taken += len(fresh)
            await self._send(target, target.masker.feed(fresh) if target.masker is not None else fresh)

    async def note_gap(self, stream: int, offset: int) -> None:
        """The engine was away when the command had printed `offset` bytes that are known; a repeat is skipped."""
        target = self._streams[stream]
        async with target.lock:
            if target.gap_at < offset == target.taken:
                target.gap_at = offset
                # Before what is held back, if anything is: so the bytes are the same for an agent that sees no gap.
                self._outbox.note_gap(target.key, target.length, GapReason.ENGINE)

    async def _send(self, target: _Stream, data: bytes) -> None:
        for at in range(0, len(data), limits.FRAME_BYTES_MAX):
            part = data[at : at + limits.FRAME_BYTES_MAX]
            await self._outbox.put(target.key, target.length, part)
            target.length += len(part)
            target.digest.update(part)

    async def kept(self) -> None:
        """Wait until the master holds what it will hold of it; OutputRefusedError if it will not."""
        for key in self.keys:
            self._outbox.end(key)
        for key in self.keys:
            await self._outbox.kept(key)

    def ends(self) -> tuple[StreamEnd, StreamEnd]:
        """How much stdout and stderr held, and how much of it is not kept."""
        stdout, stderr = (self._end(self._streams[number]) for number in (STDOUT, STDERR))
        return stdout, stderr

    def _end(self, stream: _Stream) -> StreamEnd:
        kept_to, missing = self._outbox.kept_of(stream.key)
        if kept_to > stream.length:
            # An agent before this one saw more of it than could be read again: nobody can say what all of it was.
            return StreamEnd(length=kept_to, sha256="", missing=missing)
        missing += stream.length - kept_to
        return StreamEnd(length=stream.length, sha256=stream.digest.hexdigest(), missing=missing)


class _Stream:
    def __init__(self, key: StreamKey) -> None:
        self.key = key
        self.taken = 0  # bytes that the current command has printed
        self.gap_at = -1  # at which of those the newest gap is
        self.length = 0  # bytes that were sent, of all commands
        self.digest = hashlib.sha256()
        self.masker: Masker | None = None
        self.lock = asyncio.Lock()
