"""The verbs `queue ls|set|rm`."""

from __future__ import annotations

from typing import Any, cast

import click

from pistage.cli import groups, options, output
from pistage.cli.connect import connect
from pistage.client import Queue
from pistage.config import ClientConfig, Config
from pistage.core import limits

_DEFAULTS: Queue = {"priority": 0, "limit": None, "placing": "spread"}


@click.group("queue", short_help="List queues and say how they are served.")
def queue_verb() -> None:
    """List queues and say how they are served. A run waits in the `queue` of its definition, or in `default`."""


@queue_verb.command("ls")
@output.format_option()
@options.client_options
def list_queues(*, fmt: str, config: Config[ClientConfig]) -> None:
    """List the queues that were set or have runs."""

    async def fetch() -> list[Queue]:
        async with connect(config) as connection:
            return await connection.client.fetch_queues()

    columns: dict[str, output.Cell] = {
        "QUEUE": lambda queue: str(queue["name"]),
        "PRIORITY": lambda queue: str(queue["priority"]),
        "LIMIT": lambda queue: "-" if queue["limit"] is None else str(queue["limit"]),
        "PLACING": lambda queue: str(queue["placing"]),
        "RUNNING": lambda queue: str(queue["running"]),
        "WAITING": lambda queue: str(queue["waiting"]),
        "SET": lambda queue: "yes" if queue["is_set"] else "-",
    }
    output.print_items(cast("list[dict[str, Any]]", groups.run(fetch())), columns, fmt=fmt, name="name")


def _limit(ctx: click.Context, param: click.Parameter, value: str | None) -> int | None:
    """A number of runs, 0 for `none`; None where nothing is given."""
    if value is None or value.lower() == "none":
        return None if value is None else 0
    if not value.isascii() or not value.isdigit() or not 1 <= int(value[:9]) <= limits.CONCURRENCY_MAX:
        most = f"{limits.CONCURRENCY_MAX:,}"
        raise click.BadParameter(f"expected a number of runs, 1 to {most}, or none; got {value!r}", ctx, param)
    return int(value)


@queue_verb.command("set")
@click.argument("name")
@click.option("--priority", type=click.IntRange(0, 1000), help="Added to the priority of each run in it.")
@click.option("--limit", callback=_limit, metavar="RUNS|none", help="How many of its runs run at one time, or none.")
@click.option("--placing", type=click.Choice(["spread", "pack"]), help="The emptiest agent first, or the fullest.")
@options.client_options
def set_queue(
    *, name: str, priority: int | None, limit: int | None, placing: str | None, config: Config[ClientConfig]
) -> None:
    """Say how a queue is served from now on; what is not given stays as it is."""
    if priority is None and limit is None and placing is None:
        raise click.UsageError("nothing to set: give --priority, --limit or --placing")

    async def put() -> Queue:
        async with connect(config, may_found=True) as connection:
            known = next((one for one in await connection.client.fetch_queues() if one["name"] == name), _DEFAULTS)
            return await connection.client.put_queue(
                name,
                priority=known["priority"] if priority is None else priority,
                limit=known["limit"] if limit is None else limit or None,
                placing=known["placing"] if placing is None else placing,
            )

    queue = groups.run(put())
    most = (
        "any number of runs"
        if queue["limit"] is None
        else f"{queue['limit']} run{'s' * (queue['limit'] != 1)} at one time"
    )
    output.say(f"{queue['name']}: priority {queue['priority']}, {most}, placing {queue['placing']}")


@queue_verb.command("rm")
@click.argument("name")
@options.client_options
def remove_queue(*, name: str, config: Config[ClientConfig]) -> None:
    """Serve a queue with the defaults again; runs in it stay."""

    async def remove() -> None:
        async with connect(config) as connection:
            await connection.client.delete_queue(name)

    groups.run(remove())
    output.say(f"{name}: served with the defaults")
