"""Data on stdout in the format that was asked for: a table for people, JSON, YAML, or bare names for scripts."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

import click

from pistage.cli import terminal

Item = Mapping[str, Any]
Cell = Callable[[Any], str]
FORMATS: Final = ("table", "json", "yaml", "name")

STATE_COLOURS: Final = {
    "succeeded": "green",
    "failed": "red",
    "lost": "red",
    "cancelled": "yellow",
    "running": "cyan",
    "queued": "blue",
    "pending": "bright_black",
    "skipped": "bright_black",
}


def format_option(*formats: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """The option `-o`; the first of `formats` is the default."""
    chosen = formats or FORMATS
    return click.option(
        "-o", "--output", "fmt", type=click.Choice(chosen), default=chosen[0], help="Format of what is printed."
    )


def print_items(items: Sequence[Item], columns: Mapping[str, Cell], *, fmt: str, name: str = "id") -> None:
    """A list: `columns` maps a heading to how its cell is read; `name` is the key that `-o name` prints."""
    match fmt:
        case "table":
            rows = [[cell(item) for cell in columns.values()] for item in items]
            print_table(list(columns), rows)
        case "name":
            for item in items:
                click.echo(terminal.one_line(str(item[name])))
        case _:
            print_value(list(items), fmt=fmt)


def print_value(value: Any, *, fmt: str) -> None:
    """One value as JSON or YAML."""
    if fmt == "yaml":
        import yaml

        click.echo(yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=110), nl=False)
    else:
        click.echo(json.dumps(value, indent=2, ensure_ascii=False, default=str))


def print_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Columns as wide as their widest cell: a pipe gets every character, a terminal wraps by itself."""
    cleaned = [[terminal.one_line(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(headings, *cleaned, strict=True)]
    for row in [list(headings), *cleaned]:
        padded = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        padded[-1] = padded[-1].rstrip()
        click.echo("  ".join(_coloured(cell) for cell in padded).rstrip())


def state_of(item: Any) -> str:
    """The cell of a state."""
    return str(item.get("state", ""))


def age_of(key: str) -> Cell:
    """The cell that says how long ago the time under `key` was."""

    def cell(item: Any) -> str:
        at = parse_time(item.get(key))
        return f"{duration((datetime.now(UTC) - at).total_seconds())} ago" if at else "-"

    return cell


def elapsed_of(item: Any) -> str:
    """The cell that says how long something took, or has taken up to now."""
    seconds = elapsed_s(item)
    return duration(seconds) if seconds is not None else "-"


def elapsed_s(item: Any) -> float | None:
    """Seconds from `started_at` to `finished_at` (or to now); None before the start."""
    started, finished = parse_time(item.get("started_at")), parse_time(item.get("finished_at"))
    return ((finished or datetime.now(UTC)) - started).total_seconds() if started else None


def parse_time(text: Any) -> datetime | None:
    """An RFC 3339 time of the API; None for null."""
    return datetime.fromisoformat(text) if isinstance(text, str) and text else None


def duration(seconds: float) -> str:
    """Seconds for people: 0.24s, 12.3s, 4m07s, 2h05m, 3d04h."""
    seconds = max(0.0, seconds)
    if seconds < 9.95:
        return f"{seconds:.2f}s"
    if seconds < 59.95:
        return f"{seconds:.1f}s"
    minutes, whole = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}m{whole:02}s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02}m" if hours < 48 else f"{hours // 24}d{hours % 24:02}h"


def size(count: float) -> str:
    """Bytes for people, in powers of 1024."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def say(message: str, **style: Any) -> None:
    """A message for the person at the terminal; it goes to stderr, so that data on stdout stays data."""
    click.echo(click.style(terminal.clean(message), **style), err=True)


def _coloured(cell: str) -> str:
    colour = STATE_COLOURS.get(cell.strip())
    return click.style(cell, fg=colour) if colour and sys.stdout.isatty() else cell
