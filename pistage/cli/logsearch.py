"""A search over what many runs printed."""

from __future__ import annotations

import sys
from contextlib import aclosing

from pistage.cli import output
from pistage.cli.connect import connect
from pistage.cli.loglines import FoundPrinter, print_object
from pistage.cli.logwanted import Wanted
from pistage.client import Line, Searched
from pistage.client.output import found_of
from pistage.config import ClientConfig, Config


async def search(config: Config[ClientConfig], wanted: Wanted) -> None:
    """Print what is found, the newest run first, and say where to go on."""
    assert wanted.pattern is not None, "looked at with the options"
    printer = FoundPrinter(shown=wanted.shown, has_times=wanted.has_times)
    count, end = 0, Searched(runs=0, next=None)
    async with connect(config) as connection:
        try:
            async with aclosing(connection.client.search_output(wanted.pattern, **_filters(wanted))) as values:
                async for value in values:
                    found = found_of(value)
                    if wanted.fmt == "json":
                        print_object(value)
                    elif isinstance(found, Line):
                        sys.stdout.writelines(printer.lines(found))
                    if isinstance(found, Searched):
                        end = found
                    else:
                        count += 1
        finally:
            sys.stdout.flush()
    if not count:
        output.say(f"nothing found in {end.runs} runs" if end.runs != 1 else "nothing found in 1 run")
    if end.next is not None:
        output.say(f"there is more: --cursor {end.next}")


def _filters(wanted: Wanted) -> dict[str, str | None]:
    return {
        "name": wanted.name,
        "state": wanted.state,
        "stream": wanted.stream,
        "since": wanted.since,
        "until": wanted.until,
        "limit": None if wanted.limit is None else str(wanted.limit),
        "cursor": wanted.cursor,
    }
