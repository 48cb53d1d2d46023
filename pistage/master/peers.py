"""The other masters: one WebSocket to each for what is sent to it, another from each for what it sends.

Consensus allows for messages that are lost, late, repeated or out of order; so a link that is down or too slow drops
them, and nothing here waits.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import os
import random
import socket
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Final

import aiohttp
from aiohttp import WSMsgType, web

from pistage import raft, wire
from pistage.core import limits
from pistage.errors import Code, PistageError
from pistage.master import snapshots
from pistage.master.directories import sync_directory
from pistage.owning import in_a_thread

log = logging.getLogger(__name__)

STREAM_PATH: Final = "/raft/v1/stream"
SNAPSHOT_PATH: Final = "/raft/v1/snapshot"
_CONNECT_S = 1.0
_HELLO_S = 5.0
_BACKOFF_FIRST_S, _BACKOFF_MAX_S = 0.05, 1.0
_IDLE_S = 60.0  # then the link to one that is no member is let go
_UNANSWERED_MS = 3_000  # what the kernel cannot deliver for so long: a cut link is dialled anew, not waited for
_SNAPSHOT_S = 600.0  # copying a large state takes the other master a while
_PART_S = 30.0
_PART_TRIES = 5
#: How it shows that nobody can be asked at a URL. ValueError: what stands there is no name of a host (IDNA), or the
#: answer no text; whoever has configured it so must not stop those who try it.
UNREACHABLE: Final = (aiohttp.ClientError, OSError, ValueError)
_LINK_ERRORS: Final = (*UNREACHABLE, PistageError, TypeError)


def credential_of(token: str | None) -> str | None:
    """What masters show each other: made from the cluster token, but not it, so that no client passes for a master."""
    return token and hmac.new(token.encode(), b"pistage masters", hashlib.sha256).hexdigest()


class Peers:
    """Carries messages while `serve` runs; `receive` is called with each that comes in."""

    def __init__(self, hello: Callable[[], wire.PeerHello], token: str | None) -> None:
        self.hello = hello  # how this master introduces itself
        self._node_id = hello().node_id
        credential = credential_of(token)
        self._headers = {"Authorization": f"Bearer {credential}"} if credential else {}
        self._urls: dict[str, str] = {}
        self._links: dict[str, _Link] = {}
        self._group: asyncio.TaskGroup | None = None
        self._receive: Callable[[raft.Message], None] = lambda message: None
        self._accepted: set[web.WebSocketResponse] = set()
        self._is_leaving = False
        self.hellos: dict[str, wire.PeerHello] = {}  # the newest of each master that has dialled this one

    def on_message(self, receive: Callable[[raft.Message], None]) -> None:
        """Call `receive` with each message from now on."""
        self._receive = receive

    def url_of(self, node_id: str) -> str | None:
        """Where that master is reached, as far as is known."""
        return self._urls.get(node_id)

    def learn(self, urls: Mapping[str, str]) -> None:
        """These are reached there."""
        for node_id, url in urls.items():
            if node_id != self._node_id and url and self._urls.get(node_id) != url:
                self._urls[node_id] = url
                if link := self._links.get(node_id):
                    link.url = url

    async def serve(self) -> None:
        """Keep the links, until cancelled."""
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_S)
        connector = aiohttp.TCPConnector(limit=0)
        async with (
            aiohttp.ClientSession(headers=self._headers, timeout=timeout, connector=connector) as self.http,
            asyncio.TaskGroup() as self._group,
        ):
            await asyncio.Event().wait()

    def send(self, message: raft.Message) -> None:
        """Take a message over, or drop it."""
        if link := self._link_to(message.dst):
            link.send(wire.pack_peer_message(message))

    def connect(self, members: Iterable[str]) -> None:
        """Have a link to each: a candidate's first question must not wait for one.

        Others had something to be told, or have it yet: a leader that this master's log does not know of, or one that
        was taken out and asks on.
        """
        wanted = frozenset(members)
        for node_id in wanted:
            self._link_to(node_id)
        idle_since = time.monotonic() - _IDLE_S
        self.forget(wanted | {node_id for node_id, link in self._links.items() if link.used_at > idle_since})

    def _link_to(self, node_id: str) -> _Link | None:
        link = self._links.get(node_id)
        if link is None and node_id in self._urls and self._group is not None:
            link = self._links[node_id] = _Link(node_id, self._urls[node_id])
            self._group.create_task(link.run(self.http, self.hello))
        return link

    def forget(self, members: frozenset[str]) -> None:
        """Close the links to all but these."""
        for node_id in [node_id for node_id in self._links if node_id not in members]:
            self._links.pop(node_id).is_unwanted.set()

    async def accept(self, request: web.Request) -> web.WebSocketResponse:
        """The link of another master: its hello, ours, then its messages."""
        if self._is_leaving:
            raise PistageError(Code.UNAVAILABLE, "this master is stopping")
        stream = web.WebSocketResponse(compress=False, max_msg_size=limits.PEER_MESSAGE_BYTES_MAX, timeout=1.0)
        await stream.prepare(request)
        ours = self.hello()
        self._accepted.add(stream)
        _notice_silence(stream.get_extra_info("socket"))
        try:
            theirs = wire.unpack_hello(await stream.receive_bytes(timeout=_HELLO_S))
            await stream.send_bytes(wire.pack_hello(ours))
            _refuse_stranger(ours, theirs)
            self.hellos[theirs.node_id] = theirs
            self.learn({theirs.node_id: theirs.url})
            async for frame in stream:
                if frame.type is not WSMsgType.BINARY:
                    break
                message = wire.unpack_peer_message(frame.data)
                if message.src != theirs.node_id or message.dst != ours.node_id:
                    raise PistageError(Code.INVALID, f"a message from {message.src} to {message.dst}")
                self._receive(message)
        except _LINK_ERRORS as error:
            if not stream.closed:
                log.warning("a link from %s was refused: %s", request.remote, error)
        finally:
            self._accepted.discard(stream)
            await stream.close()
        return stream

    async def hang_up(self) -> None:
        """Let go of the links from the others: a server that stops would wait for them."""
        self._is_leaving = True
        await asyncio.gather(*(stream.close() for stream in self._accepted))

    async def fetch_snapshot(self, source: str, index: int, path: Path) -> None:
        """Lay a state at `index` or later at `path`, every part of it checked."""
        url = self._urls.get(source)
        if url is None:
            raise PistageError(Code.UNAVAILABLE, f"where master {source} is reached is not known")
        try:
            text = await self._fetch(f"{url}{SNAPSHOT_PATH}", {"index": str(index)}, _SNAPSHOT_S)
            manifest = snapshots.manifest_from_json(text)
            with path.open("xb") as file:
                for number in range(len(manifest.sha256)):
                    part = await self._fetch_part(url, manifest, number)
                    await in_a_thread(file.write, part)
                file.flush()
                await in_a_thread(os.fsync, file.fileno())
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            raise PistageError(Code.UNAVAILABLE, f"{url}: {error or type(error).__name__}") from None
        await asyncio.to_thread(sync_directory, path.parent)
        await asyncio.to_thread(sync_directory, path.parent.parent)

    async def _fetch_part(self, url: str, manifest: snapshots.Manifest, number: int) -> bytes:
        for left in reversed(range(_PART_TRIES)):
            try:
                part = await self._fetch(f"{url}{SNAPSHOT_PATH}/{manifest.index}", {"part": str(number)}, _PART_S)
                snapshots.check_part(manifest, number, part)
            except (aiohttp.ClientError, TimeoutError, PistageError) as error:
                if not left or (isinstance(error, PistageError) and error.code is Code.NOT_FOUND):
                    raise
                await asyncio.sleep(_BACKOFF_MAX_S)
            else:
                return part
        raise AssertionError("the last try returns or raises")

    async def _fetch(self, url: str, parameters: Mapping[str, str], timeout_s: float) -> bytes:
        timeout = aiohttp.ClientTimeout(total=timeout_s, sock_connect=_CONNECT_S)
        async with self.http.get(url, params=parameters, timeout=timeout) as response:
            body = await response.read()
            if response.status != 200:
                code = Code.NOT_FOUND if response.status == 404 else Code.UNAVAILABLE
                raise PistageError(code, f"{url} answered {response.status}")
            return body


class _Link:
    """The way to one master: dialled again for as long as it is wanted."""

    def __init__(self, node_id: str, url: str) -> None:
        self.node_id, self.url = node_id, url
        self.is_unwanted = asyncio.Event()
        self._queue: deque[bytes] = deque()
        self._queued_bytes = 0
        self._news = asyncio.Event()
        self._is_up = False
        self._said = ""
        self.used_at = time.monotonic()

    def send(self, raw: bytes) -> None:
        """Queue a message; dropped while the link is down or full."""
        self.used_at = time.monotonic()
        if self._is_up and self._queued_bytes + len(raw) <= limits.PEER_QUEUE_BYTES_MAX:
            self._queue.append(raw)
            self._queued_bytes += len(raw)
            self._news.set()

    async def run(self, http: aiohttp.ClientSession, hello: Callable[[], wire.PeerHello]) -> None:
        """Until it is unwanted."""
        wait_s = _BACKOFF_FIRST_S
        while not self.is_unwanted.is_set():
            try:
                async with asyncio.timeout(_HELLO_S):
                    stream = await http.ws_connect(self.url + STREAM_PATH, max_msg_size=1 << 16)
                async with stream:
                    await self._greet(stream, hello())
                    wait_s = _BACKOFF_FIRST_S
                    await self._carry(stream)
            except _LINK_ERRORS as error:
                self._say(f"no link to master={self.node_id} at {self.url}: {error or type(error).__name__}")
            finally:
                self._is_up = False
                self._queue.clear()
                self._queued_bytes = 0
            await asyncio.sleep(wait_s * random.uniform(0.5, 1.0))
            wait_s = min(wait_s * 2, _BACKOFF_MAX_S)

    async def _greet(self, stream: aiohttp.ClientWebSocketResponse, ours: wire.PeerHello) -> None:
        await stream.send_bytes(wire.pack_hello(ours))
        theirs = wire.unpack_hello(await stream.receive_bytes(timeout=_HELLO_S))
        _refuse_stranger(ours, theirs)
        if theirs.node_id != self.node_id:
            raise PistageError(Code.CONFLICT, f"master {theirs.node_id} answers there")
        if (connection := stream.get_extra_info("socket")) is not None:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _UNANSWERED_MS)
        log.info("linked to master=%s at %s", self.node_id, self.url)
        self._said = ""

    async def _carry(self, stream: aiohttp.ClientWebSocketResponse) -> None:
        self._is_up = True
        async with asyncio.TaskGroup() as group:
            tasks: list[asyncio.Task[Any]] = [
                group.create_task(self._pump(stream)),
                group.create_task(self._until_closed(stream)),
                group.create_task(self.is_unwanted.wait()),
            ]
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in tasks:
                task.cancel()

    async def _pump(self, stream: aiohttp.ClientWebSocketResponse) -> None:
        try:
            while True:
                await self._news.wait()
                self._news.clear()
                while self._queue:
                    raw = self._queue.popleft()
                    self._queued_bytes -= len(raw)
                    await stream.send_bytes(raw)
        except (aiohttp.ClientError, OSError):
            return

    async def _until_closed(self, stream: aiohttp.ClientWebSocketResponse) -> None:
        while (await stream.receive()).type is WSMsgType.BINARY:
            pass

    def _say(self, text: str) -> None:
        """Once for each thing to say: a master that is away for the night does not fill the disk with it."""
        if text != self._said:
            log.warning(text)
        self._said = text


def _notice_silence(connection: Any) -> None:
    """Of what is only listened to, a cut shows in nothing but the kernel's probes, which it sends after two hours."""
    if connection is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 30)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 10)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)


def _refuse_stranger(ours: wire.PeerHello, theirs: wire.PeerHello) -> None:
    if theirs.protocol != wire.PEER_PROTOCOL:
        raise PistageError(Code.CONFLICT, f"it speaks protocol {theirs.protocol}, this master {wire.PEER_PROTOCOL}")
    if theirs.group_id != ours.group_id:
        raise PistageError(Code.CONFLICT, f"master {theirs.node_id} belongs to another group of masters")
