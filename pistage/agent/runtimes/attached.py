"""What an engine brings of a container: no faster than it is taken while the container runs, at once when it has ended.

Two seconds after a container's end the engine closes what it copies from it, and what a slow client has kept it from
reading is in no log either. What it holds for the client stays, up to a megabyte: so it is enough to take what is more
than that. So much is read at once when the container has ended, and held here. Should even that take too long, or where
nobody can say when the container ends, who hangs up in time loses nothing: the rest then stands in the log, from which
it comes slowly.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import fcntl
import termios
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from typing import Final

from aiodocker.stream import Message, Stream

from pistage.agent.runtimes.base import STDERR, STDOUT
from pistage.core import limits

#: How long the engine forgives, after the end; a little less.
FORGIVEN_S: Final = 1.9
_HANG_UP_S: Final = 1.5
_LOOK_EVERY_S: Final = 0.25
_BEHIND_S: Final = 1.0
#: The engine reads on when it holds less than a megabyte for us, and it may hold two; what waits on our side and in the
#: socket comes before that.
_ENOUGH_BYTES: Final = 1536 * limits.KIB


class Urgent:
    """How many containers have ended whose output must be taken now: whoever is not one of those waits for them."""

    def __init__(self) -> None:
        self._count = 0
        self._none = asyncio.Event()
        self._none.set()

    @contextlib.contextmanager
    def one(self) -> Iterator[None]:
        """In the block there is one more."""
        self._count += 1
        self._none.clear()
        try:
            yield
        finally:
            self._count -= 1
            if not self._count:
                self._none.set()

    async def give_way(self) -> None:
        """Wait until there are none; each is one for a moment only."""
        await self._none.wait()


class Attached:
    """Of one container: `read_out` until it is None, with `look` and `watch` beside it; then `close`."""

    def __init__(self, stream: Stream, urgent: Urgent) -> None:
        self.has_hung_up = False
        self.has_process_ended = False
        self.safe_ns = 0  # when nothing could be lost any more, nanoseconds UTC of our clock
        self.was_behind = False  # then: there had been something to be taken for all of a second
        self._stream, self._urgent = stream, urgent
        self._calm_at = time.monotonic()
        self._reading = asyncio.Lock()
        self._held: deque[Message | None] = deque()
        self._is_end_told = True  # until it is known
        self._taken_bytes = 0
        self._takings = deque([(self._calm_at, 0)])  # of the last second

    async def read_out(self) -> Message | None:
        """What comes next; None at the end. OSError where the connection broke."""
        if not self._held:
            await self._urgent.give_way()
            async with self._reading:
                if not self._held:
                    return await self._read()
        return self._held.popleft()

    async def look(self) -> None:
        """See a few times a second whether all that came was taken; hang up if that must be. Until cancelled."""
        while True:
            if self._is_calm():
                self._calm_at = time.monotonic()
            if not self._is_end_told and self._is_too_slow():
                self._hang_up()
                return
            await asyncio.sleep(_LOOK_EVERY_S)

    async def watch(self, process_end: Callable[[], Awaitable[bool]]) -> None:
        """Hold what is left once the process has ended; False says that nobody will say when it has."""
        self.has_process_ended = self._is_end_told = await process_end()
        if self.has_process_ended:
            with contextlib.suppress(OSError), self._urgent.one():  # who reads meets an error, too
                await self._hold()

    async def close(self) -> None:
        """Disconnect: a client that is connected and does not read blocks the container, and its removal."""
        await close(self._stream)

    async def _read(self) -> Message | None:
        message = await self._stream.read_out()
        if message is None:
            self._be_safe()
        elif message.stream not in {STDOUT, STDERR}:
            raise OSError(f"the engine says: {message.data[:200].decode('utf-8', 'replace')}")
        else:
            self._taken_bytes += len(message.data)
        return message

    async def _hold(self) -> None:
        until, enough = time.monotonic() + _HANG_UP_S, self._taken_bytes + _ENOUGH_BYTES
        while self._taken_bytes < enough:
            async with self._reading:
                try:
                    async with asyncio.timeout(_LOOK_EVERY_S):
                        message = await self._read()
                except TimeoutError:  # the engine has nothing for us, but does not say that this is all
                    continue
                self._held.append(message)
            if message is None:
                return
            if time.monotonic() > until:
                self._hang_up()
                return
        self._be_safe()

    def _be_safe(self) -> None:
        if not self.safe_ns:
            self.safe_ns, self.was_behind = time.time_ns(), self._is_behind()

    def _hang_up(self) -> None:
        self.has_hung_up = True
        if self._stream._resp is not None:
            self._stream._resp.close()

    def _is_too_slow(self) -> bool:
        now = time.monotonic()
        self._takings.append((now, self._taken_bytes))
        while now - self._takings[0][0] > _BEHIND_S and len(self._takings) > 1:
            self._takings.popleft()
        return self._is_behind() and self._taken_bytes - self._takings[0][1] < _ENOUGH_BYTES

    def _is_behind(self) -> bool:
        return time.monotonic() - self._calm_at > _BEHIND_S

    def _is_calm(self) -> bool:
        queue, response = self._stream._queue, self._stream._resp
        is_read = self._reading.locked() and queue is not None and not queue._buffer
        if not is_read or response is None or response.connection is None:
            return False
        transport = response.connection.transport
        socket = transport.get_extra_info("socket") if transport is not None else None
        return socket is None or not _unread(socket.fileno())


async def close(stream: Stream) -> None:
    """Disconnect; aiodocker is strict about connections that the engine has closed already."""
    with contextlib.suppress(AssertionError, OSError):
        await stream.close()


def _unread(fd: int) -> int:
    """How many bytes wait in a socket."""
    count = array.array("i", [0])
    fcntl.ioctl(fd, termios.FIONREAD, count)
    return count[0]
