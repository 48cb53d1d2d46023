"""The verbs `retention ls|set|rm`, `pin` and `unpin`."""

from __future__ import annotations

from typing import Any, cast

import click

from pistage.cli import groups, naming, options, output
from pistage.cli.connect import connect
from pistage.client import Run
from pistage.client.answers import Retention
from pistage.config import ClientConfig, Config
from pistage.core.retention import ALL_PIPELINES, RUNS_MAX

_NONE = -1  # what stands for `none` where an option was given
_UNITS = ((86_400, "d"), (3_600, "h"), (60, "m"))


@click.group("retention", short_help="Say for how long output is kept.")
def retention_verb() -> None:
    """Say for how long output of a pipeline's ended runs is kept, by age, size and number of runs.

    NAME is a pipeline, or '*' for all of which nothing else is said; without a word they are kept for 90 days. Pinned
    runs stay, and are not counted.
    """


@retention_verb.command("ls")
@output.format_option()
@options.client_options
def list_retention(*, fmt: str, config: Config[ClientConfig]) -> None:
    """List what holds for all pipelines, and for those that were set."""

    async def fetch() -> list[Retention]:
        async with connect(config) as connection:
            return await connection.client.fetch_retention()

    columns: dict[str, output.Cell] = {
        "PIPELINE": lambda one: str(one["name"]),
        "AGE": lambda one: _age_of(one["age_s"]),
        "SIZE": lambda one: "-" if one["bytes_max"] is None else output.size(one["bytes_max"]),
        "RUNS": lambda one: "-" if one["runs_max"] is None else str(one["runs_max"]),
        "SET": lambda one: "yes" if one["is_set"] else "-",
        "KEPT": lambda one: f"{_runs(one['runs'])}, {output.size(one['output_bytes'])}",
    }
    output.print_items(cast("list[dict[str, Any]]", groups.run(fetch())), columns, fmt=fmt, name="name")


def _age(ctx: click.Context, param: click.Parameter, value: str | None) -> float | None:
    from pistage.core.definition.units import seconds_of

    if value is None or value.lower() == "none":
        return None if value is None else _NONE
    seconds = seconds_of(value.strip())
    if not seconds:
        raise click.BadParameter(f"expected a duration such as 30d or 12h, or none; got {value!r}", ctx, param)
    return seconds


def _size(ctx: click.Context, param: click.Parameter, value: str | None) -> int | None:
    from pistage.core.definition.units import bytes_of

    if value is None or value.lower() == "none":
        return None if value is None else _NONE
    size = bytes_of(value.strip())
    if size is None:
        raise click.BadParameter(f"expected 6Mi or more, such as 500Mi or 10Gi, or none; got {value!r}", ctx, param)
    return size


def _number(ctx: click.Context, param: click.Parameter, value: str | None) -> int | None:
    if value is None or value.lower() == "none":
        return None if value is None else _NONE
    if not value.isascii() or not value.isdigit() or not 1 <= int(value[:9]) <= RUNS_MAX:
        raise click.BadParameter(f"expected a number of runs, 1 to {RUNS_MAX:,}, or none; got {value!r}", ctx, param)
    return int(value)


@retention_verb.command("set")
@click.argument("name")
@click.option("--age", callback=_age, metavar="DURATION|none", help="Since the run ended, such as 30d.")
@click.option("--size", callback=_size, metavar="SIZE|none", help="Of all the output that is kept, such as 10Gi.")
@click.option("--runs", callback=_number, metavar="N|none", help="How many of the newest.")
@options.client_options
def set_retention(
    *, name: str, age: float | None, size: int | None, runs: int | None, config: Config[ClientConfig]
) -> None:
    """Say for how long output is kept from now on; what is not given stays as it is."""
    if age is None and size is None and runs is None:
        raise click.UsageError("nothing to set: give --age, --size or --runs")

    async def put() -> Retention:
        async with connect(config, may_found=True) as connection:
            listed = {one["name"]: one for one in await connection.client.fetch_retention()}
            known = listed.get(name) or listed[ALL_PIPELINES]
            return await connection.client.put_retention(
                name,
                age_s=_given(age, known["age_s"]),
                bytes_max=_given(size, known["bytes_max"]),
                runs_max=_given(runs, known["runs_max"]),
            )

    said = groups.run(put())
    output.say(f"{said['name']}: {_told(said)}")


@retention_verb.command("rm")
@click.argument("name")
@options.client_options
def remove_retention(*, name: str, config: Config[ClientConfig]) -> None:
    """Keep output of a pipeline as that of any other, or, for '*', for 90 days."""

    async def remove() -> None:
        async with connect(config) as connection:
            await connection.client.delete_retention(name)

    groups.run(remove())
    output.say(f"{name}: kept for 90 days" if name == ALL_PIPELINES else f"{name}: kept as that of any other pipeline")


@click.command("pin", short_help="Keep the output of a run, whatever retention says.")
@click.argument("run")
@options.client_options
def pin_verb(run: str, config: Config[ClientConfig]) -> None:
    """Keep the output of a run, whatever retention says."""
    pinned = groups.run(_set_pin(config, run, is_pinned=True))
    output.say(f"{naming.title_of(pinned)}: its output stays, whatever retention says")


@click.command("unpin", short_help="Let the output of a run go by retention again.")
@click.argument("run")
@options.client_options
def unpin_verb(run: str, config: Config[ClientConfig]) -> None:
    """Let the output of a run go by retention again; that may be at once."""
    unpinned = groups.run(_set_pin(config, run, is_pinned=False))
    output.say(f"{naming.title_of(unpinned)}: its output goes by retention again")


async def _set_pin(config: Config[ClientConfig], name: str, *, is_pinned: bool) -> Run:
    async with connect(config) as connection:
        return await (connection.client.pin_run(name) if is_pinned else connection.client.unpin_run(name))


def _given(value: Any, known: Any) -> Any:
    """What was given, None for `none`; what is known where nothing was."""
    if value is None:
        return known
    return None if value == _NONE else value


def _told(said: Retention) -> str:
    told = [] if said["age_s"] is None else [f"for {_age_of(said['age_s'])}"]
    told += [] if said["bytes_max"] is None else [f"at most {output.size(said['bytes_max'])}"]
    told += [] if said["runs_max"] is None else [f"of the newest {_runs(said['runs_max'])}"]
    return f"output is kept {', '.join(told)}" if told else "all output is kept"


def _age_of(seconds: float | None) -> str:
    """As `--age` takes it."""
    if seconds is None:
        return "-"
    for size, unit in _UNITS:
        if seconds >= size and seconds % size == 0:
            return f"{seconds / size:.0f}{unit}"
    return f"{seconds:g}s"


def _runs(number: int) -> str:
    return f"{number:,} run{'s' * (number != 1)}"
