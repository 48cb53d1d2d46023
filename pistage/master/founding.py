"""How a group of masters begins: each founder learns the others' ids, and all begin with the same membership.

A master with an empty directory is a founder only if nobody it was told of has a group yet. A voter that comes back
without its memory could vote twice (§4.4 of Ongaro's dissertation), so it must join under a new id instead.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import aiohttp
from aiohttp import web
from yarl import URL

from pistage import __version__, raft, wire
from pistage.config import MasterConfig, split_address
from pistage.core import commands, ids
from pistage.errors import Code, PistageError
from pistage.master.api import http
from pistage.master.checksums import damaged
from pistage.master.directories import sync_directory
from pistage.master.listening import listening
from pistage.master.peers import UNREACHABLE, credential_of
from pistage.master.store import DurableLog, Identity
from pistage.owning import seen_through

log = logging.getLogger(__name__)

HELLO_PATH: Final = "/raft/v1/hello"
_ASK_EVERY_S = 0.3
_ANSWER_S = 2.0
_REMIND_EVERY = 30  # rounds


@dataclass(frozen=True, slots=True, kw_only=True)
class Founder:
    """What a master needs to know to found a group. `peers` are all founders' URLs, its own among them."""

    data_dir: Path
    listen: tuple[str, int]
    url: str
    peers: tuple[str, ...]
    token: str | None


def advertised(settings: MasterConfig) -> str:
    """The URL at which others reach this master; with port 0 in it where the system is to choose one."""
    if settings.advertise:
        return _checked("advertise", settings.advertise)
    host, port = split_address(settings.listen)
    if host in {"0.0.0.0", "::"} and settings.peers:
        raise PistageError(
            Code.USAGE,
            f"listen: {settings.listen} is no address that the other masters could reach",
            hint="set advertise to the URL at which they do",
        )
    shown = "127.0.0.1" if host in {"0.0.0.0", "localhost"} else f"[{host}]" if ":" in host else host
    return f"http://{shown}:{port}"


def _checked(key: str, text: str) -> str:
    """The URL of a master as all write it: that two of them mean the same is seen by their being the same text."""
    try:
        url = URL(text)
        host = (url.host or "").encode("idna")
    except ValueError:
        host = b""
    if not host or url.scheme not in {"http", "https"} or url.path not in {"", "/"} or url.query_string:
        raise PistageError(
            Code.USAGE, f"{key}: expected the URL of a master, got {text!r}", hint="for example http://10.0.0.1:8470"
        )
    return text.rstrip("/")


def founder_of(settings: MasterConfig, token: str | None) -> Founder:
    """What the settings say of the group. PistageError `usage` where that does not fit together."""
    url = advertised(settings)
    peers = tuple(sorted({_checked("peers", peer) for peer in settings.peers} | {url}))
    is_founded = (settings.data_dir / "raft.db").exists()  # whatever peers says since, to be joined or to grow
    if not is_founded and settings.bootstrap_expect not in (None, len(peers)):
        raise PistageError(
            Code.USAGE,
            f"bootstrap_expect is {settings.bootstrap_expect}, but with this master ({url}) peers names {len(peers)}:"
            f" {', '.join(peers)}",
            hint="name every founder in peers, and set advertise where the others know this one by another URL",
        )
    return Founder(data_dir=settings.data_dir, listen=split_address(settings.listen), url=url, peers=peers, token=token)


def hello_of(identity: Identity, url: str, peers: tuple[str, ...] = ()) -> wire.PeerHello:
    """How a master introduces itself to another."""
    return wire.PeerHello(
        node_id=identity.node_id,
        group_id=identity.group_id,
        url=url,
        version=__version__,
        command_version=commands.VERSION,
        founders=identity.founders,
        peers=peers,
    )


async def open_log(founder: Founder) -> DurableLog:
    """The log in the master's directory; where there is none, once its group is founded. Waits for the others.

    PistageError: `storage` for what is damaged, `conflict` where the others have a group already.
    """
    path = founder.data_dir / "raft.db"
    candidacy = founder.data_dir / "founding"
    if not path.exists():
        for left in ("raft.mark", "state", "snapshots"):
            if (founder.data_dir / left).exists():
                raise damaged(path, f"it is gone, but {founder.data_dir / left} is there")
        identity = await _founded(founder, candidacy)
        base = raft.Base(config=raft.Config(voters=tuple(identity.founders)))
        await asyncio.to_thread(DurableLog.create, path, identity, base)
    # From here on this id may have voted: it is never taken up again without the log.
    candidacy.unlink(missing_ok=True)
    opening = asyncio.get_running_loop().run_in_executor(None, DurableLog, path)
    return await seen_through(opening, unwanted=DurableLog.close)


async def _founded(founder: Founder, candidacy: Path) -> Identity:
    if len(founder.peers) <= 1:
        node_id = wire.new_id()
        return Identity(node_id=node_id, group_id=wire.new_id(), founders={node_id: founder.url})
    node_id = _candidate(candidacy)
    ours = Identity(node_id=node_id, group_id="", founders={})
    hello = hello_of(ours, founder.url, founder.peers)
    credential = credential_of(founder.token)
    headers = {"Authorization": f"Bearer {credential}"} if credential else {}
    async with (
        _waiting_room(founder, hello),
        aiohttp.ClientSession(headers=headers) as session,
    ):
        return await _agree(founder, hello, session)


