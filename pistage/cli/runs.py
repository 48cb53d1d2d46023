"""The verbs `ps`, `show` and `cancel`."""

from __future__ import annotations

from collections.abc import Iterator

import click

from pistage.cli import groups, options, output, terminal
from pistage.cli.connect import connect
from pistage.cli.plain import ended
from pistage.cli.progress import OVER, waits
from pistage.client import Attempt, Page, Run, Task
from pistage.config import ClientConfig, Config


@click.command("ps", short_help="List runs, the newest first.")
@click.option("--state", metavar="STATE", help="Only runs in this state.")
@click.option("--name", metavar="NAME", help="Only runs of this name.")
@click.option("--limit", type=click.IntRange(1, 500), default=50, show_default=True, help="How many.")
@click.option("--cursor", metavar="CURSOR", help="Go on from where the page before ended.")
@output.format_option()
@options.client_options
def ps_verb(
    *, state: str | None, name: str | None, limit: int, cursor: str | None, fmt: str, config: Config[ClientConfig]
) -> None:
    """List runs, the newest first."""

    async def fetch() -> Page:
        async with connect(config) as connection:
            return await connection.client.fetch_runs(state=state, name=name, limit=limit, cursor=cursor)

    page = groups.run(fetch())
    columns: dict[str, output.Cell] = {
        "RUN": lambda run: f"{run['name']}#{run['number']}",
        "STATE": output.state_of,
        "ELAPSED": output.elapsed_of,
        "CREATED": output.age_of("created_at"),
        "OWNER": lambda run: str(run.get("owner") or "-"),
        "ID": lambda run: str(run["id"]),
        "REASON": lambda run: str(run.get("reason") or ""),
    }
    output.print_items(page["items"], columns, fmt=fmt)
    if page.get("next"):
        output.say(f"there are more: --cursor {page['next']}")


@click.command("show", short_help="Show a run: its tasks, attempts and steps.")
@click.argument("run")
@output.format_option()
@options.client_options
def show_verb(run: str, fmt: str, config: Config[ClientConfig]) -> None:
    """Show a run: its tasks, attempts and steps.

    RUN is an id, a unique prefix of one, or name#number.
    """

    async def fetch() -> Run:
        async with connect(config) as connection:
            return await connection.client.fetch_run(run)

    _print_run(groups.run(fetch()), fmt)


@click.command("cancel", short_help="Cancel a run.")
@click.argument("run")
@output.format_option()
@options.client_options
def cancel_verb(run: str, fmt: str, config: Config[ClientConfig]) -> None:
    """Cancel a run. What runs is stopped, and the run is `cancelled` once that is proven gone."""

    async def cancel() -> Run:
        async with connect(config) as connection:
            return await connection.client.cancel_run(run)

    cancelled = groups.run(cancel())
    output.say(f"{cancelled['name']}#{cancelled['number']} is {_cancel_state(cancelled)}")
    if fmt != "table":
        _print_run(cancelled, fmt)


def _cancel_state(run: Run) -> str:
    return run["state"] if run["state"] in OVER else "being cancelled"


def _print_run(run: Run, fmt: str) -> None:
    match fmt:
        case "table":
            for line in _described(run):
                click.echo(line)
        case "name":
            click.echo(run["id"])
        case _:
            output.print_value(run, fmt=fmt)


def _described(run: Run) -> Iterator[str]:
    yield _line(f"{run['name']}#{run['number']}", run["state"], output.elapsed_of(run), run.get("reason") or "")
    yield f"  id       {run['id']}"
    yield f"  owner    {terminal.one_line(run.get('owner') or '-')}"
    yield f"  created  {run.get('created_at')}"
    for note in run.get("notes") or []:
        yield click.style(f"  note     {terminal.one_line(note)}", fg="yellow", bold=True)
    for task in run.get("tasks") or []:
        yield from _task_lines(task)


def _task_lines(task: Task) -> Iterator[str]:
    attempts = task.get("attempts") or []
    needs = f" (after {', '.join(task['needs'])})" if task.get("needs") else ""
    waiting = waits(task["waiting"]) if task["state"] == "queued" and task.get("waiting") else ""
    yield _line(f"  {task['name']}{needs}", task["state"], "", waiting or task.get("reason") or "")
    for attempt in attempts:
        if len(attempts) > 1:
            where = f"    attempt {attempt['number']} on {attempt.get('agent_name') or attempt.get('agent_id')}"
            yield _line(where, attempt["state"], output.elapsed_of(attempt), attempt.get("reason") or "")
        yield from _step_lines(attempt, "      " if len(attempts) > 1 else "    ")


def _step_lines(attempt: Attempt, indent: str) -> Iterator[str]:
    for step in attempt.get("steps") or []:
        image = f" [{step['image']}]" if step.get("image") else ""
        printed = (step.get("stdout_bytes") or 0) + (step.get("stderr_bytes") or 0)
        reason = step.get("reason") or ""
        yield _line(
            f"{indent}{step['name']}{image}",
            step["state"],
            output.elapsed_of(step),
            f"{reason}, {output.size(printed)} of output".lstrip(", ") if printed else reason,
        )


def _line(name: str, state: str, elapsed: str, reason: str) -> str:
    indent = name[: len(name) - len(name.lstrip())]
    about = ended(state, elapsed.replace("-", ""), terminal.one_line(reason))
    return f"{indent}{terminal.one_line(name)}  {click.style(about, fg=output.STATE_COLOURS.get(state))}"
