"""The pieces of a selection, from a place on: in the order in which they came or of their times, with their bytes."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Protocol

from pistage.master.reading.files import Files, read_whole
from pistage.master.reading.gaps import Missing, missing_of
from pistage.master.reading.locate import By, Place
from pistage.master.reading.selection import SOURCE_RECORDS_MAX, Selection
from pistage.master.records import Record, StreamKey

_RECORDS_AT_ONCE = 512
_SORTED_AT_ONCE = 1 << 16  # records that are held while they are sorted: some 30 MB


@dataclass(frozen=True, slots=True)
class Item:
    """A piece, or with `missing` a gap. Of its bytes those from `skip` on are meant, `kept` of them.

    `lines` newlines of the selection are before those.
    """

    source: int
    number: int  # of the record in its source
    record: Record
    lines: int
    skip: int = 0
    kept: int = 0
    missing: Missing | None = None

    @property
    def id(self) -> int:
        """Its number among all pieces of the run."""
        return self.source * SOURCE_RECORDS_MAX + self.number

    @property
    def place(self) -> int:
        """Where its bytes begin in those that are kept of its stream."""
        return self.record.place + self.skip


class Live(Protocol):
    """What is known of runs while they are read."""

    def news(self, run_id: str) -> asyncio.Event:
        """An event that the next news of the run sets; ask for it before looking what there is."""

    async def readable(self, run_id: str) -> int:
        """How many records of it may be shown now."""

    async def is_over(self, run_id: str, news: asyncio.Event) -> bool:
        """Whether it was over at some time after `news` was asked for, and so nothing more is printed."""

    async def learn_attempts(self, selection: Selection) -> None:
        """Tell the selection of those that there are by now."""

    async def wait(self, news: asyncio.Event) -> None:
        """Wait for the news, and keep whoever reads from thinking that we are gone."""

    async def dropped(self, selection: Selection, source: int) -> Sequence[tuple[Record, Missing]]:
        """Of a run that tasks were kept from: what retention has taken of it, in place of that."""

    async def lost(self, selection: Selection, source: int) -> Sequence[tuple[Record, Missing]]:
        """Of a run that is over: what was printed and is not there, although nobody says so."""


Batch = list[Item]


@dataclass(slots=True)
class Walk:
    """Goes through the records of a selection; `ends` says how many of each source, for a run that is not followed."""

    files: Files
    selection: Selection
    live: Live
    ends: Sequence[int]
    is_followed: bool = False
    has_all_times: bool = False  # also what was not printed at the wanted ones

    async def batches(self, start: Place) -> AsyncGenerator[Batch, None]:
        """From that place on; with `is_followed` until the run is over."""
        lines = start.lines
        for source in range(start.source, len(self.selection.sources)):
            at, skipped = (start.record, start) if source == start.source else (0, Place())
            dropped = _told(source, 0, await self.live.dropped(self.selection, source), lines)
            if dropped := [item for item in dropped if item.number >= at]:
                yield dropped
            async with aclosing(self._records(source, at)) as pages:
                async for number, records in pages:
                    await self._learn(source, records)
                    batch, lines = self._taken(source, number, records, lines, skipped)
                    skipped = Place()
                    if batch:
                        yield batch
            lost = await self.live.lost(self.selection, source)
            told = _told(source, SOURCE_RECORDS_MAX // 2, lost, lines)
            if told := [item for item in told if item.number >= at]:
                yield told

    async def _learn(self, source: int, records: Sequence[Record]) -> None:
        known = self.selection.attempts
        is_own = self.selection.sources[source] == self.selection.run_id
        if is_own and any(record.attempt_id not in known and not record.is_barrier for record in records):
            await self.live.learn_attempts(self.selection)

    async def _records(self, source: int, at: int) -> AsyncGenerator[tuple[int, list[Record]], None]:
        run_id = self.selection.sources[source]
        if not self.is_followed or run_id != self.selection.run_id:
            while records := await self.files.records(run_id, at, min(_RECORDS_AT_ONCE, self.ends[source] - at)):
                yield at, records
                at += len(records)
            return
        is_over = False
        while True:
            news = self.live.news(run_id)
            left = await self.live.readable(run_id) - at
            if records := await self.files.records(run_id, at, min(_RECORDS_AT_ONCE, left)):
                yield at, records
                at += len(records)
            elif is_over:
                return
            else:  # what came before the end is looked for once more
                is_over = await self.live.is_over(run_id, news)
                if not is_over:
                    await self.live.wait(news)

    def _taken(
        self, source: int, number: int, records: Sequence[Record], lines: int, skipped: Place
    ) -> tuple[Batch, int]:
        """What is wanted of these records, without what is skipped of the first; and the lines before the next one."""
        batch: Batch = []
        wanted = self.selection.wanted
        is_timed = wanted.is_timed and not self.has_all_times
        skip, inner = skipped.skip, skipped.inner
        for here, record in enumerate(records, number):
            if not record.is_barrier and self.selection.takes(source, record.key):
                if not is_timed or wanted.has(record.at):
                    kept = max(0, record.kept - skip)
                    batch.append(Item(source, here, record, lines + inner, skip, kept, missing_of(record)))
                lines += record.lines
            skip = inner = 0
        return batch, lines


def _told(source: int, number: int, gaps: Sequence[tuple[Record, Missing]], lines: int) -> Batch:
    return [Item(source, here, record, lines, missing=missing) for here, (record, missing) in enumerate(gaps, number)]


async def by_time(batches: AsyncIterator[Batch]) -> AsyncGenerator[Batch, None]:
    """The same in the order of their times, each stream in its own.

    What came more than 65,536 pieces late is late here, too.
    """
    latest: dict[StreamKey, int] = {}
    held: list[tuple[int, int, Item]] = []
    async for batch in batches:
        ready: Batch = []
        for item in batch:
            # Clocks are set back; the order in which a stream was printed is known, and nothing comes before itself.
            at = latest[item.record.key] = max(item.record.at, latest.get(item.record.key, 0))
            entry = (at, item.id, item)
            if len(held) < _SORTED_AT_ONCE:
                heapq.heappush(held, entry)
            else:
                ready.append(heapq.heappushpop(held, entry)[2])
        if ready:
            yield ready
    while held:
        yield [heapq.heappop(held)[2] for _ in range(min(len(held), _RECORDS_AT_ONCE))]


async def limited(batches: AsyncIterator[Batch], by: By, owed: int, limit: int) -> AsyncGenerator[Batch, None]:
    """Without the first `owed` bytes, and no more than `limit` bytes or pieces."""
    async for batch in batches:
        kept: Batch = []
        for item in batch:
            if limit <= 0:
                break
            if owed and by is By.BYTE:
                passed = min(owed, item.kept)
                owed -= passed
                item = replace(item, skip=item.skip + passed, kept=item.kept - passed)  # noqa: PLW2901
                if not item.kept:
                    continue
            if by is By.PIECE:
                limit -= 1
            elif by is By.BYTE:
                if item.kept > limit:
                    item = replace(item, kept=limit)  # noqa: PLW2901
                limit -= item.kept
            kept.append(item)
        if kept:
            yield kept
        if limit <= 0:
            return


async def divided(batches: AsyncIterator[Batch], bytes_max: int) -> AsyncGenerator[Batch, None]:
    """The same, each piece of more than `bytes_max` bytes in several; of those but the first `lines` is not known."""
    async for batch in batches:
        yield [
            replace(item, skip=item.skip + at, kept=min(bytes_max, item.kept - at))
            for item in batch
            for at in range(0, max(1, item.kept), bytes_max)
        ]


async def with_data(
    files: Files, selection: Selection, batches: AsyncIterator[Batch], bytes_max: int
) -> AsyncGenerator[list[tuple[Item, bytes]], None]:
    """Each with its bytes: at most `bytes_max` of them at a time, or those of one."""
    async for batch in batches:
        start = 0
        while start < len(batch):
            end = _end_of(batch, start, bytes_max)
            directory, some = files.of(selection.sources[batch[start].source]), batch[start:end]
            # Not a name here: whoever reads slowly stands still with what is below.
            yield list(zip(some, await files.do(partial(data_of, directory, some)), strict=True))
            start = end


def _end_of(batch: Batch, start: int, bytes_max: int) -> int:
    end, size = start, 0
    while end < len(batch) and batch[end].source == batch[start].source:
        size += batch[end].kept
        if size > bytes_max and end > start:
            break
        end += 1
    return end


def data_of(directory: Path, items: Batch) -> list[bytes]:
    """The bytes of each item, by one read for what neighbours in a stream continue."""
    data = [b""] * len(items)
    stretches: dict[StreamKey, list[int]] = {}
    for number, item in enumerate(items):
        if not item.kept:
            continue
        stretch = stretches.setdefault(item.record.key, [])
        if stretch and items[stretch[-1]].place + items[stretch[-1]].kept != item.place:
            _read_stretch(directory, items, stretch, data)
            stretch.clear()
        stretch.append(number)
    for stretch in stretches.values():
        _read_stretch(directory, items, stretch, data)
    return data


def _read_stretch(directory: Path, items: Batch, stretch: Sequence[int], data: list[bytes]) -> None:
    first, last = items[stretch[0]], items[stretch[-1]]
    whole = read_whole(directory, first.record.key, first.place, last.place + last.kept - first.place)
    if len(stretch) == 1:
        data[stretch[0]] = whole
        return
    for number in stretch:
        start = items[number].place - first.place
        data[number] = whole[start : start + items[number].kept]
