"""The verbs `cron ls|add|rm|pause|resume|next|history`."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import click

from pistage.cli import documents, findings, groups, options, output
from pistage.cli.connect import connect
from pistage.cli.moments import second_of
from pistage.client import Page, Schedule, all_items
from pistage.config import ClientConfig, Config
from pistage.errors import Code, PistageError

_FIELDS = range(5, 8)  # of an expression
_NO_TIME = ": no time is left"


@click.group("cron", short_help="Run definitions and actions by schedules.")
def cron_verb() -> None:
    """Run definitions and actions by schedules.

    A definition with a `schedule`, or a pipeline with a `crontab`, is set by `pistage run FILE`; anything else by
    `pistage cron add`.
    """


@cron_verb.command("ls")
@output.format_option()
@options.client_options
def list_schedules(*, fmt: str, config: Config[ClientConfig]) -> None:
    """List schedules, with when each fires next and what became of its last time."""

    async def fetch() -> list[dict[str, Any]]:
        async with connect(config) as connection:
            return await all_items(connection.client.fetch_schedules)

    columns: dict[str, output.Cell] = {
        "SCHEDULE": lambda one: str(one["name"]),
        "CRON": lambda one: str(one["cron"]),
        "ZONE": lambda one: str(one["timezone"]),
        "RUNS": lambda one: str(one["action"] or one["definition"] or "a definition"),
        "NEXT": _next_cell,
        "LAST": lambda one: "-" if one["last"] is None else _told(one["last"]),
    }
    output.print_items(groups.run(fetch()), columns, fmt=fmt, name="name")


@cron_verb.command("add")
@click.argument("name")
@click.argument("target", metavar="FILE|ACTION")
@click.option("--cron", required=True, metavar="EXPRESSION", help="Five fields, six with seconds, Quartz, or a macro.")
@click.option("--timezone", metavar="ZONE", help="Such as Europe/Berlin; UTC unless given.")
@click.option("--overlap", type=click.Choice(["skip", "queue", "cancel-old"]), help="While a run of it is not over.")
@click.option("--catch-up", type=click.Choice(["none", "last", "all"]), help="Of times that no master could start.")
@click.option("--jitter", metavar="DURATION", help="How late it may fire, by an amount of its own.")
@click.option("--once", is_flag=True, help="Pause it after its first run.")
@click.option("--paused", is_flag=True, help="Set it, but let it not fire yet.")
@options.submission_options
@options.client_options
def add_schedule(
    *,
    name: str,
    target: str,
    pairs: tuple[str, ...],
    with_file: Path | None,
    start_node: str | None,
    once: bool,
    paused: bool,
    config: Config[ClientConfig],
    **said: str | None,
) -> None:
    """Run a definition or an action by a schedule; one that has this name already is replaced."""
    body = documents.submission(target, parameters={}, start_node=start_node)
    parameters = documents.parameters(pairs, with_file)
    schedule: dict[str, Any] = {key: value for key, value in said.items() if value is not None}
    schedule |= {"enabled": not paused, "once": once} | ({"with": parameters} if parameters else {})

    async def put() -> Schedule:
        async with connect(config) as connection:
            connection.refuse_unless_it_stays(f"{name} is to run by a schedule")
            with documents.named(target):
                return await connection.client.put_schedule(name, body | {"schedule": schedule})

    made = groups.run(put())
    for finding in made.get("warnings") or []:
        output.say(findings.line(finding, target), fg="yellow")
    say_set([made], target if not (parameters or paused) else None)


def say_set(schedules: Sequence[Schedule], target: str | None) -> None:
    """Tell of schedules that were set, when each fires next, and how `target` is run now, if as it is."""
    for one in schedules:
        upcoming = one["next"]
        first = f"next {second_of(upcoming[0])}" if upcoming else "it does not fire" + _why_not(one)
        output.say(f"schedule {one['name']}: {one['cron']} in {one['timezone']}, {first}")
        click.echo(one["name"])
    if schedules and target is not None:
        output.say(f"run it at once: pistage run --now {shlex.quote(target)}")


@cron_verb.command("rm")
@click.argument("name")
@options.client_options
def remove_schedule(*, name: str, config: Config[ClientConfig]) -> None:
    """Forget a schedule; its runs stay."""

    async def remove() -> None:
        async with connect(config) as connection:
            await connection.client.delete_schedule(name)

    groups.run(remove())
    output.say(f"{name}: removed")


@cron_verb.command("pause")
@click.argument("name")
@options.client_options
def pause_schedule(*, name: str, config: Config[ClientConfig]) -> None:
    """Let a schedule fire no more, until it is resumed."""
    _enable(name, config, is_enabled=False)
    output.say(f"{name}: paused")


@cron_verb.command("resume")
@click.argument("name")
@options.client_options
def resume_schedule(*, name: str, config: Config[ClientConfig]) -> None:
    """Let a schedule fire again; what came while it was paused is not made up for."""
    upcoming = _enable(name, config, is_enabled=True)["next"]
    output.say(f"{name}: next {second_of(upcoming[0]) if upcoming else 'never'}")


def _enable(name: str, config: Config[ClientConfig], *, is_enabled: bool) -> Schedule:
    async def enable() -> Schedule:
        async with connect(config) as connection:
            return await connection.client.enable_schedule(name, is_enabled=is_enabled)

    return groups.run(enable())


@cron_verb.command("next")
@click.argument("subject", metavar="NAME|EXPRESSION")
@click.option("--timezone", metavar="ZONE", default="UTC", help="Of an expression.")
@click.option("-n", "count", type=click.IntRange(1, 100), default=10, help="How many times; 10 unless given.")
@options.client_options
def next_times(*, subject: str, timezone: str, count: int, config: Config[ClientConfig]) -> None:
    """Show the next times of a schedule, or of an expression, in its zone and in UTC.

    An expression has 5 to 7 fields or begins with @, and needs no server.
    """
    if subject.startswith("@") or "*" in subject or len(subject.split()) in _FIELDS:
        times, zone, why = _times_of(subject, timezone, count), timezone, _NO_TIME
    else:

        async def fetch() -> Schedule:
            async with connect(config) as connection:
                return await connection.client.fetch_schedule(subject, count=count)

        schedule = groups.run(fetch())
        times, zone = [_parsed(text) for text in schedule["next"]], schedule["timezone"]
        why = _why_not(schedule)
    if not times:
        output.say(f"{subject} does not fire{why}")
        return
    rows = [[_local(at, zone), at.strftime("%Y-%m-%d %H:%M:%S UTC")] for at in times]
    output.print_table([zone, "UTC"], rows)


def _times_of(expression: str, timezone: str, count: int) -> list[datetime]:
    from pistage.core.cron import CronError, next_after, parse_cron, zone_named

    try:
        cron, zone = parse_cron(expression), zone_named(timezone)
    except CronError as error:
        raise PistageError(Code.USAGE, error.message, hint=error.hint) from None
    times: list[datetime] = []
    at = next_after(cron, zone, int(datetime.now(UTC).timestamp() * 1000))
    while at is not None and len(times) < count:
        times.append(datetime.fromtimestamp(at / 1000, UTC))
        at = next_after(cron, zone, at)
    return times


@cron_verb.command("history")
@click.argument("name")
@click.option("-n", "count", type=click.IntRange(1, 500), default=20, help="How many of the latest; 20 unless given.")
@output.format_option()
@options.client_options
def show_history(*, name: str, count: int, fmt: str, config: Config[ClientConfig]) -> None:
    """Show what became of a schedule's times, the latest first."""

    async def fetch() -> Page:
        async with connect(config) as connection:
            return await connection.client.fetch_fires(name, limit=count)

    columns: dict[str, output.Cell] = {
        "TIME": lambda one: second_of(one["nominal"]),
        "UNTIL": lambda one: "-" if one["until"] == one["nominal"] else second_of(one["until"]),
        "TIMES": lambda one: "many" if one["count"] is None else str(one["count"]),
        "OUTCOME": lambda one: str(one["outcome"]),
        "RUN": lambda one: "-" if one["run"] is None else _run_told(one["run"]),
        "REASON": lambda one: str(one["reason"]) or "-",
    }
    output.print_items(cast("list[dict[str, Any]]", groups.run(fetch())["items"]), columns, fmt=fmt, name="nominal")


def _next_cell(one: Any) -> str:
    return second_of(one["next"][0]) if one["next"] else f"never{_why_not(one)}" if one["is_enabled"] else "paused"


def _why_not(one: Any) -> str:
    return f": {one['paused_reason'] or 'it is paused'}" if not one["is_enabled"] else _NO_TIME


def _told(fire: Any) -> str:
    run = fire["run"]
    return f"{second_of(fire['nominal'])} {fire['outcome'] if run is None else _run_told(run)}"


def _run_told(run: Any) -> str:
    return f"{run['name']}#{run['number']} {run['state']}"


def _parsed(text: str) -> datetime:
    return datetime.fromisoformat(text).astimezone(UTC)


def _local(at: datetime, zone: str) -> str:
    from pistage.core.cron import zone_named

    return at.astimezone(zone_named(zone)).strftime("%a %Y-%m-%d %H:%M:%S %z")
