"""A run followed on a terminal: its graph of tasks drawn live, with steps, durations and the last lines of output."""

from __future__ import annotations

import logging
import sys
from datetime import UTC, datetime
from typing import Final, TextIO

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from pistage.cli import terminal
from pistage.cli.loglines import sentence
from pistage.cli.output import STATE_COLOURS
from pistage.cli.plain import ended
from pistage.cli.progress import Progress, Row, TaskProgress, Work, shortened, waits
from pistage.client import Chunk, Event, Gap, Run

_GLYPHS: Final = {
    "pending": "·",
    "queued": "○",
    "succeeded": "✓",
    "failed": "✗",
    "cancelled": "⊘",
    "lost": "?",
    "skipped": "↷",
}
_SPINNER: Final = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"
_PANEL_WIDTH_MIN: Final = 30
_PANEL_WIDTH_MAX: Final = 56
_TAIL_SHOWN: Final = 8
_REFRESH_PER_S: Final = 8
_STEPS_SHOWN: Final = 12


class LiveScreen:
    """Draws the run on stderr until it is over; what a job prints is text here, never markup and never a command."""

    def __init__(self, progress: Progress, console: Console | None = None) -> None:
        self._progress = progress
        self._console = console or Console(stderr=True, highlight=False)
        self._lines: dict[tuple[str, int, str, str], tuple[str, terminal.Lines]] = {}
        self._live = Live(self, console=self._console, refresh_per_second=_REFRESH_PER_S, redirect_stdout=False)

    def __enter__(self) -> LiveScreen:
        before = sys.stderr
        self._live.__enter__()
        self._move_logging(before, sys.stderr)  # what is said meanwhile stands above the picture, not in it
        return self

    def __exit__(self, *_: object) -> None:
        said_to = sys.stderr
        self._live.__exit__(None, None, None)
        self._move_logging(said_to, sys.stderr)

    def _move_logging(self, old: TextIO | None, new: TextIO) -> None:
        for handler in logging.getLogger().handlers:
            if isinstance(handler, logging.StreamHandler) and handler.stream is old:
                handler.setStream(new)

    def on_event(self, event: Event) -> None:
        """Take what happened; the next frame shows it."""
        self._progress.apply(event)

    def on_chunk(self, chunk: Chunk) -> None:
        """Keep the last lines."""
        label, lines = self._lines.setdefault(chunk.origin, (self._progress.label(chunk), terminal.Lines()))
        for line in lines.feed(chunk.data):
            self._progress.tail.append(f"{label} | {line}")

    def on_gap(self, gap: Gap) -> None:
        """Keep the sentence that says what is missing, in its place."""
        label, lines = self._lines.pop(gap.origin, (self._progress.label(gap), terminal.Lines()))
        self._progress.tail.extend(f"{label} | {line}" for line in [*lines.end(), sentence(gap)])

    def on_waiting(self, task: str, reason: str) -> None:
        """Show why nothing happens, in the task's place; its next event takes that away."""
        if (known := self._progress.tasks.get(task)) is not None and known.state == "queued":
            known.reason = waits(reason)

    def on_end(self, run: Run) -> None:
        """The last frame stays on the terminal, with the lines that no newline ended."""
        for label, lines in self._lines.values():
            self._progress.tail.extend(f"{label} | {line}" for line in lines.end())
        self._live.refresh()

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        now = datetime.now(UTC)
        height = (options.height or console.size.height) - 2
        tail = list(self._progress.tail)[-min(_TAIL_SHOWN, max(2, height // 4)) :]
        yield from self._notes()
        yield self._graph(options.max_width, now, height - len(tail) - len(self._progress.notes) - 2)
        yield self._summary(now)
        yield from (Text(line, style="bright_black", no_wrap=True, overflow="ellipsis") for line in tail)

    def _notes(self) -> list[Text]:
        return [Text(f"note: {note}", style="bold yellow") for note in self._progress.notes]

    def _summary(self, now: datetime) -> Text:
        run = self._progress.run
        over = sum(task.state in {"succeeded", "skipped"} for task in self._progress.tasks.values())
        text = Text()
        text.append(f"{_glyph(run, now)} {self._progress.title} ", style=_style(run.state))
        text.append(ended(run.state, run.elapsed(now), run.reason), style=_style(run.state))
        text.append(f"   {over}/{len(self._progress.tasks)} tasks", style="bright_black")
        return text

    def _graph(self, width: int, now: datetime, height: int) -> RenderableType:
        levels = self._progress.levels()
        rows = [row for level in levels for row in _fit(level, width)]
        if sum(3 + max(_height(task) for task in row) for row in rows) > height:
            return self._list(levels, now, height)
        parts: list[RenderableType] = []
        for number, level in enumerate(levels):
            parts += [Text("  ▼", style="bright_black")] if number else []
            parts += [self._row(row, width, now) for row in _fit(level, width)]
        return Group(*parts)

    def _row(self, tasks: list[TaskProgress], width: int, now: datetime) -> Table:
        grid = Table.grid(padding=(0, 1, 0, 0))
        column = min(_PANEL_WIDTH_MAX, width // len(tasks) - 1)
        height = max(_height(task) for task in tasks) + 2
        for _ in tasks:
            grid.add_column(width=max(column, 10))
        grid.add_row(*(self._panel(task, now, height) for task in tasks))
        return grid

    def _panel(self, task: TaskProgress, now: datetime, height: int) -> Panel:
        title = Text(f"{_glyph(task, now)} {terminal.one_line(task.name)}", style=_style(task.state))
        again = f"attempt {task.attempts}" if task.attempts > 1 else ""
        about = " · ".join(part for part in (again, task.elapsed(now)) if part)
        needs = f"after {', '.join(task.needs)}" if task.needs else None
        lines = [self._step(task, row, now) for row in _shown(task)]
        if task.reason and task.state != "running":
            lines.append(Text(task.reason, style=_style(task.state), no_wrap=True, overflow="ellipsis"))
        title.append(f"  {about}" if about else "", style="bright_black")
        return Panel(
            Group(*lines),
            title=title,
            title_align="left",
            subtitle=Text(terminal.one_line(needs), style="bright_black") if needs else None,
            subtitle_align="left",
            border_style=_style(task.state),
            height=height,
        )

    def _step(self, task: TaskProgress, row: Row, now: datetime) -> Text:
        indent = "  " * row.depth
        if row.step is None:
            return Text(f"{indent}{row.label}", style="bright_black", no_wrap=True, overflow="ellipsis")
        step = task.steps[row.step]
        text = Text(f"{indent}{_glyph(step, now)} ", style=_style(step.state), no_wrap=True, overflow="ellipsis")
        text.append(shortened(row.label), style="" if step.state != "pending" else "bright_black")
        text.append(f"  {step.elapsed(now)}" if step.started_at else "", style="bright_black")
        if step.state == "failed" and step.exit_code is not None:
            text.append(f"  exit code {step.exit_code}", style="red")
        return text

    def _list(self, levels: list[list[TaskProgress]], now: datetime, height: int) -> RenderableType:
        """One line a task, where panels do not fit; those that run or failed first where not even lines do."""
        tasks = [task for level in levels for task in level]
        urgent = {"running": 0, "failed": 1, "lost": 1, "queued": 2}
        shown = tasks
        if len(tasks) > height:
            order = sorted(range(len(tasks)), key=lambda place: (urgent.get(tasks[place].state, 3), place))
            shown = [tasks[place] for place in sorted(order[: max(1, height - 1)])]
        lines = [self._task_line(task, now) for task in shown]
        if len(shown) < len(tasks):
            lines.append(Text(f"… and {len(tasks) - len(shown)} more tasks", style="bright_black"))
        return Group(*lines)

    def _task_line(self, task: TaskProgress, now: datetime) -> Text:
        text = Text(
            f"{_glyph(task, now)} {terminal.one_line(task.name)}",
            style=_style(task.state),
            no_wrap=True,
            overflow="ellipsis",
        )
        text.append(f"  {task.elapsed(now)}", style="bright_black")
        running = [step.name for step in task.steps.values() if step.state == "running"]
        text.append(f"  {', '.join(running)}" if running else "")
        text.append(f"  {task.reason}" if task.reason else "", style="bright_black")
        return text


def _fit(level: list[TaskProgress], width: int) -> list[list[TaskProgress]]:
    """A level in rows of as many panels as stand side by side."""
    count = max(1, width // _PANEL_WIDTH_MIN)
    return [level[start : start + count] for start in range(0, len(level), count)]


def _shown(task: TaskProgress) -> list[Row]:
    """The rows around what runs, where there are more than a panel should hold."""
    rows = list(task.rows)
    if len(rows) <= _STEPS_SHOWN:
        return rows
    current = [n for n, row in enumerate(rows) if row.step and task.steps[row.step].state in {"running", "failed"}]
    last = max((n for n, row in enumerate(rows) if row.step and task.steps[row.step].state != "pending"), default=0)
    start = max(0, min((current[0] if current else last) - 3, len(rows) - _STEPS_SHOWN + 2))
    end = start + _STEPS_SHOWN - 2
    above = [Row(0, f"… {start} above")] if start else []
    below = [Row(0, f"… {len(rows) - end} below")] if end < len(rows) else []
    return [*above, *rows[start:end], *below]


def _height(task: TaskProgress) -> int:
    return len(_shown(task)) + bool(task.reason and task.state != "running")


def _glyph(work: Work, now: datetime) -> str:
    if work.state == "running":
        return _SPINNER[int(now.timestamp() * _REFRESH_PER_S) % len(_SPINNER)]
    return _GLYPHS.get(work.state, "·")


def _style(state: str) -> str:
    return STATE_COLOURS.get(state, "")
