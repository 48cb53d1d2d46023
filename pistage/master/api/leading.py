"""Any master answers: what changes something goes to the leader by itself, what reads waits until it is fresh."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final

import aiohttp
from aiohttp import web

from pistage.core import limits
from pistage.errors import Code, PistageError
from pistage.master.api import http
from pistage.master.api.context import Context
from pistage.owning import running

log = logging.getLogger(__name__)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

FORWARDED: Final = "Pistage-Forwarded-By"
LEADER: Final = "Pistage-Leader"
APPLIED: Final = "Pistage-Applied-Index"
AGE: Final = "Pistage-Leader-Contact-Ms"
_LEADER_WAIT_S = 4.0  # an election takes about one; a request that comes in the middle of it is worth keeping
_ANSWER_S = 60.0
_SOON_S = 1.0  # of what an answer can do without
_ASK_AGAIN_S = 0.05
_LAST_WORD_S = 0.5  # what was done under the leader before is known by then, to it or to nobody
_SILENT: Final = (aiohttp.ClientConnectionError, TimeoutError)
#: What belongs to one connection (RFC 9110, section 7.6.1), or is set anew.
_OF_THE_CONNECTION: Final = frozenset(
    {"connection", "content-encoding", "content-length", "date", "host", "keep-alive", "server", "te", "trailer",
     "transfer-encoding", "upgrade"}
)  # fmt: skip


def at_the_leader(context: Context, handler: Handler) -> Handler:
    """Answer on the leader; any other master passes the request on, once, and the answer back.

    Passed on rather than redirected (as Ongaro prefers): curl and browsers drop their credentials on the way to
    another host. The answer names the leader, so that a client can ask it directly from then on.
    """

    async def answer(request: web.Request) -> web.StreamResponse:
        url = await leader_url(context)
        if url is None:
            return await handler(request)
        if FORWARDED in request.headers:
            raise no_leader("leadership moves just now")
        body = await http.read_body(request, bytes_max=limits.REQUEST_BODY_BYTES_MAX)
        return await _forward_to_the_leader(context, request, url, body)

    answer.__doc__ = handler.__doc__
    return answer


async def passed_to_the_leader(context: Context, request: web.Request, body: bytes) -> web.StreamResponse | None:
    """The leader's answer to a request whose body was read already; None where this master leads."""
    url = await leader_url(context)
    if url is None:
        return None
    if FORWARDED in request.headers:
        raise no_leader("leadership moves just now")
    return await _forward_to_the_leader(context, request, url, body)


def sent_to_the_leader(context: Context, handler: Handler) -> Handler:
    """As `at_the_leader`, for agents: they follow a redirect, and stay."""

    async def answer(request: web.Request) -> web.StreamResponse:
        url = await leader_url(context)
        if url is None:
            return await handler(request)
        raise web.HTTPTemporaryRedirect(url + request.path_qs)

    answer.__doc__ = handler.__doc__
    return answer


def after_reading_up(context: Context, handler: Handler) -> Handler:
    """Answer from this master's state once it holds every change answered before; with ?stale=1 as it is.

    With ?min_index=N it is enough that it holds entry N. The headers say how fresh the answer is.
    """

    async def answer(request: web.Request) -> web.StreamResponse:
        least = http.number_in(request, "min_index", 0)
        if http.is_set(request, "stale"):
            pass
        elif least:
            await _reach(context, least)
        else:
            await read_up(context)
        response = await handler(request)
        if not response.prepared:
            response.headers.update(freshness(context))
        return response

    answer.__doc__ = handler.__doc__
    return answer


def freshness(context: Context) -> dict[str, str]:
    """How far this master's state is, who leads, and how long ago it was heard of (-1: never)."""
    contact_s = context.replica.leader_contact_s
    leader = context.url_of(context.replica.leader)
    return ({LEADER: leader} if leader else {}) | {
        APPLIED: str(context.replica.applied_index),
        AGE: "-1" if contact_s is None else str(round(contact_s * 1000)),
    }


async def leader_url(context: Context) -> str | None:
    """The leader's URL, or None where it is this master; waits through an election. `unavailable` without a leader."""
    replica = context.replica
    try:
        async with asyncio.timeout(_LEADER_WAIT_S):
            while not replica.is_leading:
                leader = replica.leader
                if leader is not None and leader != replica.node_id and (url := context.peers.url_of(leader)):
                    return url
                if replica.is_disk_full and replica.is_alone:
                    raise _disk_full()
                await replica.role_change()
    except TimeoutError:
        if context.members.is_taken_out:
            raise no_leader("this master was taken out of the group") from None
        if replica.is_disk_full:
            raise _disk_full() from None
        raise no_leader("the masters have no leader now") from None
    return None


