"""`scripts/bench logs`: output of steps, from the line that is printed to whoever reads it, on three masters."""

from __future__ import annotations

import argparse
import asyncio
import signal
from pathlib import Path

from benches.logs_cluster import Options, Text
from benches.logs_finding import grep, line
from benches.logs_followers import followers
from benches.logs_latency import first
from benches.logs_throughput import many, throughput

PARTS = {"throughput": throughput, "many": many, "first": first, "line": line, "followers": followers, "grep": grep}


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of `logs`; `--parts` is shared with `raft`."""
    parser.add_argument("--lines", type=int, default=10_000_000, help="logs: how many of 100 bytes in the large one")
    parser.add_argument("--followers", type=int, default=1_000, help="logs: how many read along")


def options_of(arguments: argparse.Namespace, directory: Path) -> Options:
    """What was asked for; SystemExit for a part that there is not."""
    parts = tuple(arguments.parts.split(",")) if arguments.parts else tuple(PARTS)
    if unknown := set(parts) - set(PARTS):
        raise SystemExit(f"logs has no part {', '.join(sorted(unknown))}: expected some of {','.join(PARTS)}")
    return Options(arguments.n or 3, arguments.lines, arguments.followers, parts, directory)


async def logs(directory: Path, options: Options) -> None:
    """All the parts, one after the other. A SIGTERM stops what was started, too."""
    task = asyncio.current_task()
    assert task is not None, "inside asyncio.run"
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    text = Text(directory / "text", options.lines)
    text.make()
    for part in options.parts:
        await PARTS[part](directory / part, text, options)
