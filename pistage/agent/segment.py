"""One file of the journal: records that are appended and, together with others, flushed to the disk.

Each record is length, CRC-32 and msgpack; a torn tail, which a crash may leave, is cut off. What was appended survives
the end of this process at once, and that of the machine once it was flushed.
"""

from __future__ import annotations

import asyncio
import os
import struct
import zlib
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from pistage.wire import pack_value, unpack_value

_HEADER = struct.Struct(">II")


class Segment:
    """An open file, read to its end."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.size = 0
        self.records: list[Any] = []
        #: Whether it is durable that there is such a file, under this name.
        self._is_named = file.exists()
        self._is_durable = self._is_named  # in part, perhaps
        self._descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        for self.size, record in _records(file.read_bytes()):
            self.records.append(record)
        os.ftruncate(self._descriptor, self.size)
        self._appended = self._flushed = 0
        self._flushing: asyncio.Future[None] | None = None
        self._failure: OSError | None = None

    @property
    def failure(self) -> OSError | None:
        """How the disk failed: what it has kept cannot be known any more, and the segment takes nothing more."""
        return self._failure

    @property
    def is_worthless(self) -> bool:
        """Whether nobody was promised anything of it, nor can be any more."""
        return self._failure is not None and not self._is_durable and self._flushing is None

    def append(self, record: list[Any]) -> None:
        """Add a record; OSError if there is no space for it, and then nothing was added."""
        if self._failure is not None:
            raise self._failure
        if self._descriptor < 0:
            return  # the agent is stopping: nobody is told of what happens now
        packed = pack_value(record)
        framed = _HEADER.pack(len(packed), zlib.crc32(packed)) + packed
        written = 0
        try:
            while written < len(framed):
                written += os.write(self._descriptor, framed[written:])
        except OSError:
            self._cut()
            raise
        self.size += written
        self._appended += written

    def _cut(self) -> None:
        """Take half a record away: nothing after it could be read."""
        try:
            os.ftruncate(self._descriptor, self.size)
        except OSError as error:
            self._failure = error

    async def flush(self) -> None:
        """Return once all that was appended before is durable. Who asks meanwhile shares the next turn of the disk.

        OSError if the disk failed, now and for ever.
        """
        wanted = self._appended
        while self._flushed < wanted:
            if self._failure is not None:
                raise self._failure
            if self._descriptor < 0:
                return
            if self._flushing is None:
                directory = None if self._is_named else self.file.parent
                self._flushing = asyncio.get_running_loop().run_in_executor(None, _flush, self._descriptor, directory)
                self._flushing.add_done_callback(partial(self._on_flushed, self._appended))
            # For as long as the disk takes. Nobody's cancellation ends what others wait for.
            await asyncio.wait([self._flushing])

    def _on_flushed(self, covered: int, done: asyncio.Future[None]) -> None:
        self._flushing = None
        if done.cancelled():
            return
        if isinstance(error := done.exception(), OSError):
            self._failure = error
        else:
            self._flushed = max(self._flushed, covered)
            self._is_named = self._is_durable = True

    def rename(self, file: Path) -> None:
        """Give it another name, before it is flushed for the first time."""
        self.file.rename(file)
        self.file = file

    def clear(self) -> None:
        """Forget every record."""
        os.ftruncate(self._descriptor, 0)
        self.size = 0

    def supersede(self) -> None:
        """Remove the file: what lives of it stands in another, and is durable there."""
        self._flushed = self._appended
        self.discard()

    def discard(self) -> None:
        """Remove the file. Who waits for its flush hears how that ends."""
        self.close()
        with suppress(OSError):  # what is left is read before what came after it
            self.file.unlink(missing_ok=True)

    def close(self) -> None:
        """Close the file, but not under a thread that flushes it."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor < 0:
            return
        if self._flushing is None:
            _close(descriptor)
        else:
            self._flushing.add_done_callback(lambda _: _close(descriptor))


def _flush(descriptor: int, directory: Path | None) -> None:
    """Flush a file, and where `directory` is given also its name in that."""
    os.fdatasync(descriptor)
    if directory is None:
        return
    names = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(names)
    finally:
        os.close(names)


def _close(descriptor: int) -> None:
    with suppress(OSError):  # of a write that failed late; the flush said so, or nobody asked
        os.close(descriptor)


def _records(raw: bytes) -> Iterator[tuple[int, Any]]:
    """Each whole record, with the offset at which it ends."""
    position = 0
    while position + _HEADER.size <= len(raw):
        length, checksum = _HEADER.unpack_from(raw, position)
        packed = raw[position + _HEADER.size : position + _HEADER.size + length]
        if len(packed) != length or zlib.crc32(packed) != checksum:
            return
        position += _HEADER.size + length
        yield position, unpack_value(packed)
