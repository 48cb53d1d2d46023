"""The verbs `webhook ls|add|show|rm`."""

from __future__ import annotations

import json
import secrets
from pathlib import Path
from typing import Any

import click

from pistage.cli import documents, findings, groups, options, output
from pistage.cli.connect import Connection, connect
from pistage.client import Webhook, all_items
from pistage.config import ClientConfig, Config
from pistage.errors import Code, PistageError


@click.group("webhook", short_help="Run definitions and actions when somebody outside says so.")
def webhook_verb() -> None:
    """Run definitions and actions when somebody outside says so, signed with a secret, as GitHub does."""


@webhook_verb.command("ls")
@output.format_option()
@options.client_options
def list_webhooks(*, fmt: str, config: Config[ClientConfig]) -> None:
    """List webhooks."""

    async def fetch() -> list[dict[str, Any]]:
        async with connect(config) as connection:
            return await all_items(connection.client.fetch_webhooks)

    columns: dict[str, output.Cell] = {
        "WEBHOOK": lambda one: str(one["name"]),
        "RUNS": lambda one: str(one["action"] or "a definition"),
        "EVENTS": lambda one: ", ".join(one["events"]) or "any",
        "PATH": lambda one: str(one["path"]),
    }
    output.print_items(groups.run(fetch()), columns, fmt=fmt, name="name")


@webhook_verb.command("show")
@click.argument("name")
@options.client_options
def show_webhook(*, name: str, config: Config[ClientConfig]) -> None:
    """Show what a webhook maps and waits for, and the latest deliveries that made runs; never its secret."""

    async def fetch() -> Webhook:
        async with connect(config) as connection:
            return await connection.client.fetch_webhook(name)

    output.print_value(groups.run(fetch()), fmt="yaml")


@webhook_verb.command("add")
@click.argument("name")
@click.argument("target", metavar="FILE|ACTION")
@click.option(
    "--input", "mapped", multiple=True, metavar="NAME=EXPRESSION",
    help="Where in the payload an input stands: tag=release.tag_name, id='commits[0].id ?? \"none\"'.",
)  # fmt: skip
@click.option("--with", "pairs", multiple=True, metavar="NAME=VALUE", help="A parameter that every run is given.")
@click.option("--with-file", type=click.Path(path_type=Path, dir_okay=False, exists=True), help="Such, from a file.")
@click.option(
    "--when", multiple=True, metavar="PATH=VALUE",
    help="Make a run only where this is so: ref=refs/heads/main; of one path given twice, either will do.",
)  # fmt: skip
@click.option("--event", "events", multiple=True, metavar="EVENT", help="Only of this event, as GitHub names it: push.")
@options.duration_option("--window", "window_s", "For how long a delivery is known again; 24h unless given.")
@click.option(
    "--secret-file", type=click.Path(path_type=Path, dir_okay=False, exists=True),
    help="The secret, without its last newline; else one is made and printed.",
)  # fmt: skip
@options.client_options
def add_webhook(
    *,
    name: str,
    target: str,
    mapped: tuple[str, ...],
    pairs: tuple[str, ...],
    with_file: Path | None,
    when: tuple[str, ...],
    events: tuple[str, ...],
    window_s: float | None,
    secret_file: Path | None,
    config: Config[ClientConfig],
) -> None:
    """Run a definition or an action by a webhook; one that has this name already is replaced, and keeps its secret."""
    body = documents.submission(target, parameters=documents.parameters(pairs, with_file), start_node=None)
    body |= {"inputs": dict(_pair("--input", one) for one in mapped), "when": _wanted(when), "events": list(events)}
    body |= {} if window_s is None else {"window_s": window_s}
    if secret_file is not None:
        body["secret"] = documents.read_text(str(secret_file)).removesuffix("\n")

    async def put() -> tuple[Webhook, str | None]:
        async with connect(config) as connection:
            connection.refuse_unless_it_stays(f"{name} is to be called from outside")
            # Made here, so that it is not lost with an answer that is.
            made = None
            if secret_file is None and not await _is_there(connection, name):
                made = body["secret"] = secrets.token_urlsafe(32)
            with documents.named(target):
                return await connection.client.put_webhook(name, body), made

    shown, made = groups.run(put())
    for finding in shown.get("warnings") or []:
        output.say(findings.line(finding, target), fg="yellow")
    which = ", ".join(shown["events"]) or "any event"
    output.say(
        f"webhook {name}: POST {shown['path']} of {which}, signed as X-Hub-Signature-256 or X-Pistage-Signature-256"
    )
    if not shown["is_new"]:
        output.say(f"it takes the place of the {name} that was there")
    if made is not None:
        output.say("its secret, which is not shown again:")
        click.echo(made)


@webhook_verb.command("rm")
@click.argument("name")
@options.client_options
def remove_webhook(*, name: str, config: Config[ClientConfig]) -> None:
    """Forget a webhook and its secret; its runs stay."""

    async def remove() -> None:
        async with connect(config) as connection:
            await connection.client.delete_webhook(name)

    groups.run(remove())
    output.say(f"{name}: removed")


async def _is_there(connection: Connection, name: str) -> bool:
    try:
        await connection.client.fetch_webhook(name)
    except PistageError as error:
        if error.code is Code.NOT_FOUND:
            return False
        raise
    return True


def _wanted(pairs: tuple[str, ...]) -> dict[str, list[Any]]:
    """Values as JSON where they are a number, true, false or null, else as text."""
    wanted: dict[str, list[Any]] = {}
    for pair in pairs:
        path, value = _pair("--when", pair)
        try:
            read = json.loads(value)
        except (ValueError, RecursionError):
            read = value
        wanted.setdefault(path, []).append(value if isinstance(read, list | dict) else read)
    return wanted


def _pair(option: str, pair: str) -> tuple[str, str]:
    name, equals, value = pair.partition("=")
    if not equals or not name.strip():
        raise PistageError(Code.USAGE, f"{option}: expected NAME=VALUE, got {pair!r}")
    return name.strip(), value
