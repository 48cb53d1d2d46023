"""The journal: one file an attempt, in which stands what a later process must know to see the attempt through.

Each record is length, CRC-32 and msgpack; a torn tail, which a crash may leave, is cut off. The file is removed
once the master has acknowledged the attempt's end and its objects are gone. It may hold registry credentials,
so only the agent's user can read it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pistage.core import codec, ids
from pistage.core.commands import AttemptEvent, Finished
from pistage.wire import Assign, pack_message, pack_value, unpack_message, unpack_value

_HEADER = struct.Struct(">II")


class Entry:
    """An attempt in the journal; what it returns from has been flushed to the disk."""

    def __init__(self, file: Path, assign: Assign, descriptor: int) -> None:
        self.assign = assign
        self.events: list[AttemptEvent] = []
        self.is_inherited = False
        self._notes: dict[str, Any] = {}
        self._file = file
        self._descriptor = descriptor
        self._lock = asyncio.Lock()

    @property
    def attempt_id(self) -> str:
        return self.assign.attempt_id

    @property
    def is_over(self) -> bool:
        """Whether the attempt's end is recorded; what it made may still be there."""
        return any(isinstance(event, Finished) for event in self.events)

    async def add_event(self, event: AttemptEvent) -> None:
        """Record what will be reported."""
        await self._append(["event", codec.to_plain(AttemptEvent, event)])
        self.events.append(event)

    def read(self, key: str) -> Any:
        """What was noted under `key`, or None."""
        return self._notes.get(key)

    async def write(self, key: str, note: Any) -> None:
        """Note plain values under `key`."""
        await self._append(["note", key, note])
        self._notes[key] = note

    def notes(self, prefix: str) -> Iterator[tuple[str, Any]]:
        """Every note whose key begins with `prefix`."""
        return iter([(key, note) for key, note in self._notes.items() if key.startswith(prefix)])

    def drop(self) -> None:
        """The attempt is over and forgotten."""
        self.release()
        self._file.unlink(missing_ok=True)

    def release(self) -> None:
        """Close the file and leave it for the next start."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    async def _append(self, record: list[Any]) -> None:
        async with self._lock:
            if self._descriptor < 0:
                return  # given up meanwhile: nobody will read it again
            writing = asyncio.get_running_loop().run_in_executor(
                None, _write_record, self._descriptor, pack_value(record)
            )
            try:
                await asyncio.shield(writing)
            except asyncio.CancelledError:
                # A thread cannot be cancelled, and the file must not be closed under it.
                await writing
                raise

    def _replay(self, records: Iterator[list[Any]]) -> None:
        for record in records:
            match record:
                case ["event", plain]:
                    self.events.append(codec.from_plain(AttemptEvent, plain))
                case ["note", key, note]:
                    self._notes[key] = note


class Journal:
    """The directory of entries."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)

    async def begin(self, assign: Assign) -> Entry:
        """Record an assignment; only after this may anything be made for it."""
        file = self._directory / assign.attempt_id
        assert ids.is_id(assign.attempt_id), "an attempt's id is ours, so it can name a file"
        descriptor = await asyncio.to_thread(_create, file, pack_value(["assign", pack_message(assign)]))
        return Entry(file, assign, descriptor)

    def load(self) -> list[Entry]:
        """What the process before this one left, oldest first; files that hold no whole assignment are removed."""
        entries = []
        for file in sorted(self._directory.iterdir()):
            entry = self._load_entry(file) if ids.is_id(file.name) else None
            if entry:
                entries.append(entry)
            else:
                file.unlink(missing_ok=True)
        return entries

    def _load_entry(self, file: Path) -> Entry | None:
        raw = file.read_bytes()
        records = list(_records(raw))
        match records[:1]:
            case [[_, ["assign", bytes(packed)]]]:
                assign = unpack_message(packed)
            case _:
                return None
        if not isinstance(assign, Assign) or assign.attempt_id != file.name:
            return None
        descriptor = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        os.ftruncate(descriptor, records[-1][0])
        entry = Entry(file, assign, descriptor)
        entry.is_inherited = True
        entry._replay(record for _, record in records[1:])
        return entry


def _create(file: Path, packed: bytes) -> int:
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC, 0o600)
    _write_record(descriptor, packed)
    with contextlib.closing(_Directory(file.parent)) as directory:
        os.fsync(directory.descriptor)
    return descriptor


class _Directory:
    """A directory opened to be flushed: only that makes a new file's name durable."""

    def __init__(self, path: Path) -> None:
        self.descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def close(self) -> None:
        os.close(self.descriptor)


def _write_record(descriptor: int, packed: bytes) -> None:
    framed = _HEADER.pack(len(packed), zlib.crc32(packed)) + packed
    while framed:
        framed = framed[os.write(descriptor, framed) :]
    os.fdatasync(descriptor)


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
