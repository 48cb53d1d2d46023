"""Lines that match, found without making lines of all the others: units of a stream are looked through side by side.

A unit is what neighbouring pieces of a stream hold. The lines within it are looked through where it is read, by a
thread that leaves the interpreter to the others; only those that two units share are put together. A line of more than
a mebibyte is held against the pattern in parts of that size that share 64 KiB, so a match that is longer than those,
and lies across the end of a part, is not seen.
"""

from __future__ import annotations

import asyncio
import os
from array import array
from bisect import bisect_right
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

from pistage.core import limits
from pistage.errors import Code, PistageError
from pistage.master.reading.files import Files, read_whole
from pistage.master.reading.heads import heads_of
from pistage.master.reading.lines import PART_BYTES, Key, Line
from pistage.master.reading.locate import Place
from pistage.master.reading.pattern import Pattern
from pistage.master.reading.selection import Selection
from pistage.master.reading.walk import Batch, Item
from pistage.master.records import Record, StreamKey

_UNIT_BYTES: Final = 2 * 1024 * 1024
_AT_ONCE_BYTES: Final = 4 * _UNIT_BYTES
_PARTS_AHEAD: Final = 2  # one is read while the one before it is told
_FOUND_AT_ONCE: Final = 1 << 16  # lines of a part; of more, it is divided
_WHOLE_BYTES_MAX: Final = 1024 * 1024  # of a line that is matched in one
_SHARED_BYTES: Final = 64 * 1024  # of neighbouring parts of one that is not
_HELD_BYTES_MAX: Final = 16 * 1024 * 1024  # of lines that have begun, of all streams
T = TypeVar("T")


