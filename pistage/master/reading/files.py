"""What readers take from the files of output, in threads that nobody else waits for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from pistage.errors import Code, PistageError
from pistage.master import records as index_of
from pistage.master.records import Record, StreamKey

_THREADS = 4  # a disk that is slow for readers is slow for readers alone
T = TypeVar("T")


class Files:
    """`directory` is that of all output. Methods raise PistageError `storage` where it is damaged."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._threads = ThreadPoolExecutor(_THREADS, "readers")

    def of(self, run_id: str) -> Path:
        """Where a run's output is."""
        return self._directory / run_id

    async def do(self, work: Callable[[], T]) -> T:
        """Work that waits for the disk, or does without the interpreter."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    async def records(self, run_id: str, start: int, count: int) -> list[Record]:
        """Records from number `start` on, at most `count`; empty at the end."""
        if count <= 0:
            return []
        return await self.do(lambda: index_of.read_records(self.of(run_id) / "index", start, count))

    async def read(self, run_id: str, key: StreamKey, place: int, length: int) -> bytes:
        """So many bytes of one stream from the kept byte `place` on."""
        return await self.do(lambda: read_whole(self.of(run_id), key, place, length))

    async def data(self, run_id: str, records: Sequence[Record]) -> list[bytes]:
        """The bytes of each record; b"" of one that has none."""
        return await self.do(lambda: data_of(self.of(run_id), records))


def read_whole(directory: Path, key: StreamKey, place: int, length: int) -> bytes:
    """So many bytes of a stream; PistageError `storage` where there are fewer."""
    data = index_of.read_bytes(directory, key, place, length)
    if len(data) != length:
        raise PistageError(Code.STORAGE, f"run {directory.name}: its files hold less output than its index says")
    return data


def data_of(directory: Path, records: Sequence[Record]) -> list[bytes]:
    """The bytes of each record, by one read for what neighbours in a stream continue."""
    data = [b""] * len(records)
    stretches: dict[StreamKey, list[int]] = {}
    for number, record in enumerate(records):
        if not record.kept:
            continue
        stretch = stretches.setdefault(record.key, [])
        if stretch and records[stretch[-1]].place + records[stretch[-1]].kept != record.place:
            _read_stretch(directory, records, stretch, data)
            stretch.clear()
        stretch.append(number)
    for stretch in stretches.values():
        _read_stretch(directory, records, stretch, data)
    return data


def _read_stretch(directory: Path, records: Sequence[Record], stretch: Sequence[int], data: list[bytes]) -> None:
    first, last = records[stretch[0]], records[stretch[-1]]
    whole = read_whole(directory, first.key, first.place, last.place + last.kept - first.place)
    if len(stretch) == 1:
        data[stretch[0]] = whole
        return
    for number in stretch:
        start = records[number].place - first.place
        data[number] = whole[start : start + records[number].kept]
