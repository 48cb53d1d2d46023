"""Output of steps on disk: raw bytes, a file a stream, and an index of what came when; append-only.

`logs/<run>/<attempt>/<step>.<stream>` holds a stream's bytes as they were printed. `logs/<run>/index` has one record
of fixed size for each frame, in the order of arrival, so that a whole run can be read merged, and read on from any
record. A frame is appended exactly where its stream ends: a repeat is trimmed, a gap is refused. Data is made durable
before the index that names it; what a crash left beyond the index is cut off, and the agent sends it again.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import shutil
import struct
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from pistage.core import ids, limits
from pistage.errors import Code, PistageError
from pistage.master.directories import sync_directory
from pistage.master.signals import Signals
from pistage.wire import LogFrame

log = logging.getLogger(__name__)

# attempt, step, stream, length, offset, at; padded so that record N begins at byte 64 * N.
_RECORD = struct.Struct("<26sIBxxxIQQ10x")
RECORD_BYTES = _RECORD.size
_QUEUE_FRAMES = 256  # at most 64 MiB; then the sessions wait, and with them the agents
_BATCH_FRAMES = 64
_RECORDS_AT_ONCE = 4096
_RUNS_OPEN = 512  # lengths held in memory; of another run they are read from its index
_FILES_OPEN = 256

StreamKey = tuple[str, str, int]  # attempt, step, stream (1 stdout, 2 stderr)


@dataclass(frozen=True, slots=True)
class Record:
    """Where a frame's bytes stand; `at` is milliseconds UTC."""

    attempt_id: str
    step: str
    stream: int
    length: int
    offset: int
    at: int

    @property
    def key(self) -> StreamKey:
        return (self.attempt_id, self.step, self.stream)


@dataclass(frozen=True, slots=True)
class Appended:
    """The answer to a frame: the stream's durable length, and whether the frame began beyond it."""

    length: int
    is_gap: bool = False


class LogStore:
    """Use as: `serve()` in a task group for as long as `append` is called; `close()` after it.

    One thread writes, and only it knows the lengths; reading opens files of its own.
    """

    def __init__(self, directory: Path, *, run_bytes_max: int, free_bytes_min: int) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._directory = directory
        self._writer = _Writer(directory, run_bytes_max=run_bytes_max, free_bytes_min=free_bytes_min)
        self._thread = ThreadPoolExecutor(1, "logs")
        self._queue: asyncio.Queue[_Queued] = asyncio.Queue(maxsize=_QUEUE_FRAMES)
        self._is_refusing = False
        self.signals = Signals()  # by run: more output, or its end

    async def append(self, run_id: str, frame: LogFrame) -> asyncio.Future[Appended]:
        """Queue a frame; waits while the queue is full. The future is done once the frame is durable.

        The future's PistageError: `storage` while the disk is full (the sender keeps the frame and tries again),
        `too_large` past the run's limit.
        """
        if not (ids.is_id(run_id) and ids.is_id(frame.attempt_id) and frame.step.isascii() and frame.step.isdigit()):
            raise PistageError(Code.INVALID, "a frame must name its attempt and step by our ids")
        queued = _Queued(run_id, frame, asyncio.get_running_loop().create_future())
        await self._queue.put(queued)
        return queued.answer

    async def serve(self) -> None:
        """Write what is queued, many frames a time, until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            batch = [await self._queue.get()]
            while len(batch) < _BATCH_FRAMES and not self._queue.empty():
                batch.append(self._queue.get_nowait())
            answers = await loop.run_in_executor(self._thread, self._writer.write, batch)
            self._tell_of_the_disk(answers)
            for queued, answer in zip(batch, answers, strict=True):
                _settle(queued.answer, answer)
            for run_id in {queued.run_id for queued in batch}:
                self.signals.wake(run_id)

    def _tell_of_the_disk(self, answers: Sequence[Appended | PistageError]) -> None:
        refusals = [answer for answer in answers if isinstance(answer, PistageError) and answer.code is Code.STORAGE]
        if bool(refusals) is not self._is_refusing:
            self._is_refusing = bool(refusals)
            if refusals:
                log.error("output is refused, and steps wait: %s", refusals[0])
            else:
                log.info("output is taken again")

    async def records(self, run_id: str, start: int, count: int) -> list[Record]:
        """Records from number `start` on, at most `count`; empty at the end."""
        return await asyncio.to_thread(_read_records, self._directory / run_id / "index", start, count)

    async def read(self, run_id: str, key: StreamKey, offset: int, length: int) -> bytes:
        """Bytes of one stream; fewer than `length` at its end."""
        return await asyncio.to_thread(_read_bytes, _stream_path(self._directory / run_id, key), offset, length)

    async def end(self, run_id: str) -> None:
        """The run is over: forget what was held for it, and wake its followers."""
        await asyncio.get_running_loop().run_in_executor(self._thread, self._writer.forget, run_id)
        self.signals.wake(run_id)

    async def remove(self, run_id: str) -> None:
        """Delete a run's output."""
        await self.end(run_id)
        await asyncio.to_thread(shutil.rmtree, self._directory / run_id, ignore_errors=True)

    def close(self) -> None:
        """Close every file."""
        self._thread.submit(self._writer.close).result()
        self._thread.shutdown()


