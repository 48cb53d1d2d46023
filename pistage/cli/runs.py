"""The verbs `ps`, `show`, `cancel` and `priority`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import click

from pistage.cli import groups, moments, naming, options, output, terminal
from pistage.cli.connect import connect
from pistage.cli.plain import ended
from pistage.cli.progress import OVER, waits
from pistage.client import Attempt, Page, Run, Task
from pistage.config import ClientConfig, Config


@click.command("ps", short_help="List runs, the newest first.")
@click.option("--state", metavar="STATE", help="Only runs in this state.")
@click.option("--name", metavar="NAME", help="Only runs of this name.")
@click.option("--queue", metavar="NAME", help="Only runs of this queue.")
@click.option("--limit", type=click.IntRange(1, 500), default=50, show_default=True, help="How many.")
@click.option("--cursor", metavar="CURSOR", help="Go on from where the page before ended.")
@output.format_option()
@options.client_options
def ps_verb(
    *,
    state: str | None,
    name: str | None,
    queue: str | None,
    limit: int,
    cursor: str | None,
    fmt: str,
    config: Config[ClientConfig],
) -> None:
    """List runs, the newest first."""

    async def fetch() -> Page:
        async with connect(config) as connection:
            return await connection.client.fetch_runs(state=state, name=name, queue=queue, limit=limit, cursor=cursor)

    page = groups.run(fetch())
    columns: dict[str, output.Cell] = {
        "RUN": lambda run: f"{run['name']}#{run['number']}",
        "STATE": output.state_of,
        "ELAPSED": output.elapsed_of,
        "CREATED": output.age_of("created_at"),
        "QUEUE": _place_of,
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


@click.command("cancel", short_help="Cancel a run, or a task of it.")
@click.argument("what", metavar="RUN[/TASK]")
@output.format_option()
@options.client_options
def cancel_verb(what: str, fmt: str, config: Config[ClientConfig]) -> None:
    """Cancel a run, or one task of it, and skip what needs that.

    What runs is stopped, and is `cancelled` once that is proven gone.
    """

    async def cancel() -> tuple[Run, str | None]:
        async with connect(config) as connection:
            run, task = await naming.find_task(connection.client, what)
            return await connection.client.cancel_run(run["id"], task=task), task

    cancelled, name = groups.run(cancel())
    state, title = cancelled["state"], naming.title_of(cancelled)
    if name is not None:
        state = next(task["state"] for task in cancelled["tasks"] if task["name"] == name)
        title = f"{title}/{name}"
    output.say(f"{title} is {state if state in OVER else 'being cancelled'}")
    if fmt != "table":
        _print_run(cancelled, fmt)


@click.command("priority", short_help="Give a run that waits another priority.")
@click.argument("run")
@click.argument("priority", type=click.IntRange(0, 1000))
@options.client_options
def priority_verb(run: str, priority: int, config: Config[ClientConfig]) -> None:
    """Give a run that has not ended another priority, 0 to 1000; higher goes first.

    It counts for its tasks that have no place yet; what runs is not disturbed.
    """

    async def change() -> tuple[Run, Run]:
        async with connect(config) as connection:
            old = await connection.client.fetch_run(run)
            return old, await connection.client.set_run_priority(old["id"], priority)

    old, new = groups.run(change())
    output.say(f"{naming.title_of(new)}: priority {new['priority']}, was {old['priority']}")


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
    yield f"  started  {_started(run)}"
    if run.get("queue"):
        yield f"  queue    {_place_of(run)}"
    if group := run.get("concurrency"):
        yield f"  group    {terminal.one_line(group['group'])}, {group['limit']} at one time"
    if kept := _output_of(run):
        yield f"  output   {kept}"
    for note in run.get("notes") or []:
        yield click.style(f"  note     {terminal.one_line(note)}", fg="yellow", bold=True)
    for task in run.get("tasks") or []:
        yield from _task_lines(task)
    for notice in run.get("notices") or []:
        yield _notice_line(notice)


def _started(run: Run) -> str:
    """What made the run: "by hand", "by schedule night for 2026-11-22 02:30:00Z"."""
    by = run.get("started_by") or {}
    name = terminal.one_line(by.get("name") or "")
    match by.get("kind"):
        case "schedule":
            return f"by schedule {name} for {moments.second_of(by['nominal'])}"
        case "webhook":
            return f"by webhook {name}"
        case "run":
            return f"by the end of {name}"
        case "retry":
            return f"by a retry of {terminal.one_line(run['name'])}#{run.get('retry_of_number')}"
        case _:
            return "by hand"


def _output_of(run: Run) -> str:
    """How much there is, and for how long; "" while the run goes on and nobody has pinned it."""
    if run.get("output_dropped_at"):
        return f"dropped {run['output_dropped_at']}: {terminal.one_line(run.get('output_dropped_reason') or '')}"
    size = run.get("output_bytes")
    told = [] if size is None else [output.size(size)]
    return ", ".join(told + (["pinned: it stays, whatever retention says"] if run.get("is_pinned") else []))


def _place_of(run: Any) -> str:
    """The queue, and the priority where that is not the usual one."""
    priority = f", priority {run['priority']}" if run.get("priority") else ""
    return f"{run.get('queue') or '-'}{priority}"


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


def _notice_line(notice: dict[str, Any]) -> str:
    to = terminal.one_line(str(notice["receiver"] or notice["url"]))
    state, tries = str(notice["state"]).replace("_", " "), notice["tries"]
    about = f"{state} after {tries} tr{'y' if tries == 1 else 'ies'}" if tries else state
    reason = f": {terminal.one_line(notice['reason'])}" if notice["reason"] else ""
    colour = {"delivered": "green", "given up": "red"}.get(state, "yellow")
    return f"  notice   {to}  {click.style(about + reason, fg=colour)}"


def _step_lines(attempt: Attempt, indent: str) -> Iterator[str]:
    for step in attempt.get("steps") or []:
        image = f" [{step['image']}]" if step.get("image") else ""
        printed = (step.get("stdout_bytes") or 0) + (step.get("stderr_bytes") or 0)
        missing = (step.get("stdout_missing") or 0) + (step.get("stderr_missing") or 0)
        notes = [step.get("reason") or ""]
        notes += [f"{output.size(printed)} of output"] if printed else []
        notes += [f"{output.size(missing)} of that not kept"] if missing else []
        about = ", ".join(note for note in notes if note)
        yield _line(f"{indent}{step['name']}{image}", step["state"], output.elapsed_of(step), about)


def _line(name: str, state: str, elapsed: str, reason: str) -> str:
    indent = name[: len(name) - len(name.lstrip())]
    about = ended(state, elapsed.replace("-", ""), terminal.one_line(reason))
    return f"{indent}{terminal.one_line(name)}  {click.style(about, fg=output.STATE_COLOURS.get(state))}"
