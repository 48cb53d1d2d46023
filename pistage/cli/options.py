"""Options made from the configuration's own keys, so that a key, its variable and its flag never drift apart."""

from __future__ import annotations

import functools
import os
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click

from pistage.config import AgentConfig, ClientConfig, Config, MasterConfig, load

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]
SECTIONS: Mapping[str, type[MasterConfig] | type[AgentConfig] | type[ClientConfig]] = {
    "client": ClientConfig,
    "master": MasterConfig,
    "agent": AgentConfig,
}


def keys_as_options(*sections: str) -> Decorator:
    """A flag for each key of `sections`; they arrive as one mapping `flags`, None for what was not given."""
    fields: dict[str, Any] = {}
    owners: dict[str, list[str]] = {}
    for section in sections:
        for key, field in SECTIONS[section].model_fields.items():
            fields.setdefault(key, field)
            owners.setdefault(key, []).append(section)

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def collected(*args: Any, **kwargs: Any) -> Any:
            return function(*args, flags={key: kwargs.pop(key) for key in fields}, **kwargs)

        decorated: Callable[..., Any] = collected
        for key, field in reversed(fields.items()):
            note = f" ({owners[key][0]} only)" if len(owners[key]) < len(sections) else ""
            decorated = _option(key, field, f"{field.description}{note}")(decorated)
        return decorated

    return decorate


def client_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """What every verb that talks to a master takes; it arrives resolved, as `config`."""

    @functools.wraps(function)
    def resolved(*args: Any, config_file: Path | None, flags: Mapping[str, object], **kwargs: Any) -> Any:
        return function(*args, config=load_client(config_file, flags), **kwargs)

    return config_file_option(keys_as_options("client")(resolved))


def config_file_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """The option `--config FILE`."""
    file = click.Path(path_type=Path, dir_okay=False)
    return click.option("--config", "config_file", type=file, metavar="FILE", help="Configuration file (YAML).")(
        function
    )


def load_client(file: Path | None, flags: Mapping[str, object]) -> Config[ClientConfig]:
    """The client's configuration; without a file named, the user's own is read where there is one."""
    if file is None and user_config_file().is_file():
        file = user_config_file()
    return load(ClientConfig, flags=flags, file=file)


def user_config_file() -> Path:
    """Where a user's own settings live: $XDG_CONFIG_HOME/pistage/client.yaml, or the same under ~/.config."""
    base = os.environ.get("XDG_CONFIG_HOME") or Path("~").expanduser() / ".config"
    return Path(base) / "pistage" / "client.yaml"


def _option(key: str, field: Any, description: str) -> Decorator:
    flag = f"--{key.replace('_', '-')}"
    if field.annotation is bool:
        return click.option(f"{flag}/--no-{flag[2:]}", key, default=None, help=description)
    choices = typing.get_args(field.annotation) if typing.get_origin(field.annotation) is typing.Literal else ()
    kind = click.Choice(choices) if choices else click.STRING
    metavar = None if choices else "VALUE"
    return click.option(flag, key, type=kind, default=None, metavar=metavar, help=description)


def duration_option(flag: str, name: str, text: str) -> Decorator:
    """An option of seconds, written as durations are everywhere: `90`, `90s`, `10m`, `1h30m`."""

    def convert(ctx: click.Context, param: click.Parameter, value: str | None) -> float | None:
        if value is None:
            return None
        from pistage.core.definition.units import seconds_of

        if (seconds := seconds_of(value.strip())) is None:
            raise click.BadParameter(f"expected a duration such as 90s, 10m or 1h30m, got {value!r}", ctx, param)
        return seconds

    return click.option(flag, name, metavar="DURATION", callback=convert, help=text)


def submission_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """What `run` and `plan` take with a definition: `pairs` and `with_file` of parameters, and `start_node`."""
    given = (
        click.option("--with", "pairs", multiple=True, metavar="NAME=VALUE", help="A parameter; may be repeated."),
        click.option(
            "--with-file",
            type=click.Path(path_type=Path, dir_okay=False, exists=True),
            help="Parameters from a YAML or JSON file.",
        ),
        click.option("--from", "start_node", metavar="TASK", help="Start at this task; what it needs is skipped."),
    )
    for option in reversed(given):
        function = option(function)
    return function