class Searchers:
    """The threads that search, one for each core, and a place for each search. Closed when nobody has it any more."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(max(2, min(4, os.cpu_count() or 2)), "searchers")
        self._places = asyncio.Semaphore(limits.SEARCHES_MAX)

    @asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        """Search in the block, some megabytes: no longer, so that all who search get on, and none waits for a reader.

        PistageError `unavailable` where too many others do.
        """
        try:
            async with asyncio.timeout(limits.SEARCH_WAIT_S):
                await self._places.acquire()
        except TimeoutError:
            raise PistageError(Code.UNAVAILABLE, "too many others search output here now", hint="try again") from None
        try:
            yield
        finally:
            self._places.release()

    def start(self, work: Callable[[], T]) -> asyncio.Future[T]:
        """Do it as soon as a thread is free."""
        return asyncio.get_running_loop().run_in_executor(self._threads, work)


@dataclass(frozen=True, slots=True)
class _Unit:
    """Pieces of one stream, each beginning where the one before it ends."""

    directory: Path
    items: Sequence[Item]

    @property
    def place(self) -> int:
        return self.items[0].place

    @property
    def size(self) -> int:
        return self.items[-1].place + self.items[-1].kept - self.place

    def search(self, pattern: Pattern, count_max: int, start: int = 0) -> _Found:
        """Look through it; not again through what is before byte `start`, which is behind a newline."""
        data = read_whole(self.directory, self.items[0].record.key, self.place, self.size)
        first, last = data.find(b"\n"), data.rfind(b"\n")
        if first < 0:
            return _Found(None, data if len(data) <= _WHOLE_BYTES_MAX else None)
        spans, looked = pattern.lines_in(data, max(start, first + 1), last + 1, count_max)
        newlines = self._newlines(data, [first, *(end for _, end in spans)])
        found = _Found(
            next(newlines),
            data[:first] if first <= _WHOLE_BYTES_MAX else None,
            data[last + 1 :] if len(data) - last <= _WHOLE_BYTES_MAX else None,
            self.place + last + 1,
            more=looked if looked <= last else None,
        )
        for (begin, end), newline in zip(spans, newlines, strict=True):
            text = data[begin:end] if end - begin <= PART_BYTES else None
            found.lines.append((newline, newline.line(self.place + begin, end - begin, text)))
        return found

    def _newlines(self, data: bytes, places: Sequence[int]) -> Iterator[_Newline]:
        """The newlines at these places, which are told in their order."""
        starts = array("Q", (item.place - self.place for item in self.items))
        here, at, count = -1, 0, 0
        for place in places:
            number = bisect_right(starts, place) - 1
            if number != here:
                here, at, count = number, starts[number], 0
            count += data.count(b"\n", at, place)
            at = place
            yield _Newline(self.items[here], count, self.place + place)


@dataclass(frozen=True, slots=True)
class _Newline:
    """The `count`-th of a piece, from 0, which is the byte `place` of its stream."""

    item: Item
    count: int
    place: int

    @property
    def order(self) -> tuple[int, int]:
        """Among all of the source."""
        return self.item.number, self.count

    def line(self, place: int, length: int, data: bytes | None) -> Line:
        """The line that it ends."""
        return Line(self.item.lines + self.count, self.item.source, self.item.record, place, length, data)


@dataclass(slots=True)
class _Found:
    """What became of a unit: its first newline, what is before that and `behind` its last one, None where it is long.

    `lines` are between the two; those from byte `more` on are not looked for yet.
    """

    first: _Newline | None
    before: bytes | None
    behind: bytes | None = None
    behind_place: int = 0
    lines: list[tuple[_Newline, Line]] = field(default_factory=list)
    more: int | None = None


@dataclass(slots=True)
class _Begun:
    """A line that has not ended: what there is of it, and how far it was looked through, if it is a long one."""

    place: int
    record: Record
    length: int = 0
    held: list[bytes] | None = field(default_factory=list)
    held_bytes: int = 0
    looked: int = 0
    is_found: bool = False


_Told = tuple[tuple[int, int], Line]


class Search:
    """Begins at `start`. `found` in what a Walk gives; then `has` for lines that are still open."""

    def __init__(
        self, pattern: Pattern, searchers: Searchers, files: Files, selection: Selection, start: Place
    ) -> None:
        self._pattern, self._searchers, self._files, self._selection = pattern, searchers, files, selection
        self._start = start
        self._begun: dict[Key, _Begun] = {}
        self._held_bytes = 0
        self._part_bytes = _AT_ONCE_BYTES
        self.number = start.line  # of the line whose newline comes next

    @property
    def streams(self) -> Collection[Key]:
        """Those of which something is known."""
        return self._begun.keys()

    def rest(self) -> dict[Key, Line]:
        """What no newline has ended yet of each stream, matching or not, without their numbers."""
        return {
            (source, key): Line(0, source, begun.record, begun.place, begun.length, None, is_open=True)
            for (source, key), begun in self._begun.items()
            if begun.length
        }

    async def has(self, line: Line) -> bool:
        """Whether a line matches."""
        if line.data is not None and line.length <= PART_BYTES:
            return self._pattern.has(line.data)
        return await self._is_found(line.source, _Begun(line.place, line.record, line.length, None))

    async def found(self, batches: AsyncIterator[Batch]) -> AsyncGenerator[list[Line | Item], None]:
        """The lines that match, in the order of their newlines, some at a time."""
        async for batch in batches:
            async with aclosing(self._found_in(batch)) as found:
                async for lines in found:
                    yield [line for _, line in sorted(lines, key=lambda told: told[0])]
            last = batch[-1]
            self.number = last.lines + last.record.lines - (self._start.inner if last.skip else 0)

    # --- batches -------------------------------------------------------------------------------------------------

    async def _found_in(self, batch: Batch) -> AsyncGenerator[list[_Told], None]:
        await self._begin(batch)
        ahead: deque[_Part] = deque()
        start = 0
        try:
            while start < len(batch) or ahead:
                async with self._searchers.place():
                    while start < len(batch) and len(ahead) < _PARTS_AHEAD:
                        end = _end_of(batch, start, self._part_bytes)
                        ahead.append(self._started(batch[start:end]))
                        start = end
                    is_whole = await ahead[0].is_whole()
                if is_whole:
                    yield await self._settled(ahead[0])
                    self._part_bytes = min(_AT_ONCE_BYTES, 2 * self._part_bytes)
                else:
                    self._part_bytes = max(_AT_ONCE_BYTES // 64, self._part_bytes // 4)
                    async with aclosing(self._bit_by_bit(ahead[0].items)) as found:
                        async for lines in found:
                            yield lines
                ahead.popleft()
        finally:
            for part in ahead:
                part.cancel()

    async def _bit_by_bit(self, items: Batch) -> AsyncGenerator[list[_Told], None]:
        """Of pieces that hold too many to be told at once."""
        if len(items) == 1:
            part = self._started(items)
            more = None if await part.is_whole() else await part.more()
            yield await self._settled(part)
            while more is not None:
                unit, at = more
                rest = await self._searchers.start(partial(unit.search, self._pattern, _FOUND_AT_ONCE, at))
                yield [(newline.order, line) for newline, line in rest.lines]
                more = None if rest.more is None else (unit, rest.more)
            return
        middle = len(items) // 2
        for half in (items[:middle], items[middle:]):
            part = self._started(half)
            if await part.is_whole():
                yield await self._settled(part)
                continue
            async with aclosing(self._bit_by_bit(half)) as found:
                async for lines in found:
                    yield lines

    def _started(self, items: Batch) -> _Part:
        part = _Part(items, self._files.of(self._selection.sources[items[0].source]))
        count_max = max(16, _FOUND_AT_ONCE // max(1, len(part.steps)))
        part.start(lambda unit: self._searchers.start(partial(unit.search, self._pattern, count_max)))
        return part

    async def _settled(self, part: _Part) -> list[_Told]:
        """Its lines, those too that began before it."""
        told: list[_Told] = []
        for step, found in part.steps:
            if found is None:
                assert isinstance(step, Item), "a gap"
                told += await self._broken_off(step)
            else:
                assert isinstance(step, _Unit), "what was looked through"
                told += await self._joined(step, await found)
        return told

    # --- lines that go on from unit to unit ----------------------------------------------------------------------

    async def _begin(self, batch: Batch) -> None:
        """Learn where the lines begin in whose middle reading began."""
        first: dict[Key, Item] = {}
        for item in batch:
            first.setdefault((item.source, item.record.key), item)
        unknown = {key: item for key, item in first.items() if key not in self._begun}
        looked_up = [key for (_, key), item in unknown.items() if item.place and not item.skip]
        source = batch[0].source
        directory = self._files.of(self._selection.sources[source])
        heads = await self._files.do(lambda: heads_of(directory, looked_up, self._start.record)) if looked_up else {}
        for key, item in unknown.items():
            head = heads.get(key[1])
            if head is None:
                self._begun[key] = _Begun(item.place, item.record)
            else:
                self._begun[key] = _Begun(head.place, head.last, head.length, None)

    async def _joined(self, unit: _Unit, found: _Found) -> list[_Told]:
        source, key = unit.items[0].source, unit.items[0].record.key
        begun = self._begun[source, key]
        if found.first is None:
            self._extend(begun, unit.items[-1].record, unit.size, found.before)
            await self._look_through(source, begun, _WHOLE_BYTES_MAX)
            return []
        newline = found.first
        self._extend(begun, newline.item.record, newline.place - unit.place, found.before)
        told = [(line_newline.order, line) for line_newline, line in found.lines]
        if await self._is_found(source, begun):
            data = b"".join(begun.held) if begun.held is not None and begun.length <= PART_BYTES else None
            told.append((newline.order, newline.line(begun.place, begun.length, data)))
        self._held_bytes -= begun.held_bytes
        self._begun[source, key] = fresh = _Begun(found.behind_place, unit.items[-1].record)
        if (length := unit.place + unit.size - found.behind_place) > 0:
            self._extend(fresh, unit.items[-1].record, length, found.behind)
            await self._look_through(source, fresh, _WHOLE_BYTES_MAX)
        return told

    async def _broken_off(self, gap: Item) -> list[_Told]:
        begun = self._begun[gap.source, gap.record.key]
        self._held_bytes -= begun.held_bytes
        self._begun[gap.source, gap.record.key] = _Begun(gap.record.place, gap.record)
        if not begun.length or not await self._is_found(gap.source, begun):
            return []
        line = Line(gap.lines, gap.source, begun.record, begun.place, begun.length, None, is_open=True)
        return [((gap.number, -1), line)]

    def _extend(self, begun: _Begun, record: Record, size: int, data: bytes | None) -> None:
        begun.record = record
        begun.length += size
        if begun.held is None:
            return
        if data is None or begun.length > _WHOLE_BYTES_MAX or self._held_bytes + size > _HELD_BYTES_MAX:
            self._held_bytes -= begun.held_bytes
            begun.held, begun.held_bytes = None, 0
        else:
            self._held_bytes += size
            begun.held_bytes += size
            begun.held.append(data)

    async def _is_found(self, source: int, begun: _Begun) -> bool:
        """Whether the line matches, which has ended."""
        if begun.length <= _WHOLE_BYTES_MAX:
            if begun.held is not None and begun.length <= PART_BYTES:
                return self._pattern.has(b"".join(begun.held))
            return await self._searchers.start(partial(self._has_whole, source, begun))
        await self._look_through(source, begun, _WHOLE_BYTES_MAX)
        if not begun.is_found:
            part = partial(self._has_part, source, begun, begun.length, is_last=True)
            begun.is_found = await self._searchers.start(part)
        return begun.is_found

    async def _look_through(self, source: int, begun: _Begun, size: int) -> None:
        """Look through a long line until less than `size` of it is left."""
        while begun.length - begun.looked > size and not begun.is_found:
            end = begun.looked + size
            part = partial(self._has_part, source, begun, end, is_last=False)
            begun.is_found = await self._searchers.start(part)
            begun.looked = end

    def _has_whole(self, source: int, begun: _Begun) -> bool:
        held = begun.held
        return self._pattern.has(b"".join(held) if held is not None else self._read(source, begun, 0, begun.length))

    def _has_part(self, source: int, begun: _Begun, end: int, *, is_last: bool) -> bool:
        start = max(0, begun.looked - _SHARED_BYTES)
        data = self._read(source, begun, start, end)
        return self._pattern.has_in(data, is_first=start == 0, is_last=is_last)

    def _read(self, source: int, begun: _Begun, start: int, end: int) -> bytes:
        directory = self._files.of(self._selection.sources[source])
        return read_whole(directory, begun.record.key, begun.place + start, end - start)


class _Part:
    """Some pieces, the units that they make, and the gaps between those, each stream's in its order."""

    def __init__(self, items: Batch, directory: Path) -> None:
        self.items = items
        self.steps: list[tuple[_Unit | Item, asyncio.Future[_Found] | None]] = []
        self._directory = directory
        pieces: dict[StreamKey, list[Item]] = {}
        for item in items:
            neighbours = pieces.setdefault(item.record.key, [])
            size = item.place - neighbours[0].place if neighbours else 0
            if item.missing is not None or size + item.kept > _UNIT_BYTES:
                self._add(neighbours)
                neighbours = pieces[item.record.key] = []
            if item.missing is not None:
                self.steps.append((item, None))
            elif item.kept:
                neighbours.append(item)
        for neighbours in pieces.values():
            self._add(neighbours)

    def _add(self, pieces: list[Item]) -> None:
        if pieces:
            self.steps.append((_Unit(self._directory, pieces), None))

    def start(self, search: Callable[[_Unit], asyncio.Future[_Found]]) -> None:
        """Have all units looked through."""
        self.steps = [(step, search(step) if isinstance(step, _Unit) else None) for step, _ in self.steps]

    async def is_whole(self) -> bool:
        """Whether all that match were found; waits until that is known."""
        return all([(await found).more is None for _, found in self.steps if found is not None])

    async def more(self) -> tuple[_Unit, int]:
        """Of a single unit that has more: it, and from which byte on."""
        ((unit, found),) = self.steps
        assert isinstance(unit, _Unit) and found is not None, "it has more"
        more = (await found).more
        assert more is not None, "it has more"
        return unit, more

    def cancel(self) -> None:
        """Nobody waits for it any more."""
        for _, found in self.steps:
            if found is not None:
                found.cancel()


def _end_of(batch: Batch, start: int, bytes_max: int) -> int:
    end, size = start, 0
    while end < len(batch) and (size := size + batch[end].kept) <= bytes_max:
        end += 1
    return max(end, start + 1)
