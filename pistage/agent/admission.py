"""Admission: whether this agent takes work. Not once it leaves, and not while its journal cannot be written.

Who went on to be sent work and refused it at once would be the emptiest agent, and draw every task.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress

from pistage.agent.journal import Journal, JournalError
from pistage.agent.session import Send
from pistage.wire import Leaving

log = logging.getLogger(__name__)

_RETRY_S = 5.0


class Admission:
    """Open at first; closed for a while by `suspend` and for good by `leave`."""

    def __init__(self) -> None:
        self.leaving = asyncio.Event()
        #: Why an assignment is refused; "" if none is.
        self.refusal = ""
        self._closed = asyncio.Event()
        self._reopened = asyncio.Event()

    @property
    def is_closed(self) -> bool:
        """Whether assignments are refused."""
        return bool(self.refusal)

    def leave(self) -> None:
        """Take no more work."""
        self.leaving.set()
        self._close("the agent is stopping")

    def suspend(self, reason: str) -> None:
        """Take no work until `resume_with` returns."""
        log.error("takes no work until this is over: %s", reason)
        self._close(reason)

    async def resume_with(self, journal: Journal) -> None:
        """Take work again once the journal can be written, unless the agent leaves."""
        while True:
            await asyncio.sleep(_RETRY_S)
            with suppress(JournalError):
                await journal.probe()
                break
        if not self.leaving.is_set():
            log.info("the journal can be written again, and work is taken")
            self.refusal = ""
            self._closed.clear()
            self._reopened.set()

    async def say(self, send: Send) -> None:
        """Tell the master when no more work is taken; returns when some is again, for a session that begins by that."""
        await self._closed.wait()
        await send(Leaving())  # said twice, in the hello as well, it does no harm
        await self._reopened.wait()

    def _close(self, reason: str) -> None:
        self.refusal = reason
        self._reopened.clear()
        self._closed.set()
