"""A run's output as its writer knows it: how far each stream is, and what the files must agree with."""

from __future__ import annotations

import logging
import os
import shutil
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pistage.errors import Code, PistageError
from pistage.master import records as index_of
from pistage.master.blocks import BLOCK_RECORDS, Block, each_checked
from pistage.master.blocks import pack as pack_block
from pistage.master.directories import sync_directory
from pistage.master.records import RECORD_BYTES, Kind, Record, StreamKey
from pistage.master.sealed import SealedFile, unseal
from pistage.wire import Extent

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Stream:
    """How far a stream of a step is."""

    end: int = 0  # of what was printed
    kept: int = 0  # bytes in the file
    tail: int | None = None  # bytes behind the newest gap that a limit has made
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
            if record.makes_room:
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
    gaps: int = 0
    tails: int = 0  # of the gaps, those that made room for one
    count: int = 0  # records, the unwritten ones with them
    term: int = 0  # of the last
    unwritten: list[Record] = field(default_factory=list)
    block: Block = field(default_factory=Block)  # of the records behind the last whole block
    new_blocks: list[Block] = field(default_factory=list)  # whole ones that are not in their file yet
    check: int = 0  # CRC32 of the records of the blocks that are

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
            self.gaps += record.gap is not None
            self.tails += record.makes_room
        self.count += 1
        self.term = record.term
        self.block.add(record)
        if self.count % BLOCK_RECORDS == 0:
            self.new_blocks.append(self.block)
            self.block = Block()

    def add_block(self, block: Block, term: int) -> None:
        """Count in a block without gaps, of records that were counted in one by one when it was made."""
        for key, amount in block.streams.items():
            stream = self.streams.setdefault(key, Stream())
            stream.end += amount.size
            stream.kept += amount.size
            if stream.tail is not None:
                stream.tail += amount.size
            self.steps[key[:2]] += amount.size
            self.total += amount.size
        self.count += BLOCK_RECORDS
        self.term = term

    def take_new_blocks(self) -> bytes:
        """The new blocks as they stand in their file, once their records are in the index."""
        packed, number = b"", self.count // BLOCK_RECORDS - len(self.new_blocks)
        for block in self.new_blocks:
            raw = index_of.read_raw(self.directory / "index", number * BLOCK_RECORDS, BLOCK_RECORDS)
            self.check = zlib.crc32(raw, self.check)
            packed += pack_block(block, self.check)
            number += 1
        self.new_blocks.clear()
        return packed

    def write(self, record: Record) -> None:
        """Count in a record, and remember that it is to be written."""
        self.unwritten.append(record)
        self.add(record)


def recovered(directory: Path) -> Run:
    """The run by its index, after making the files agree: a crash leaves data without a record.

    Of blocks whose records are the ones that they were made of, the sums are taken: a million records in a tenth of a
    second instead of five.
    """
    index = directory / "index"
    run = Run(directory)
    sizes = _Sizes(directory)
    blocks: list[bytes] = []
    known = each_checked(directory / "blocks")
    while raw := index_of.read_raw(index, run.count, BLOCK_RECORDS):
        check = zlib.crc32(raw, run.check)
        block, told, packed = next(known, (None, 0, b""))
        if block is not None and told == check and not block.gaps and sizes.hold(run, block):
            run.add_block(block, index_of.term_of(raw, BLOCK_RECORDS - 1))
            run.check = check
        elif _add_each(run, index_of.unpack(raw), sizes) < BLOCK_RECORDS:
            break
        else:
            packed = run.take_new_blocks()
        blocks.append(packed)
    if index.exists() and index.stat().st_size != run.count * RECORD_BYTES:
        os.truncate(index, run.count * RECORD_BYTES)
    for path in directory.glob("*.unsealing"):  # a crash came in the middle of it: what is sealed is whole
        shutil.rmtree(path)
    if not _are_sealed_as_indexed(run):
        return recovered(directory)
    for path in directory.glob("*/*"):
        step, _, stream = path.name.partition(".")
        if stream in {"1", "2"}:  # what somebody else has put there is none of ours
            kept = run.stream((path.parent.name, step, int(stream))).kept
            if path.stat().st_size > kept:
                os.truncate(path, kept)
    _mend_blocks(directory / "blocks", b"".join(blocks))
    return run


