"""The verbs `notice ls|add|rm|test`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import click

from pistage.cli import groups, options, output
from pistage.cli.connect import connect
from pistage.client.answers import Receiver
from pistage.config import ClientConfig, Config
from pistage.errors import Code, PistageError

_ENDS = ("succeeded", "failed", "cancelled", "lost", "always")


@click.group("notice", short_help="Say who is told when runs end.")
def notice_verb() -> None:
    """Say who is told when runs end: a URL that is sent a POST, signed, and tried again until it has it.

    What became of the notices of a run is in `pistage show RUN`.
    """


@notice_verb.command("ls")
@output.format_option()
@options.client_options
def list_receivers(*, fmt: str, config: Config[ClientConfig]) -> None:
    """List who is told, of what."""

    async def fetch() -> list[Receiver]:
        async with connect(config) as connection:
            return await connection.client.fetch_receivers()

    columns: dict[str, output.Cell] = {
        "RECEIVER": lambda one: str(one["name"]),
        "URL": lambda one: str(one["url"]),
        "ON": lambda one: ",".join(one["on"]),
        "PIPELINES": _pipelines_cell,
        "SIGNED": lambda one: "yes" if one["has_secret"] else "-",
    }
    output.print_items(cast("list[dict[str, Any]]", groups.run(fetch())), columns, fmt=fmt, name="name")


@notice_verb.command("add")
@click.argument("name")
@click.argument("url")
@click.option("--on", multiple=True, type=click.Choice(_ENDS), help="Which ends; failed and lost unless given.")
@click.option("--pipeline", "pipelines", multiple=True, metavar="NAME", help="Of these pipelines; of all unless given.")
@click.option("--when-named", is_flag=True, help="Only of definitions whose `notify` names it.")
@click.option("--body-file", type=click.Path(dir_okay=False, path_type=Path, allow_dash=True), help="A template.")
@click.option("--header", "headers", multiple=True, metavar="NAME:VALUE", help="To send along; not shown again.")
@click.option(
    "--secret-file", type=click.Path(dir_okay=False, path_type=Path, allow_dash=True), help="What to sign with."
)
@options.client_options
def add_receiver(
    *,
    name: str,
    url: str,
    on: tuple[str, ...],
    pipelines: tuple[str, ...],
    when_named: bool,
    body_file: Path | None,
    headers: tuple[str, ...],
    secret_file: Path | None,
    config: Config[ClientConfig],
) -> None:
    """Tell URL when runs end; one that has this name already is replaced."""
    if when_named and pipelines:
        raise click.UsageError("--when-named and --pipeline do not go together")
    asked: dict[str, Any] = {"url": url, "headers": dict(map(_header, headers))}
    asked |= {"on": list(on)} if on else {}
    asked |= {"pipelines": list(pipelines)} if pipelines or when_named else {}
    asked |= {"body": _read(body_file)} if body_file is not None else {}
    asked |= {"secret": _read(secret_file).strip()} if secret_file is not None else {}
    if secret_file is not None and not asked["secret"]:
        raise PistageError(Code.USAGE, f"{secret_file} is empty", hint="write a secret of 8 characters or more into it")

    async def put() -> Receiver:
        async with connect(config, may_found=True) as connection:
            return await connection.client.put_receiver(name, asked)

    said: Receiver = groups.run(put())
    output.say(f"{name}: {said['url']} is told of {', '.join(said['on'])}; try it: pistage notice test {name}")


@notice_verb.command("rm")
@click.argument("name")
@options.client_options
def remove_receiver(*, name: str, config: Config[ClientConfig]) -> None:
    """Tell it no more; notices on their way to it are given up."""

    async def remove() -> None:
        async with connect(config) as connection:
            await connection.client.delete_receiver(name)

    groups.run(remove())
    output.say(f"{name}: removed")


@notice_verb.command("test")
@click.argument("name")
@options.client_options
def test_receiver(*, name: str, config: Config[ClientConfig]) -> int:
    """Send it a notice of a run that never was, once; exits with 1 unless it takes that."""

    async def send() -> dict[str, Any]:
        async with connect(config) as connection:
            return await connection.client.test_receiver(name)

    said = groups.run(send())
    if not said["is_delivered"]:
        output.say(f"{name}: not delivered: {said['reason']}", fg="red")
        return 1
    output.say(f"{name}: delivered, it answered {said['status']}")
    return 0


def _header(text: str) -> tuple[str, str]:
    name, colon, value = text.partition(":")
    if not colon:
        raise PistageError(Code.USAGE, f"--header: expected NAME:VALUE, got {text[:20]!r}")
    return name.strip(), value.strip()


def _read(path: Path) -> str:
    try:
        with click.open_file(str(path), encoding="utf-8") as file:
            return str(file.read())
    except (OSError, UnicodeDecodeError) as error:
        raise PistageError(Code.USAGE, f"cannot read {path}: {error}") from None


def _pipelines_cell(one: Any) -> str:
    if one["pipelines"] is None:
        return "all"
    return ", ".join(one["pipelines"]) or "those that name it"
