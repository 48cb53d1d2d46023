"""Requests to places that somebody else named: no way to an address that is refused (S15), and no answer that hurts."""

import asyncio
import gzip
import os
import ssl
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import trustme
from aiohttp import web

from pistage.core import limits
from pistage.core.addresses import AddressRules
from pistage.core.notices import Verdict
from pistage.master import outward as module
from pistage.master.outward import Outward, Tried
from tests.master.fake_receiver import FakeReceiver, a_receiver

LOOPBACK = AddressRules.of(["127.0.0.0/8"])
NAME = "hooks.example"


class Names:
    """A name server that answers with these in turn, the last one for ever."""

    def __init__(self, *answers: Sequence[str]) -> None:
        self.answers = list(answers)
        self.asked: list[str] = []

    async def look_up(self, host: str) -> Sequence[str]:
        self.asked.append(host)
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


@asynccontextmanager
async def outward(
    rules: AddressRules = LOOPBACK, lookup: Callable[[str], Awaitable[Sequence[str]]] | None = None
) -> AsyncIterator[Callable[..., Awaitable[Tried]]]:
    made = Outward(rules, lookup=lookup)

    async def post(url: str, headers: dict[str, str] | None = None) -> Tried:
        return await made.post(url, b"{}", headers or {})

    try:
        yield post
    finally:
        await made.close()


def named(receiver: FakeReceiver, name: str = NAME) -> str:
    """Its URL under a name."""
    return f"http://{name}:{receiver.url.rpartition(':')[2]}/x"


async def test_a_name_is_looked_up_once_and_the_connection_goes_to_what_was_looked_at() -> None:
    names = Names(["127.0.0.1"], ["169.254.169.254"])  # who looks twice gets the other one
    async with a_receiver() as receiver, outward(lookup=names.look_up) as post:
        assert (await post(named(receiver))).verdict is Verdict.DELIVERED
        assert names.asked == [NAME]
        assert receiver.got[0].headers["Host"] == named(receiver).split("/")[2]


async def test_a_name_that_stands_for_something_else_the_next_time_is_refused_then() -> None:
    names = Names(["127.0.0.1"], ["10.0.0.1"])
    async with a_receiver() as receiver, outward(lookup=names.look_up) as post:
        assert (await post(named(receiver))).verdict is Verdict.DELIVERED
        again = await post(named(receiver))
        assert again.verdict is Verdict.GIVEN_UP and "a private address, which is refused" in again.reason
        assert "10.0.0.1" not in again.reason and len(receiver.got) == 1


@pytest.mark.parametrize(
    "addresses",
    [["127.0.0.1", "169.254.169.254"], ["8.8.8.8", "10.0.0.1"], ["::1"], ["::ffff:169.254.169.254"], ["fe80::1%lo"],
     ["0.0.0.0"], ["127.0.0.1", "fd00::1"]],
)  # fmt: skip
async def test_a_name_with_one_address_that_is_refused_is_refused_whatever_the_others_are(addresses: list[str]) -> None:
    async with a_receiver() as receiver, outward(lookup=Names(addresses).look_up) as post:
        tried = await post(named(receiver))
        assert (tried.verdict, tried.status) == (Verdict.GIVEN_UP, None)
        assert "notice_allow" in tried.reason and receiver.got == []


@pytest.mark.parametrize(
    "host", ["169.254.169.254", "10.0.0.1", "[::1]", "[::ffff:127.0.0.1]", "2130706433", "127.1", "0x7f.0.0.1",
             "0177.0.0.1", "0", "[fe80::1]", "255.255.255.255"],
)  # fmt: skip
async def test_an_address_in_the_url_is_looked_at_without_asking_anybody(host: str) -> None:
    names = Names(["127.0.0.1"])
    async with outward(AddressRules(), names.look_up) as post:
        tried = await post(f"http://{host}:1/")
        assert (tried.verdict, names.asked) == (Verdict.GIVEN_UP, [])


