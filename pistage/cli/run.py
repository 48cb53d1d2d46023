"""The verb `run`: submit a definition, follow it, leave with its code."""

from __future__ import annotations

import asyncio
import functools
import shlex
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from pistage.cli import afters, documents, findings, follow, groups, options, output, schedules
from pistage.cli.connect import Connection, connect
from pistage.cli.scriptscreen import ScriptScreen
from pistage.client import Client, Run, Triggers
from pistage.config import ClientConfig, Config
from pistage.errors import Code, PistageError
from pistage.owning import running

#: How long a run of an embedded cluster may take to end once it was interrupted; its containers get their grace.
_CANCEL_S = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Manner:
    """How a verb stays with the run that it made: not at all, in silence, or by showing it."""

    is_detached: bool = False
    is_quiet: bool = False
    is_plain: bool = False
    runtime: str | None = None  # of the agent, where the cluster is the verb's own
    screen: ScriptScreen | None = None  # where it is shown, if not as runs are


def manner_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """The options of verbs that make a run; they arrive as one `manner`."""

    @functools.wraps(function)
    def collected(
        *args: Any, is_detached: bool, is_quiet: bool, is_plain: bool, runtime: str | None, **kwargs: Any
    ) -> Any:
        if is_detached and is_quiet:
            raise click.UsageError("--detach and --wait: give one; `pistage wait RUN` waits later")
        manner = Manner(is_detached=is_detached, is_quiet=is_quiet, is_plain=is_plain, runtime=runtime)
        return function(*args, manner=manner, **kwargs)

    given = (
        click.option(
            "--detach", "is_detached", is_flag=True, help="Print the run's id and leave; needs a server or a `dev`."
        ),
        click.option(
            "--wait", "is_quiet", is_flag=True,
            help="Show nothing; exit at the end, or with 6 at once where no agent there is could ever take a task.",
        ),
        click.option("--plain", "is_plain", is_flag=True, help="Plain lines, also on a terminal."),
        click.option(
            "--runtime", type=click.Choice(["docker", "sandbox", "host"]),
            help="For an embedded cluster: how steps run. Docker where an engine answers, else sandbox, unless set.",
        ),
    )  # fmt: skip
    for option in reversed(given):
        collected = option(collected)
    return collected


@click.command("run", short_help="Run a definition or a registered action and follow it.")
@click.argument("target", metavar="FILE|ACTION")
@options.submission_options
@click.option("--now", "is_now", is_flag=True, help="Run it at once, also if it has a schedule, or comes after others.")
@manner_options
@click.option("-v", "--verbose", count=True, help="Say more on stderr.")
@options.client_options
def run_verb(
    *,
    target: str,
    pairs: tuple[str, ...],
    with_file: Path | None,
    start_node: str | None,
    is_now: bool,
    manner: Manner,
    verbose: int,
    config: Config[ClientConfig],
) -> int:
    """Run a definition or a registered action and follow it to its end.

    Without a server configured and without a `pistage dev`, it runs in an embedded cluster of its own. `-` reads the
    definition from stdin. One that has a schedule (`schedule`, or `crontab`), or comes after others (`after`), is set
    to be run by that, and not run now, unless with --now. Exit code: 0 succeeded, 1 failed, 3 cancelled; with --wait 6
    where no agent there is could ever take a task. Ctrl-C detaches: the run goes on, unless the cluster is embedded,
    where it is cancelled.
    """
    from pistage.cli.serve import start_logging

    start_logging(verbose, quiet=True, is_brief=True)
    given = documents.parameters(pairs, with_file)
    body = documents.submission(target, parameters=given, start_node=start_node)
    return groups.run(_run(config, target, body, manner, is_now=is_now))


async def _run(
    config: Config[ClientConfig], target: str, body: dict[str, Any], manner: Manner, *, is_now: bool
) -> int:  # fmt: skip
    async with connect(config, needs_agent=True, may_found=True, runtime=manner.runtime) as connection:
        refuse_unless_it_may_leave(connection, manner)
        with documents.named(target):
            if connection.is_embedded and not is_now:
                _refuse_triggers(target, body)
            submit = connection.client.submit_run if is_now else connection.client.submit
            run = await submit(body)
        if isinstance(run, Triggers):
            schedules.say_set(run.schedules, target)
            afters.say_set(run.after, target)
            return 0
        for finding in run.get("warnings") or []:
            output.say(findings.line(finding, target), fg="yellow")
        return await see_through(connection, run, manner)


def _refuse_triggers(target: str, body: dict[str, Any]) -> None:
    from pistage.core.definition import lint

    found = lint(body.get("definition", ""), actions=None)
    if found.schedules or found.afters:
        what = "has a schedule" if found.schedules else "comes after other runs"
        raise PistageError(
            Code.USAGE,
            f"{target} {what}, and the cluster of this command ends with it",
            hint=f"run it once with: pistage run --now {shlex.quote(target)}; or start `pistage dev`, which stays",
        )


def refuse_unless_it_may_leave(connection: Connection, manner: Manner) -> None:
    """A usage error if the verb is to leave a run whose cluster would leave with it."""
    if manner.is_detached and connection.is_embedded:
        raise click.UsageError("--detach needs a cluster that stays: start `pistage dev`, or set --server")


async def see_through(connection: Connection, run: Run, manner: Manner) -> int:
    """Stay with a run that was just made, or leave it; the exit code."""
    title = f"{run['name']}#{run['number']}"
    if manner.is_detached:
        click.echo(run["id"])
        output.say(f"follow it: pistage watch {shlex.quote(title)}")
        return 0
    output.say(f"run {title} {run['id']}")
    ended = await followed(connection, run, manner)
    if manner.is_quiet:
        click.echo(f"{title} {ended['state']}")
    return follow.say_result(ended)


async def followed(connection: Connection, run: Run, manner: Manner) -> Run:
    """Follow to the end. Interrupted, it says how to look again; an embedded run is cancelled first."""
    title = f"{run['name']}#{run['number']}"
    try:
        async with running(_end_orphaned(connection, title)):
            return await _until_over(connection, run, manner)
    except PistageError as error:
        if error.code is Code.UNPLACEABLE and connection.is_embedded:  # its cluster ends here, and it with that
            await _cancel(connection.client, run)
        raise
    except asyncio.CancelledError:
        if connection.is_embedded:
            output.say(f"interrupted: cancelling {title}, whose cluster is this process (again: leave at once)")
            await _cancel(connection.client, run)
        else:
            output.say(f"detached: the run goes on; look again with: pistage watch '{title}'")
        raise


async def _until_over(connection: Connection, run: Run, manner: Manner) -> Run:
    client, is_alone = connection.client, connection.is_embedded
    if manner.is_quiet:
        return await follow.until_over(client, run, is_alone=is_alone)
    return await follow.follow(client, run, is_plain=manner.is_plain, is_alone=is_alone, screen=manner.screen)


async def _end_orphaned(connection: Connection, title: str) -> None:
    await connection.orphaned.wait()
    raise PistageError(
        Code.UNAVAILABLE,
        f"the pistage that was the cluster of {title} has ended before it",
        hint=f"go on with: pistage watch {shlex.quote(title)}",
    )


async def _cancel(client: Client, run: Run) -> None:
    with suppress(PistageError, TimeoutError):
        async with asyncio.timeout(_CANCEL_S):
            await client.cancel_run(run["id"])
            async for _ in client.follow_events(run["id"]):
                pass
            ended = await client.fetch_run(run["id"])
            output.say(f"{ended['name']}#{ended['number']} is {ended['state']}")
