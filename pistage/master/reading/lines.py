"""Lines of a selection: each belongs to one stream, and comes when its newline does."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Final

from pistage.master.reading.files import Files
from pistage.master.reading.heads import Head
from pistage.master.reading.walk import Item
from pistage.master.records import Record, StreamKey

PART_BYTES: Final = 64 * 1024  # of a line that is longer, each of its parts
_HELD_BYTES_MAX: Final = 8 * 1024 * 1024  # of lines that have begun; of more it is known where they stand

Key = tuple[int, StreamKey]  # source and stream


@dataclass(frozen=True, slots=True)
class Line:
    """A line without its newline: `length` bytes of the stream of `record` from the kept byte `place` on.

    `record` is of its last piece. `data` is None where it must be read; `is_open` if no newline ended it.
    """

    number: int
    source: int
    record: Record
    place: int
    length: int
    data: bytes | None
    is_open: bool = False


@dataclass(slots=True)
class _Begun:
    """What there is of a line: from the kept byte `place` on, up to the last piece."""

    place: int
    length: int
    held: bytes | None
    source: int
    record: Record  # the last of them


class Lines:
    """Pieces, each stream's in its order -> lines. Memory is bounded whatever is printed: long lines are read again."""

    def __init__(self, number: int) -> None:
        self._begun: dict[Key, _Begun] = {}
        self._held_bytes = 0
        self.number = number  # of the line whose newline comes next

    def unknown(self, items: Collection[Item]) -> dict[int, set[StreamKey]]:
        """By source, streams in whose middle these pieces are, with nothing known of what is before: `begin` them."""
        first: dict[Key, Item] = {}
        for item in items:
            first.setdefault((item.source, item.record.key), item)
        found: dict[int, set[StreamKey]] = {}
        for (source, key), item in first.items():
            # Where the beginning of a piece is skipped, there reading was to begin.
            if item.place > 0 and not item.skip and (source, key) not in self._begun:
                found.setdefault(source, set()).add(key)
        return found

    def begin(self, source: int, heads: Mapping[StreamKey, Head]) -> None:
        """What the lines of these streams were when reading began."""
        for key, head in heads.items():
            self._begun[source, key] = _Begun(head.place, head.length, None, source, head.last)

    def feed(self, item: Item, data: bytes) -> Iterator[Line | Item]:
        """The lines that this piece ends; or what a gap has broken off, and the gap."""
        key = (item.source, item.record.key)
        begun = self._begun.get(key)
        if begun is None:
            begun = self._begun[key] = _Begun(item.place, 0, b"", item.source, item.record)
        if item.missing is not None:
            if begun.length:
                yield self._line(begun, item.lines, is_open=True)
            self._restart(begun, item.record.place)
            yield item
            return
        number, start, record = item.lines, 0, item.record
        begun.record = record
        end = data.find(b"\n")
        if end >= 0 and begun.length:
            self._add(begun, data[:end])
            yield self._line(begun, number)
            number, start = number + 1, end + 1
            end = data.find(b"\n", start)
        while end >= 0:
            yield Line(number, item.source, record, item.place + start, end - start, data[start:end])
            number, start = number + 1, end + 1
            end = data.find(b"\n", start)
        if start:
            self._restart(begun, item.place + start)
        self.number = max(self.number, number)
        if start < len(data):
            self._add(begun, data[start:] if start else data)

    @property
    def streams(self) -> Collection[Key]:
        """Those of which something is known."""
        return self._begun.keys()

    def rest(self) -> dict[Key, Line]:
        """What no newline has ended yet of each stream, without their numbers."""
        return {key: self._line(begun, 0, is_open=True) for key, begun in self._begun.items() if begun.length}

    def _line(self, begun: _Begun, number: int, *, is_open: bool = False) -> Line:
        return Line(number, begun.source, begun.record, begun.place, begun.length, begun.held, is_open)

    def _restart(self, begun: _Begun, place: int) -> None:
        self._held_bytes -= len(begun.held or b"")
        begun.place, begun.length, begun.held = place, 0, b""

    def _add(self, begun: _Begun, data: bytes) -> None:
        begun.length += len(data)
        if begun.held is None:
            return
        if begun.length > PART_BYTES or self._held_bytes + len(data) > _HELD_BYTES_MAX:
            self._held_bytes -= len(begun.held)
            begun.held = None
        else:
            self._held_bytes += len(data)
            begun.held += data


async def parts_of(line: Line, files: Files, run_id: str) -> AsyncGenerator[tuple[bytes, bool], None]:
    """The bytes of a line, at most 64 KiB at a time, and whether more of them comes. No character is cut in two."""
    at = 0
    while True:
        size = min(PART_BYTES, line.length - at)
        if line.data is not None:
            data = line.data[at : at + size] if size < line.length else line.data
        else:
            data = await files.read(run_id, line.record.key, line.place + at, size)
        is_cut = at + size < line.length
        if is_cut:
            data = data[: whole_characters(data)]
        at += len(data)
        yield data, is_cut
        if not is_cut:
            return


def open_lines(found: Mapping[Key, Line], number: int) -> list[Line]:
    """In the order in which they are told, numbered as if their newlines all came now, the first with `number`."""
    return [replace(found[key], number=here) for here, key in enumerate(sorted(found, key=_order), number)]


def whole_characters(data: bytes) -> int:
    """How many of the bytes there are before a UTF-8 character that is cut off at their end."""
    for back in range(1, min(4, len(data) + 1)):
        byte = data[-back]
        if byte & 0xC0 != 0x80:  # the first of a character
            length = 2 if byte >> 5 == 0b110 else 3 if byte >> 4 == 0b1110 else 4 if byte >> 3 == 0b11110 else 1
            return len(data) - back if length > back and back < len(data) else len(data)
    return len(data)


def _order(key: Key) -> tuple[int, str, int, int]:
    source, (attempt_id, step, stream) = key
    return source, attempt_id, int(step), stream
