"""One request to whichever master answers: rotation, redirects, hints, bounded backoff, errors as PistageError."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import random
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Final, Self
from urllib.parse import urljoin, urlsplit

import aiohttp

from pistage import __version__
from pistage.errors import Code, PistageError

log = logging.getLogger(__name__)

#: How long the first answer may take; a wrong address should be known soon.
FIRST_PATIENCE_S: Final = 3.0
#: How long a master that has answered before may be away (a restart, an election) before a request gives up.
PATIENCE_S: Final = 60.0
#: A stream silent for this long is asked for again from where it stands: the peer may be gone without a word.
SILENCE_S: Final = 45.0
_BACKOFF_FIRST_S, _BACKOFF_MAX_S = 0.05, 2.0
_CONNECT_S, _ANSWER_S = 5.0, 30.0
_OTHERS_AFTER_S = 8.0  # of silence: a master that stands still is not waited for where there are others
_TELL_AGAIN_S = 5.0
_REDIRECTS_MAX = 5
_RETRIED = frozenset({429, 502, 503, 504})
#: What a broken connection looks like, whenever it breaks.
BROKEN: Final = (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError, TimeoutError, ConnectionError)


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What is asked. Everything this client asks may be asked twice: submissions carry an Idempotency-Key."""

    method: str
    path: str
    parameters: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | None = None
    is_for_leader: bool = False  # who does not lead passes it on, byte by byte: ask the leader where it is known


class Patience:
    """Time left to get an answer, and the pauses between tries."""

    def __init__(self, seconds: float) -> None:
        self._deadline = time.monotonic() + seconds
        self._pause = _BACKOFF_FIRST_S

    def is_over(self) -> bool:
        return time.monotonic() >= self._deadline

    async def pause(self, asked_s: float = 0.0) -> None:
        """Wait before the next try: longer each time, or as long as the master asked for."""
        left = max(0.0, self._deadline - time.monotonic())
        await asyncio.sleep(min(left, max(asked_s, self._pause * random.uniform(0.5, 1.0))))
        self._pause = min(self._pause * 2, _BACKOFF_MAX_S)


