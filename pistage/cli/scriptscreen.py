"""A script on the screen: what it prints, stdout to stdout and stderr to stderr, and nothing else unless it must."""

from __future__ import annotations

import sys
from typing import BinaryIO, TextIO

from pistage.cli import output, terminal
from pistage.cli.loglines import sentence
from pistage.cli.progress import Progress, shortened, waits
from pistage.client import Chunk, Event, Gap, Run


class ScriptScreen:
    """Passes bytes on as they are, but for a terminal in lines without what it would act on, colours aside.

    `has_notes`: what the agent has to say of how it runs things is shown, too.
    """

    def __init__(self, *, has_notes: bool) -> None:
        self._has_notes = has_notes
        self._progress: Progress | None = None
        self._streams: dict[str, _Stream] = {}

    def follow(self, progress: Progress) -> ScriptScreen:
        """Begin to show that run."""
        self._progress = progress
        return self

    def __enter__(self) -> ScriptScreen:
        self._streams = {"stdout": _Stream(sys.stdout), "stderr": _Stream(sys.stderr)}
        return self

    def __exit__(self, *_: object) -> None:
        for stream in self._streams.values():
            stream.end()

    def on_event(self, event: Event) -> None:
        """See `Screen`."""
        assert self._progress is not None, "a screen is entered once it follows a run"
        known = len(self._progress.notes)
        self._progress.apply(event)
        for note in self._progress.notes[known:] if self._has_notes else ():
            output.say(f"note: {note}", fg="yellow", bold=True)

    def on_chunk(self, chunk: Chunk) -> None:
        """See `Screen`."""
        self._streams["stderr" if chunk.stream == "stderr" else "stdout"].write(chunk.data)

    def on_gap(self, gap: Gap) -> None:
        """See `Screen`."""
        output.say(sentence(gap), fg="yellow")

    def on_waiting(self, task: str, reason: str) -> None:
        """See `Screen`."""
        output.say(f"{shortened(task)}: {waits(reason)}", fg="yellow")

    def on_end(self, run: Run) -> None:
        """See `Screen`."""
        for stream in self._streams.values():
            stream.end()


class _Stream:
    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._bytes: BinaryIO | None = None if stream.isatty() else getattr(stream, "buffer", None)
        self._lines = terminal.Lines(terminal.coloured)

    def write(self, data: bytes) -> None:
        if self._bytes is not None:
            self._stream.flush()  # what was said before
            self._bytes.write(data)
            self._bytes.flush()
            return
        for line in self._lines.feed(data):
            self._stream.write(f"{line}\n")
        self._stream.flush()

    def end(self) -> None:
        for line in self._lines.end():
            self._stream.write(f"{line}\n")
        self._stream.flush()
