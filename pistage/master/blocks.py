"""Blocks: what each 1,024 records of a run's index amount to, so that a place in its output is found by sums.

They follow from the index alone. The file is a help, never the truth: what of it is missing or damaged is read from
the index instead.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Final

from pistage.core import ids
from pistage.master.records import Record, StreamKey

BLOCK_RECORDS: Final = 1024
# Check sum of what follows, that of all records up to the block's last, gaps, streams, at_min, at_max.
_HEAD = struct.Struct("<IIIIQQ")
_STREAM = struct.Struct("<16sHBxIQ")  # attempt, step, stream, lines, bytes


@dataclass(slots=True)
class Amount:
    """Bytes that are kept, and newlines in them."""

    size: int = 0
    lines: int = 0


@dataclass(slots=True)
class Block:
    """What neighbouring records hold of each stream, and between which times (milliseconds UTC) they were printed."""

    at_min: int = 1 << 63
    at_max: int = 0
    streams: dict[StreamKey, Amount] = field(default_factory=dict)
    gaps: int = 0

    def add(self, record: Record) -> None:
        """Count a record in."""
        if record.is_barrier:
            return
        self.at_min, self.at_max = min(self.at_min, record.at), max(self.at_max, record.at)
        amount = self.streams.get(record.key)
        if amount is None:
            amount = self.streams[record.key] = Amount()
        amount.size += record.kept
        amount.lines += record.lines
        self.gaps += record.gap is not None


def block_of(records: Iterable[Record]) -> Block:
    """What these records hold."""
    block = Block()
    for record in records:
        block.add(record)
    return block


def pack(block: Block, check: int) -> bytes:
    """A block as it stands in the file; `check` is the CRC32 of all records of the index up to its last."""
    streams = b"".join(
        _STREAM.pack(_bytes_of(attempt_id), int(step), stream, amount.lines, amount.size)
        for (attempt_id, step, stream), amount in block.streams.items()
    )
    body = _HEAD.pack(0, check, block.gaps, len(block.streams), block.at_min, block.at_max)[4:] + streams
    return zlib.crc32(body).to_bytes(4, "little") + body


def read(path: Path) -> list[Block]:
    """The blocks in the file, up to the first that is not whole; none where there is no file."""
    return list(each(path))


def each(path: Path) -> Iterator[Block]:
    """The blocks in the file, one at a time: with thousands of streams each is as large as its records."""
    return (block for block, _, _ in each_checked(path))


def each_checked(path: Path) -> Iterator[tuple[Block, int, bytes]]:
    """Each block in the file with the check sum of the records up to its last, and as it stands."""
    try:
        with path.open("rb") as file:
            while len(head := file.read(_HEAD.size)) == _HEAD.size:
                own, check, gaps, count, at_min, at_max = _HEAD.unpack(head)
                body = file.read(count * _STREAM.size) if count <= BLOCK_RECORDS else b""
                if len(body) != count * _STREAM.size or zlib.crc32(body, zlib.crc32(head[4:])) != own:
                    return
                streams = {
                    (_id_of(attempt), str(step), stream): Amount(size, lines)
                    for attempt, step, stream, lines, size in _STREAM.iter_unpack(body)
                }
                yield Block(at_min, at_max, streams, gaps), check, head + body
    except FileNotFoundError:
        return


_id_of = lru_cache(maxsize=4096)(ids.from_bytes)
_bytes_of = lru_cache(maxsize=4096)(ids.to_bytes)