@dataclass(frozen=True, slots=True)
class _Queued:
    run_id: str
    frame: LogFrame
    answer: asyncio.Future[Appended]


def _settle(future: asyncio.Future[Appended], answer: Appended | PistageError) -> None:
    if future.done():
        return
    if isinstance(answer, PistageError):
        future.set_exception(answer)
        future.exception()  # the session may be gone; that is no news to anybody
    else:
        future.set_result(answer)


@dataclass(slots=True)
class _Run:
    directory: Path
    index_fd: int
    lengths: dict[StreamKey, int]
    total: int
    unwritten: list[Record] = field(default_factory=list)


class _Writer:
    """The thread's side: lengths, open files, and the order in which bytes become durable."""

    def __init__(self, directory: Path, *, run_bytes_max: int, free_bytes_min: int) -> None:
        self._directory = directory
        self._run_bytes_max = run_bytes_max
        self._free_bytes_min = free_bytes_min
        self._runs: OrderedDict[str, _Run] = OrderedDict()
        self._files: OrderedDict[Path, int] = OrderedDict()

    def write(self, batch: Sequence[_Queued]) -> list[Appended | PistageError]:
        """Append every frame that fits, then make all of them durable."""
        touched: dict[str, _Run] = {}
        try:
            self._refuse_unless_space()
            answers = [self._append(queued, touched) for queued in batch]
            self._make_durable(touched.values())
        except OSError as error:
            if error.errno not in {errno.ENOSPC, errno.EDQUOT}:
                raise
            for run_id in touched:  # what is on disk beyond the index is cut off when the run is opened again
                self.forget(run_id)
            return [_disk_full()] * len(batch)
        except PistageError as refusal:
            return [refusal] * len(batch)
        return answers

    def _refuse_unless_space(self) -> None:
        disk = os.statvfs(self._directory)
        if disk.f_bavail * disk.f_frsize < self._free_bytes_min:
            raise _disk_full()

    def _append(self, queued: _Queued, touched: dict[str, _Run]) -> Appended | PistageError:
        frame = queued.frame
        run = touched.get(queued.run_id) or self._open(queued.run_id)
        key = (frame.attempt_id, frame.step, frame.stream)
        length = run.lengths.get(key, 0)
        data = memoryview(frame.data)[max(0, length - frame.offset) :]
        if frame.offset > length or not data:
            return Appended(length, is_gap=frame.offset > length)
        if run.total + len(data) > self._run_bytes_max:
            limit = f"{self._run_bytes_max / limits.MIB:,.0f} MiB"
            return PistageError(
                Code.TOO_LARGE, f"the run has printed more than {limit}", hint="print less, or raise run_log_max"
            )
        touched[queued.run_id] = run
        _write_all(self._file(_stream_path(run.directory, key)), data)
        run.unwritten.append(Record(*key, len(data), length, frame.at))
        run.lengths[key] = length + len(data)
        run.total += len(data)
        return Appended(run.lengths[key])

    def _make_durable(self, runs: Iterable[_Run]) -> None:
        for run in runs:
            for path in {_stream_path(run.directory, record.key) for record in run.unwritten}:
                os.fdatasync(self._file(path))
            packed = b"".join(_pack(record) for record in run.unwritten)
            _write_all(run.index_fd, memoryview(packed))
            os.fdatasync(run.index_fd)
            run.unwritten.clear()

    def _open(self, run_id: str) -> _Run:
        if run_id in self._runs:
            self._runs.move_to_end(run_id)
            return self._runs[run_id]
        while len(self._runs) >= _RUNS_OPEN:
            self.forget(next(iter(self._runs)))
        directory = self._directory / run_id
        if not directory.exists():
            directory.mkdir()
            sync_directory(self._directory)
        lengths = _recover(directory)
        index_fd = os.open(directory / "index", os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)
        run = self._runs[run_id] = _Run(directory, index_fd, lengths, sum(lengths.values()))
        return run

    def _file(self, path: Path) -> int:
        if path in self._files:
            self._files.move_to_end(path)
            return self._files[path]
        while len(self._files) >= _FILES_OPEN:
            _, fd = self._files.popitem(last=False)
            os.fdatasync(fd)
            os.close(fd)
        path.parent.mkdir(exist_ok=True)
        fd = self._files[path] = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)
        sync_directory(path.parent)
        sync_directory(path.parent.parent)
        return fd

    def forget(self, run_id: str) -> None:
        """Close what is open of a run; its lengths are read from its index when they are needed again."""
        if run := self._runs.pop(run_id, None):
            os.close(run.index_fd)
        below = self._directory / run_id
        for path in [path for path in self._files if below in path.parents]:
            os.close(self._files.pop(path))

    def close(self) -> None:
        for run_id in list(self._runs):
            self.forget(run_id)


