"""The session: one WebSocket to the leading master, dialled again for as long as the agent lives.

The owner hands in what to say at the start and what to do with each message; this file knows addresses, waits,
heartbeats and silence.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Sequence
from types import SimpleNamespace
from typing import Protocol

import aiohttp
from yarl import URL

from pistage.agent.lease import boottime_s
from pistage.core import limits
from pistage.errors import Code, PistageError
from pistage.wire import (
    PROTOCOL,
    Codec,
    Goodbye,
    Heartbeat,
    HeartbeatAck,
    Hello,
    LogFrame,
    ToAgent,
    ToMaster,
    Welcome,
    pack_message,
    unpack_message,
)

log = logging.getLogger(__name__)

_PATH = "/agent/v1/session"
_BACKOFF_MIN_S = 0.1
_BACKOFF_MAX_S = 5.0
_DIAL_TIMEOUT_S = 5.0  # a master waits for the end of an election before it answers
#: A machine that is off or cut off is silent where one that lives accepts in a moment, and to ask several of those in
#: turn must not take a lease. Long enough for a packet that was lost to be sent again.
_CONNECT_TIMEOUT_S = 2.0
_WELCOME_TIMEOUT_S = 10.0  # the master answers once the agent's coming is committed
_BEATS_MISSED_MAX = 3  # so many heartbeats without a word from the master: another one may lead
_DENIED_RETRY_S = 30.0
_PACKED_BYTES_MIN = 256  # less of it comes out no smaller

_LINK_ERRORS = (aiohttp.ClientError, OSError, TimeoutError, PistageError)

Send = Callable[[ToMaster], Awaitable[None]]


class Owner(Protocol):
    """What the session asks of the agent."""

    def hello(self) -> Hello:
        """Who it is and what it holds, now."""

    async def welcomed(self, welcome: Welcome, *, sent_s: float) -> None:
        """A session has begun, by a hello of `sent_s`; what is sent from now on goes to this master."""

    def answered(self, sent_s: float) -> None:
        """The master has answered a heartbeat that was sent at `sent_s` of the clock of leases."""

    def received(self, message: ToAgent) -> None:
        """A message of the master's. Nothing is waited for: the answer to a heartbeat may be behind it."""

    def pumps(self, send: Send) -> Sequence[Awaitable[None]]:
        """What sends for as long as the session lives."""


class _RedirectedError(Exception):
    def __init__(self, location: str) -> None:
        super().__init__(location)
        self.location = location


