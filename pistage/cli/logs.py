"""The verb `logs`: exact bytes to a pipe, clean lines to a terminal, JSON lines; and a search over many runs."""

from __future__ import annotations

import sys
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import click

from pistage.cli import groups, loggaps, logsearch, naming, options, output
from pistage.cli.connect import connect
from pistage.cli.loglines import Printer, print_object
from pistage.cli.logwanted import Wanted
from pistage.cli.moments import moment_option
from pistage.cli.progress import OVER, Progress
from pistage.client import Client, Selection
from pistage.config import ClientConfig, Config


@click.command("logs", short_help="Print the output of a run, a task or a step.")
@click.argument("what", metavar="[RUN[/TASK[/STEP]]]", required=False)
@click.option("-f", "--follow", "is_followed", is_flag=True, help="Go on until the run is over.")
@moment_option("--since", "since", "Only what was printed then or later: RFC 3339, or 10m, 2h, 1d ago.")
@moment_option("--until", "until", "Only what was printed before.")
@click.option("--tail", type=click.IntRange(min=0), metavar="LINES", help="Begin with the last so many lines.")
@click.option("--limit", type=click.IntRange(min=1), metavar="LINES", help="At most so many lines.")
@click.option("--grep", metavar="TEXT", help="Only lines that hold this text; without RUN, in all runs.")
@click.option("-E", "--regex", "is_regex", is_flag=True, help="TEXT is an RE2 expression.")
@click.option("-i", "--ignore-case", "ignores_case", is_flag=True, help="Upper and lower case are the same.")
@click.option("--stream", type=click.Choice(["stdout", "stderr"]), help="Only this stream.")
@click.option("--order", type=click.Choice(["arrival", "time"]), help="As it came, or by the times of the agents.")
@click.option("--timestamps", "has_times", is_flag=True, help="The time before each line.")
@click.option("--ansi", "has_colours", is_flag=True, help="Lines keep their colours, and nothing else of that kind.")
@click.option(
    "--raw", "is_raw", is_flag=True, help="As printed, also to a terminal: what a job printed may command it."
)
@click.option("--name", metavar="NAME", help="Without RUN: only runs of this name.")
@click.option("--state", metavar="STATE", help="Without RUN: only runs in this state.")
@click.option("--cursor", metavar="CURSOR", help="Without RUN: go on from where the search before ended.")
@output.format_option("text", "json")
@options.client_options
def logs_verb(*, what: str | None, config: Config[ClientConfig], **given: Any) -> None:
    """Print the output of a run, a task or a step, or search it.

    To a file or a pipe it is the exact bytes, in the order in which they came. On a terminal, and with --grep or
    --timestamps, it is lines without control sequences (--raw keeps them), and where several steps print,
    `task/step | ` stands before each. Without RUN, --grep searches what all runs printed, the newest first.
    """
    wanted = Wanted(**given)
    if (wrong := wanted.contradiction(has_run=what is not None)) is not None:
        raise click.UsageError(wrong)
    groups.run(logsearch.search(config, wanted) if what is None else _logs(config, what, wanted))


async def _logs(config: Config[ClientConfig], what: str, wanted: Wanted) -> None:
    async with connect(config, needs_agent=wanted.is_followed) as connection:
        client = connection.client
        run, rest = await naming.find_run(client, what)
        progress = Progress(run, await client.fetch_plan(run["id"]))
        selection, is_single = _select(progress, rest, wanted)
        is_over = run["state"] in OVER
        if wanted.tail == 0 and (is_over or not wanted.is_followed):
            return
        try:
            if wanted.fmt == "json":
                await _print_json(client, progress, selection, wanted)
            elif wanted.has_times or wanted.grep is not None or (sys.stdout.isatty() and not wanted.is_raw):
                await _print_lines(client, progress, selection, wanted, is_single=is_single)
            else:
                count = await _print_bytes(client, progress, selection, wanted)
                ended = run if is_over else await client.fetch_run(run["id"])
                for said in loggaps.told(ended, progress, selection, count if wanted.is_all else None):
                    output.say(said, fg="yellow")
        finally:
            sys.stdout.flush()


async def _print_bytes(client: Client, progress: Progress, selection: Selection, wanted: Wanted) -> int:
    """Straight from the socket to stdout: nothing is done to a line, so 200 MB take no longer than their transport.

    How many it were.
    """
    out, count = sys.stdout.buffer, 0
    stream = client.output(progress.id).follow_bytes(
        selection, tail=wanted.tail, limit=wanted.limit, is_followed=wanted.is_followed
    )
    async with aclosing(stream) as pieces:
        async for data in pieces:
            out.write(data)
            out.flush()
            count += len(data)
    return count


async def _print_lines(
    client: Client, progress: Progress, selection: Selection, wanted: Wanted, *, is_single: bool
) -> None:
    printer = Printer(
        progress,
        shown=wanted.shown,
        has_times=wanted.has_times,
        is_single=is_single,
        is_search=wanted.grep is not None,
    )
    source: AsyncGenerator[Any, None]
    if wanted.counts_lines:
        source = client.follow_lines(progress.id, selection, **wanted.of_lines)
    else:
        source = client.follow_chunks(progress.id, selection, is_followed=wanted.is_followed)
    async with aclosing(source) as items:
        async for item in items:
            sys.stdout.writelines(printer.lines(item))
            if wanted.is_followed:
                sys.stdout.flush()
    sys.stdout.writelines(printer.rest())


async def _print_json(client: Client, progress: Progress, selection: Selection, wanted: Wanted) -> None:
    out = client.output(progress.id)
    if wanted.counts_lines:
        source = out.follow_lines(selection, **wanted.of_lines)
    else:
        source = out.follow_pieces(selection, is_followed=wanted.is_followed)
    async with aclosing(source) as values:
        async for value in values:
            print_object(value)
            if wanted.is_followed:
                sys.stdout.flush()


def _select(progress: Progress, rest: str, wanted: Wanted) -> tuple[Selection, bool]:
    """The selection that the rest of RUN/TASK/STEP and the options make, and whether that is a single step."""
    task, step = _task_and_step(progress, rest) if rest else (None, None)
    count = progress.step_count() if task is None else 1 if step else len(progress.tasks[task].steps)
    # People read what several agents sent by its time. What is followed, searched or exact goes as it came.
    is_for_people = wanted.fmt == "text" and (wanted.has_times or (sys.stdout.isatty() and not wanted.is_raw))
    is_merged = count > 1 and is_for_people and not wanted.is_followed and wanted.grep is None
    return Selection(
        task=task,
        step=step,
        stream=wanted.stream,
        since=wanted.since,
        until=wanted.until,
        is_by_time=is_merged if wanted.order is None else wanted.order == "time",
    ), count == 1


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
