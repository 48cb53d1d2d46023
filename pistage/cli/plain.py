"""A run followed without a terminal: a line on stderr for each event, the output of steps on stdout with its origin."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from datetime import UTC, datetime

from pistage.cli import output, terminal
from pistage.cli.loglines import sentence
from pistage.cli.progress import Progress, shortened, waits
from pistage.client import Chunk, Event, Gap, Run

_COLOUR = output.STATE_COLOURS


class PlainScreen:
    """Prints what happens as it happens; with `is_single` the output stands alone, without its origin before it."""

    def __init__(self, progress: Progress, *, is_single: bool = False) -> None:
        self._progress = progress
        self._is_single = is_single
        self._lines: dict[tuple[str, int, str, str], tuple[str, terminal.Lines]] = {}
        self._verdict: Callable[[], None] | None = None

    def __enter__(self) -> PlainScreen:
        for note in self._progress.notes:
            self._note(note)
        return self

    def __exit__(self, *_: object) -> None:
        self._flush()

    def on_event(self, event: Event) -> None:
        """Say what happened."""
        known = len(self._progress.notes)
        self._progress.apply(event)
        for note in self._progress.notes[known:]:
            self._note(note)
        if line := self._line(event):
            colour = _COLOUR.get(str(event.fields.get("state")))
            tell = functools.partial(output.say, line, fg=colour)
            if event.kind == "run_finished":
                self._verdict = tell  # output may still be on its way; the verdict comes after it
            else:
                tell()

    def on_chunk(self, chunk: Chunk) -> None:
        """Print the lines that came."""
        label, lines = self._lines.get(chunk.origin) or (self._progress.label(chunk), terminal.Lines())
        self._lines[chunk.origin] = (label, lines)
        for line in lines.feed(chunk.data):
            self._print(label, line)
        sys.stdout.flush()

    def on_gap(self, gap: Gap) -> None:
        """Say what is missing, in its place."""
        label, lines = self._lines.pop(gap.origin, (self._progress.label(gap), terminal.Lines()))
        for line in [*lines.end(), sentence(gap)]:
            self._print(label, line)
        sys.stdout.flush()

    def on_waiting(self, task: str, reason: str) -> None:
        """Say why nothing happens."""
        output.say(f"task {shortened(task)}: {waits(reason)}", fg="yellow")

    def on_end(self, run: Run) -> None:
        """The last words of the job, and then how the run ended."""
        self._flush()
        if self._verdict is not None:
            self._verdict()

    def _flush(self) -> None:
        for label, lines in self._lines.values():
            for line in lines.end():
                self._print(label, line)
        self._lines.clear()
        sys.stdout.flush()

    def _print(self, label: str, line: str) -> None:
        sys.stdout.write(f"{line}\n" if self._is_single else f"{label} | {line}\n")

    def _note(self, note: str) -> None:
        output.say(f"note: {note}", fg="yellow", bold=True)

    def _line(self, event: Event) -> str:
        fields, progress = event.fields, self._progress
        task = progress.tasks.get(str(fields.get("task", "")))
        step = task.steps.get(str(fields.get("step", ""))) if task else None
        now = datetime.now(UTC)
        name = f"{shortened(task.name)}/{shortened(step.name)}" if task and step else ""
        line = ""
        match event.kind:
            case "task_assigned" if task:
                again = f", attempt {task.attempts}" if task.attempts > 1 else ""
                line = f"task {task.name}: started{again}"
            case "step_started" if task and step:
                line = f"step {name}: started"
            case "step_finished" if task and step:
                line = f"step {name}: {ended(step.state, step.elapsed(now), step.reason)}"
            case "task_retried" if task:
                line = f"task {task.name}: tried again{': ' + task.reason if task.reason else ''}"
            case "task_finished" if task:
                line = f"task {task.name}: {ended(task.state, task.elapsed(now), task.reason)}"
            case "run_cancelling":
                line = f"run {progress.title}: being cancelled"
            case "run_finished":
                return (
                    f"run {progress.title}: {ended(progress.run.state, progress.run.elapsed(now), progress.run.reason)}"
                )
        return line


def ended(state: str, elapsed: str, reason: str) -> str:
    """ "failed after 1.2s: exit code 3" """
    word = "for" if state == "running" else "after"
    after = f" {word} {elapsed}" if elapsed else ""
    return f"{state}{after}{': ' + reason if reason else ''}"
