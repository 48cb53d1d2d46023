"""The verbs `watch` and `wait`: be there until a run is over."""

from __future__ import annotations

import asyncio

import click

from pistage.cli import follow, groups, options, output
from pistage.cli.connect import connect
from pistage.client import Run
from pistage.config import ClientConfig, Config
from pistage.errors import Code, PistageError


@click.command("watch", short_help="Follow a run live until it is over.")
@click.argument("run")
@click.option("--plain", is_flag=True, help="Plain lines, also on a terminal.")
@options.client_options
def watch_verb(run: str, plain: bool, config: Config[ClientConfig]) -> int:
    """Follow a run live until it is over and leave with its code.

    RUN is an id, a unique prefix of one, or name#number.
    """
    return groups.run(_watch(config, run, is_plain=plain))


async def _watch(config: Config[ClientConfig], name: str, *, is_plain: bool) -> int:
    from pistage.cli.run import Manner, followed

    async with connect(config, needs_agent=True) as connection:
        run = await connection.client.fetch_run(name)
        ended = await followed(connection, run, Manner(is_plain=is_plain))
        return follow.say_result(ended)


@click.command("wait", short_help="Wait until a run is over and exit with its code.")
@click.argument("run")
@options.duration_option("--timeout", "timeout_s", "Give up after this long: 90s, 10m.")
@output.format_option("table", "json", "yaml", "name")
@options.client_options
def wait_verb(run: str, timeout_s: float | None, fmt: str, config: Config[ClientConfig]) -> int:
    """Wait until a run is over and exit with its code: 0 succeeded, 1 failed, 3 cancelled.

    6 says that something waits which no agent there is could ever take, 8 that the wait timed out; the run goes on.
    """
    ended = groups.run(_wait(config, run, timeout_s))
    match fmt:
        case "table":
            click.echo(f"{ended['name']}#{ended['number']} {ended['state']}")
        case "name":
            click.echo(ended["id"])
        case _:
            output.print_value(ended, fmt=fmt)
    return follow.exit_code(ended)


async def _wait(config: Config[ClientConfig], name: str, timeout_s: float | None) -> Run:
    async with connect(config, needs_agent=True) as connection:
        run = await connection.client.fetch_run(name)
        try:
            async with asyncio.timeout(timeout_s):
                return await follow.until_over(connection.client, run, is_alone=connection.is_embedded)
        except TimeoutError:
            raise PistageError(
                Code.TIMEOUT,
                f"{run['name']}#{run['number']} is not over after {timeout_s:g} s",
                hint="it goes on; `pistage watch` shows what it does",
            ) from None
