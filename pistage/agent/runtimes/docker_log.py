"""A container's output as its engine's log tells it: exact while the engine is there, with a gap where it was away.

An engine that ends takes with it what it has read from the container and not written down: the line that is not
complete, and a moment of the rest. What it had written is a beginning of the truth, and so is what an attached client
had heard by then: the longer one is all that is known of it. What the next engine writes follows that, behind a gap.
The messages' times tell the one from the other.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

from pistage.agent.journal import JournalError
from pistage.agent.runtimes.base import STDERR, STDOUT, Notebook, Sink
from pistage.agent.runtimes.engine import Engine
from pistage.agent.runtimes.loglines import LineMender, time_of
from pistage.core import limits

#: An engine that ends has read no more than this that it has not written down: what its pipe and its buffers hold.
_TAIL_BYTES = 64 * limits.KIB


class Heard:
    """What an attached client has heard of a stream: how much, and the end of it."""

    def __init__(self, length: int = 0, tail: bytes = b"") -> None:
        self.length = length
        self._pieces = deque([tail])
        self._held = len(tail)

    def add(self, data: bytes) -> None:
        """More of it."""
        self.length += len(data)
        self._pieces.append(data)
        self._held += len(data)
        while self._held - len(self._pieces[0]) >= _TAIL_BYTES:
            self._held -= len(self._pieces.popleft())

    @property
    def tail(self) -> bytes:
        """Its last bytes."""
        return b"".join(self._pieces)[-_TAIL_BYTES:]


@dataclass(frozen=True, slots=True)
class _Absence:
    """When the engine went away, nanoseconds UTC of our clock, and what was heard of it before that."""

    at_ns: int
    heard: Mapping[int, Heard]


@dataclass(slots=True)
class _Walk:
    """Through the log of one stream."""

    stream: int
    mender: LineMender
    offset: int = 0  # of what comes next, counted from the command's start
    crossed: int = 0  # absences


@dataclass(slots=True)
class ContainerLog:
    """The log of one container, whose engine's absences are noted in the journal: a later agent reads it alike.

    `outlives_engine` says that it is written by somebody else, who stays: then nothing is lost.
    """

    engine: Engine
    container: str
    notebook: Notebook
    key: str
    loses_newlines: bool
    outlives_engine: bool
    _absences: list[_Absence] = field(default_factory=list)
    _told: int = 0  # absences that the sink has been told of
    _brought: dict[int, int] = field(default_factory=dict)  # of each stream, up to where the sink had it from the log
    _walks: dict[int, _Walk] = field(default_factory=dict)
    _last: tuple[int, bytes] | None = None  # stream and message

    def __post_init__(self) -> None:
        for at_ns, *heard in self.notebook.read(self._note) or ():
            both = {number: Heard(*one) for number, one in zip((STDOUT, STDERR), heard, strict=True)}
            self._absences.append(_Absence(at_ns, both))

    @property
    def _note(self) -> str:
        return f"absences:{self.key}"

    @property
    def has_absences(self) -> bool:
        """Whether the engine was away since the command began."""
        return bool(self._absences)

    def note_absence(self, at_ns: int, heard: Mapping[int, Heard]) -> None:
        """The engine went away then; `heard` is what an attached client had heard: only the first engine has one."""
        if self.outlives_engine:
            return
        self._absences.append(_Absence(at_ns, {number: heard.get(number, Heard()) for number in (STDOUT, STDERR)}))
        notes = [
            [absence.at_ns, *([one.length, one.tail] for one in absence.heard.values())] for absence in self._absences
        ]
        with contextlib.suppress(JournalError):  # only an agent that comes after this one would miss it
            self.notebook.write(self._note, notes)

    async def tell(self, sink: Sink) -> None:
        """Bring the log from its beginning, as it comes; what the sink has is skipped.

        That it ends does not say that the container has: once it has, `complete` is to be asked for.
        """
        if self._told < len(self._absences):
            # Gaps first: a stream on which nothing more comes has one, too.
            await self._read(sink, is_following=False)
            self._told = len(self._absences)
        await self._read(sink, is_following=True)

    async def complete(self, sink: Sink) -> None:
        """The container has ended: bring what is left of the log."""
        last = [message async for message in self.engine.logs(self.container, is_following=False, tail=1)]
        if last[-1:] != [self._last]:
            await self._read(sink, is_following=False)
        for walk in self._walks.values():
            # What the attached stream brought was exact: only an end that came from the log may lack its newline.
            is_from_log = self._brought.get(walk.stream) == walk.offset
            if is_from_log and (newline := walk.mender.finish()):
                await sink.write(walk.stream, walk.offset, newline)

    async def _read(self, sink: Sink, *, is_following: bool) -> None:
        ahead_ns = await self.engine.clock_ahead_ns() if self._absences else 0
        bounds = [absence.at_ns + ahead_ns for absence in self._absences]
        self._walks = walks = {number: _Walk(number, self._mender()) for number in (STDOUT, STDERR)}
        async for stream, message in self.engine.logs(self.container, is_following=is_following):
            walk, self._last = walks[stream], (stream, message)
            while walk.crossed < len(bounds) and time_of(message) > bounds[walk.crossed]:
                await self._cross(walk, sink)
            if text := walk.mender.feed(message):
                offset, walk.offset = walk.offset, walk.offset + len(text)
                if walk.offset > sink.length_of(stream):
                    self._brought[stream] = walk.offset
                await sink.write(stream, offset, text)
        for walk in walks.values():
            while walk.crossed < len(bounds):
                await self._cross(walk, sink)

    async def _cross(self, walk: _Walk, sink: Sink) -> None:
        """From what one engine wrote to what the next one did."""
        heard = self._absences[walk.crossed].heard[walk.stream]
        if (lacking := heard.length - walk.offset) > 0:
            # An agent that comes later has it from here. Were it more than is noted, the sink would find that out.
            if lacking <= len(tail := heard.tail):
                await sink.write(walk.stream, walk.offset, tail[-lacking:])
            walk.offset += lacking
        await sink.note_gap(walk.stream, walk.offset)
        walk.mender = self._mender()
        walk.crossed += 1

    def _mender(self) -> LineMender:
        return LineMender(loses_newlines=self.loses_newlines)