class Transport:
    """HTTP to a group of masters. An async context manager; not to be shared between event loops."""

    def __init__(
        self,
        servers: Sequence[str],
        token: str | None,
        *,
        first_patience_s: float = FIRST_PATIENCE_S,
        patience_s: float = PATIENCE_S,
    ) -> None:
        self._servers = [_checked(server) for server in servers]
        if not self._servers:
            raise PistageError(Code.USAGE, "no server is configured", hint="set --server or PISTAGE_SERVER")
        self._token = token
        self._first_patience_s, self._patience_s = first_patience_s, patience_s
        self._session: aiohttp.ClientSession | None = None
        self._has_answered = False
        self._told_at: float | None = None
        self._leader = ""  # as the last answer named it

    @property
    def server(self) -> str:
        """The master that is asked first."""
        return self._servers[0]

    async def __aenter__(self) -> Self:
        headers = {"User-Agent": f"pistage/{__version__}"}
        if self._token is not None:
            headers["Authorization"] = f"Bearer {self._token}"
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_S)
        self._session = aiohttp.ClientSession(headers=headers, timeout=timeout, auto_decompress=True)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._session is not None:
            await self._session.close()

    async def fetch_json(self, request: Request) -> Any:
        """The JSON that the answer holds; None for an empty one."""
        text = await self.fetch_text(request)
        try:
            return json.loads(text) if text else None
        except ValueError:
            raise PistageError(
                Code.INTERNAL, f"{self.server} answered with something that is not JSON", hint="is it a Pistage master?"
            ) from None

    async def fetch_text(self, request: Request) -> str:
        """The answer's body. Asked again while masters are away, until patience is over."""
        patience = self.patience()
        while True:
            try:
                silence_s = _ANSWER_S if len(self._servers) == 1 else _OTHERS_AFTER_S
                async with self.open(request, patience=patience, silence_s=silence_s) as response:
                    return await response.text(encoding="utf-8")
            except BROKEN as error:  # cut between the header and the end of the body
                self._rotate()
                if patience.is_over():
                    raise self._unreachable(error) from None
                await patience.pause()

    def tell_of_loss(self) -> None:
        """Say that a stream broke: once for all that break together."""
        now = time.monotonic()
        if self._told_at is None or now - self._told_at > _TELL_AGAIN_S:
            log.warning("the master went away; waiting for one to go on with")
        self._told_at = now

    def patience(self, seconds: float | None = None) -> Patience:
        """Fresh patience: short before the first answer ever, long after it."""
        return Patience(seconds or (self._patience_s if self._has_answered else self._first_patience_s))

    @asynccontextmanager
    async def open(
        self, request: Request, *, patience: Patience | None = None, silence_s: float = SILENCE_S
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """An answer with a status of success whose body is still to be read; reading may raise one of BROKEN."""
        response = await self._answered(request, patience or self.patience(), silence_s)
        try:
            yield response
        finally:
            response.close()

    async def _answered(self, request: Request, patience: Patience, silence_s: float) -> aiohttp.ClientResponse:
        tries = 0
        while True:
            asked_s, tries = 0.0, tries + 1
            try:
                response = await self._send(request, silence_s)
            except BROKEN as error:
                failure = self._unreachable(error)
            else:
                if response.status < 300:
                    return response
                failure, asked_s = await _refusal(response), _retry_after_s(response)
                if response.status not in _RETRIED:
                    raise failure
            log.debug("asked in vain: %s", failure)
            if patience.is_over():
                raise failure
            if not self._prefer(failure.details.get("leader")):
                self._rotate()
            # How long one of them wants to be left alone is no reason to wait for another.
            await patience.pause(asked_s if tries % len(self._servers) == 0 else 0.0)

    async def _send(self, request: Request, silence_s: float) -> aiohttp.ClientResponse:
        """Ask the preferred master, and those it points to."""
        assert self._session is not None, "the client is used outside its `async with`"
        if request.is_for_leader and self._leader in self._servers:  # another address may not be reached from here
            self._prefer(self._leader)
        url = self.server + request.path
        for _ in range(_REDIRECTS_MAX):
            response = await self._session.request(
                request.method,
                url,
                params=request.parameters,
                headers=request.headers,
                data=request.body,
                allow_redirects=False,
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_S, sock_read=silence_s),
            )
            self._has_answered = True
            self._leader = response.headers.get("Pistage-Leader", self._leader).rstrip("/")
            if response.status not in {307, 308}:
                return response
            url = urljoin(url, response.headers.get("Location", ""))
            response.close()
            self._prefer(f"{urlsplit(url).scheme}://{urlsplit(url).netloc}")
            url = self.server + request.path
        raise PistageError(Code.UNAVAILABLE, "the masters send each other's clients in circles", hint="try again")

    def _rotate(self) -> None:
        self._servers.append(self._servers.pop(0))

    def _prefer(self, server: object) -> bool:
        """Ask `server` first from now on; a hint that is no URL, or nothing new, is no help."""
        if not isinstance(server, str) or urlsplit(server).scheme not in {"http", "https"}:
            return False
        hinted = server.rstrip("/")
        is_news = self._servers[0] != hinted
        self._servers = [hinted, *(known for known in self._servers if known != hinted)]
        return is_news

    def _unreachable(self, error: BaseException) -> PistageError:
        reason = _said(error)
        return PistageError(
            Code.UNAVAILABLE,
            f"no master answers at {', '.join(self._servers)}: {reason}",
            hint="start one with `pistage dev` or `pistage serve --role master`, or set --server",
        )


def _said(error: BaseException) -> str:
    """What went wrong with a connection, in the words of the system; aiohttp's own name its internals."""
    match error:
        case aiohttp.ClientConnectorDNSError():
            return f"the name {error.host} is not known"
        case aiohttp.ClientConnectorCertificateError() | aiohttp.ClientConnectorSSLError():
            return str(error)
        case aiohttp.ClientConnectorError() if error.os_error.errno:
            return os.strerror(error.os_error.errno).lower()
        case TimeoutError():
            return "no answer in time"
        case _:
            return str(error) or type(error).__name__


def _checked(server: str) -> str:
    parts = urlsplit(server)
    if parts.scheme not in {"http", "https"} or not parts.netloc:
        raise PistageError(
            Code.USAGE, f"server: expected a URL, got {server!r}", hint="for example http://127.0.0.1:8470"
        )
    return server.rstrip("/")


async def _refusal(response: aiohttp.ClientResponse) -> PistageError:
    """The error that an answer describes; one that is not ours (a proxy's) is named by its status."""
    try:
        text = await response.text(encoding="utf-8", errors="replace")
    except BROKEN:
        text = ""
    finally:
        response.close()
    try:
        problem = json.loads(text)
    except ValueError:
        problem = None
    if isinstance(problem, dict) and "code" in problem:
        return PistageError.from_problem(problem)
    codes = {401: Code.UNAUTHENTICATED, 403: Code.FORBIDDEN, 404: Code.NOT_FOUND, 413: Code.TOO_LARGE}
    code = Code.UNAVAILABLE if response.status in _RETRIED else codes.get(response.status, Code.INTERNAL)
    return PistageError(
        code, f"{response.url} answered {response.status} {response.reason}", hint="is it a Pistage master?"
    )


def _retry_after_s(response: aiohttp.ClientResponse) -> float:
    value = response.headers.get("Retry-After", "")
    return min(float(value), 30.0) if value.isdigit() else 0.0
