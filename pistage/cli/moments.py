"""Moments on the command line: RFC 3339, or how long ago."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import click

_EXPECTED = "expected a time such as 2026-01-31T09:30:00Z, or how long ago: 90s, 10m, 2h, 1d"


def moment_option(flag: str, name: str, text: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """An option of a moment; it arrives as RFC 3339 in UTC, to the millisecond."""

    def convert(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
        if value is None:
            return None
        try:
            return moment_of(value.strip(), now=datetime.now(UTC))
        except ValueError as error:
            raise click.BadParameter(f"{error}, got {value[:50]!r}", ctx, param) from None

    return click.option(flag, name, metavar="TIME", callback=convert, help=text)


def moment_of(text: str, *, now: datetime) -> str:
    """What `text` means, as RFC 3339 in UTC; ValueError says what was expected.

    Fractions of a millisecond are rounded up: output has its time in whole ones, so that is where a bound falls.
    """
    from pistage.core.definition.units import seconds_of

    try:
        seconds = seconds_of(text)
        moment = datetime.fromisoformat(text) if seconds is None else now - timedelta(seconds=seconds)
    except (ValueError, OverflowError):
        raise ValueError(_EXPECTED) from None
    if moment.tzinfo is None:
        raise ValueError("a time needs its zone: Z at the end, or +02:00")
    try:
        utc = moment.astimezone(UTC)
        utc += timedelta(microseconds=-utc.microsecond % 1000)
    except OverflowError:
        raise ValueError(_EXPECTED) from None
    return utc.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def second_of(text: str) -> str:
    """RFC 3339, as people read it: `2026-11-22 02:30:00Z`."""
    return datetime.fromisoformat(text).astimezone(UTC).strftime("%Y-%m-%d %H:%M:%SZ")
