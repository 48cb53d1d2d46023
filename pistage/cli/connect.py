"""`connect`: a client of the configured masters, of a `dev` that runs here, or of a cluster of this verb's own."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from pistage.cli import embedded
from pistage.cli.home import POLL_S, Endpoint, Home
from pistage.cli.output import say
from pistage.client import Client
from pistage.config import ClientConfig, Config, read_token
from pistage.errors import Code, PistageError
from pistage.owning import running

#: Guests that need no longer than this to read the end are not worth a word.
_QUIET_S: Final = 1.0
#: How often a guest looks whether its owner is still there.
_OWNER_S: Final = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Connection:
    """A client; `is_embedded` says that the cluster lives, and ends, with this process."""

    client: Client
    is_embedded: bool = False
    orphaned: asyncio.Event = field(default_factory=asyncio.Event)  # the verb that was the cluster has ended

    def refuse_unless_it_stays(self, what: str) -> None:
        """PistageError `usage` for what would end with the cluster of this command."""
        if self.is_embedded:
            raise PistageError(
                Code.USAGE,
                f"{what}, and the cluster of this command ends with it",
                hint="start `pistage dev`, which stays, or name a cluster with --server",
            )


@asynccontextmanager
async def connect(
    config: Config[ClientConfig],
    *,
    needs_agent: bool = False,
    may_found: bool = False,
    runtime: str | None = None,
) -> AsyncIterator[Connection]:
    """A connection for one verb.

    A configured server wins. Else the owner of the data directory is asked, if there is one; else this process
    becomes the owner, with an agent if the verb `needs_agent`: to run, or to see an unfinished run to its end. Only a
    verb that `may_found` begins a cluster where nothing was run yet.
    """
    settings = config.settings
    if settings.server:
        async with Client(settings.server, read_token(settings)) as client:
            yield Connection(client=client)
        return
    home = Home(settings.data_dir)
    if not (may_found or home.is_used()):
        raise PistageError(
            Code.UNAVAILABLE,
            "no server is configured and nothing was run here yet",
            hint="set --server or PISTAGE_SERVER, or start with `pistage run FILE` or `pistage dev`",
        )
    while True:
        async with AsyncExitStack() as stack:
            if stack.enter_context(home.lock()):
                yield await _owned(stack, home, needs_agent=needs_agent, runtime=runtime)
                return
            endpoint = await home.endpoint(needs_agent=needs_agent)
            guest = stack.enter_context(ExitStack())
            if endpoint is not None and guest.enter_context(home.guest_lock()) and home.is_owned_at(endpoint):
                token = _read(endpoint.token_file) or settings.token
                client = await stack.enter_async_context(Client((endpoint.url,), token))
                connection = Connection(client=client)
                async with running(_watch_owner(home, endpoint, guest, connection)):
                    yield connection
                return
        await asyncio.sleep(POLL_S)  # the owner has left, or is about to


async def find(config: Config[ClientConfig]) -> tuple[Sequence[str], str | None] | None:
    """The servers and the token that `connect` would use; None where it would start a cluster of its own."""
    settings = config.settings
    if settings.server:
        return settings.server, read_token(settings)
    home = Home(settings.data_dir)
    endpoint = await home.endpoint(needs_agent=False) if home.is_used() else None
    return ((endpoint.url,), _read(endpoint.token_file) or settings.token) if endpoint else None


async def _owned(stack: AsyncExitStack, home: Home, *, needs_agent: bool, runtime: str | None) -> Connection:
    leaving = stack.enter_context(ExitStack())  # closed after the cluster: until then no guest comes in
    choice = await embedded.choose_runtime(runtime) if needs_agent else None
    if choice is not None and choice.note:
        say(f"note: {choice.note}", fg="yellow", bold=True)
    cluster = await stack.enter_async_context(embedded.cluster(home, choice=choice))
    client = await stack.enter_async_context(Client((cluster.url,), cluster.token))

    async def leave(kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if kind is None and needs_agent:
            await _finish_runs(client)
        if kind is None:
            await _wait_for_guests(leaving, home)

    stack.push_async_exit(leave)
    return Connection(client=client, is_embedded=True)


async def _finish_runs(client: Client) -> None:
    """Other processes may have given this cluster work, or an earlier one left some: it is done before we leave."""
    told: set[str] = set()
    while True:
        pages = [await client.fetch_runs(state=state) for state in ("running", "queued", "pending")]
        runs = [run for page in pages for run in page["items"]]
        if not runs:
            return
        for run in runs:
            if run["id"] not in told:
                told.add(run["id"])
                say(f"waiting for {run['name']}#{run['number']}, which runs here too (Ctrl-C leaves)")
        async for _ in client.follow_events(runs[0]["id"]):
            pass


async def _wait_for_guests(leaving: ExitStack, home: Home) -> None:
    """Let other processes read to the end; from then on no new one comes in."""
    is_told = False
    deadline = time.monotonic() + _QUIET_S
    while (fd := home.try_leave()) is None:
        if not is_told and time.monotonic() > deadline:
            is_told = True
            say("waiting for another pistage that looks at this cluster (Ctrl-C leaves)")
        await asyncio.sleep(POLL_S)
    leaving.callback(os.close, fd)


async def _watch_owner(home: Home, endpoint: Endpoint, guest: ExitStack, connection: Connection) -> None:
    """A guest without an owner is none: the next owner need not wait for it. A `dev` may come back, no verb will."""
    while home.is_owned_at(endpoint):  # noqa: ASYNC110 - another process owns it
        await asyncio.sleep(_OWNER_S)
    guest.close()
    if not endpoint.is_lasting:
        connection.orphaned.set()


def _read(file: str) -> str | None:
    try:
        return Path(file).read_text(encoding="utf-8").strip()
    except OSError:
        return None
