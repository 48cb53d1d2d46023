"""One piece or line after the other, put into words: events that are no larger than a slice, lines in any form."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import aclosing
from dataclasses import replace
from typing import Final

from pistage.core import limits
from pistage.master.api.asked import Asked, Form
from pistage.master.api.forms import Shapes, TextLines
from pistage.master.api.sending import SLICE_BYTES, Sender
from pistage.master.reading.files import Files
from pistage.master.reading.lines import PART_BYTES, Line, parts_of, whole_characters
from pistage.master.reading.selection import Selection
from pistage.master.reading.walk import Item

_PART_BYTES: Final = 8 * limits.KIB  # of a piece, in an event: its JSON is no more than a slice, but for odd bytes


class LineTeller:
    """Lines in JSON, as text, or as the bytes that they are. `more` are pairs for each object, ", " behind them."""

    def __init__(self, asked: Asked, selection: Selection, files: Files, sender: Sender, *, more: str = "") -> None:
        self._form, self._selection, self._files, self._sender = asked.form, selection, files, sender
        self._shapes = Shapes(selection, more)
        self._text = TextLines(has_controls=asked.has_controls, has_times=asked.has_times)

    async def line(self, line: Line) -> None:
        """Add a line to what is sent; one that is long in parts."""
        if line.data is not None and line.length <= PART_BYTES:
            await self._tell(line, line.data, is_cut=False)
            return
        async with aclosing(parts_of(line, self._files, self._selection.sources[line.source])) as parts:
            async for data, is_cut in parts:
                await self._tell(line, data, is_cut=is_cut)

    async def gap(self, item: Item) -> None:
        """Add a gap."""
        assert item.missing is not None, "a gap"
        if self._form is Form.JSON:
            await self._sender.add(self._shapes.gap(item, item.missing) + "\n")
        elif self._form is Form.TEXT:
            await self._sender.add(self._text.gap(item.record, item.missing))

    async def _tell(self, line: Line, data: bytes, *, is_cut: bool) -> None:
        if self._form is Form.JSON:
            await self._sender.add(self._shapes.line(line, data, is_cut=is_cut) + "\n")
        elif self._form is Form.TEXT:
            await self._sender.add(self._text.line(line, data, is_cut=is_cut))
        else:
            await self._sender.add_bytes(data if is_cut else data + b"\n")


def events_of(shapes: Shapes, item: Item, data: bytes) -> Iterator[tuple[str, int, str]]:
    """The events that tell of a piece: the id of each, up to which byte of the piece it goes, and its data."""
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
        yield (str(item.id) if is_last else f"{item.id}.{item.skip + at}"), item.skip + at, told
        if is_last:
            return
