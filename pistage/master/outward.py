"""Outward: requests to places that somebody else named, which reach no address they must not (S15)."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from ipaddress import ip_address
from typing import Any, Final

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from pistage.core import limits
from pistage.core.addresses import AddressRules, literal_in
from pistage.core.notices import Verdict, verdict_on

log = logging.getLogger(__name__)

_ANSWER_S: Final = 2.0  # for the rest of an answer whose status is known, so that a polite server sees a polite end
#: In threads of their own, twice as many as requests: one that a silent name server holds is not given up in time.
_LOOKUPS_AT_ONCE: Final = 2 * limits.NOTICES_AT_ONCE
_HOW: Final = "the masters' notice_allow says which addresses are let through"

#: The addresses of a name.
Lookup = Callable[[str], Awaitable[Sequence[str]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tried:
    """What came of one request. `asked_ms` is how long the receiver asked us to wait; `reason` never says where to."""

    verdict: Verdict
    status: int | None = None
    asked_ms: int | None = None
    reason: str = ""


class _RefusedError(Exception):
    """An address that must not be reached; no OSError, which aiohttp would take for a fault of the network."""


#: What went wrong, the narrower kind first. Never what the error says: that may have the URL or an address in it.
_FAULTS: Final[tuple[tuple[type[Exception] | tuple[type[Exception], ...], str], ...]] = (
    (aiohttp.InvalidURL, "its URL cannot be used"),
    (TimeoutError, f"no answer within {limits.NOTICE_TOTAL_S:g} s, or no connection within"
                   f" {limits.NOTICE_CONNECT_S:g} s"),
    (aiohttp.ClientConnectorDNSError, "the name of its host is not known now"),
    ((aiohttp.ClientConnectorCertificateError, aiohttp.ClientSSLError), "its host could not prove by TLS to be itself"),
    (aiohttp.ClientConnectorError, "its host could not be connected to"),
    (Exception, "the connection broke, or what came was no HTTP"),
)  # fmt: skip


class Outward:
    """One per master. Close it at the end."""

    def __init__(self, rules: AddressRules, *, lookup: Lookup | None = None) -> None:
        self._rules = rules
        self._threads = ThreadPoolExecutor(_LOOKUPS_AT_ONCE, "lookup")
        self._lookup = lookup or self._look_up
        self._session: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        """Hang up."""
        if self._session is not None:
            await self._session.close()
        self._threads.shutdown(wait=False, cancel_futures=True)

    def problem_of(self, url: str) -> str | None:
        """Why this URL is refused whatever its name stands for: the address that it has in it."""
        try:
            address = literal_in(URL(url, encoded=True).raw_host or "")
        except ValueError:
            return "its host is neither a name nor an address"
        problem = None if address is None else self._rules.problem_of(address)
        return None if problem is None else f"its host is {problem}, which is refused: {_HOW}"

    async def post(self, url: str, body: bytes, headers: Mapping[str, str]) -> Tried:
        """Send it once. Redirects are not followed, proxies of the environment not used, answers thrown away."""
        if (problem := self.problem_of(url)) is not None:
            return Tried(verdict=Verdict.GIVEN_UP, reason=problem)
        try:
            async with self._opened().post(
                URL(url, encoded=True), data=body, headers=headers, allow_redirects=False
            ) as response:
                tried = _told(response)
                await _read_away(response)
                return tried
        except _RefusedError as refused:
            return Tried(verdict=Verdict.GIVEN_UP, reason=str(refused))
        except (aiohttp.ClientError, OSError, ValueError) as error:
            reason = next(reason for kinds, reason in _FAULTS if isinstance(error, kinds))
            return Tried(verdict=Verdict.WAITING, reason=reason)

    def _opened(self) -> aiohttp.ClientSession:
        if self._session is None:
            # A connection is used once: none outlives the check of its address.
            connector = aiohttp.TCPConnector(
                resolver=_Checked(self._rules, self._lookup), use_dns_cache=False,
                force_close=True, limit=2 * limits.NOTICES_AT_ONCE, socket_factory=self._socket,
            )  # fmt: skip
            timeout = aiohttp.ClientTimeout(total=limits.NOTICE_TOTAL_S, sock_connect=limits.NOTICE_CONNECT_S)
            self._session = aiohttp.ClientSession(
                connector=connector, timeout=timeout, cookie_jar=aiohttp.DummyCookieJar(), auto_decompress=False,
                trust_env=False,
            )  # fmt: skip
        return self._session

    def _socket(self, info: tuple[Any, Any, int, str, tuple[Any, ...]]) -> socket.socket:
        """The last door: whatever way an address took, it is looked at where it is connected to."""
        family, kind, protocol, _, place = info
        if (problem := self._rules.problem_of(ip_address(place[0]))) is not None:
            raise OSError(f"refusing to connect to {problem}")
        made = socket.socket(family, kind, protocol)
        made.setblocking(False)
        return made

    async def _look_up(self, host: str) -> Sequence[str]:
        loop = asyncio.get_running_loop()
        found = await loop.run_in_executor(
            self._threads, lambda: socket.getaddrinfo(host, None, type=socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG)
        )
        return [str(place[0]) for *_, place in found]


class _Checked(AbstractResolver):
    """Answers with addresses that have been looked at; the connection is made to these and not looked up again."""

    def __init__(self, rules: AddressRules, lookup: Lookup) -> None:
        self._rules, self._lookup = rules, lookup

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        addresses = [ip_address(text) for text in dict.fromkeys(await self._lookup(host))]
        if not addresses:
            raise OSError("no address")
        if (problem := self._rules.problem_among(addresses)) is not None:
            raise _RefusedError(f"the name of its host stands for {problem}, which is refused: {_HOW}")
        return [
            ResolveResult(
                hostname=host, host=str(address), port=port, proto=0, flags=socket.AI_NUMERICHOST,
                family=socket.AF_INET6 if address.version == 6 else socket.AF_INET,
            )
            for address in addresses
        ]  # fmt: skip

    async def close(self) -> None:
        pass


def _told(response: aiohttp.ClientResponse) -> Tried:
    status = response.status
    verdict = verdict_on(status)
    reason = "" if verdict is Verdict.DELIVERED else f"it answered {status}"
    if 300 <= status < 400:
        reason += ", and redirects are not followed"
    return Tried(verdict=verdict, status=status, asked_ms=_asked_ms(response), reason=reason)


def _asked_ms(response: aiohttp.ClientResponse) -> int | None:
    text = response.headers.get("Retry-After", "").strip()[:40]
    if text.isascii() and text.isdigit():
        return min(int(text) * 1000, limits.NOTICE_RETRY_AFTER_MAX_MS)
    try:
        at = parsedate_to_datetime(text)
    except (ValueError, OverflowError):
        return None
    at = at if at.tzinfo is not None else at.replace(tzinfo=UTC)
    return min(max(0, round((at - datetime.now(UTC)).total_seconds() * 1000)), limits.NOTICE_RETRY_AFTER_MAX_MS)


async def _read_away(response: aiohttp.ClientResponse) -> None:
    left = limits.NOTICE_ANSWER_BYTES_MAX
    with contextlib.suppress(TimeoutError, aiohttp.ClientError, OSError, ValueError):
        async with asyncio.timeout(_ANSWER_S):
            while left > 0 and (piece := await response.content.read(left)):
                left -= len(piece)
    response.close()
