"""The index of a run's output: records of one size, one a frame, in the order in which the frames came.

A copy of it is compared with another the way Raft compares logs: two records of the same number and term are the
same, and so is everything before them, for only one master appends in a term. Nothing here writes.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache
from pathlib import Path
from typing import Final

from pistage.core import ids
from pistage.errors import Code, PistageError
from pistage.master.sealed import OpenFiles, SealedFile
from pistage.wire import GapReason

# attempt, step, stream, kind, lines, length, offset, place, at, term: record N begins at byte 64 * N.
_RECORD = struct.Struct("<16sHBBIQQQQQ")
RECORD_BYTES: Final = _RECORD.size
_TERM = struct.Struct("<Q")
_TERM_AT = RECORD_BYTES - _TERM.size
_RECORDS_AT_ONCE = 4096

StreamKey = tuple[str, str, int]  # attempt, step, stream (1 stdout, 2 stderr)


class Kind(IntEnum):
    """What a record is."""

    OUTPUT = 1
    BARRIER = 2  # no output: the mark with which a leader begins its term in the run
    GAP_LIMIT = 3  # no output, for it is not there: GapReason says why
    GAP_ENGINE = 4
    GAP_LOST = 5


_GAPS: Final = {
    Kind.GAP_LIMIT: GapReason.LIMIT,
    Kind.GAP_ENGINE: GapReason.ENGINE,
    Kind.GAP_LOST: GapReason.LOST,
}
_KIND_OF_GAP: Final = {reason: kind for kind, reason in _GAPS.items()}


@dataclass(frozen=True, slots=True)
class Record:
    """A frame: `length` bytes of a stream from the one on that was printed as byte `offset`, kept as byte `place`.

    The two differ behind a gap, which is a record whose `length` bytes are not kept. `lines` is how many newlines the
    frame holds, `at` milliseconds UTC, `term` that of the leader that took it.
    """

    attempt_id: str
    step: str
    stream: int
    length: int
    offset: int
    at: int
    term: int = 0
    lines: int = 0
    place: int = 0
    kind: Kind = Kind.OUTPUT

    @property
    def key(self) -> StreamKey:
        return (self.attempt_id, self.step, self.stream)

    @property
    def is_barrier(self) -> bool:
        """Whether it is no part of any stream, only the mark with which a leader begins its term in the run."""
        return self.kind is Kind.BARRIER

    @property
    def gap(self) -> GapReason | None:
        """Why its bytes are not there; None where they are."""
        return _GAPS.get(self.kind)

    @property
    def makes_room(self) -> bool:
        """Whether it is the gap behind which a tail is kept, whatever the limit."""
        return self.kind is Kind.GAP_LIMIT and self.length > 0

    @property
    def kept(self) -> int:
        """How many of its bytes there are."""
        return self.length if self.kind is Kind.OUTPUT else 0

    @property
    def is_sound(self) -> bool:
        """Whether a master wrote it: a block that power loss left as zeros is no record, and names no file."""
        if not ids.is_id(self.attempt_id) or self.lines > self.kept:
            return False
        return not self.length if self.is_barrier else self.stream in {1, 2} and self.step != "0"


def barrier(run_id: str, term: int) -> Record:
    """The mark with which a leader begins its term in a run that has output of earlier terms.

    §5.4.2: what an earlier leader appended is safe only below a record of the leader's own term. Without one, a copy
    that holds a later term, but less, could win over output that was acknowledged meanwhile.
    """
    return Record(run_id, "0", 0, 0, 0, 0, term, kind=Kind.BARRIER)


def kind_of(reason: GapReason) -> Kind:
    """The kind of the record of a gap."""
    return _KIND_OF_GAP[reason]


def pack(record: Record) -> bytes:
    """A record as it stands in the index."""
    return _RECORD.pack(
        _bytes_of(record.attempt_id), int(record.step), record.stream, record.kind, record.lines, record.length,
        record.offset, record.place, record.at, record.term,
    )  # fmt: skip


def unpack(raw: bytes) -> list[Record]:
    """The whole records in `raw`; what is none of ours has a kind that is not sound."""
    return list(unpacked(raw))


def unpacked(raw: bytes) -> Iterator[Record]:
    """The same one by one, for who may not want all of them."""
    whole = len(raw) - len(raw) % RECORD_BYTES
    for attempt, step, stream, kind, lines, length, offset, place, at, term in _RECORD.iter_unpack(raw[:whole]):
        yield Record(_id_of(attempt), str(step), stream, length, offset, at, term, lines, place, _kind(kind))


@lru_cache(maxsize=1024)
def _bytes_of(attempt_id: str) -> bytes:
    return ids.to_bytes(attempt_id)


@lru_cache(maxsize=1024)
def _id_of(raw: bytes) -> str:
    return ids.from_bytes(raw) if any(raw) else ""


_KINDS: Final = {int(kind): kind for kind in Kind}


def _kind(number: int) -> Kind:
    return _KINDS.get(number, Kind.BARRIER)  # one of a length, as no mark is: not sound


def read_raw(index: Path, start: int, count: int) -> bytes:
    """Records from number `start` on, at most `count`, as they stand; b"" where there are none."""
    try:
        with index.open("rb", buffering=0) as file:
            left = os.fstat(file.fileno()).st_size - start * RECORD_BYTES
            return os.pread(file.fileno(), max(0, min(count * RECORD_BYTES, left)), start * RECORD_BYTES)
    except FileNotFoundError:
        return b""


def read_records(index: Path, start: int, count: int) -> list[Record]:
    """Records from number `start` on, at most `count`; empty at the end."""
    return unpack(read_raw(index, start, count))


def all_records(index: Path) -> Iterator[Record]:
    """Every record."""
    start = 0
    while records := read_records(index, start, _RECORDS_AT_ONCE):  # a week of output has millions
        yield from records
        start += len(records)


def extent(index: Path) -> tuple[int, int]:
    """How many records there are, and the term of the last; nothing is checked."""
    try:
        count = index.stat().st_size // RECORD_BYTES
    except FileNotFoundError:
        return 0, 0
    last = read_raw(index, count - 1, 1) if count else b""
    return count, term_of(last) if last else 0


def term_of(raw: bytes, number: int = 0) -> int:
    """The term of record `number` in `raw`."""
    term: int = _TERM.unpack_from(raw, number * RECORD_BYTES + _TERM_AT)[0]
    return term


def place_before(index: Path, number: int) -> int:
    """Where the records that have the term of record `number` begin: if that one differs, all of them may."""
    term = term_of(read_raw(index, number, 1))
    while number > 0:
        start = max(0, number - _RECORDS_AT_ONCE)
        raw = read_raw(index, start, number - start)
        for one in reversed(range(number - start)):
            if term_of(raw, one) != term:
                return start + one + 1
        number = start
    return 0


def is_at(index: Path, number: int, expected: bytes) -> bool:
    """Whether the record before `number` is the expected one."""
    return number == 0 or read_raw(index, number - 1, 1) == expected


def agreeing(ours: bytes, theirs: bytes) -> int:
    """How many records are the same before the first that is not."""
    if theirs.startswith(ours):
        return len(ours) // RECORD_BYTES
    starts = range(0, len(ours), RECORD_BYTES)
    return next(n for n, at in enumerate(starts) if ours[at : at + RECORD_BYTES] != theirs[at : at + RECORD_BYTES])


def split(raw: bytes, number: int) -> tuple[bytes, bytes]:
    """The first `number` records in `raw`, and the rest."""
    return raw[: number * RECORD_BYTES], raw[number * RECORD_BYTES :]


def stream_path(directory: Path, key: StreamKey) -> Path:
    """The file of a stream of the run in `directory`, until its attempt is sealed."""
    attempt_id, step, stream = key
    return directory / attempt_id / f"{step}.{stream}"


def sealed_path(directory: Path, attempt_id: str) -> Path:
    """The file of all streams of an attempt of the run in `directory`, once it is sealed."""
    return directory / f"{attempt_id}.sealed"


_sealed_files: Final = OpenFiles()


def stub_path(directory: Path, attempt_id: str) -> Path:
    """What takes the place of the sealed file of an attempt that is in the archive alone."""
    return directory / f"{attempt_id}.stub"


def is_sealed(directory: Path, attempt_id: str) -> bool:
    """Whether what the attempt printed is sealed, here or in the archive."""
    return sealed_path(directory, attempt_id).exists() or stub_path(directory, attempt_id).exists()


def sealed_file(directory: Path, attempt_id: str) -> SealedFile | None:
    """What is sealed of an attempt, or its stub; None where nothing is. PistageError `storage` for damage."""
    return _sealed_files.at(sealed_path(directory, attempt_id)) or _sealed_files.at(stub_path(directory, attempt_id))


def close_sealed(directory: Path) -> None:
    """Close what is open of the sealed files below `directory`, once nobody reads it."""
    _sealed_files.forget(directory)


def read_bytes(directory: Path, key: StreamKey, place: int, length: int) -> bytes:
    """Bytes of a stream of the run in `directory`, from the kept byte `place` on; fewer than `length` at its end.

    PistageError `storage` where they are sealed, and damaged.
    """
    attempt_id, step, stream = key
    for _ in range(2):  # it may be sealed between the two looks, or unsealed: one of the files is always there
        try:
            with stream_path(directory, key).open("rb", buffering=0) as file:
                return os.pread(file.fileno(), length, place)
        except FileNotFoundError:
            if sealed := sealed_file(directory, attempt_id):
                return sealed.read(step, stream, place, length)
    return b""


def stored_length(directory: Path, key: StreamKey) -> int:
    """How many bytes of a stream there are. PistageError `storage` where they are sealed, and damaged."""
    attempt_id, step, stream = key
    try:
        return stream_path(directory, key).stat().st_size
    except FileNotFoundError:
        sealed = sealed_file(directory, attempt_id)
        return sealed.length(step, stream) if sealed else 0


def spans(records: list[Record]) -> Iterator[tuple[StreamKey, int, int]]:
    """Stream, place and length of each stretch that neighbours continue: one read or write does for all of it."""
    key: StreamKey | None = None
    place = length = 0
    for record in records:
        if not record.kept:
            continue
        if record.key == key and record.place == place + length:
            length += record.kept
            continue
        if key is not None:
            yield key, place, length
        key, place, length = record.key, record.place, record.kept
    if key is not None:
        yield key, place, length


Stubs = tuple[tuple[str, bytes], ...]


def read_piece(directory: Path, start: int, end: int, bytes_max: int) -> tuple[bytes, bytes, bytes, Stubs]:
    """The record before `start`, records from there on, before `end`, and their bytes: at most `bytes_max`, or one.

    Of attempts that are in the archive alone there are stubs instead, which count as bytes. PistageError `storage`
    where the files hold less than the index says.
    """
    index = directory / "index"
    before = read_raw(index, start - 1, 1) if start else b""
    raw = read_raw(index, start, min(end - start, max(1, bytes_max // RECORD_BYTES), _RECORDS_AT_ONCE))
    stubs: dict[str, bytes] = {}
    taken: list[Record] = []
    size = 0
    for record in unpacked(raw):
        stub = stubs.get(record.attempt_id)
        if record.kept and stub is None:
            stub = _read_stub(directory, record.attempt_id)
            size += len(stub)
        size += record.kept if not stub else 0
        if taken and size > bytes_max:
            break
        if stub is not None:
            stubs[record.attempt_id] = stub
        taken.append(record)
    here = [record for record in taken if not stubs.get(record.attempt_id)]
    data = b"".join(read_bytes(directory, key, place, length) for key, place, length in spans(here))
    if len(data) != sum(record.kept for record in here):
        raise PistageError(Code.STORAGE, f"run {directory.name}: its files hold less output than its index says")
    archived = tuple((attempt_id, stub) for attempt_id, stub in stubs.items() if stub)
    return before, raw[: len(taken) * RECORD_BYTES], data, archived


def _read_stub(directory: Path, attempt_id: str) -> bytes:
    """The stub of an attempt that is in the archive alone; b"" for one that is here."""
    if (directory / attempt_id).exists() or sealed_path(directory, attempt_id).exists():
        return b""
    try:
        return stub_path(directory, attempt_id).read_bytes()
    except FileNotFoundError:
        return b""
