"""The thread that writes output: lengths, open files, and the order in which bytes become durable.

Data is made durable before the index that names it; what a crash left beyond the index is cut off when the run is
opened, and sent again by whoever had it.
"""

from __future__ import annotations

import errno
import logging
import os
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

from pistage.core import ids, limits
from pistage.errors import Code, PistageError
from pistage.master import records as index_of
from pistage.master.directories import sync_directory
from pistage.master.logrun import FilesSeen, Run, Stream, files_seen, make_plain, put_stub, recovered
from pistage.master.promises import promised_term, write_promise
from pistage.master.records import RECORD_BYTES, Kind, Record, StreamKey, stream_path
from pistage.master.sealed import unseal
from pistage.wire import Extent, Fit, LogFrame, LogGap, Piece

log = logging.getLogger(__name__)

_RUNS_OPEN = 512  # lengths held in memory; of another run they are read from its index
_FILES_OPEN = 256
_SYNCS_AT_ONCE = 16
_GAPS_MAX = 65_536  # of a run: two for each stream that it can have, and some more; an agent could make them for ever
_TAILS_MIN = 64
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Appended:
    """The answer to a frame: the stream's durable length with its gaps, `missing` bytes of it, and whether the frame
    began beyond it (`is_gap`), or was not taken because no more is kept but a tail (`is_full`).

    `count` is how many records of the run must be safe for all of that length to be.
    """

    length: int
    missing: int = 0
    is_gap: bool = False
    is_full: bool = False
    count: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True)
class Placed:
    """A frame or a gap, and what it is a part of; `term` is that of the leader that takes it."""

    run_id: str
    frame: LogFrame | LogGap
    term: int


@dataclass(frozen=True, slots=True)
class Bounds:
    """Bytes: the most that is kept of a run and of a step, and the least that is left free on the disk."""

    run_bytes_max: int
    step_bytes_max: int
    free_bytes_min: int


class FullDiskError(PistageError):
    """Nothing is taken for now; `storage`."""


