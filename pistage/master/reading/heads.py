"""Where the line begins that a stream is in the middle of: found by going back in its records."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from pistage.master import blocks as blocks_of
from pistage.master import records as index_of
from pistage.master.blocks import BLOCK_RECORDS, block_of
from pistage.master.reading.files import read_whole
from pistage.master.records import Record, StreamKey


@dataclass(frozen=True, slots=True)
class Head:
    """The line begins at the kept byte `place`, and reaches to the end of the stream's `last` record so far."""

    place: int
    last: Record

    @property
    def length(self) -> int:
        """How much there is of the line: nothing behind a newline, and behind a gap."""
        return self.last.place + self.last.kept - self.place


def heads_of(directory: Path, keys: Collection[StreamKey], before: int) -> dict[StreamKey, Head]:
    """The head of each of these streams, from the records of the run in `directory` before number `before`.

    A stream that had no record by then has none.
    """
    near: dict[StreamKey, list[int]] = {key: [] for key in keys}
    for number, streams in _streams_by_block(directory, before):
        for key in streams.keys() & near.keys():
            if streams[key]:
                near[key].clear()  # what is before its last newline is of no use
            near[key].append(number)
    by_block: dict[int, set[StreamKey]] = {}
    for key, numbers in near.items():
        for number in numbers:
            by_block.setdefault(number, set()).add(key)
    search = _Search(directory, before)
    for number in sorted(by_block, reverse=True):
        if wanted := by_block[number] - search.heads.keys():
            search.look_through(number, wanted)
    for key, record in search.last.items():
        search.heads.setdefault(key, Head(0, record))
    return search.heads


class _Search:
    """Backwards, a block after the other."""

    def __init__(self, directory: Path, before: int) -> None:
        self._directory, self._before = directory, before
        self.last: dict[StreamKey, Record] = {}
        self.heads: dict[StreamKey, Head] = {}

    def look_through(self, number: int, wanted: set[StreamKey]) -> None:
        for record in reversed(_records(self._directory, number, self._before)):
            key = record.key
            if key not in wanted:
                continue
            last = self.last.setdefault(key, record)
            if record.gap is not None:
                self.heads[key] = Head(record.place, last)
            elif record.lines:
                data = read_whole(self._directory, key, record.place, record.kept)
                self.heads[key] = Head(record.place + data.rfind(b"\n") + 1, last)
            else:
                continue
            wanted.discard(key)
            if not wanted:
                return


def _streams_by_block(directory: Path, before: int) -> Iterator[tuple[int, dict[StreamKey, int]]]:
    """The number of each block, and how many lines there are in it of each stream."""
    number = 0
    for block in blocks_of.each(directory / "blocks"):
        if (number + 1) * BLOCK_RECORDS > before:
            break
        yield number, {key: amount.lines for key, amount in block.streams.items()}
        number += 1
    while number * BLOCK_RECORDS < before:
        block = block_of(_records(directory, number, before))
        yield number, {key: amount.lines for key, amount in block.streams.items()}
        number += 1


def _records(directory: Path, number: int, before: int) -> list[Record]:
    start = number * BLOCK_RECORDS
    return index_of.read_records(directory / "index", start, min(BLOCK_RECORDS, before - start))
