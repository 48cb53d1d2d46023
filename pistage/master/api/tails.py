"""Pieces of runs as events, put into words once for all who follow a run, some at a time."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar, cast
from weakref import WeakValueDictionary

from pistage.core import limits
from pistage.master import records as index_of
from pistage.master.api.forms import Shapes
from pistage.master.api.telling import events_of
from pistage.master.reading.files import Files
from pistage.master.reading.gaps import Missing, missing_of
from pistage.master.reading.selection import Selection, Wanted
from pistage.master.reading.turns import Turns, Waiting
from pistage.master.reading.walk import Item, Live, data_of
from pistage.master.records import Record

_PAGE_RECORDS: Final = 64
_PAGES_LOADED_AT_ONCE: Final = 8
_PAGES_BYTES_MAX: Final = 16 * limits.MIB  # of all runs; who is further behind reads for himself again
T = TypeVar("T")

Gaps = Sequence[tuple[Record, Missing]]
Event = tuple[int, bytes]  # how far it goes in its piece, and itself as it is sent


@dataclass(slots=True)
class Page:
    """Neighbouring records of a source, with their events as far as somebody wanted them."""

    start: int
    items: Sequence[Item]
    data: Sequence[bytes]
    size: int
    events: dict[int, Sequence[Event]] = field(default_factory=dict)

    @property
    def end(self) -> int:
        """The number of the record behind it."""
        return self.start + len(self.items)


class Tails:
    """Those of all runs that somebody follows."""

    def __init__(self, files: Files, turns: Turns) -> None:
        self.files, self.turns = files, turns
        self._tails: WeakValueDictionary[str, Tail] = WeakValueDictionary()
        self.loading = asyncio.Semaphore(_PAGES_LOADED_AT_ONCE)
        self._pages: OrderedDict[tuple[str, int], Page] = OrderedDict()
        self._size = 0

    def of(self, run_id: str, sources: Sequence[str]) -> Tail:
        """That of a run, for as long as anybody has it."""
        tail = self._tails.get(run_id)
        if tail is None:
            tail = self._tails[run_id] = Tail(self, Selection(run_id, sources, Wanted()))
        return tail

    def page(self, source: str, start: int) -> Page | None:
        """The page that begins there, if it is at hand."""
        page = self._pages.get((source, start))
        if page is not None:
            self._pages.move_to_end((source, start))
        return page

    def keep(self, source: str, page: Page) -> None:
        """Have it at hand for the others."""
        if (known := self._pages.pop((source, page.start), None)) is not None:  # of who asked before there was more
            self._size -= known.size
        self._pages[source, page.start] = page
        self._size += page.size
        while self._size > _PAGES_BYTES_MAX and len(self._pages) > 1:
            _, old = self._pages.popitem(last=False)
            self._size -= old.size


class Tail:
    """One run's. What several want at the same time is read once."""

    def __init__(self, tails: Tails, selection: Selection) -> None:
        self.selection = selection
        self._tails = tails
        self.loading = tails.loading
        self._shapes = Shapes(selection)
        self._has_ended = False
        self._gaps: dict[tuple[str, int], Gaps] = {}
        self._asked: dict[Any, asyncio.Future[Any]] = {}
        self._waiting: Waiting = Waiting()
        self._is_watched = False

    def at_hand(self, source: int, start: int) -> Page | None:
        """The page that begins with record `start`, unless it must be read."""
        return self._tails.page(self.selection.sources[source], start)

    async def page(self, source: int, start: int, live: Live, news: asyncio.Event, count: int | None) -> Page | None:
        """The records from `start` on, before record `count`, where that is known; None where there are none yet."""
        page = self.at_hand(source, start)
        if page is None:
            # Who asked before the news came may not get the answer that was there before.
            page = await self.once((source, start, news), lambda: self._load(source, start, live, count))
        return page

    async def _load(self, source: int, start: int, live: Live, count: int | None) -> Page | None:
        run_id = self.selection.sources[source]
        left = (await live.readable(run_id) if count is None else count) - start
        if left <= 0:
            return None
        directory = self._tails.files.of(run_id)

        def load() -> tuple[list[Item], list[bytes]]:
            records = index_of.read_records(directory / "index", start, min(_PAGE_RECORDS, left))
            items: list[Item] = []
            size = 0
            for number, record in enumerate(records, start):
                size += record.kept
                if size > limits.FRAME_BYTES_MAX and items:
                    break
                items.append(Item(source, number, record, 0, 0, record.kept, missing_of(record)))
            return items, data_of(directory, items)

        items, data = await self._tails.files.do(load)
        if not items:
            return None
        known = self.selection.attempts
        if any(item.record.attempt_id not in known and not item.record.is_barrier for item in items):
            await live.learn_attempts(self.selection)
        # What it comes to with its events, which are made when somebody wants them.
        page = Page(start, items, data, 4096 + 3 * sum(map(len, data)) + 1024 * len(items))
        self._tails.keep(run_id, page)
        return page

    async def once(self, key: object, make: Callable[[], Awaitable[T]]) -> T:
        """What `make` gives: to all who ask before it is there."""
        while (asked := self._asked.get(key)) is not None:
            try:
                return cast(T, await asyncio.shield(asked))
            except asyncio.CancelledError:
                task = asyncio.current_task()
                if not asked.cancelled() or (task is not None and task.cancelling()):
                    raise
                # Whoever was to find out is gone: another does.
        asked = self._asked[key] = asyncio.get_running_loop().create_future()
        try:
            made = await make()
            asked.set_result(made)
            return made
        except Exception as error:
            asked.set_exception(error)
            asked.exception()  # nobody else may have asked
            raise
        finally:
            del self._asked[key]
            if not asked.done():
                asked.cancel()

    async def is_over(self, live: Live, news: asyncio.Event) -> bool:
        """Whether the run was over at some time after `news` was asked for."""
        run_id = self.selection.run_id
        if not self._has_ended:
            self._has_ended = await self.once(("over", news), lambda: live.is_over(run_id, news))
        return self._has_ended

    async def gaps(self, what: str, source: int, live: Live) -> Gaps:
        """What was "dropped" of a source, or is "lost" of one that is over."""
        found = self._gaps.get((what, source))
        if found is None:
            make = live.dropped if what == "dropped" else live.lost
            found = self._gaps[what, source] = await self.once((what, source), lambda: make(self.selection, source))
        return found

    def events(self, page: Page, number: int) -> Sequence[Event]:
        """Those of the piece or the gap of this number."""
        events = page.events.get(number)
        if events is None:
            here = number - page.start
            events = page.events[number] = self.made(page.items[here], page.data[here])
        return events

    def made(self, item: Item, data: bytes) -> Sequence[Event]:
        """The events that tell of an item."""
        if item.missing is not None:
            return [(0, _event(str(item.id), "gap", self._shapes.gap(item, item.missing)))]
        return [(end, _event(event_id, "output", told)) for event_id, end, told in events_of(self._shapes, item, data)]

    async def wait(self, news: asyncio.Event) -> None:
        """Wait for news, or for so long that a sign of life is due; then for a turn, which is taken.

        One waits for all: to wake a thousand for each line would take longer than to tell them of it.
        """
        turns = self._tails.turns
        if self._is_watched and not news.is_set():
            place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append(place)
            return await turns.granted(place)
        if not news.is_set():
            self._is_watched = True
            try:
                async with asyncio.timeout(limits.SSE_HEARTBEAT_S):
                    await news.wait()
            except TimeoutError:
                pass
            finally:
                self._is_watched = False
                waiting, self._waiting = self._waiting, Waiting()
                turns.admit(waiting)
        await turns.take()


def _event(event_id: str, kind: str, data: str) -> bytes:
    return f"id: {event_id}\nevent: {kind}\ndata: {data}\n\n".encode("utf-8", "replace")