def no_leader(reason: str) -> PistageError:
    """For a change that nobody can make at the moment."""
    return PistageError(Code.UNAVAILABLE, reason, hint="try again; a majority of them must be up and reach each other")


def _disk_full() -> PistageError:
    return PistageError(Code.STORAGE, "the master's disk is full", hint="free some space on it; nothing was changed")


async def read_up(context: Context) -> None:
    """Wait until this master holds every change answered before; `unavailable` without a leader."""
    until = time.monotonic() + _LEADER_WAIT_S
    while True:
        try:
            return await context.replica.read()
        except PistageError as refusal:  # in the middle of an election
            if refusal.code is not Code.UNAVAILABLE or time.monotonic() > until:
                raise
        await asyncio.sleep(0.05)


async def _reach(context: Context, index: int) -> None:
    try:
        async with asyncio.timeout(_LEADER_WAIT_S):
            await context.replica.until_applied(index)
    except TimeoutError:
        raise PistageError(
            Code.UNAVAILABLE, f"this master is at {context.replica.applied_index}, not at {index}", hint="try again"
        ) from None


async def _forward_to_the_leader(context: Context, request: web.Request, url: str, body: bytes) -> web.StreamResponse:
    """Passed on once; where nobody could be reached at all, to the next leader, which may be this master."""
    until = time.monotonic() + _LEADER_WAIT_S
    while True:
        try:
            async with running(_raise_once_deposed(context, url)):
                answer = await _ask(context, request, url, body)
            return await _pass_back(request, answer, url)
        except aiohttp.ClientConnectorError as error:
            if time.monotonic() > until:
                raise _silent(url, error) from None
        except _SILENT as error:
            raise _silent(url, error) from None
        await asyncio.sleep(_ASK_AGAIN_S)
        url = await leader_url(context) or context.peers.hello().url


async def _raise_once_deposed(context: Context, url: str) -> None:
    """A leader that stands still answers nothing, and it may be long until it does: ask its successor instead."""
    replica = context.replica
    while True:
        while context.url_of(replica.leader) == url:
            await replica.role_change()
        await asyncio.sleep(_LAST_WORD_S)
        if context.url_of(replica.leader) != url:
            raise no_leader(f"the leader at {url} was deposed before it answered")


async def told_by_the_leader(context: Context, request: web.Request) -> Any:
    """What the leader answers to the same question in JSON: of what it alone knows.

    None where this master leads, and where there is no leader or it does not answer soon.
    """
    url = context.leader_elsewhere()
    if not url or FORWARDED in request.headers or http.is_set(request, "stale"):
        return None
    try:
        unconditional = _OF_THE_CONNECTION | {"if-none-match"}
        async with asyncio.timeout(_SOON_S), await _ask(context, request, url, b"", left_out=unconditional) as answer:
            return await answer.json() if answer.status == 200 else None
    except (aiohttp.ClientError, TimeoutError, ValueError):
        return None


async def forward(context: Context, request: web.Request, url: str, body: bytes) -> web.StreamResponse:
    """The answer of the master at `url` to this request."""
    try:
        return await _pass_back(request, await _ask(context, request, url, body), url)
    except _SILENT as error:
        raise _silent(url, error) from None


def _silent(url: str, error: Exception) -> PistageError:
    log.info("the leader at %s does not answer: %s", url, error or type(error).__name__)
    return no_leader(f"the leader at {url} does not answer")


async def _ask(
    context: Context, request: web.Request, url: str, body: bytes, *, left_out: frozenset[str] = _OF_THE_CONNECTION
) -> aiohttp.ClientResponse:
    headers = {key: value for key, value in request.headers.items() if key.lower() not in left_out}
    headers[FORWARDED] = context.replica.node_id
    if "Authorization" not in request.headers:  # of a webhook: the session would lend it the masters' own credential
        headers["Authorization"] = ""
    return await context.peers.http.request(
        request.method,
        url + request.path_qs,
        headers=headers,
        data=body or None,
        allow_redirects=False,
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=1.0, sock_read=_ANSWER_S),
    )


async def _pass_back(request: web.Request, answer: aiohttp.ClientResponse, url: str) -> web.StreamResponse:
    kept = {key: value for key, value in answer.headers.items() if key.lower() not in _OF_THE_CONNECTION}
    response = web.StreamResponse(status=answer.status, headers=kept | {LEADER: url})
    async with answer:
        await response.prepare(request)
        try:
            async for piece in answer.content.iter_any():
                await response.write(piece)
        except (aiohttp.ClientError, TimeoutError) as error:
            # It has begun, and an error would read as more of it: broken off, the client sees that there is more.
            request.protocol.force_close()
            raise ConnectionError(f"the leader at {url} broke off: {error or type(error).__name__}") from None
        await response.write_eof()
    return response
