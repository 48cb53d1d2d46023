"""A search over what many runs printed."""

from __future__ import annotations

import sys
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from pistage.cli import output
from pistage.cli.connect import connect
from pistage.cli.loglines import FoundPrinter, print_object
from pistage.cli.logwanted import Wanted
from pistage.client import Client, Line, Searched, Unread
from pistage.client.output import found_of
from pistage.config import ClientConfig, Config


async def search(config: Config[ClientConfig], wanted: Wanted) -> None:
    """Print what is found, the newest run first, and say where to go on."""
    printer = FoundPrinter(shown=wanted.shown, has_times=wanted.has_times)
    count, end = 0, Searched(runs=0, next=None)
    async with connect(config) as connection:
        try:
            async with aclosing(_found(connection.client, wanted)) as values:
                async for value in values:
                    found = found_of(value)
                    if wanted.fmt == "json":
                        print_object(value)
                    elif isinstance(found, Line):
                        sys.stdout.writelines(printer.lines(found))
                    elif isinstance(found, Unread):
                        output.say(f"{found.title}: {found.text}", fg="yellow")
                    sys.stdout.flush()
                    count += isinstance(found, Line)
                    end = found if isinstance(found, Searched) else end
        finally:
            sys.stdout.flush()
    if not count:
        output.say(f"nothing found in {end.runs} runs" if end.runs != 1 else "nothing found in 1 run")
    if end.next is not None:
        output.say(f"there is more: --cursor {end.next}")


def _found(client: Client, wanted: Wanted) -> AsyncGenerator[dict[str, Any], None]:
    assert wanted.pattern is not None, "looked at with the options"
    return client.search_output(
        wanted.pattern,
        limit=wanted.limit,
        cursor=wanted.cursor,
        name=wanted.name,
        state=wanted.state,
        stream=wanted.stream,
        since=wanted.since,
        until=wanted.until,
    )
