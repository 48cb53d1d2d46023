"""Heartbeats of agents, and the answers on which their leases run: given only by a master that a majority follows.

A leader that is cut off from its followers does not know that another leads, and that its agents are given up. So each
heartbeat is answered once the group has confirmed, *after* it came, that this master leads: one round of messages
for all that wait, at most ten times a second. Without confirmation there is no answer; the next heartbeat is another
chance.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Final

from pistage.errors import PistageError
from pistage.master.replica import Replica

log = logging.getLogger(__name__)

CONFIRM_EVERY_S: Final = 0.1
#: Longer than that, and a newer heartbeat is worth more than an answer to this one.
CONFIRM_WAIT_S: Final = 2.0

Answer = Callable[[int], None]


class Heartbeats:
    """What was heard and not answered: of each agent the newest."""

    def __init__(self, replica: Replica) -> None:
        self._replica = replica
        self._waiting: dict[str, tuple[int, Answer]] = {}
        self._heard = asyncio.Event()

    def heard(self, agent_id: str, number: int, answer: Answer) -> None:
        """Call `answer` with the number once it is confirmed that this master leads; perhaps never."""
        self._waiting[agent_id] = (number, answer)
        self._heard.set()

    async def serve(self) -> None:
        """Answer, until cancelled."""
        while True:
            await self._heard.wait()
            self._heard.clear()
            waiting, self._waiting = self._waiting, {}
            began = time.monotonic()
            if await self._is_confirmed():
                for number, answer in waiting.values():
                    answer(number)
            if not self._replica.is_alone:
                await asyncio.sleep(max(0.0, began + CONFIRM_EVERY_S - time.monotonic()))

    async def _is_confirmed(self) -> bool:
        term, has_led = self._replica.term, self._replica.is_leading
        try:
            async with asyncio.timeout(CONFIRM_WAIT_S):
                await self._replica.confirm_leading()
        except (PistageError, TimeoutError) as error:
            log.info(
                "heartbeats stay unanswered: %s", error or "the others did not confirm in time that this one leads"
            )
            return False
        # A follower can read, too, by asking the leader. That says nothing of who lets the agents go on.
        return has_led and self._replica.is_leading and self._replica.term == term