async def test_the_socket_itself_refuses_whatever_way_an_address_took(monkeypatch: pytest.MonkeyPatch) -> None:
    async def unchecked(self: Any, host: str, port: int = 0, family: int = 0) -> list[dict[str, Any]]:
        return [{"hostname": host, "host": "127.0.0.1", "port": port, "family": family, "proto": 0, "flags": 0}]

    monkeypatch.setattr(module._Checked, "resolve", unchecked)
    async with a_receiver() as receiver, outward(AddressRules()) as post:
        assert (await post(named(receiver))).reason == "its host could not be connected to"
        assert receiver.got == []


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_redirects_are_not_followed(status: int) -> None:
    async with a_receiver() as other:
        headers = {"Location": other.url}
        async with a_receiver(statuses=[status], headers=headers) as receiver, outward() as post:
            tried = await post(receiver.url)
            assert (tried.verdict, tried.status) == (Verdict.GIVEN_UP, status)
            assert tried.reason == f"it answered {status}, and redirects are not followed"
            assert other.got == []


async def test_proxies_of_the_environment_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    async with a_receiver() as proxy, a_receiver() as receiver, outward() as post:
        for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "all_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, proxy.url)
        assert (await post(receiver.url)).verdict is Verdict.DELIVERED
        assert (len(proxy.got), len(receiver.got)) == (0, 1)


async def test_a_connection_serves_one_request_and_cookies_are_not_kept() -> None:
    lookup = Names(["127.0.0.1"]).look_up
    async with a_receiver(headers={"Set-Cookie": "a=b"}) as receiver, outward(lookup=lookup) as post:
        for _ in range(2):
            await post(named(receiver))  # of a host without a name no cookie would be kept anyway
        assert len(receiver.got) == 2
        assert all("Cookie" not in got.headers and got.headers["Connection"] == "close" for got in receiver.got)


@asynccontextmanager
async def a_server(answer: bytes) -> AsyncIterator[tuple[str, list[bytes]]]:
    """Speaks no HTTP of its own: takes what comes first, says this and hangs up."""
    came: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        came.append(await reader.read(4096))
        writer.write(answer)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}", came
    finally:
        server.close()
        await server.wait_closed()


@pytest.mark.parametrize(
    "answer",
    [b"", b"SSH-2.0-OpenSSH_9\r\n", b"HTTP/1.1 200", b"HTTP/1.1 20x no\r\n\r\n", b"\x00" * 100,
     b"HTTP/1.1 200 OK\r\nA: " + b"a" * 100_000, b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 50_000],
)  # fmt: skip
async def test_what_is_no_http_is_tried_again_and_is_not_quoted(answer: bytes) -> None:
    async with a_server(answer) as (place, _), outward() as post:
        tried = await post(f"http://{place}/")
        assert (tried.verdict, tried.status) == (Verdict.WAITING, None)
        assert tried.reason == "the connection broke, or what came was no HTTP"


async def test_tls_is_asked_for_by_the_name_and_not_by_the_address() -> None:
    async with a_server(b"not TLS at all") as (place, came), outward(lookup=Names(["127.0.0.1"]).look_up) as post:
        tried = await post(f"https://{NAME}:{place.rpartition(':')[2]}/")
        assert NAME.encode() in came[0] and b"127.0.0.1" not in came[0]
        assert (tried.verdict, tried.reason) == (Verdict.WAITING, "its host could not prove by TLS to be itself")


async def test_faults_of_the_network_are_tried_again() -> None:
    async def unknown(host: str) -> Sequence[str]:
        raise OSError("no such name: secret.internal")

    async def nothing(host: str) -> Sequence[str]:
        return []

    async with a_server(b"") as (place, _):
        pass  # nobody listens there any more
    async with outward() as post:
        assert (await post(f"http://{place}/")).reason == "its host could not be connected to"
    for lookup in (unknown, nothing):
        async with outward(lookup=lookup) as post:
            tried = await post(f"http://{NAME}/")
            assert (tried.verdict, tried.reason) == (Verdict.WAITING, "the name of its host is not known now")


