"""The verb `why`: what a run's tasks wait for, agent by agent, and what became of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import click

from pistage.cli import groups, naming, options, output, terminal
from pistage.cli.connect import connect
from pistage.cli.plain import ended
from pistage.client import Why
from pistage.config import ClientConfig, Config

_NO_OBSTACLE = "nothing but its turn"


@click.command("why", short_help="Say why a run's tasks are where they are, agent by agent.")
@click.argument("what", metavar="RUN[/TASK]")
@output.format_option("table", "json", "yaml")
@options.client_options
def why_verb(*, what: str, fmt: str, config: Config[ClientConfig]) -> None:
    """Say why each task of a run is where it is: what it waits for, what stands in its way on every agent, why it was
    tried again, skipped or cancelled.

    Without a TASK, of all that have not succeeded.
    """
    told, is_of_task = groups.run(_fetch(config, what))
    if fmt != "table":
        output.print_value(told, fmt=fmt)
        return
    for line in _lines(told, is_of_task=is_of_task):
        click.echo(line)


async def _fetch(config: Config[ClientConfig], what: str) -> tuple[Why, bool]:
    async with connect(config) as connection:
        run, task = await naming.find_task(connection.client, what)
        return await connection.client.fetch_why(run["id"], task=task), task is not None


def _lines(told: Why, *, is_of_task: bool) -> Iterator[str]:
    title = terminal.one_line(naming.title_of(told))
    again = f", tries {told['name']}#{told['retry_of_number']} again" if told.get("retry_of_number") else ""
    yield _coloured(f"{title}  {terminal.one_line(ended(told['state'], '', told.get('reason') or ''))}{again}", told)
    for task in told["tasks"]:
        yield from _task_lines(task)
    if told.get("more"):
        yield f"  … and {told['more']} more tasks; name one: pistage why '{title}/TASK'"
    if not told["tasks"] and not is_of_task and told["state"] != "succeeded":
        yield "  every task of it has succeeded"


def _task_lines(task: Any) -> Iterator[str]:
    yield _coloured(f"  {terminal.one_line(task['name'])}  {terminal.one_line(_state(task))}", task)
    for line in (*_ways(task), *_history(task)):
        yield f"    {terminal.one_line(line)}"


def _state(task: Any) -> str:
    running, waiting = task.get("running"), task.get("waiting")
    if task["state"] == "pending":
        needs = [f"{need['task']} ({need['state']})" for need in task["needs"] if need["state"] != "succeeded"]
        return f"pending: needs {', '.join(needs)}" if needs else "pending"
    if running:
        where = f"{running['agent_name'] or running['agent_id']}, attempt {running['attempt']}"
        since = output.elapsed_of({"started_at": running["since"]})
        return f"running on {where}, for {since}" if running["is_accepted"] else f"given to {where}, {since} ago"
    if waiting:
        left = output.elapsed_s({"started_at": waiting["until"]}) if waiting.get("until") else None
        gives_up = f", gives up in {output.duration(-left)}" if left is not None else ""
        since_s = output.elapsed_s({"started_at": waiting["since"]}) or 0.0  # a time to come, while it backs off
        return (f"queued for {output.duration(since_s)}" if since_s >= 0 else "queued") + gives_up
    if task["state"] == "queued":
        return "queued: why is not known now; ask again"
    return ended(task["state"], "", task.get("reason") or "")


def _ways(task: Any) -> Iterator[str]:
    """What stands in the way of a task that waits: of it as a whole, then agent by agent, those alike together."""
    waiting = task.get("waiting")
    if not waiting:
        return
    yield from waiting["holds"]
    if turn := waiting.get("turn"):
        behind = f", behind tasks of {turn['behind']}" if turn.get("behind") else ""
        yield f"queue place {turn['place']} of {turn['count']}{behind}"
    alike: dict[str, list[str]] = {}
    for agent in waiting["agents"]:
        alike.setdefault(", ".join(agent["reasons"]) or _NO_OBSTACLE, []).append(agent["name"])
    for reasons, agents in alike.items():
        yield f"{', '.join(agents)}: {reasons}"
    if not waiting["agents"]:
        yield "no agent has registered"
    elif not waiting["is_placeable"]:
        yield "no agent there is could ever take it"


def _history(task: Any) -> Iterator[str]:
    """Attempts that ended, and who asked for its end."""
    for attempt in task["attempts"]:
        if attempt.get("finished_at"):
            where = attempt.get("agent_name") or attempt["agent_id"]
            elapsed = output.elapsed_of(attempt).replace("-", "")
            about = ended(attempt["state"], elapsed, attempt.get("reason") or "")
            memory = attempt.get("memory_bytes_then")
            more = f"; then tried with {output.size(memory)} of memory" if memory else ""
            yield f"attempt {attempt['number']} on {where}: {about}{more}"
    if cancelled := task.get("cancelled"):
        by = f" by {cancelled['by']}" if cancelled.get("by") else ""
        what = "the run" if cancelled["of"] == "run" else "it"
        age = output.age_of("at")(cancelled)
        because = "" if cancelled["reason"] == task.get("reason") else f": {cancelled['reason']}"
        yield f"{what} was cancelled{by} {age}{because}"


def _coloured(line: str, item: Any) -> str:
    return click.style(line, fg=output.STATE_COLOURS.get(item["state"]))