def _add_each(run: Run, records: Sequence[Record], sizes: _Sizes) -> int:
    """Count in records up to the first that is not sound, or not there; how many those were."""
    for number, record in enumerate(records):
        stream = run.stream(record.key)
        if not record.is_sound or not (record.is_barrier or stream.is_followed_by(record)):
            return number
        if record.kept and record.place + record.kept > sizes.of(record.key):
            return number  # only a disk that lied about fdatasync gets here: keep what is whole
        run.add(record)
    return len(records)


class _Sizes:
    """How many bytes of each stream there are."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._known: dict[StreamKey, int] = {}

    def of(self, key: StreamKey) -> int:
        if key not in self._known:
            self._known[key] = _stored_length(self._directory, key)
        return self._known[key]

    def hold(self, run: Run, block: Block) -> bool:
        """Whether there is all that the block says."""
        parts = block.streams.items()
        return all(not part.size or run.stream(key).kept + part.size <= self.of(key) for key, part in parts)


def _stored_length(directory: Path, key: StreamKey) -> int:
    try:
        return index_of.stored_length(directory, key)
    except PistageError as damage:
        log.error("run=%s attempt=%s %s", directory.name, key[0], damage)
        return 1 << 62  # it was compared with the index when it was sealed; what it has lost, its readers are told


def _are_sealed_as_indexed(run: Run) -> bool:
    """Make plain, to be cut, what is sealed beyond the index; whether nothing had to be given up for that."""
    beyond = []
    for path in run.directory.glob("*.sealed"):
        try:
            sealed = index_of.sealed_file(run.directory, path.stem)
        except PistageError:
            continue
        streams = sealed.streams if sealed else {}
        if any(one.length > run.stream((path.stem, *part)).kept for part, one in streams.items()):
            beyond.append(path.stem)
    return all(make_plain(run.directory, attempt_id) for attempt_id in beyond)


def make_plain(directory: Path, attempt_id: str) -> bool:
    """Unseal the attempt, if it is sealed, to write to it; one that is damaged is set aside, and the answer is no.

    Then what is left of the run ends before it; it is for who feeds this master to send that again. The same where it
    is in the archive alone, for which nobody can wait here.
    """
    path, what = index_of.sealed_path(directory, attempt_id), ""
    try:
        if path.exists():
            unseal(path, directory / attempt_id)
        elif (path := index_of.stub_path(directory, attempt_id)).exists():
            what = "it is in the archive"
    except PistageError as damage:
        what = str(damage)
    if what:
        log.error("run=%s attempt=%s its output is set aside, to be copied anew: %s", directory.name, attempt_id, what)
        path.rename(path.with_suffix(".aside"))
        sync_directory(directory)
    return not what


def put_stub(directory: Path, attempt_id: str, stub: bytes) -> None:
    """Take over the stub of an attempt, instead of what is here of it. PistageError `invalid` for what is none."""
    fresh = directory / f"{attempt_id}.stub.new"
    with fresh.open("wb") as file:
        file.write(stub)
        file.flush()
        os.fsync(file.fileno())
    try:
        SealedFile.open(fresh)
    except PistageError as damage:
        fresh.unlink()
        raise PistageError(Code.INVALID, f"not a stub: {damage}") from None
    fresh.replace(index_of.stub_path(directory, attempt_id))
    sync_directory(directory)
    index_of.sealed_path(directory, attempt_id).unlink(missing_ok=True)
    shutil.rmtree(directory / attempt_id, ignore_errors=True)


FilesSeen = dict[str, tuple[int, int, int]]


def files_seen(directory: Path) -> FilesSeen:
    """What tells whether any file of a directory has changed: inode, size and time of each; none of none."""
    try:
        with os.scandir(directory) as entries:
            return {entry.name: _seen(entry.stat()) for entry in entries}
    except FileNotFoundError:
        return {}


def _seen(status: os.stat_result) -> tuple[int, int, int]:
    return status.st_ino, status.st_size, status.st_mtime_ns


def _mend_blocks(path: Path, expected: bytes) -> None:
    if (path.read_bytes() if path.exists() else b"") != expected:
        fresh = path.with_name("blocks.new")
        fresh.write_bytes(expected)
        fresh.replace(path)
