"""One answer of output: from where it begins to where it ends, in the form that was asked for."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Final, assert_never

from pistage.core import limits
from pistage.errors import Code, PistageError
from pistage.master.api.asked import WITHOUT_LIMIT, Asked, Form
from pistage.master.api.eventstream import EventStream
from pistage.master.api.following import Following
from pistage.master.api.forms import Flow, Shapes
from pistage.master.api.sending import Sender
from pistage.master.api.tails import Tails
from pistage.master.api.telling import LineTeller, events_of
from pistage.master.reading.files import Files
from pistage.master.reading.gaps import RETENTION
from pistage.master.reading.heads import Head, heads_of
from pistage.master.reading.lines import Line, Lines, open_lines
from pistage.master.reading.locate import By, Layout, Place
from pistage.master.reading.search import Search, Searchers
from pistage.master.reading.selection import FOREVER, SOURCE_RECORDS_MAX, Selection
from pistage.master.reading.turns import Turns
from pistage.master.reading.walk import Batch, Item, Walk, by_time, divided, limited, with_data
from pistage.master.records import StreamKey

_READ_BYTES: Final = 256 * limits.KIB  # at a time, for one reader
_FEW: Final = 64  # readers, for whom large reads are worth their memory
_LINES_AT_ONCE: Final = 256


class Means:
    """What all answers of output that a master gives share."""

    def __init__(self, directory: Path) -> None:
        self.files = Files(directory)
        self.searchers = Searchers()
        self.turns = Turns()
        self.tails = Tails(self.files, self.turns)

    @contextmanager
    def reader(self) -> Iterator[None]:
        """One more reader in the block. PistageError `unavailable` where there are too many."""
        if self.turns.readers >= limits.READERS_MAX:
            raise PistageError(Code.UNAVAILABLE, f"{limits.READERS_MAX} others read output here now", hint="try again")
        self.turns.readers += 1
        try:
            yield
        finally:
            self.turns.readers -= 1


class Answer:
    """`look`, which may refuse, then `tell`."""

    def __init__(
        self, asked: Asked, selection: Selection, *, means: Means, following: Following, sender: Sender
    ) -> None:
        self._asked, self._selection = asked, selection
        self._means, self._files, self._searchers = means, means.files, means.searchers
        self._following, self._sender = following, sender
        self._start = Place()
        self._owed = 0  # bytes or lines that are still to come before the first that is wanted
        self._first_line = 0
        self._left = asked.limit
        self.next_line = 0  # behind those that were looked at
        self._layout: Layout

    async def look(self) -> None:
        """Find where to begin. PistageError where that is not known, or not to be had from this master."""
        if self._asked.is_simple_stream:  # a thousand of them may come at the same time
            await self._following.readable(self._selection.run_id)
            self._start = Place(*divmod(self._asked.offset, SOURCE_RECORDS_MAX), self._asked.part)
            return
        self._layout = await self._following.layout(self._selection)
        await self._files.do(self._find_start)
        if self._asked.pattern is not None:
            async with self._searchers.place():  # or it is refused while it still can be
                pass

    def _find_start(self) -> None:
        asked, layout = self._asked, self._layout
        if asked.offset < 0:
            self._start, self._first_line = layout.from_end(asked.by, -asked.offset)
            if asked.by is By.LINE and not asked.has_lines:  # an open line begins behind the last newline
                self._start, _ = layout.at(By.LINE, min(self._first_line, layout.lines))
        else:
            self._start, self._owed = layout.at(asked.by, asked.offset)
            self._first_line = asked.offset if asked.by is By.LINE else 0
        if asked.part:
            self._start = replace(self._start, skip=asked.part)
        if asked.wanted.since:
            self._start = max(self._start, layout.since())

    async def tell(self) -> None:
        """All of it."""
        if self._asked.has_lines:
            return await self._tell_lines()
        if self._asked.form is Form.EVENTS and self._asked.limit == WITHOUT_LIMIT:
            return await self._stream()
        async with aclosing(self._batches()) as batches:
            match self._asked.form:
                case Form.BYTES:
                    await self._tell_bytes(batches)
                case Form.TEXT:
                    await self._tell_text(batches)
                case Form.JSON:
                    await self._tell_pieces(batches)
                case Form.EVENTS:
                    await self._tell_events(batches)
                case _:
                    assert_never(self._asked.form)

    async def _batches(self) -> AsyncGenerator[Batch, None]:
        """Items from the start on, in the order that is wanted, and no more of them."""
        asked, layout = self._asked, self._layout
        walk = Walk(
            files=self._files,
            selection=self._selection,
            live=self._following,
            ends=[layout.until(source) for source in range(len(layout.counts))],
            is_followed=asked.is_followed,
            has_all_times=asked.has_lines,
        )
        limit = WITHOUT_LIMIT if asked.counts_lines else asked.limit
        async with (
            aclosing(walk.batches(self._start)) as arrived,
            aclosing(by_time(arrived) if asked.is_by_time else arrived) as ordered,
            aclosing(limited(ordered, asked.by, self._owed, limit)) as wanted,
        ):
            async for batch in wanted:
                yield batch

    def _read(self, batches: AsyncIterator[Batch]) -> AsyncIterator[list[tuple[Item, bytes]]]:
        # A piece may be of 256 KiB, and so much is held for a reader who stands still; as bytes or text it need not be.
        is_divisible = not self._asked.has_lines and self._asked.form in {Form.BYTES, Form.TEXT}
        if is_divisible and self._means.turns.readers > _FEW:
            return with_data(self._files, self._selection, divided(batches, _READ_BYTES // 8), _READ_BYTES // 8)
        return with_data(self._files, self._selection, batches, _READ_BYTES)

    async def _stream(self) -> None:
        tail = self._means.tails.of(self._selection.run_id, self._selection.sources)
        stream = EventStream(
            self._selection, self._start, tail=tail, turns=self._means.turns, following=self._following,
            sender=self._sender,
        )  # fmt: skip
        await stream.tell()

    # --- as it came ----------------------------------------------------------------------------------------------

    async def _tell_bytes(self, batches: AsyncIterator[Batch]) -> None:
        async for pieces in self._read(batches):
            data = b"".join(data for _, data in pieces) if len(pieces) > 1 else pieces[0][1]
            pieces.clear()
            if self._asked.by is By.LINE:
                data = self._lines_in(data)
            sending = self._sender.send(data)
            del data
            await sending
            if not self._left:
                return

    def _lines_in(self, data: bytes) -> bytes:
        """Without the lines that come before the first that is wanted, and behind the last."""
        start, end = 0, len(data)
        while self._owed and start < len(data):
            newline = data.find(b"\n", start)
            start = newline + 1 if newline >= 0 else len(data)
            self._owed -= newline >= 0
        if self._left < WITHOUT_LIMIT:
            at = start
            while self._left and (newline := data.find(b"\n", at)) >= 0:
                at = newline + 1
                self._left -= 1
            end = end if self._left else at
        return data[start:end]

    async def _tell_text(self, batches: AsyncIterator[Batch]) -> None:
        flow = Flow(has_controls=self._asked.has_controls)
        async for pieces in self._read(batches):
            for item, data in pieces:
                if item.missing is None:
                    await self._sender.add(flow.piece(item.record, data))
                else:
                    await self._sender.add(flow.gap(item.record, item.missing))
            await self._sender.flush()
        await self._sender.add(flow.rest())

    async def _tell_pieces(self, batches: AsyncIterator[Batch]) -> None:
        shapes = Shapes(self._selection)
        async for pieces in self._read(batches):
            for item, data in pieces:
                told = shapes.piece(item, data) if item.missing is None else shapes.gap(item, item.missing)
                await self._sender.add(told + "\n")
            await self._sender.flush()

    async def _tell_events(self, batches: AsyncIterator[Batch]) -> None:
        shapes = Shapes(self._selection)
        async for pieces in self._read(batches):
            for item, data in pieces:
                if item.missing is None:
                    for event_id, _, told in events_of(shapes, item, data):
                        await self._sender.event(event_id, "output", told)
                else:
                    await self._sender.event(str(item.id), "gap", shapes.gap(item, item.missing))
            await self._sender.flush()
        await self._sender.event("", "end", "{}")

    # --- lines ---------------------------------------------------------------------------------------------------

    async def _tell_lines(self) -> None:
        teller = LineTeller(self._asked, self._selection, self._files, self._sender)
        async with aclosing(self.lines()) as found:
            async for lines in found:
                for told in lines:
                    if isinstance(told, Item):
                        await teller.gap(told)
                    else:
                        await teller.line(told)
                await self._sender.flush()

    async def lines(self) -> AsyncGenerator[Sequence[Line | Item], None]:
        """The lines that are wanted, and the gaps, some at a time; what is open comes last."""
        asked, lines, search = self._asked, Lines(self._start.line), None
        if asked.pattern is not None:
            search = Search(asked.pattern, self._searchers, self._files, self._selection, self._start)
        # Sorted lines are looked at one by one: what a search finds comes in the order of arrival.
        is_searched = search is not None and not asked.is_by_time
        async with aclosing(self._batches()) as batches:
            made = search.found(batches) if search is not None and is_searched else self._made(batches, lines)
            async with aclosing(made):
                async for told in made:
                    self.next_line = search.number if search is not None else lines.number
                    yield self._wanted(told if search is None or is_searched else await _matching(search, told))
                    if not self._left:
                        return
        for line in await self._open_lines(search if search is not None and is_searched else lines):
            if search is None or await search.has(line):
                yield self._wanted([line])
                if not self._left:
                    return

    async def _made(self, batches: AsyncIterator[Batch], lines: Lines) -> AsyncGenerator[list[Line | Item], None]:
        """All lines, and the gaps."""
        async for pieces in self._read(batches):
            for source, keys in lines.unknown([item for item, _ in pieces]).items():
                lines.begin(source, await self._heads(source, keys))
            for item, data in pieces:
                made = lines.feed(item, data)
                while some := list(islice(made, _LINES_AT_ONCE)):
                    yield some

    async def _heads(self, source: int, keys: set[StreamKey]) -> dict[StreamKey, Head]:
        directory = self._files.of(self._selection.sources[source])
        return await self._files.do(lambda: heads_of(directory, keys, self._start.record))

    async def _open_lines(self, read: Lines | Search) -> list[Line]:
        """What no newline has ended: of streams that were read, as it was; of the others, as it is."""
        asked, until = self._asked, self._selection.wanted.until
        is_counted = asked.limit < WITHOUT_LIMIT and not asked.counts_lines
        if is_counted or (self._start == Place() and until == FOREVER):
            return open_lines(read.rest(), read.number)
        layout = await self._following.layout(self._selection) if asked.is_followed else self._layout
        heads = await self._files.do(layout.open_lines)
        found = {
            (source, key): Line(0, source, head.last, head.place, head.length, None, is_open=True)
            for (source, key), head in heads.items()
        }
        if until < FOREVER:  # what is open there may have been ended since
            return open_lines(found, layout.lines)
        return open_lines({key: found[key] for key in found.keys() - read.streams} | read.rest(), read.number)

    def _wanted(self, told: Sequence[Line | Item]) -> list[Line | Item]:
        """What of it is to be told: of the lines no more than are left to tell."""
        wanted: list[Line | Item] = []
        times = self._selection.wanted
        for one in told:
            if isinstance(one, Item):
                # When output was dropped says nothing of when it was printed.
                if times.has(one.record.at) or (one.missing is not None and one.missing.reason == RETENTION):
                    wanted.append(one)
            elif one.number >= self._first_line and times.has(one.record.at):
                wanted.append(one)
                self._left -= self._asked.counts_lines
                if not self._left:
                    break
        return wanted


async def _matching(search: Search, told: Sequence[Line | Item]) -> list[Line | Item]:
    return [one for one in told if isinstance(one, Line) and await search.has(one)]
