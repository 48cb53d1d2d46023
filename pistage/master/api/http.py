"""What stands before every route: who may ask, how much may be sent, and how errors look."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final

from aiohttp import web

from pistage.core import limits
from pistage.errors import Code, PistageError
from pistage.master.peers import credential_of

log = logging.getLogger(__name__)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

#: The only routes that answer without a token.
OPEN_PATHS: Final = frozenset({"/livez", "/readyz"})
#: Routes that have a check of their own instead, by what they are in the table; never by a path, which can be spelled.
OPEN_ROUTES: Final = frozenset({"/hooks/{name}"})
#: What masters alone may ask of each other.
PEER_PATHS: Final = "/raft/"


def require_token(token: str | None) -> Any:
    """Middleware: 401 without the cluster's token, before anything of the body is read. None lets everybody in.

    The masters' own routes take the masters' credential alone: the token of a client or an agent is 403 there (S3).
    """
    expected = _digest(token)
    masters = _digest(credential_of(token))

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        if expected is not None and masters is not None and not _is_open(request):
            scheme, _, shown = request.headers.get("Authorization", "").partition(" ")
            digest = _digest(shown.strip()) if scheme.lower() == "bearer" else None
            if digest is None or not (hmac.compare_digest(digest, expected) | hmac.compare_digest(digest, masters)):
                raise PistageError(
                    Code.UNAUTHENTICATED,
                    "the cluster token is missing or wrong",
                    hint="set PISTAGE_TOKEN or token_file to the cluster's token",
                )
            if request.path.startswith(PEER_PATHS) is not hmac.compare_digest(digest, masters):
                raise PistageError(Code.FORBIDDEN, "this is for masters alone, or not for them")
        return await handler(request)

    return middleware


def _is_open(request: web.Request) -> bool:
    resource = request.match_info.route.resource
    return request.path in OPEN_PATHS or (resource is not None and resource.canonical in OPEN_ROUTES)


def _digest(secret: str | None) -> bytes | None:
    return None if secret is None else hashlib.sha256(secret.encode("utf-8", "surrogateescape")).digest()


@web.middleware
async def explain_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Middleware: every refusal is problem+json; a bug of ours is logged and told as one, without its insides."""
    try:
        return await handler(request)
    except PistageError as error:
        return problem(error)
    except web.HTTPException as error:
        if error.status < 400:
            raise
        code = {404: Code.NOT_FOUND, 405: Code.USAGE, 413: Code.TOO_LARGE}.get(error.status, Code.USAGE)
        detail = f"{request.method} {request.path}: {error.reason}"
        return problem(PistageError(code, detail, hint="the routes are in /openapi.json"), status=error.status)
    except ConnectionError:
        return web.Response(status=499)  # the client hung up in the middle of an answer; nobody reads this one
    except Exception:
        log.exception("%s %s failed", request.method, request.path)
        return problem(PistageError(Code.INTERNAL, "the master failed to answer; its log has the reason"))


def problem(error: PistageError, *, status: int | None = None) -> web.Response:
    """An error as RFC 9457 problem+json."""
    headers = {"Retry-After": "1"} if error.code is Code.UNAVAILABLE else {}
    if error.code is Code.UNAUTHENTICATED:
        headers["WWW-Authenticate"] = 'Bearer realm="pistage"'
    return web.Response(
        text=json.dumps(error.to_problem() | {"status": status or error.http_status}, ensure_ascii=False),
        status=status or error.http_status,
        content_type="application/problem+json",
        headers=headers,
    )


def answer(value: object, *, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    """A JSON answer."""
    text = json.dumps(value, ensure_ascii=False)
    return web.Response(text=text, status=status, content_type="application/json", headers=headers)


def answer_cached(request: web.Request, value: dict[str, Any]) -> web.Response:
    """A JSON answer with an ETag of what it says, however fresh it is; 304 if the client has it."""
    text = json.dumps(value, ensure_ascii=False)
    said = json.dumps({key: item for key, item in value.items() if key != "applied_index"}, ensure_ascii=False)
    etag = f'W/"{hashlib.sha256(said.encode()).hexdigest()[:32]}"'
    if request.headers.get("If-None-Match") == etag:
        return web.Response(status=304, headers={"ETag": etag})
    return web.Response(text=text, content_type="application/json", headers={"ETag": etag})


async def read_body(request: web.Request, *, bytes_max: int = limits.REQUEST_BODY_BYTES_MAX) -> bytes:
    """The whole body; `too_large` past `bytes_max`, `timeout` for one that comes at less than 1 KB/s."""
    if (request.content_length or 0) > bytes_max:
        raise _too_large(bytes_max)
    started = time.monotonic()
    pieces: list[bytes] = []
    size = 0
    while not request.content.at_eof():
        patience_s = limits.REQUEST_HEADER_TIMEOUT_S + size / limits.REQUEST_BODY_RATE_MIN_BYTES_S
        try:
            async with asyncio.timeout(started + patience_s - time.monotonic()):
                pieces.append(await request.content.readany())
        except TimeoutError:
            request.protocol.force_close()
            raise PistageError(Code.TIMEOUT, "the request's body came too slowly") from None
        size += len(pieces[-1])
        if size > bytes_max:
            request.protocol.force_close()
            raise _too_large(bytes_max)
    return b"".join(pieces)


def _too_large(bytes_max: int) -> PistageError:
    return PistageError(Code.TOO_LARGE, f"the request's body is over {bytes_max / limits.MIB:g} MiB")


def number_in(request: web.Request, name: str, default: int, *, least: int = 0, most: int | None = None) -> int:
    """An integer from the query, within bounds; `usage` otherwise."""
    text = request.query.get(name)
    if text is None:
        return default
    if not text.isascii() or not text.isdigit() or len(text) > 18:
        raise PistageError(Code.USAGE, f"{name}: expected a whole number, got {text[:50]!r}")
    if int(text) < least or (most is not None and int(text) > most):
        raise PistageError(Code.USAGE, f"{name}: expected {least} to {most}, got {text}")
    return int(text)


def is_set(request: web.Request, name: str) -> bool:
    """A flag from the query: `?follow`, `?follow=1`, `?follow=true`."""
    return request.query.get(name, "0").lower() in {"", "1", "true", "yes"}
