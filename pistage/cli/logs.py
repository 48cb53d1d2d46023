"""The verb `logs`: exact bytes to a pipe, clean text to a terminal, the origin before each line where several print."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Iterator
from contextlib import aclosing
from dataclasses import dataclass

import click

from pistage.cli import groups, naming, options, terminal
from pistage.cli.connect import connect
from pistage.cli.progress import Progress
from pistage.client import Chunk, Client, Selection
from pistage.config import ClientConfig, Config


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What to print, and how."""

    stream: str | None
    is_followed: bool
    is_raw: bool
    has_times: bool
    tail: int | None


@click.command("logs", short_help="Print the output of a run, a task or a step.")
@click.argument("what", metavar="RUN[/TASK[/STEP]]")
@click.option("-f", "--follow", is_flag=True, help="Go on until the run is over.")
@click.option("--stream", type=click.Choice(["stdout", "stderr"]), help="Only this stream.")
@click.option("--timestamps", is_flag=True, help="The time before each line.")
@click.option("--tail", type=click.IntRange(min=0), metavar="LINES", help="Begin with the last so many lines.")
@click.option("--raw", is_flag=True, help="Exact bytes, also to a terminal: what the job printed may command it.")
@options.client_options
def logs_verb(
    *,
    what: str,
    follow: bool,
    stream: str | None,
    timestamps: bool,
    tail: int | None,
    raw: bool,
    config: Config[ClientConfig],
) -> None:
    """Print the output of a run, a task or a step.

    To a file or a pipe it is the exact bytes, in the order in which they came. On a terminal control sequences are
    removed (--raw keeps them), and where several steps print, `task/step | ` stands before each line.
    """
    wanted = Wanted(stream=stream, is_followed=follow, is_raw=raw, has_times=timestamps, tail=tail)
    groups.run(_logs(config, what, wanted))


async def _logs(config: Config[ClientConfig], what: str, wanted: Wanted) -> None:
    async with connect(config, needs_agent=wanted.is_followed) as connection:
        client = connection.client
        progress, selection, steps = await _select(client, what, wanted.stream)
        is_bare = wanted.is_raw or not sys.stdout.isatty()
        try:
            if is_bare and not wanted.has_times:
                await _print_bytes(client, progress.id, selection, wanted)
            else:
                await _print_lines(client, progress, selection, wanted, is_single=steps == 1)
        finally:
            sys.stdout.flush()


async def _print_bytes(client: Client, run_id: str, selection: Selection, wanted: Wanted) -> None:
    """Straight from the socket to stdout: nothing is done to a line, so 200 MB take no longer than their transport."""
    out = sys.stdout.buffer
    offset = 0
    if wanted.tail is not None:
        lines: deque[bytes] = deque([b""], maxlen=wanted.tail + 1)  # the last one is not ended yet
        async with aclosing(client.follow_bytes(run_id, selection, is_followed=False)) as pieces:
            async for data in pieces:
                offset += len(data)
                first, *more = data.split(b"\n")
                lines[-1] += first
                lines.extend(more)
        if lines[-1] and len(lines) > wanted.tail:
            lines.popleft()
        out.write(b"\n".join(lines))
        out.flush()
        if not wanted.is_followed:
            return
    stream = client.follow_bytes(run_id, selection, offset=offset, is_followed=wanted.is_followed)
    async with aclosing(stream) as pieces:
        async for data in pieces:
            out.write(data)
            out.flush()


async def _print_lines(
    client: Client, progress: Progress, selection: Selection, wanted: Wanted, *, is_single: bool
) -> None:
    printer = Printer(progress, has_times=wanted.has_times, is_single=is_single)
    start = 0
    if wanted.tail is not None:
        last: deque[str] = deque(maxlen=wanted.tail)
        async with aclosing(client.follow_chunks(progress.id, selection, is_followed=False)) as chunks:
            async for chunk in chunks:
                start = chunk.number + 1
                last.extend(printer.lines(chunk))
        sys.stdout.writelines(last)
    if wanted.tail is None or wanted.is_followed:
        stream = client.follow_chunks(progress.id, selection, start=start, is_followed=wanted.is_followed)
        async with aclosing(stream) as chunks:
            async for chunk in chunks:
                sys.stdout.writelines(printer.lines(chunk))
                sys.stdout.flush()
    sys.stdout.writelines(printer.rest())


class Printer:
    """Chunks -> lines for people, each with its origin and its time where they are wanted."""

    def __init__(self, progress: Progress, *, has_times: bool, is_single: bool) -> None:
        self._progress = progress
        self._has_times = has_times
        self._is_single = is_single
        self._streams: dict[tuple[str, int, str, str], tuple[terminal.Lines, Chunk]] = {}

    def lines(self, chunk: Chunk) -> Iterator[str]:
        """The lines that `chunk` completes; each has the time of the chunk that ended it."""
        lines = self._streams[chunk.origin][0] if chunk.origin in self._streams else terminal.Lines()
        self._streams[chunk.origin] = (lines, chunk)
        head = self._head(chunk)
        for line in lines.feed(chunk.data):
            yield f"{head}{line}\n"

    def rest(self) -> Iterator[str]:
        """Last lines that no newline ended."""
        for lines, chunk in self._streams.values():
            for line in lines.end():
                yield f"{self._head(chunk)}{line}\n"

    def _head(self, chunk: Chunk) -> str:
        time = f"{chunk.at} " if self._has_times else ""
        origin = "" if self._is_single else f"{self._progress.label(chunk)} | "
        return time + origin


async def _select(client: Client, what: str, stream: str | None) -> tuple[Progress, Selection, int]:
    """The run that `what` names, the selection, and how many steps that is."""
    run, rest = await naming.find_run(client, what)
    progress = Progress(run, await client.fetch_plan(run["id"]))
    if not rest:
        return progress, Selection(stream=stream), progress.step_count()
    task, step = _task_and_step(progress, rest)
    known = progress.tasks[task].steps
    return progress, Selection(task=task, step=step, stream=stream), 1 if step else len(known)


def _task_and_step(progress: Progress, rest: str) -> tuple[str, str | None]:
    for name, task in progress.tasks.items():
        if rest == name:
            return name, None
        if rest.startswith(f"{name}/"):
            wanted = rest.removeprefix(f"{name}/")
            for step_id, step in task.steps.items():
                if wanted in {step_id, step.name}:
                    return name, step_id
            raise naming.unknown("step", wanted, [f"{step_id} ({step.name})" for step_id, step in task.steps.items()])
    raise naming.unknown("task", rest, list(progress.tasks))
