"""The verb `serve`: a master or an agent in the foreground, until SIGTERM or SIGINT."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import click

from pistage.cli import groups, options
from pistage.cli.memory import keep_freed_memory
from pistage.cli.openfiles import allow_many_open_files
from pistage.config import (
    AgentConfig,
    MasterConfig,
    is_loopback,
    load,
    read_token,
    split_address,
)
from pistage.errors import Code, PistageError

log = logging.getLogger("pistage")


@click.command("serve", short_help="Start a master or an agent.")
@click.option("--role", type=click.Choice(["master", "agent"]), required=True, help="Which part this process is.")
@options.config_file_option
@options.keys_as_options("master", "agent")
@click.option("-v", "--verbose", count=True, help="Say more on stderr; twice: everything.")
def serve_verb(role: str, config_file: Path | None, flags: Mapping[str, object], verbose: int) -> None:
    """Start a master or an agent and stay in the foreground; SIGTERM and Ctrl-C stop it cleanly.

    An agent takes no more work after SIGTERM and waits for what it has, at most --drain-timeout; Ctrl-C or a second
    signal stops it at once. Either way its containers run on, and the next start takes them up.

    Every key can be given as a flag, as an environment variable PISTAGE_<KEY>, or in the file of --config.
    """
    start_logging(verbose)
    keep_freed_memory()
    section = options.SECTIONS[role]
    for key, value in flags.items():
        if value is not None and key not in section.model_fields:
            raise click.UsageError(
                f"--{key.replace('_', '-')} is no key of the {role}; see pistage config --role {role}"
            )
    known = {key: value for key, value in flags.items() if key in section.model_fields}
    if role == "master":
        allow_many_open_files()
        asyncio.run(serve_master(load(MasterConfig, flags=known, file=config_file).settings))
    else:
        asyncio.run(serve_agent(load(AgentConfig, flags=known, file=config_file).settings))


async def serve_master(settings: MasterConfig) -> None:
    """A master until a signal comes. PistageError `usage` where it would be open to a network without a token."""
    token = read_token(settings)
    check_exposure(settings.listen, token)
    from pistage.master.service import Master

    # The loop is where heartbeats are answered: a thread that computes may keep it waiting for less time.
    sys.setswitchinterval(0.001)
    async with until_stopped(), Master(settings, token=token) as master:
        log.info("master listens url=%s data_dir=%s", master.url, settings.data_dir)
        await asyncio.Event().wait()


async def serve_agent(settings: AgentConfig) -> None:
    """An agent until a signal comes: SIGTERM lets it see its work through, SIGINT or a second one does not."""
    token = read_token(settings)
    from pistage.agent.service import Agent

    agent = Agent(settings, token=token)
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, agent.request_leave)
    loop.add_signal_handler(signal.SIGINT, agent.request_stop)
    await agent.run()
    log.info("agent stopped")


def check_exposure(listen: str, token: str | None) -> None:
    """PistageError `usage` if `listen` can be reached from other machines and nothing guards it (S1)."""
    host, _ = split_address(listen)
    if token is None and not is_loopback(host):
        raise PistageError(
            Code.USAGE,
            f"listen: {listen} can be reached from other machines, and there is no token",
            hint="write a long random token into a file and set token_file (or PISTAGE_TOKEN), or listen on 127.0.0.1",
        )


@asynccontextmanager
async def until_stopped() -> AsyncIterator[None]:
    """Run the block until the first SIGTERM or SIGINT, which ends it, also while it is still being entered."""
    stopped = stop_event()
    block = asyncio.current_task()
    assert block is not None, "inside a task"

    async def watch() -> None:
        await stopped.wait()
        log.info("stopping")
        block.cancel()

    try:
        async with groups.one_error(), asyncio.TaskGroup() as group:
            watching = group.create_task(watch())
            yield
            watching.cancel()
    except asyncio.CancelledError:
        if not stopped.is_set():
            raise
        block.uncancel()


def stop_event() -> asyncio.Event:
    """Set by the first SIGTERM or SIGINT."""
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    return stopped


_FULL = "%(asctime)s %(levelname)s %(name)s %(message)s"
_BRIEF = "note: %(message)s"


def start_logging(verbose: int, *, quiet: bool = False, is_brief: bool = False) -> None:
    """Plain lines on stderr. `quiet` (a cluster inside a verb) shows warnings only, unless asked for more.

    A verb that ends by itself and was not asked for more says a warning as it says everything else.
    """
    base = logging.WARNING if quiet else logging.INFO
    level = [base, logging.INFO if quiet else logging.DEBUG, logging.DEBUG][min(verbose, 2)]
    logging.basicConfig(level=level, format=_BRIEF if is_brief and not verbose else _FULL)
    logging.getLogger("aiohttp.access").setLevel(logging.DEBUG if verbose > 1 else logging.WARNING)
    for library in ("asyncio", "aiosqlite", "aiodocker"):
        logging.getLogger(library).setLevel(logging.WARNING)