async def test_a_name_server_that_is_silent_is_waited_for_no_longer_than_a_request_may_take(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(limits, "NOTICE_TOTAL_S", 0.05)

    async def silent(host: str) -> Sequence[str]:
        await asyncio.Event().wait()
        return []

    async with outward(lookup=silent) as post:
        tried = await post(f"http://{NAME}/")
        assert tried.verdict is Verdict.WAITING and tried.reason.startswith("no answer within")


@pytest.mark.parametrize(
    ("said", "asked_ms"),
    [("7", 7_000), ("0", 0), ("999999999999", limits.NOTICE_RETRY_AFTER_MAX_MS), ("-1", None), ("soon", None),
     ("1.5", None), ("", None), ("٣", None), ("Wed, 21 Oct 2015 07:28:00 GMT", 0),
     ("1 Jan 9999999999999 0:0:0 GMT", None), ("1 Jan 2030 0:0:99999999999999", None),
     ("9" * 5_000, limits.NOTICE_RETRY_AFTER_MAX_MS)],
)  # fmt: skip
async def test_what_a_receiver_asks_for_is_heeded_within_bounds(said: str, asked_ms: int | None) -> None:
    async with a_receiver(statuses=[503], headers={"Retry-After": said}) as receiver, outward() as post:
        tried = await post(receiver.url)
        assert (tried.verdict, tried.status, tried.reason) == (Verdict.WAITING, 503, "it answered 503")
        assert tried.asked_ms == asked_ms


async def test_a_receiver_may_ask_by_a_date() -> None:
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=600), usegmt=True)
    async with a_receiver(statuses=[429], headers={"Retry-After": date}) as receiver, outward() as post:
        tried = await post(receiver.url)
        assert tried.asked_ms is not None and 500_000 < tried.asked_ms <= 600_000


async def test_an_answer_that_is_packed_is_not_unpacked(monkeypatch: pytest.MonkeyPatch) -> None:
    bomb = gzip.compress(bytes(50 << 20))

    async def answer(request: web.Request) -> web.StreamResponse:
        return web.Response(body=bomb, headers={"Content-Encoding": "gzip"})

    pieces: list[bytes] = []
    whole = aiohttp.StreamReader.read

    async def noted(self: aiohttp.StreamReader, n: int = -1) -> bytes:
        pieces.append(await whole(self, n))
        return pieces[-1]

    async with a_receiver(answer=answer) as receiver, outward() as post:
        monkeypatch.setattr(aiohttp.StreamReader, "read", noted)
        assert (await post(receiver.url)).verdict is Verdict.DELIVERED
        assert bomb[2:1000] in b"".join(pieces) and sum(map(len, pieces)) <= limits.NOTICE_ANSWER_BYTES_MAX + 2


#: Posts to each URL with a lookup that always gives this machine, and says what came of it. A process of its own,
#: because which authorities count is read once, from what SSL_CERT_FILE names.
POSTS = """
import asyncio, sys
from pistage.core.addresses import AddressRules
from pistage.master.outward import Outward

async def here(host):
    return ["127.0.0.1"]

async def main():
    outward = Outward(AddressRules.of(["127.0.0.0/8"]), lookup=here)
    for url in sys.argv[1:]:
        tried = await outward.post(url, b"{}", {})
        print(tried.verdict, tried.reason, sep=": ")
    await outward.close()

asyncio.run(main())
"""
UNPROVEN = "waiting: its host could not prove by TLS to be itself"


@pytest.mark.slow
async def test_a_host_must_prove_by_its_certificate_to_be_the_one_that_the_url_names(tmp_path: Path) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "authority.pem")
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert(NAME).configure_cert(tls)
    async with a_receiver(tls=tls) as receiver:
        port = receiver.url.rpartition(":")[2]
        urls = [f"https://{host}:{port}/x" for host in (NAME, "other.example", "127.0.0.1")]

        async def told(**variables: str) -> list[str]:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-c", POSTS, *urls, env=os.environ | variables, stdout=asyncio.subprocess.PIPE
            )
            return (await process.communicate())[0].decode().splitlines()

        assert await told() == [UNPROVEN] * 3
        assert receiver.got == []
        assert await told(SSL_CERT_FILE=str(tmp_path / "authority.pem")) == ["delivered: ", UNPROVEN, UNPROVEN]
        assert len(receiver.got) == 1
