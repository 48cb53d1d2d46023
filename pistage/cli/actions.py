"""The verbs `action ls|put|show|schema|rm`."""

from __future__ import annotations

from typing import Any

import click

from pistage.cli import documents, findings, groups, options, output, terminal
from pistage.cli.connect import connect
from pistage.client import Page
from pistage.config import ClientConfig, Config
from pistage.errors import Code, PistageError


@click.group("action", short_help="List, register, show and remove actions.")
def action_verb() -> None:
    """List, register, show and remove actions: definitions that others name in `dep`."""


@action_verb.command("ls")
@output.format_option()
@options.client_options
def list_actions(*, fmt: str, config: Config[ClientConfig]) -> None:
    """List actions; a registered one of the same name wins over a predefined one."""

    async def fetch() -> Page:
        async with connect(config, may_found=True) as connection:
            return await connection.client.fetch_actions()

    columns: dict[str, output.Cell] = {
        "NAME": lambda action: str(action["name"]),
        "KIND": lambda action: "predefined" if action.get("is_predefined") else "registered",
        "VERSION": lambda action: str(action.get("version") or "-"),
        "UPDATED": output.age_of("updated_at"),
        "SHA256": lambda action: str(action.get("sha256", ""))[:12],
    }
    output.print_items(groups.run(fetch())["items"], columns, fmt=fmt, name="name")


@action_verb.command("put")
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@output.format_option()
@options.client_options
def put_actions(*, files: tuple[str, ...], fmt: str, config: Config[ClientConfig]) -> None:
    """Register definitions as actions under their own names.

    A name that exists gets a new version; runs that exist keep theirs.
    """
    texts = [(*_named(documents.read_text(file), file), file) for file in files]

    async def put() -> list[dict[str, Any]]:
        put_items = []
        async with connect(config, may_found=True) as connection:
            for name, text, file in texts:
                with documents.named(file):
                    put_items.append(await connection.client.put_action(name, text))
        return put_items

    for action in (put_items := groups.run(put())):
        for finding in action.get("warnings") or action.get("findings") or []:
            output.say(findings.line(finding, str(action.get("name"))), fg="yellow")
        if fmt == "table":
            output.say(f"{action['name']}: version {action['version']}")
    if fmt != "table":
        output.print_items(put_items, {}, fmt=fmt, name="name")


@action_verb.command("show")
@click.argument("name")
@output.format_option()
@options.client_options
def show_action(*, name: str, fmt: str, config: Config[ClientConfig]) -> None:
    """Print an action's text; with -o json all that is known of it."""

    async def fetch() -> dict[str, Any]:
        async with connect(config, may_found=True) as connection:
            return await connection.client.fetch_action(name)

    action = groups.run(fetch())
    match fmt:
        case "table":
            text = str(action["text"])
            click.echo(terminal.clean(text), nl=not text.endswith("\n"))
        case "name":
            click.echo(action["name"])
        case _:
            output.print_value(action, fmt=fmt)


@action_verb.command("schema")
@click.argument("name")
@output.format_option("json", "yaml")
@options.client_options
def show_schema(*, name: str, fmt: str, config: Config[ClientConfig]) -> None:
    """Print what an action takes, as JSON Schema (2020-12): its inputs, or any object where it declares none."""

    async def fetch() -> dict[str, Any]:
        async with connect(config, may_found=True) as connection:
            return await connection.client.fetch_action_schema(name)

    output.print_value(groups.run(fetch()), fmt=fmt)


@action_verb.command("rm")
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@options.client_options
def remove_actions(*, names: tuple[str, ...], config: Config[ClientConfig]) -> None:
    """Remove registered actions, every version of them. Predefined ones stay."""

    async def remove() -> None:
        async with connect(config, may_found=True) as connection:
            for name in names:
                await connection.client.delete_action(name)
                output.say(f"{name}: removed")

    groups.run(remove())


def _named(text: str, file: str) -> tuple[str, str]:
    from pistage.core.definition import lint

    checked = lint(text, actions=None)
    if not checked.name:
        found = findings.plain(checked.findings)
        raise PistageError(
            Code.INVALID, f"{file} has no name to register it under", details={"findings": found, "file": file}
        )
    return str(checked.name), text
