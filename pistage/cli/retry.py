"""The verb `retry`: run again what has ended, and follow that."""

from __future__ import annotations

import click

from pistage.cli import groups, naming, options, output
from pistage.cli.connect import connect
from pistage.cli.run import Manner, manner_options, refuse_unless_it_may_leave, see_through
from pistage.client import Run
from pistage.config import ClientConfig, Config


@click.command("retry", short_help="Run an ended run again, whole or from what failed, and follow it.")
@click.argument("run")
@click.option("--failed", "is_failed_only", is_flag=True, help="Only what did not succeed, and what follows from it.")
@click.option("--from", "start", metavar="TASK", help="This task, all that depends on it, and what did not succeed.")
@manner_options
@options.client_options
def retry_verb(
    *, run: str, is_failed_only: bool, start: str | None, manner: Manner, config: Config[ClientConfig]
) -> int:
    """Run the plan of a run that has ended again, as a run of its own, and follow it to its end.

    Tasks that need not be done again are kept: they stand as they ended, with their attempts and their output. Exit
    code: 0 succeeded, 1 failed, 3 cancelled.
    """
    if is_failed_only and start is not None:
        raise click.UsageError("--failed and --from: give one; --from tries what did not succeed again as well")
    from pistage.cli.serve import start_logging

    start_logging(0, quiet=True, is_brief=True)
    return groups.run(_retry(config, run, manner, is_failed_only=is_failed_only, start=start))


async def _retry(
    config: Config[ClientConfig], name: str, manner: Manner, *, is_failed_only: bool, start: str | None
) -> int:
    async with connect(config, needs_agent=True, runtime=manner.runtime) as connection:
        refuse_unless_it_may_leave(connection, manner)
        old = await connection.client.fetch_run(name)
        run = await connection.client.retry_run(old["id"], is_failed_only=is_failed_only, start=start)
        output.say(f"{naming.title_of(run)} tries {naming.title_of(old)} again{_kept(run)}")
        return await see_through(connection, run, manner)


def _kept(run: Run) -> str:
    tasks = run.get("tasks") or []
    count = sum(task.get("kept_from") is not None for task in tasks)
    return f": {count} of {len(tasks)} tasks are kept" if count else ""
