"""Keeping up: whether who is attached to a container takes its output soon enough to lose none of it at the end.

Two seconds after a container's end the engine closes what it copies from it, and what a slow client has kept it from
reading is in no log either. Who hangs up before that loses nothing: the rest then stands in the log.
"""

from __future__ import annotations

import array
import asyncio
import fcntl
import termios
import time
from collections import deque
from typing import Final

from aiodocker.stream import Stream

from pistage.core import limits

#: How long the engine forgives, after the end; a little less.
FORGIVEN_S: Final = 1.9
_LOOK_EVERY_S: Final = 0.25
_BEHIND_S: Final = 1.0
#: What it holds for a client: a megabyte of its own, the socket's, the container's pipe. Who takes so much in a second
#: has all of it within what is forgiven.
_ENOUGH_BYTES: Final = 800 * limits.KIB


class KeepingUp:
    """Watches one attached stream, to which it is told what is `taken` of it, until `stop`; hangs up when it must."""

    def __init__(self, stream: Stream) -> None:
        self.taken = 0
        self.is_writing = False  # what was read last is on its way, and nothing is read meanwhile
        self.has_hung_up = False
        self._stream = stream
        self._calm_at = time.monotonic()
        self._takings = deque([(self._calm_at, 0)])  # of the last second
        self._timer = self._later()

    def stop(self) -> None:
        """The stream is over."""
        self._timer.cancel()

    def _later(self) -> asyncio.TimerHandle:
        return asyncio.get_running_loop().call_later(_LOOK_EVERY_S, self._look)

    def _look(self) -> None:
        if not self._is_time_to_hang_up():
            self._timer = self._later()
            return
        self.has_hung_up = True
        if self._stream._resp is not None:
            self._stream._resp.close()

    def _is_time_to_hang_up(self) -> bool:
        now = time.monotonic()
        if self._is_calm():
            self._calm_at = now
        self._takings.append((now, self.taken))
        while now - self._takings[0][0] > _BEHIND_S and len(self._takings) > 1:
            self._takings.popleft()
        return self.was_behind() and self.taken - self._takings[0][1] < _ENOUGH_BYTES

    def was_behind(self) -> bool:
        """Whether there was something to be taken for all of the last second."""
        return time.monotonic() - self._calm_at > _BEHIND_S

    def _is_calm(self) -> bool:
        """Whether all that has come was taken."""
        queue, response = self._stream._queue, self._stream._resp
        if self.is_writing or queue is None or queue._buffer or response is None or response.connection is None:
            return False
        transport = response.connection.transport
        socket = transport.get_extra_info("socket") if transport is not None else None
        return socket is None or not _unread(socket.fileno())


def _unread(fd: int) -> int:
    """How many bytes wait in a socket."""
    count = array.array("i", [0])
    fcntl.ioctl(fd, termios.FIONREAD, count)
    return count[0]