class LogWriter:
    """Every method belongs to the thread. PistageError `storage` while the disk is full; other OSErrors are fatal."""

    def __init__(self, directory: Path, bounds: Bounds) -> None:
        self._directory = directory
        self._bounds = bounds
        # A run's tails together are no more than what is kept of it at all.
        self._tails_max = max(_TAILS_MIN, bounds.run_bytes_max // limits.LOG_TAIL_BYTES_MAX)
        self._runs: OrderedDict[str, Run] = OrderedDict()
        self._files: OrderedDict[Path, int] = OrderedDict()
        self._syncers = ThreadPoolExecutor(_SYNCS_AT_ONCE, "sync")
        self.term = promised_term(directory)  # nothing is taken from a leader of a lower one

    # --- what a leader asks of its own store ------------------------------------------------------------------

    def write(self, batch: Sequence[Placed]) -> list[Appended | PistageError]:
        """Append every frame that fits, then make all of them durable."""
        touched: dict[str, Run] = {}
        try:
            return self._unless_full(touched, lambda: [self._append(placed, touched) for placed in batch])
        except PistageError as refusal:
            return [refusal] * len(batch)

    def mark(self, run_id: str, term: int) -> Extent:
        """Begin the term in a run that has output of earlier ones."""
        touched: dict[str, Run] = {}

        def mark() -> Extent:
            self._refuse_lower(term)
            run = self._open(run_id)
            if run.count and run.term < term:
                run.write(index_of.barrier(run_id, term))
                touched[run_id] = run
            return run.extent

        return self._unless_full(touched, mark)

    def _append(self, placed: Placed, touched: dict[str, Run]) -> Appended | PistageError:
        frame = placed.frame
        if placed.term != self.term:
            return _deposed(self.term)
        run = self._open(placed.run_id)
        key = (frame.attempt_id, frame.step, frame.stream)
        stream = run.stream(key)
        if frame.offset > stream.end:
            return Appended(stream.end, stream.missing, is_gap=True, count=run.count)
        data, record = _fitted(placed, stream)
        if record is None:
            return Appended(stream.end, stream.missing, count=run.count)
        if not self._has_room(run, stream, record):
            return Appended(stream.end, stream.missing, is_full=True, count=run.count)
        try:
            fd = self._file(stream_path(run.directory, key)) if data else -1
        except PistageError as damage:  # of what was sealed; the other frames have nothing to do with it
            return damage
        touched[placed.run_id] = run
        if data:
            _write_all(fd, memoryview(data))
        run.write(record)
        stream = run.streams[key]
        return Appended(stream.end, stream.missing, count=run.count)

    def _has_room(self, run: Run, stream: Stream, record: Record) -> bool:
        """Whether a record may be taken: within the limits, or the tail behind one, or a gap.

        Where no gap is taken any more, the agent gives up, and all that comes of the stream is missing.
        """
        if record.gap is not None:
            return run.gaps < _GAPS_MAX and not (record.makes_room and run.tails >= self._tails_max)
        if stream.tail is not None:
            return stream.tail + record.length <= limits.LOG_TAIL_BYTES_MAX
        of_step = run.steps[record.attempt_id, record.step] + record.length
        return run.weight + record.length <= self._bounds.run_bytes_max and of_step <= self._bounds.step_bytes_max

    # --- what another master asks -----------------------------------------------------------------------------

    def promise(self, term: int) -> None:
        """Take nothing from a leader of a lower term from now on, nor after a crash. `conflict` if this one is lower.

        A new leader collects what was acknowledged before it; nothing may be acknowledged behind its back after that.
        """
        self._refuse_lower(term)
        if term == self.term:
            return
        try:
            write_promise(self._directory, term)
        except OSError as error:
            raise _full_or_fatal(error) from None
        self.term = term

    def survey(self, term: int, run_ids: Sequence[str]) -> tuple[Extent, ...]:
        """How much there is of these runs, after promising the term."""
        self.promise(term)
        known = (run_id for run_id in run_ids if ids.is_id(run_id))
        return tuple(
            self._open(run_id).extent if (self._directory / run_id).exists() else Extent(run_id, 0, 0)
            for run_id in known
        )

    def extend(self, term: int, pieces: Sequence[Piece]) -> tuple[Fit, ...]:
        """Make each run what the leader's piece says, from where it begins; cut off what contradicts it."""
        self.promise(term)
        touched: dict[str, Run] = {}
        return self._unless_full(touched, lambda: tuple(self._extend(piece, touched) for piece in pieces))

    def _extend(self, piece: Piece, touched: dict[str, Run]) -> Fit:
        if not ids.is_id(piece.run_id) or len(piece.records) % RECORD_BYTES or piece.run_id in touched:
            raise PistageError(Code.INVALID, "not a piece of a run's output")
        run = self._open(piece.run_id)
        index = run.directory / "index"
        if piece.start > run.count:
            return Fit(False, run.count)
        if not index_of.is_at(index, piece.start, piece.before):
            return Fit(False, index_of.place_before(index, piece.start - 1))
        total = len(piece.records) // RECORD_BYTES
        same = index_of.agreeing(index_of.read_raw(index, piece.start, total), piece.records)
        if same < total and piece.start + same < run.count:
            run = self._cut(run, piece.start + same)
        known, fresh = (index_of.unpack(part) for part in index_of.split(piece.records, same))
        stubs = {attempt_id: stub for attempt_id, stub in piece.stubs if ids.is_id(attempt_id)}
        written = {record.attempt_id for record in fresh if record.kept and record.attempt_id not in stubs}
        if not all(make_plain(run.directory, attempt_id) for attempt_id in written):
            self.forget(piece.run_id)
            run = self._open(piece.run_id)
        if run.count < piece.start + same:
            return Fit(False, run.count)
        touched[piece.run_id] = run
        for attempt_id in {record.attempt_id for record in fresh if record.attempt_id in stubs}:
            self._close_below(run.directory / attempt_id)
            put_stub(run.directory, attempt_id, stubs[attempt_id])
        skipped = sum(record.kept for record in known if record.attempt_id not in stubs)
        self._take(run, fresh, memoryview(piece.data)[skipped:], stubs)
        return Fit(True, piece.start + total)

    def _take(self, run: Run, fresh: list[Record], data: memoryview, stubs: Collection[str]) -> None:
        streams: dict[StreamKey, Stream] = {}
        term = run.term
        for record in fresh:
            stream = streams.get(record.key) or streams.setdefault(record.key, replace(run.stream(record.key)))
            if not record.is_sound or record.term < term or not (record.is_barrier or stream.is_followed_by(record)):
                raise PistageError(Code.INVALID, f"run {run.directory.name}: a record that follows from none before it")
            stream.add(record)
            term = record.term
        here = [record for record in fresh if record.attempt_id not in stubs]
        if sum(record.kept for record in here) != len(data):
            raise PistageError(Code.INVALID, f"run {run.directory.name}: more or less output than its records say")
        for key, _, length in index_of.spans(here):
            _write_all(self._file(stream_path(run.directory, key)), data[:length])
            data = data[length:]
        for record in fresh:
            run.write(record)

    def _cut(self, run: Run, count: int) -> Run:
        run_id = run.directory.name
        log.warning("run=%s %d records of a deposed leader, never acknowledged, are cut off", run_id, run.count - count)
        self.forget(run_id)
        fd = os.open(run.directory / "index", os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.ftruncate(fd, count * RECORD_BYTES)
            os.fsync(fd)
        finally:
            os.close(fd)
        return self._open(run_id)  # which cuts the bytes

    # --- what is over -----------------------------------------------------------------------------------------

    def streams(self, run_id: str, attempt_ids: Collection[str]) -> dict[StreamKey, Stream] | None:
        """How far the streams of these attempts are; None where the run is not open: its index says it, then."""
        run = self._runs.get(run_id)
        if run is None:
            return None
        return {key: replace(stream) for key, stream in run.streams.items() if key[0] in attempt_ids}

    def seal(self, run_id: str, attempt_id: str, fresh: Path | None, seen: FilesSeen, aside: Path) -> bool:
        """Put a sealed file in the place of an attempt's plain ones, if these are as they were seen; whether they were.

        They are at `aside` then, to be deleted. A crash leaves the ones or the other, or both, each of them whole:
        without `fresh` they make way for the sealed file that is there.
        """
        directory = self._directory / run_id
        plain = directory / attempt_id
        self._close_below(plain)
        try:
            if files_seen(plain) != seen:
                return False
            if fresh is not None:
                fresh.rename(index_of.sealed_path(directory, attempt_id))
                sync_directory(directory)
            plain.rename(aside)
        except FileNotFoundError:  # the run was removed
            return False
        except OSError as error:  # whether the disk has failed is for those to find who need it
            raise PistageError(Code.STORAGE, f"attempt {attempt_id} is not sealed: {error.strerror}") from None
        return True

    def archive(self, run_id: str, attempt_id: str, stub: bytes) -> bool:
        """Put a stub in the place of an attempt's sealed file, unless that was made plain or removed; whether it was.

        A crash leaves the file, or both, of which the file is read.
        """
        directory = self._directory / run_id
        if (directory / attempt_id).exists() or not index_of.sealed_path(directory, attempt_id).exists():
            return False
        try:
            put_stub(directory, attempt_id, stub)
        except OSError as error:
            raise PistageError(Code.STORAGE, f"no stub of attempt {attempt_id}: {error.strerror}") from None
        return True

    # --- files ------------------------------------------------------------------------------------------------

    def _unless_full(self, touched: dict[str, Run], work: Callable[[], T]) -> T:
        """Do the work and make it durable; of what a full disk or a refusal interrupted, nothing stays."""
        try:
            self._refuse_unless_space()
            result = work()
            self._make_durable(touched.values())
        except OSError as error:
            for run_id in touched:  # what is on disk beyond the index is cut off when the run is opened again
                self.forget(run_id)
            raise _full_or_fatal(error) from None
        except PistageError:
            for run_id in touched:
                self.forget(run_id)
            raise
        return result

    def _refuse_lower(self, term: int) -> None:
        if term < self.term:
            raise _deposed(self.term)

    def _refuse_unless_space(self) -> None:
        disk = os.statvfs(self._directory)
        if disk.f_bavail * disk.f_frsize < self._bounds.free_bytes_min:
            raise _disk_full()

    def _make_durable(self, runs: Iterable[Run]) -> None:
        written = [run for run in runs if run.unwritten]
        paths = {
            stream_path(run.directory, key)
            for run in written
            for key in {record.key for record in run.unwritten if record.kept}
        }
        # One that was closed since was synced then; a stub has none.
        self._sync([self._files[path] for path in paths if path in self._files])
        for run in written:
            _write_all(run.index_fd, memoryview(b"".join(index_of.pack(record) for record in run.unwritten)))
        self._sync([run.index_fd for run in written])
        for run in written:
            run.unwritten.clear()
            if run.new_blocks:
                with (run.directory / "blocks").open("ab") as file:
                    file.write(run.take_new_blocks())

    def _sync(self, fds: Sequence[int]) -> None:
        """Several at one time: a file system makes one journal entry of them where one after the other is one each."""
        if len(fds) == 1:
            os.fdatasync(fds[0])
            return
        syncs = [self._syncers.submit(os.fdatasync, fd) for fd in fds]
        wait(syncs)  # all of them: after an error they are closed
        for sync in syncs:
            sync.result()

    def _open(self, run_id: str) -> Run:
        if run_id in self._runs:
            self._runs.move_to_end(run_id)
            return self._runs[run_id]
        while len(self._runs) >= _RUNS_OPEN:
            self.forget(next(iter(self._runs)))
        directory = self._directory / run_id
        if not directory.exists():
            directory.mkdir()
            sync_directory(self._directory)
        try:
            run = recovered(directory)
        except OSError as error:
            raise _full_or_fatal(error) from None
        run.index_fd = os.open(directory / "index", os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)
        self._runs[run_id] = run
        return run

    def _file(self, path: Path) -> int:
        if path in self._files:
            self._files.move_to_end(path)
            return self._files[path]
        while len(self._files) >= _FILES_OPEN:
            _, fd = self._files.popitem(last=False)
            os.fdatasync(fd)
            os.close(fd)
        self._unseal(path.parent.parent, path.parent.name)
        path.parent.mkdir(exist_ok=True)
        fd = self._files[path] = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)
        sync_directory(path.parent)
        sync_directory(path.parent.parent)
        return fd

    def _unseal(self, directory: Path, attempt_id: str) -> None:
        """For what an agent brings that was away: once in a long while."""
        if (path := index_of.sealed_path(directory, attempt_id)).exists():
            unseal(path, directory / attempt_id)
        elif index_of.is_sealed(directory, attempt_id):
            raise PistageError(Code.STORAGE, f"what attempt {attempt_id} printed is in the archive: nothing is added")

    def forget(self, run_id: str) -> None:
        """Close what is open of a run; its lengths are read from its index when they are needed again."""
        if run := self._runs.pop(run_id, None):
            os.close(run.index_fd)
        self._close_below(self._directory / run_id)

    def _close_below(self, directory: Path) -> None:
        for path in [path for path in self._files if directory in path.parents]:
            os.close(self._files.pop(path))

    def close(self) -> None:
        """Close every file."""
        for run_id in list(self._runs):
            self.forget(run_id)
        self._syncers.shutdown()


def _fitted(placed: Placed, stream: Stream) -> tuple[bytes, Record | None]:
    """What of a frame or gap is new to a stream that reaches up to it or beyond, and its record; None for a repeat."""
    frame, known = placed.frame, stream.end - placed.frame.offset
    match frame:
        case LogFrame():
            data = frame.data[known:] if known else frame.data
            kind, length, lines, is_repeat = Kind.OUTPUT, len(data), data.count(b"\n"), not data
        case LogGap():
            data, lines = b"", 0
            kind, length = index_of.kind_of(frame.reason), max(0, frame.length - known)
            is_repeat = not length and (known > 0 or stream.last_gap == (kind, stream.end))
    if is_repeat:
        return b"", None
    return data, Record(
        frame.attempt_id, frame.step, frame.stream, length, stream.end, frame.at, placed.term, lines, stream.kept, kind
    )  # fmt: skip


def _write_all(fd: int, data: memoryview) -> None:
    while data:
        data = data[os.write(fd, data) :]


def _full_or_fatal(error: OSError) -> Exception:
    return _disk_full() if error.errno in {errno.ENOSPC, errno.EDQUOT} else error


def _disk_full() -> FullDiskError:
    return FullDiskError(
        Code.STORAGE, "the master's disk is full", hint="free some space on it; the step waits, and goes on then"
    )


def _deposed(term: int) -> PistageError:
    return PistageError(Code.CONFLICT, f"another master leads, in term {term}", hint="the step waits, and goes on then")
