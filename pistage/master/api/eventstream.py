"""A run's output as server-sent events, for one of many who follow it: a slice at a time, each in its turn."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Final

from pistage.core import limits
from pistage.master.api.following import Following
from pistage.master.api.sending import SLICE_BYTES, Sender
from pistage.master.api.tails import Event, Page, Tail
from pistage.master.reading.locate import Place
from pistage.master.reading.selection import SOURCE_RECORDS_MAX, Selection
from pistage.master.reading.turns import Turns
from pistage.master.reading.walk import Item
from pistage.master.records import Record

_SIGN_OF_LIFE: Final = b": still here\n\n"


class EventStream:
    """From `start` on until the run is over. While it waits it holds a place, and no bytes: there may be thousands."""

    def __init__(
        self, selection: Selection, start: Place, *, tail: Tail, turns: Turns, following: Following, sender: Sender
    ) -> None:
        self._selection, self._tail, self._turns = selection, tail, turns
        self._following, self._sender = following, sender
        self._source, self._at, self._part = start.source, start.record, start.skip
        self._sent_at = time.monotonic()

    async def tell(self) -> None:
        """All of it."""
        sources = self._selection.sources
        while self._source < len(sources):
            begins_at = self._at
            if begins_at == 0:
                await self._tell_gaps("dropped", 0)
            if self._following.is_read(self._selection, self._source):
                await self._tell_source()
                await self._tell_gaps("lost", begins_at)
            self._source, self._at, self._part = self._source + 1, 0, 0
        await self._sender.event("", "end", "{}")

    async def _tell_source(self) -> None:
        """What there is of a source, and of the run itself all that comes."""
        run_id = self._selection.sources[self._source]
        is_growing = run_id == self._selection.run_id
        count = None if is_growing else await self._following.readable(run_id)
        is_over = not is_growing
        await self._turns.take()
        while True:
            news = self._following.news(run_id)
            if (page := self._tail.at_hand(self._source, self._at)) is None:
                self._turns.done()
                async with self._tail.loading:  # each in there has a page, at hand or not
                    page = await self._tail.page(self._source, self._at, self._following, news, count)
                    if page is not None:
                        await self._turns.take()
                        await self._send_slice(page)
                if page is None:
                    if is_over:
                        return
                    # What came before the end is looked for once more.
                    is_over = await self._tail.is_over(self._following, news)
                    if not is_over:
                        await self._tail.wait(news)
                        await self._show_life()
                    else:
                        await self._turns.take()
                    continue
            else:
                await self._send_slice(page)
            page = None  # there are few at hand, and thousands may stand still here
            await self._sender.drain()
            await self._turns.take()

    async def _send_slice(self, page: Page) -> None:
        """Send some of it, without waiting, and end the turn."""
        try:
            if events := self._slice_of(page):
                await self._sender.write(b"".join(events))
                self._sent_at = time.monotonic()
        finally:
            self._turns.done()

    def _slice_of(self, page: Page) -> list[bytes]:
        """The next events, as many as go into a slice, or one."""
        events: list[bytes] = []
        size = 0
        while self._at < page.end:
            record = page.items[self._at - page.start].record
            if not self._is_wanted(record):
                self._at, self._part = self._at + 1, 0
                continue
            for end, event in self._events(page, record):
                if events and size + len(event) > SLICE_BYTES:
                    return events
                events.append(event)
                size += len(event)
                self._part = end
            self._at, self._part = self._at + 1, 0
        return events

    def _is_wanted(self, record: Record) -> bool:
        if record.is_barrier:
            return False
        selection, known = self._selection, self._tail.selection.attempts
        if record.attempt_id not in selection.attempts and record.attempt_id in known:
            selection.learn(known)
        return selection.takes(self._source, record.key) and selection.wanted.has(record.at)

    def _events(self, page: Page, record: Record) -> Sequence[Event]:
        """Those of the piece where we are, behind its bytes that were had."""
        events = self._tail.events(page, self._at)
        if not self._part:
            return events
        left = [(end, event) for end, event in events if end > self._part]
        if len(left) == len(events) or events[-len(left) - 1][0] == self._part:
            return left
        data = page.data[self._at - page.start][self._part :]
        return self._tail.made(Item(self._source, self._at, record, 0, self._part, len(data)), data)

    async def _tell_gaps(self, what: str, first: int) -> None:
        """Gaps that are not in the records, from number `first` on."""
        number = 0 if what == "dropped" else SOURCE_RECORDS_MAX // 2
        for record, missing in await self._tail.gaps(what, self._source, self._following):
            if number >= first and self._has_task_of(record):
                ((_, event),) = self._tail.made(Item(self._source, number, record, 0, missing=missing), b"")
                await self._sender.send(event)
            number += 1

    def _has_task_of(self, gap: Record) -> bool:
        if gap.step and not (self._selection.takes(self._source, gap.key) and self._selection.wanted.has(gap.at)):
            return False
        return self._selection.wanted.task in {None, self._selection.origin(gap.attempt_id)[0]}

    async def _show_life(self) -> None:
        """In a turn, which goes on: say that we are still here, if nothing else was said for long."""
        if time.monotonic() - self._sent_at >= limits.SSE_HEARTBEAT_S / 2:
            try:
                await self._sender.write(_SIGN_OF_LIFE)
            except BaseException:  # nobody is there to use the turn
                self._turns.done()
                raise
            self._sent_at = time.monotonic()
