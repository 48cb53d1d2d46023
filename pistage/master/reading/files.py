"""What readers take from the files of output, in threads that nobody else waits for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
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


def read_whole(directory: Path, key: StreamKey, place: int, length: int) -> bytes:
    """So many bytes of a stream; PistageError `storage` where there are fewer."""
    data = index_of.read_bytes(directory, key, place, length)
    if len(data) != length:
        raise PistageError(Code.STORAGE, f"run {directory.name}: its files hold less output than its index says")
    return data