class Session:
    """Keeps a session with whichever master leads. Output is compressed by `codec` where that master knows it."""

    def __init__(self, masters: Sequence[str], owner: Owner, *, token: str | None, codec: Codec = Codec.RAW) -> None:
        self._masters = [URL(master) for master in masters]
        self._owner = owner
        self._token = token
        self._codec = codec
        self._random = random.Random()
        self.is_connected = False
        self._last_said = ""

    async def run(self) -> None:
        """Until cancelled."""
        trace = aiohttp.TraceConfig()
        trace.on_request_redirect.append(_raise_redirect)
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_TIMEOUT_S)
        async with aiohttp.ClientSession(trace_configs=[trace], timeout=timeout) as http:
            await self._keep(http)

    async def _keep(self, http: aiohttp.ClientSession) -> None:
        turn, wait_s = 0, _BACKOFF_MIN_S
        hint: URL | None = None
        while True:
            was_named, master = hint is not None, hint or self._masters[turn % len(self._masters)]
            is_denied = False
            try:
                hint = await self._attend(http, master)
            except _LINK_ERRORS as error:
                hint = None
                is_denied = isinstance(error, aiohttp.WSServerHandshakeError) and error.status in {401, 403}
                self._say(f"no session with {master}: {_sentence(error, self._token)}")
            finally:
                was_connected, self.is_connected = self.is_connected, False
            if hint is None:
                turn += 1
            if was_connected:
                wait_s = _BACKOFF_MIN_S
            elif hint is not None and not was_named:
                continue  # who leads is asked at once; but two that name each other do not keep us busy
            # A token that is refused stays refused until somebody changes something.
            await asyncio.sleep((_DENIED_RETRY_S if is_denied else wait_s) * self._random.uniform(0.5, 1.0))
            if turn % len(self._masters) == 0:  # longer only once all were asked: the next one may well lead
                wait_s = min(wait_s * 2, _BACKOFF_MAX_S)

    def _say(self, text: str) -> None:
        """Once for each thing to say: an agent that waits for its master does not fill the disk with it."""
        if text != self._last_said:
            log.warning(text)
        self._last_said = text

    async def _attend(self, http: aiohttp.ClientSession, master: URL) -> URL | None:
        """One session from dial to end; the master to try next, if this one named it."""
        headers = {"Authorization": f"Bearer {self._token}"} if self._token else {}
        try:
            async with asyncio.timeout(_DIAL_TIMEOUT_S):
                socket = await http.ws_connect(
                    master.join(URL(_PATH)), headers=headers, max_msg_size=limits.SESSION_MESSAGE_BYTES_MAX
                )
        except _RedirectedError as redirected:
            return master.join(URL(redirected.location)).origin()
        async with socket:
            sent_s = boottime_s()
            await socket.send_bytes(pack_message(self._owner.hello()))
            first = await socket.receive(timeout=_WELCOME_TIMEOUT_S)
            if first.type is not aiohttp.WSMsgType.BINARY:
                raise PistageError(Code.UNAVAILABLE, "it ended the session without a word")
            match unpack_message(first.data):
                case Welcome(protocol=protocol) as welcome if protocol == PROTOCOL:
                    return await self._talk(socket, master, welcome, sent_s)
                case Welcome(protocol=protocol):
                    raise PistageError(Code.INVALID, f"it speaks protocol {protocol}, this agent {PROTOCOL}")
                case Goodbye() as goodbye:
                    return self._dismissed(master, goodbye)
                case other:
                    raise PistageError(Code.INVALID, f"it began with {type(other).__name__}, not with a welcome")

    async def _talk(
        self, socket: aiohttp.ClientWebSocketResponse, master: URL, welcome: Welcome, sent_s: float
    ) -> URL | None:
        codec = self._codec if self._codec in welcome.codecs else Codec.RAW
        if codec is not self._codec:
            self._say(f"{master} cannot read {self._codec.name.lower()}: output is sent to it as it is")

        async def send(message: ToMaster) -> None:
            # Here and not in a thread: the largest frame takes zlib 2 ms and zstd half of one, and lines that are
            # worth it carry few of them.
            is_packed = isinstance(message, LogFrame) and len(message.data) >= _PACKED_BYTES_MIN
            await socket.send_bytes(pack_message(message, codec if is_packed else Codec.RAW))

        self.is_connected = True
        self._last_said = ""
        log.info("master=%s epoch=%d connected", master, welcome.epoch)
        await self._owner.welcomed(welcome, sent_s=sent_s)
        heart = _Heart(welcome.heartbeat_s)
        silence_s = min(welcome.lease_s, _BEATS_MISSED_MAX * welcome.heartbeat_s)
        jobs: list[Awaitable[URL | None]] = [self._read(socket, master, silence_s, heart)]
        jobs += [_forever(job) for job in (heart.beat(send), *self._owner.pumps(send))]
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(_ending(job)) for job in jobs]
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in tasks:
                task.cancel()
        ending = next(iter(done)).result()
        if isinstance(ending, Exception):
            raise ending
        log.warning("master=%s the session ended", master)
        return ending

    async def _read(
        self, socket: aiohttp.ClientWebSocketResponse, master: URL, silence_s: float, heart: _Heart
    ) -> URL | None:
        """Until the master closes, or says nothing at all for `silence_s`."""
        while True:
            async with asyncio.timeout(silence_s):
                frame = await socket.receive()
            if frame.type is not aiohttp.WSMsgType.BINARY:
                return None
            match unpack_message(frame.data):
                case HeartbeatAck(number=number):
                    if (sent_s := heart.sent_at(number)) is not None:
                        self._owner.answered(sent_s)
                case Goodbye() as goodbye:
                    return self._dismissed(master, goodbye)
                case Welcome() | Hello() | Heartbeat():
                    raise PistageError(Code.INVALID, "it sent a message that is not a master's to send now")
                case message:
                    self._owner.received(message)  # type: ignore[arg-type]  # the socket carries ToAgent only

    def _dismissed(self, master: URL, goodbye: Goodbye) -> URL | None:
        self._say(f"{master} says goodbye: {goodbye.reason}")
        return URL(goodbye.leader).origin() if goodbye.leader else None


class _Heart:
    """Beats, and remembers when."""

    def __init__(self, interval_s: float) -> None:
        self._interval_s = interval_s
        self._sent: dict[int, float] = {}

    async def beat(self, send: Send) -> None:
        number = 0
        while True:
            number += 1
            self._sent[number] = boottime_s()
            await send(Heartbeat(number=number))
            await asyncio.sleep(self._interval_s)

    def sent_at(self, number: int) -> float | None:
        """When `number` was sent; it and those before it are forgotten."""
        at = self._sent.get(number)
        self._sent = {later: then for later, then in self._sent.items() if later > number}
        return at


async def _raise_redirect(
    session: aiohttp.ClientSession, context: SimpleNamespace, parameters: aiohttp.TraceRequestRedirectParams
) -> None:
    # Followed by ourselves: the client would drop the credentials on the way to another master.
    raise _RedirectedError(parameters.response.headers.get("Location", ""))


async def _forever(job: Awaitable[None]) -> URL | None:
    await job
    return None


async def _ending(job: Awaitable[URL | None]) -> URL | Exception | None:
    """How a job ended, as a value: an error would tear the others down in a group of its own."""
    try:
        return await job
    except _LINK_ERRORS as error:
        return error


def _sentence(error: Exception, token: str | None) -> str:
    match error:
        case aiohttp.WSServerHandshakeError(status=401):
            how = "the token is not accepted" if token else "it asks for a token and none is configured"
            return f"{how}: set token_file to the cluster's token"
        case aiohttp.WSServerHandshakeError(status=403):
            return "this token is not allowed to run an agent"
        case aiohttp.WSServerHandshakeError(status=status):
            return f"it answered {status}"
        case TimeoutError():
            return "it did not answer in time"
        case _:
            return str(error) or type(error).__name__