def _candidate(path: Path) -> str:
    """The id to found with; the same one after a restart, for the others may have founded with it meanwhile."""
    if path.exists() and ids.is_id(known := path.read_text(encoding="ascii").strip()):
        return known
    made = wire.new_id()
    with path.open("w", encoding="ascii") as file:
        file.write(made + "\n")
        file.flush()
        os.fsync(file.fileno())  # the others may found with it in a moment
    sync_directory(path.parent)
    return made


async def _agree(founder: Founder, hello: wire.PeerHello, session: aiohttp.ClientSession) -> Identity:
    others = [url for url in founder.peers if url != founder.url]
    rounds = 0
    while True:
        answers = await asyncio.gather(*(fetch_hello(session, url) for url in others))
        known = {url: one for url, one in zip(others, answers, strict=True) if isinstance(one, wire.PeerHello)}
        if identity := _adopted(founder, hello, known) or _identity_of_all(founder, hello, known):
            log.info("the group of masters is founded: %s", ", ".join(sorted(identity.founders.values())))
            return identity
        if rounds % _REMIND_EVERY == 0:
            missing = "; ".join(str(one) for one in answers if isinstance(one, PistageError))
            here = len(known) + 1
            log.info("waiting for the other founders: %d of %d are here; %s", here, len(founder.peers), missing)
        rounds += 1
        await asyncio.sleep(_ASK_EVERY_S)


def _adopted(founder: Founder, hello: wire.PeerHello, known: Mapping[str, wire.PeerHello]) -> Identity | None:
    """The group that another founder has begun with us in it."""
    for url, one in known.items():
        if one.group_id and hello.node_id in one.founders:
            return Identity(node_id=hello.node_id, group_id=one.group_id, founders=one.founders)
        if one.group_id:
            raise PistageError(
                Code.CONFLICT,
                f"{founder.data_dir} holds no master, but {url} belongs to a group already",
                hint="a new master, or one that lost its data, comes in by `pistage cluster join` with its"
                " configuration; then start it again",
            )
    return None


def _identity_of_all(founder: Founder, hello: wire.PeerHello, known: Mapping[str, wire.PeerHello]) -> Identity | None:
    """The group that begins now; None until every founder is here and has been told of the same founders."""
    if len(known) < len(founder.peers) - 1:
        return None
    for url, one in known.items():
        if one.peers != founder.peers:
            raise PistageError(
                Code.CONFLICT,
                f"{url} was told of other founders: {', '.join(one.peers)}",
                hint="peers must be the same in the configuration of every master",
            )
    founders = {one.node_id: one.url for one in (hello, *known.values())}
    if len(founders) != len(founder.peers):
        raise PistageError(
            Code.CONFLICT, "two of the URLs in peers lead to the same master", hint="name each master once"
        )
    told = "\n".join(f"{node_id} {url}" for node_id, url in sorted(founders.items()))
    group_id = ids.make_id(0, hashlib.sha256(told.encode()).digest()[:10])
    return Identity(node_id=hello.node_id, group_id=group_id, founders=founders)


async def fetch_hello(session: aiohttp.ClientSession, url: str) -> wire.PeerHello | PistageError:
    """How the master at `url` introduces itself, or why it does not."""
    try:
        async with session.get(url + HELLO_PATH, timeout=aiohttp.ClientTimeout(total=_ANSWER_S)) as response:
            if response.status in {401, 403}:
                return PistageError(
                    Code.UNAUTHENTICATED, f"{url} has another token", hint="set the same token at every master"
                )
            if response.status != 200:
                return PistageError(Code.UNAVAILABLE, f"{url} answered {response.status}")
            return wire.unpack_hello(await response.read())
    except UNREACHABLE as error:
        return PistageError(Code.UNAVAILABLE, f"{url}: {error or type(error).__name__}")
    except PistageError as error:
        return PistageError(error.code, f"{url}: {error.message}", hint=error.hint)


@asynccontextmanager
async def _waiting_room(founder: Founder, hello: wire.PeerHello) -> AsyncIterator[None]:
    """The master's port while it waits: the other founders are answered, everybody else is told."""

    async def introduce(request: web.Request) -> web.Response:
        return web.Response(body=wire.pack_hello(hello), content_type="application/octet-stream")

    async def live(request: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def wait(request: web.Request) -> web.Response:
        raise PistageError(
            Code.UNAVAILABLE,
            f"this master waits for the other founders of its group: {', '.join(founder.peers)}",
            hint="start them",
        )

    routes = [("GET", HELLO_PATH, introduce), ("GET", "/livez", live), ("*", "/{path:.*}", wait)]
    async with listening(routes, [http.explain_errors, http.require_token(founder.token)], *founder.listen):
        yield
