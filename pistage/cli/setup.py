"""The verbs `config`, `completion` and `version`: what the program is and how it is set."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
from pydantic import BaseModel

from pistage import __version__
from pistage.cli import options, output
from pistage.config import AgentConfig, MasterConfig, as_written, load


@click.command("config", short_help="Show each configuration key, its value and where that came from.")
@click.option("--role", type=click.Choice(list(options.SECTIONS)), default="client", help="Whose keys to show.")
@options.config_file_option
@options.keys_as_options("client", "master", "agent")
@output.format_option("table", "json", "yaml")
def config_verb(role: str, config_file: Path | None, flags: Mapping[str, object], fmt: str) -> None:
    """Show each configuration key, its value and where that came from.

    Flags win over the environment (PISTAGE_<KEY>), which wins over the file, which wins over the default.
    """
    section = options.SECTIONS[role]
    known = {key: value for key, value in flags.items() if key in section.model_fields}
    stray = [key for key, value in flags.items() if value is not None and key not in known]
    if stray:
        raise click.UsageError(f"--{stray[0].replace('_', '-')} is no key of the {role}; see --role")
    settings, origins = _resolved(role, config_file, known)
    items = [
        {
            "key": key,
            "value": _shown(key, getattr(settings, key)),
            "origin": origins[key],
            "about": field.description or "",
        }
        for key, field in section.model_fields.items()
    ]
    columns: dict[str, output.Cell] = {
        "KEY": lambda item: str(item["key"]),
        "VALUE": lambda item: _text(as_written(section, item["key"], item["value"])),
        "ORIGIN": lambda item: str(item["origin"]),
        "ABOUT": lambda item: str(item["about"]),
    }
    output.print_items(items, columns, fmt=fmt, name="key")


def _resolved(role: str, file: Path | None, flags: Mapping[str, object]) -> tuple[Any, Mapping[str, str]]:
    match role:
        case "master":
            master = load(MasterConfig, flags=flags, file=file)
            return master.settings, master.origins
        case "agent":
            agent = load(AgentConfig, flags=flags, file=file)
            return agent.settings, agent.origins
        case _:
            client = options.load_client(file, flags)
            return client.settings, client.origins


def _shown(key: str, value: Any) -> Any:
    if key == "token" and value is not None:
        return "***"
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, dict):  # of models, some
        return {
            name: one.model_dump(mode="json", exclude_none=True) if isinstance(one, BaseModel) else one
            for name, one in value.items()
        }
    return list(value) if isinstance(value, tuple) else value


def _text(value: Any) -> str:
    match value:
        case None | "":
            return "-"
        case bool():
            return str(value).lower()
        case list():
            return ",".join(value) or "-"
        case dict():
            return ",".join(f"{key}={item}" for key, item in value.items()) or "-"
        case _:
            return str(value)


_WHERE = {
    "bash": 'eval "$(pistage completion bash)"  # in ~/.bashrc',
    "zsh": 'eval "$(pistage completion zsh)"  # in ~/.zshrc',
    "fish": "pistage completion fish > ~/.config/fish/completions/pistage.fish",
}


@click.command("completion", short_help="Print the completion script of a shell.")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion_verb(shell: str) -> None:
    """Print the completion script of a shell. How to use it is printed on stderr."""
    from click.shell_completion import get_completion_class

    from pistage.cli.root import cli

    script = get_completion_class(shell)
    assert script is not None
    output.say(f"to use it: {_WHERE[shell]}")
    click.echo(script(cli, {}, "pistage", "_PISTAGE_COMPLETE").source())


@click.command("version", short_help="Print the version.")
@output.format_option("name", "json", "yaml")
def version_verb(fmt: str) -> None:
    """Print the version."""
    if fmt == "name":
        click.echo(__version__)
        return
    value = {"version": __version__, "python": platform.python_version(), "platform": platform.platform()}
    output.print_value(value, fmt=fmt)
