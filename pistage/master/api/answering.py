"""One answer of output: from where it begins to where it ends, in the form that was asked for."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import aclosing
from dataclasses import replace
from typing import Final, assert_never

from pistage.core import limits
from pistage.master.api.asked import Asked, Form
from pistage.master.api.following import Following
from pistage.master.api.forms import Flow, Shapes, TextLines
from pistage.master.api.sending import SLICE_BYTES, Sender
from pistage.master.reading.files import Files
from pistage.master.reading.gaps import RETENTION
from pistage.master.reading.heads import Head, heads_of
from pistage.master.reading.lines import PART_BYTES, Line, Lines, open_lines, parts_of, whole_characters
from pistage.master.reading.locate import By, Layout, Place
from pistage.master.reading.selection import FOREVER, Selection
from pistage.master.reading.walk import Batch, Item, Walk, by_time, limited, with_data
from pistage.master.records import StreamKey

_READ_BYTES: Final = 256 * limits.KIB  # at a time, for one reader
_PART_BYTES: Final = 8 * limits.KIB  # of a piece, in an event: its JSON is no more than a slice, but for odd bytes
_WITHOUT_LIMIT: Final = 1 << 62


class Answer:
    """`look`, which may refuse, then `tell`."""

    def __init__(self, asked: Asked, selection: Selection, files: Files, following: Following, sender: Sender) -> None:
        self._asked, self._selection, self._files = asked, selection, files
        self._following, self._sender = following, sender
        self._start = Place()
        self._owed = 0  # bytes or lines that are still to come before the first that is wanted
        self._first_line = 0
        self._left = asked.limit
        self._layout: Layout

    async def look(self) -> None:
        """Find where to begin. PistageError where that is not known, or not to be had from this master."""
        self._layout = await self._following.layout(self._selection)
        await self._files.do(self._find_start)

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
        async with aclosing(self._batches()) as batches:
            match self._asked.form:
                case _ if self._asked.has_lines:
                    await self._tell_lines(batches)
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
        async with (
            aclosing(walk.batches(self._start)) as arrived,
            aclosing(by_time(arrived) if asked.is_by_time else arrived) as ordered,
            aclosing(limited(ordered, asked.by, self._owed, asked.limit)) as wanted,
        ):
            async for batch in wanted:
                yield batch

    def _read(self, batches: AsyncIterator[Batch]) -> AsyncIterator[list[tuple[Item, bytes]]]:
        return with_data(self._files.data, self._selection, batches, _READ_BYTES)

    # --- as it came ----------------------------------------------------------------------------------------------

    async def _tell_bytes(self, batches: AsyncIterator[Batch]) -> None:
        async for pieces in self._read(batches):
            data = b"".join(data for _, data in pieces) if len(pieces) > 1 else pieces[0][1]
            if self._asked.by is By.LINE:
                data = self._lines_in(data)
            await self._sender.send(data)
            if not self._left:
                return

    def _lines_in(self, data: bytes) -> bytes:
        """Without the lines that come before the first that is wanted, and behind the last."""
        start, end = 0, len(data)
        while self._owed and start < len(data):
            newline = data.find(b"\n", start)
            start = newline + 1 if newline >= 0 else len(data)
            self._owed -= newline >= 0
        if self._left < _WITHOUT_LIMIT:
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
                    for event_id, told in events_of(shapes, item, data):
                        await self._sender.event(event_id, "output", told)
                else:
                    await self._sender.event(str(item.id), "gap", shapes.gap(item, item.missing))
            await self._sender.flush()
        await self._sender.event("", "end", "{}")

    # --- lines ---------------------------------------------------------------------------------------------------

    async def _tell_lines(self, batches: AsyncIterator[Batch]) -> None:
        teller = _LineTeller(self._asked, self._selection, self._files, self._sender)
        lines = Lines()
        lines.number = self._start.line
        async for pieces in self._read(batches):
            for source, keys in lines.unknown([item for item, _ in pieces]).items():
                lines.begin(source, await self._heads(source, keys))
            for item, data in pieces:
                for told in lines.feed(item, data):
                    if isinstance(told, Item):
                        await self._tell_gap(teller, told)
                    elif told.number >= self._first_line and not await self._has_told(teller, told):
                        return
            await self._sender.flush()
        for line in await self._open_lines(lines):
            if line.number >= self._first_line and not await self._has_told(teller, line):
                return

    async def _tell_gap(self, teller: _LineTeller, gap: Item) -> None:
        assert gap.missing is not None, "a gap"
        # When output was dropped says nothing of when it was printed.
        if gap.missing.reason == RETENTION or self._selection.wanted.has(gap.record.at):
            await teller.gap(gap)

    async def _has_told(self, teller: _LineTeller, line: Line) -> bool:
        """Tell a line, if it is of the wanted times; whether more are wanted."""
        if self._selection.wanted.has(line.record.at):
            await teller.line(line)
            self._left -= self._asked.by is By.LINE
        return self._left > 0

    async def _heads(self, source: int, keys: set[StreamKey]) -> dict[StreamKey, Head]:
        directory = self._files.of(self._selection.sources[source])
        return await self._files.do(lambda: heads_of(directory, keys, self._start.record))

    async def _open_lines(self, lines: Lines) -> list[Line]:
        """What no newline has ended: of streams that were read, as it was; of the others, as it is."""
        asked, until = self._asked, self._selection.wanted.until
        is_counted = asked.limit < _WITHOUT_LIMIT and asked.by is not By.LINE
        if is_counted or (self._start == Place() and until == FOREVER):
            return open_lines(lines.rest(), lines.number)
        layout = await self._following.layout(self._selection) if asked.is_followed else self._layout
        heads = await self._files.do(layout.open_lines)
        found = {
            (source, key): Line(0, source, head.last, head.place, head.length, None, is_open=True)
            for (source, key), head in heads.items()
        }
        if until < FOREVER:  # what is open there may have been ended since
            return open_lines(found, layout.lines)
        return open_lines({key: found[key] for key in found.keys() - lines.streams} | lines.rest(), lines.number)


class _LineTeller:
    """Lines in JSON or as text."""

    def __init__(self, asked: Asked, selection: Selection, files: Files, sender: Sender) -> None:
        self._selection, self._files, self._sender = selection, files, sender
        self._shapes = Shapes(selection) if asked.form is Form.JSON else None
        self._text = TextLines(has_controls=asked.has_controls, has_times=asked.has_times)

    async def line(self, line: Line) -> None:
        if line.data is not None and line.length <= PART_BYTES:
            await self._tell(line, line.data, is_cut=False)
            return
        async with aclosing(parts_of(line, self._files, self._selection.sources[line.source])) as parts:
            async for data, is_cut in parts:
                await self._tell(line, data, is_cut=is_cut)

    async def gap(self, item: Item) -> None:
        assert item.missing is not None, "a gap"
        if self._shapes is not None:
            await self._sender.add(self._shapes.gap(item, item.missing) + "\n")
        else:
            await self._sender.add(self._text.gap(item.record, item.missing))

    async def _tell(self, line: Line, data: bytes, *, is_cut: bool) -> None:
        if self._shapes is not None:
            await self._sender.add(self._shapes.line(line, data, is_cut=is_cut) + "\n")
        else:
            await self._sender.add(self._text.line(line, data, is_cut=is_cut))


def events_of(shapes: Shapes, item: Item, data: bytes) -> Iterator[tuple[str, str]]:
    """Id and data of the events that tell of a piece: of several, each but the last is followed by more of it."""
    at, size = 0, _PART_BYTES
    while True:
        part = data[at : at + size]
        is_last = at + len(part) == len(data)
        if not is_last:
            part = part[: whole_characters(part)]
        told = shapes.piece(replace(item, skip=item.skip + at), part)
        if len(told) > SLICE_BYTES and len(part) > 1:
            size = max(1, len(part) // 2)
            continue
        at += len(part)
        yield (str(item.id) if is_last else f"{item.id}.{item.skip + at}"), told
        if is_last:
            return
