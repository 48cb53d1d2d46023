"""A run's output as its writer knows it: how far each stream is, and what the files must agree with."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from pistage.master import records as index_of
from pistage.master.blocks import BLOCK_RECORDS, Block
from pistage.master.blocks import pack as pack_block
from pistage.master.records import RECORD_BYTES, Kind, Record, StreamKey
from pistage.wire import Extent, GapReason


@dataclass(slots=True)
class Stream:
    """How far a stream of a step is."""

    end: int = 0  # of what was printed
    kept: int = 0  # bytes in the file
    tail: int | None = None  # bytes behind the gap that a limit has made
    last_gap: tuple[Kind, int] | None = None  # kind and end of the newest gap

    @property
    def missing(self) -> int:
        """How many bytes the gaps have taken."""
        return self.end - self.kept

    def add(self, record: Record) -> None:
        """Count a record of it in."""
        self.end = record.offset + record.length
        self.kept += record.kept
        if record.gap is not None:
            self.last_gap = (record.kind, self.end)
            if record.gap is GapReason.LIMIT and record.length:
                self.tail = 0
        elif self.tail is not None:
            self.tail += record.length

    def is_followed_by(self, record: Record) -> bool:
        """Whether the record begins where the stream ends."""
        return record.offset == self.end and record.place == self.kept


@dataclass(slots=True)
class Run:
    """One run, open for writing; `count` and what else is counted have the unwritten records in them."""

    directory: Path
    index_fd: int = -1
    streams: dict[StreamKey, Stream] = field(default_factory=dict)
    steps: Counter[tuple[str, str]] = field(default_factory=Counter)  # attempt, step -> bytes kept
    total: int = 0
    count: int = 0  # records, the unwritten ones with them
    term: int = 0  # of the last
    unwritten: list[Record] = field(default_factory=list)
    block: Block = field(default_factory=Block)  # of the records behind the last whole block
    new_blocks: list[bytes] = field(default_factory=list)

    @property
    def extent(self) -> Extent:
        """As masters tell each other."""
        return Extent(self.directory.name, self.count, self.term)

    @property
    def weight(self) -> int:
        """Bytes on the disk, the index among them: a line at a time, that is as much."""
        return self.total + self.count * RECORD_BYTES

    def stream(self, key: StreamKey) -> Stream:
        """How far that stream is; at its beginning, where nothing came yet."""
        return self.streams.get(key) or Stream()

    def add(self, record: Record) -> None:
        """Count in a record that stands in the index, or will."""
        if not record.is_barrier:
            if record.key not in self.streams:
                self.streams[record.key] = Stream()
            self.streams[record.key].add(record)
            self.steps[record.attempt_id, record.step] += record.kept
            self.total += record.kept
        self.count += 1
        self.term = record.term
        self.block.add(record)
        if self.count % BLOCK_RECORDS == 0:
            self.new_blocks.append(pack_block(self.block))
            self.block = Block()

    def write(self, record: Record) -> None:
        """Count in a record, and remember that it is to be written."""
        self.unwritten.append(record)
        self.add(record)


def recovered(directory: Path) -> Run:
    """The run by its index, after making the files agree: a crash leaves data without a record."""
    index = directory / "index"
    run = Run(directory)
    sizes: dict[StreamKey, int] = {}
    for record in index_of.all_records(index):
        if not record.is_sound or not (record.is_barrier or run.stream(record.key).is_followed_by(record)):
            break
        if record.kept and record.key not in sizes:
            sizes[record.key] = index_of.stored_length(directory, record.key)
        if record.place + record.kept > sizes.get(record.key, 0) and record.kept:
            break  # only a disk that lied about fdatasync gets here: keep what is whole
        run.add(record)
    if index.exists() and index.stat().st_size != run.count * RECORD_BYTES:
        os.truncate(index, run.count * RECORD_BYTES)
    for path in directory.glob("*/*"):
        step, _, stream = path.name.partition(".")
        kept = run.stream((path.parent.name, step, int(stream))).kept
        if path.stat().st_size > kept:
            os.truncate(path, kept)
    _mend_blocks(directory / "blocks", b"".join(run.new_blocks))
    run.new_blocks.clear()
    return run


def _mend_blocks(path: Path, expected: bytes) -> None:
    if (path.read_bytes() if path.exists() else b"") != expected:
        fresh = path.with_name("blocks.new")
        fresh.write_bytes(expected)
        fresh.replace(path)