def _recover(directory: Path) -> dict[StreamKey, int]:
    """Lengths by the index, after making the files agree with it: a crash leaves data that no record names."""
    index = directory / "index"
    lengths: dict[StreamKey, int] = {}
    kept = 0
    sizes: dict[StreamKey, int] = {}
    for record in _all_records(index):
        if not ids.is_id(record.attempt_id) or record.offset != lengths.get(record.key, 0):
            break  # a block that power loss left as zeros is no record, and names no file
        if record.key not in sizes:
            path = _stream_path(directory, record.key)
            sizes[record.key] = path.stat().st_size if path.exists() else 0
        if record.offset + record.length > sizes[record.key]:
            break  # only a disk that lied about fdatasync gets here: keep what is whole
        lengths[record.key] = record.offset + record.length
        kept += 1
    if index.exists() and index.stat().st_size != kept * RECORD_BYTES:
        os.truncate(index, kept * RECORD_BYTES)
    for path in directory.glob("*/*"):
        step, _, stream = path.name.partition(".")
        length = lengths.get((path.parent.name, step, int(stream)), 0)
        if path.stat().st_size > length:
            os.truncate(path, length)
    return lengths


def _all_records(index: Path) -> Iterator[Record]:
    start = 0
    while records := _read_records(index, start, _RECORDS_AT_ONCE):  # a week of output has millions
        yield from records
        start += len(records)


def _stream_path(directory: Path, key: StreamKey) -> Path:
    attempt_id, step, stream = key
    return directory / attempt_id / f"{step}.{stream}"


def _pack(record: Record) -> bytes:
    return _RECORD.pack(
        record.attempt_id.encode(), int(record.step), record.stream, record.length, record.offset, record.at
    )


def _read_records(index: Path, start: int, count: int) -> list[Record]:
    try:
        with index.open("rb") as file:
            file.seek(start * RECORD_BYTES)
            raw = file.read(min(count * RECORD_BYTES, max(0, index.stat().st_size - start * RECORD_BYTES)))
    except FileNotFoundError:
        return []
    whole = len(raw) - len(raw) % RECORD_BYTES
    return [
        Record(attempt.decode(), str(step), stream, length, offset, at)
        for attempt, step, stream, length, offset, at in _RECORD.iter_unpack(raw[:whole])
    ]


def _read_bytes(path: Path, offset: int, length: int) -> bytes:
    try:
        with path.open("rb", buffering=0) as file:
            return os.pread(file.fileno(), length, offset)
    except FileNotFoundError:
        return b""


def _write_all(fd: int, data: memoryview) -> None:
    while data:
        data = data[os.write(fd, data) :]


def _disk_full() -> PistageError:
    return PistageError(
        Code.STORAGE, "the master's disk is full", hint="free some space on it; the step waits, and goes on then"
    )
