"""The verbs `after ls|rm`."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

import click

from pistage.cli import groups, options, output
from pistage.cli.connect import connect
from pistage.cli.moments import second_of
from pistage.client import all_items
from pistage.config import ClientConfig, Config


@click.group("after", short_help="Show and remove what runs after other runs.")
def after_verb() -> None:
    """Show and remove what runs after other runs. A definition with `after` is set by `pistage run FILE`."""


@after_verb.command("ls")
@output.format_option()
@options.client_options
def list_afters(*, fmt: str, config: Config[ClientConfig]) -> None:
    """List definitions that come after runs of others, with what became of the last such run."""

    async def fetch() -> list[dict[str, Any]]:
        async with connect(config) as connection:
            return await all_items(connection.client.fetch_afters)

    columns: dict[str, output.Cell] = {
        "DEFINITION": lambda one: str(one["name"]),
        "AFTER": _afters,
        "LAST": lambda one: _told(one["latest"][0]) if one["latest"] else "-",
    }
    output.print_items(groups.run(fetch()), columns, fmt=fmt, name="name")


@after_verb.command("rm")
@click.argument("name")
@options.client_options
def remove_after(*, name: str, config: Config[ClientConfig]) -> None:
    """Let a definition come after nothing; its runs stay."""

    async def remove() -> None:
        async with connect(config) as connection:
            await connection.client.delete_after(name)

    groups.run(remove())
    output.say(f"{name}: comes after nothing")


def say_set(after: Mapping[str, Any] | None, target: str) -> None:
    """Tell what a definition was set to come after, if it was."""
    if after is not None:
        output.say(f"{after['name']}: runs after {_afters(after)}")
        click.echo(after["name"])
        output.say(f"run it at once: pistage run --now {shlex.quote(target)}")


def _afters(one: Any) -> str:
    return ", ".join(f"{after['pipeline']} {after['state']}" for after in one["after"])


def _told(latest: Any) -> str:
    run = latest["run"]
    what = f"{latest['outcome']}: {latest['reason']}" if latest["reason"] else str(latest["outcome"])
    made = what if run is None else f"{run['name']}#{run['number']} {run['state']}"
    return f"{second_of(latest['at'])} {made}"
