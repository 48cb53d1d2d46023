"""Where in a selection a byte, a line, a record or a time is: by sums of blocks, then of records, then in one frame."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from pistage.master import blocks as blocks_of
from pistage.master import records as index_of
from pistage.master.blocks import BLOCK_RECORDS, Block, block_of
from pistage.master.reading.files import read_whole
from pistage.master.reading.heads import Head, heads_of
from pistage.master.reading.selection import FOREVER, SOURCE_RECORDS_MAX, Selection
from pistage.master.records import Record, StreamKey


class By(StrEnum):
    """What places and amounts are counted in."""

    BYTE = "byte"
    PIECE = "piece"
    LINE = "line"


@dataclass(frozen=True, slots=True, order=True)
class Place:
    """Before byte `skip` of a record of a source.

    `lines` newlines of the selection are before the record, and `inner` in what is skipped of it.
    """

    source: int = 0
    record: int = 0
    skip: int = 0
    lines: int = field(default=0, compare=False)
    inner: int = field(default=0, compare=False)

    @property
    def line(self) -> int:
        """The number of the line whose newline comes next."""
        return self.lines + self.inner


@dataclass(frozen=True, slots=True)
class _Sum:
    """What a block holds of the selection, and between which times anything in it was printed."""

    size: int
    lines: int
    at_min: int
    at_max: int


class Layout:
    """What there is of a selection. Made anew for each request; any thread, and it reads files.

    `readable` says how many records of each source may be shown, `directories` where the sources are.
    """

    def __init__(self, selection: Selection, directories: Sequence[Path], readable: Sequence[int]) -> None:
        self._selection = selection
        self._directories = directories
        self.sizes: list[Counter[StreamKey]] = [Counter() for _ in directories]  # bytes of each stream that is wanted
        self.counts: list[int] = []  # records
        self._sums: list[list[_Sum]] = []
        for source, count in enumerate(readable):
            self._sums.append([self._summed(source, block) for block in self._blocks(source, count)])
        self._open: dict[tuple[int, StreamKey], Head] | None = None

    @property
    def lines(self) -> int:
        """How many newlines there are."""
        return sum(part.lines for sums in self._sums for part in sums)

    @property
    def end(self) -> Place:
        """Behind all that there is."""
        return Place(len(self.counts) - 1, self.counts[-1], 0, self.lines)

    # --- places --------------------------------------------------------------------------------------------------

    def at(self, by: By, number: int) -> tuple[Place, int]:
        """Where the byte, the piece or the line of this number begins, and how many bytes or lines are still to come
        before it, where it is not there yet."""
        if by is By.PIECE:
            return self._at_record(*divmod(number, SOURCE_RECORDS_MAX)), 0
        if number == 0:
            return Place(), 0
        there = sum(part.size if by is By.BYTE else part.lines for sums in self._sums for part in sums)
        return self._unit(by, number, in_time=False), max(0, number - there)

    def from_end(self, by: By, count: int) -> tuple[Place, int]:
        """Where the last `count` bytes, pieces or lines of the wanted times begin, and the number of the first line
        that is one of them."""
        if by is By.PIECE:
            place = self._pieces_from_end(count)
            return place, place.line
        total = 0
        for source, sums in enumerate(self._sums):
            total += sum(self._amount(by, source, number) for number in range(len(sums)))
        if by is By.BYTE:
            place = self._unit(by, total - count, in_time=True) if count < total else Place()
            return place, place.line
        open_ones = [head for head in self.open_lines().values() if self._selection.wanted.has(head.last.at)]
        if count <= len(open_ones):
            return self.end, self.lines + len(open_ones) - count
        place = (
            self._unit(by, total + len(open_ones) - count, in_time=True) if count < total + len(open_ones) else Place()
        )
        return place, place.line

    def since(self) -> Place:
        """Where the first record is that was printed at the wanted times."""
        since = self._selection.wanted.since
        lines = 0
        for source, sums in enumerate(self._sums):
            for number, part in enumerate(sums):
                if part.at_max >= since:
                    for record_number, record in self._records(source, number):
                        if record.at >= since and not record.is_barrier:
                            return Place(source, record_number, 0, lines)
                        lines += record.lines if self._takes(source, record) else 0
                else:
                    lines += part.lines
        return self.end

    def until(self, source: int) -> int:
        """Behind which record of a source there is nothing more of the wanted times."""
        until = self._selection.wanted.until
        if until == FOREVER:
            return self.counts[source]
        number = len(self._sums[source])
        while number and self._sums[source][number - 1].at_min >= until:
            number -= 1
        return min(number * BLOCK_RECORDS, self.counts[source])

    def open_lines(self) -> dict[tuple[int, StreamKey], Head]:
        """The lines that no newline has ended yet, by source and stream."""
        if self._open is None:
            self._open = {}
            for source, count in enumerate(self.counts):
                heads = heads_of(self._directories[source], self.sizes[source], count)
                self._open |= {(source, key): head for key, head in heads.items() if head.length}
        return self._open

    # --- below ---------------------------------------------------------------------------------------------------

    def _blocks(self, source: int, count: int) -> Iterator[Block]:
        """Blocks of all its readable records: as they are in the file, then made of what is behind those."""
        number = 0
        for block in blocks_of.each(self._directories[source] / "blocks"):
            if (number + 1) * BLOCK_RECORDS > count:
                break
            yield block
            number += 1
        start = number * BLOCK_RECORDS
        while records := self._read(source, start, min(BLOCK_RECORDS, count - start)):
            yield block_of(records)
            start += len(records)
        self.counts.append(start)

    def _summed(self, source: int, block: Block) -> _Sum:
        size = lines = 0
        for key, amount in block.streams.items():
            if self._selection.takes(source, key):
                size += amount.size
                lines += amount.lines
                self.sizes[source][key] += amount.size
        return _Sum(size, lines, block.at_min, block.at_max)

    def _amount(self, by: By, source: int, number: int) -> int:
        """How many bytes or lines of the wanted times are in a block."""
        part, wanted = self._sums[source][number], self._selection.wanted
        if part.at_max < wanted.since or part.at_min >= wanted.until:
            return 0
        if part.at_min >= wanted.since and part.at_max < wanted.until:
            return part.size if by is By.BYTE else part.lines
        return sum(
            _units(by, record)
            for _, record in self._records(source, number)
            if self._takes(source, record) and self._selection.wanted.has(record.at)
        )

    def _unit(self, by: By, number: int, *, in_time: bool) -> Place:
        """Before byte `number`, or behind the newline before line `number`; `in_time` counts the wanted times alone."""
        left = number if by is By.BYTE else number - 1  # of bytes, or newlines, before the one that is looked for
        lines = 0
        for source, sums in enumerate(self._sums):
            for block, part in enumerate(sums):
                whole = part.size if by is By.BYTE else part.lines
                amount = self._amount(by, source, block) if in_time else whole
                if left < amount:
                    return self._unit_in(by, source, block, left, lines, in_time=in_time)
                left -= amount
                lines += part.lines
        return self.end

    def _unit_in(self, by: By, source: int, block: int, left: int, lines: int, *, in_time: bool) -> Place:
        for number, record in self._records(source, block):
            if not self._takes(source, record):
                continue
            amount = _units(by, record) if not in_time or self._selection.wanted.has(record.at) else 0
            if left < amount:
                data = read_whole(self._directories[source], record.key, record.place, record.kept)
                skip = left if by is By.BYTE else _behind_newline(data, left)
                if skip == record.kept:
                    return Place(source, number + 1, 0, lines + record.lines)
                return Place(source, number, skip, lines, data.count(b"\n", 0, skip))
            left -= amount
            lines += record.lines
        return self.end

    def _at_record(self, source: int, record: int) -> Place:
        """That of this number, also one that is not there yet, or that a gap has behind all that there is."""
        if source >= len(self.counts):
            return self.end
        lines = sum(part.lines for sums in self._sums[:source] for part in sums)
        if record >= self.counts[source]:
            return Place(source, record, 0, lines + sum(part.lines for part in self._sums[source]))
        lines += sum(part.lines for part in self._sums[source][: record // BLOCK_RECORDS])
        for number, one in self._records(source, record // BLOCK_RECORDS):
            if number < record and self._takes(source, one):
                lines += one.lines
        return Place(source, record, 0, lines)

    def _pieces_from_end(self, count: int) -> Place:
        for source in reversed(range(len(self.counts))):
            for block in reversed(range(len(self._sums[source]))):
                for number, record in reversed(self._records(source, block)):
                    if self._takes(source, record) and self._selection.wanted.has(record.at):
                        count -= 1
                        if not count:
                            return self._at_record(source, number)
        return Place()

    def _takes(self, source: int, record: Record) -> bool:
        return not record.is_barrier and self._selection.takes(source, record.key)

    def _records(self, source: int, block: int) -> list[tuple[int, Record]]:
        start = block * BLOCK_RECORDS
        return list(enumerate(self._read(source, start, min(BLOCK_RECORDS, self.counts[source] - start)), start))

    def _read(self, source: int, start: int, count: int) -> list[Record]:
        return index_of.read_records(self._directories[source] / "index", start, count) if count > 0 else []


def _units(by: By, record: Record) -> int:
    return record.kept if by is By.BYTE else record.lines


def _behind_newline(data: bytes, number: int) -> int:
    """Behind newline `number` of the data, counted from 0."""
    at = 0
    for _ in range(number + 1):
        at = data.index(b"\n", at) + 1
    return at
