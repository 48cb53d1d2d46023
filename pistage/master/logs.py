"""Output of steps on disk: raw bytes, a file a stream, and an index of what came when; append-only.

`logs/<run>/<attempt>/<step>.<stream>` holds a stream's bytes as they were printed. `logs/<run>/index` has one record
of fixed size for each frame, in the order of arrival, so that a whole run can be read merged, and read on from any
record. A frame is appended exactly where its stream ends: a repeat is trimmed, a gap is refused. What is durable here
is not yet safe: `copies` says when it may be acknowledged.
"""

from __future__ import annotations

import asyncio
import heapq
import logging
import os
import shutil
from collections.abc import AsyncGenerator, Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path
from typing import Any, TypeVar

from pistage.core import ids
from pistage.errors import Code, PistageError
from pistage.master import records as index_of
from pistage.master.logrun import FilesSeen, Stream
from pistage.master.logwriter import Appended, Bounds, FullDiskError, LogWriter, Placed
from pistage.master.records import StreamKey
from pistage.master.signals import Signals
from pistage.wire import Extent, Fetched, Fit, LogFrame, LogGap, Piece

log = logging.getLogger(__name__)

_QUEUE_FRAMES = 256  # at most 64 MiB; then the sessions wait, and with them the agents
_BATCH_FRAMES = 64
_LISTED_AT_ONCE = 500
_REMOVED = ".removed"  # behind the name of a run's directory that is being deleted
T = TypeVar("T")


class LogStore:
    """Use as: `serve()` in a task group for as long as anything else is called; `close()` after it.

    One thread writes, and only it knows the lengths; reading opens files of its own.
    """

    def __init__(self, directory: Path, bounds: Bounds) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        self._writer = LogWriter(directory, bounds)
        self._thread = ThreadPoolExecutor(1, "logs")
        self._queue: asyncio.Queue[_Queued | _Job] = asyncio.Queue(maxsize=_QUEUE_FRAMES)
        self._is_refusing = False
        self.signals = Signals()  # by run: more output that is safe, or its end

    async def serve(self) -> None:
        """Write what is queued, many frames a time, until cancelled."""
        loop = asyncio.get_running_loop()
        batch: list[_Queued | _Job] = []
        try:
            while True:
                batch = [await self._queue.get()]
                while len(batch) < _BATCH_FRAMES and not self._queue.empty():
                    batch.append(self._queue.get_nowait())
                answers = await loop.run_in_executor(self._thread, self._work, batch)
                self._tell_of_the_disk(answers)
                for queued, answer in zip(batch, answers, strict=True):
                    _settle(queued.answer, answer)
        finally:
            left = [self._queue.get_nowait() for _ in range(self._queue.qsize())]
            for queued in [*batch, *left]:  # whether or not they were written: nobody is to wait for an answer
                _settle(queued.answer, PistageError(Code.UNAVAILABLE, "this master is stopping", hint="try again"))

    def _work(self, batch: Sequence[_Queued | _Job]) -> list[Any]:
        answers: list[Any] = []
        for kind, group in groupby(batch, type):
            if kind is _Queued:
                answers += self._writer.write([queued.placed for queued in group if isinstance(queued, _Queued)])
            else:
                answers += [job.done() for job in group if isinstance(job, _Job)]
        return answers

    def _tell_of_the_disk(self, answers: Sequence[Any]) -> None:
        refusals = [answer for answer in answers if isinstance(answer, FullDiskError)]
        if bool(refusals) is not self._is_refusing:
            self._is_refusing = bool(refusals)
            if refusals:
                log.error("output is refused, and steps wait: %s", refusals[0])
            else:
                log.info("output is taken again")

    # --- by the leader -------------------------------------------------------------------------------------------

    async def append(self, run_id: str, frame: LogFrame | LogGap, *, term: int) -> asyncio.Future[Appended]:
        """Queue a frame; waits while the queue is full. The future is done once the frame is durable here.

        The future's PistageError: `storage` while the disk is full (the sender keeps the frame and tries again),
        `conflict` when a later term was promised.
        """
        if not (ids.is_id(run_id) and ids.is_id(frame.attempt_id) and frame.step.isascii() and frame.step.isdigit()):
            raise PistageError(Code.INVALID, "a frame must name its attempt and step by our ids")
        queued = _Queued(Placed(run_id, frame, term), asyncio.get_running_loop().create_future())
        await self._queue.put(queued)
        return queued.answer

    async def promise(self, term: int) -> None:
        """Take nothing from a leader of a lower term from now on; `conflict` if that was promised to a later one."""
        await self._do(lambda: self._writer.promise(term))

    async def mark(self, run_id: str, term: int) -> Extent:
        """Begin the term in a run that has output of earlier ones."""
        return await self._do(lambda: self._writer.mark(run_id, term))

    # --- for another master, too ---------------------------------------------------------------------------------

    async def survey(self, term: int, run_ids: Sequence[str]) -> tuple[Extent, ...]:
        """How much there is of these runs, after promising the term."""
        return await self._do(lambda: self._writer.survey(term, run_ids))

    async def extend(self, term: int, pieces: Sequence[Piece]) -> tuple[Fit, ...]:
        """Make each run what the piece of the leader says, from where it begins; one piece a run."""
        return await self._do(lambda: self._writer.extend(term, pieces))

    async def inventory(self, before: str, limit: int) -> tuple[Extent, ...]:
        """What there is, unchecked, the newest run first: at most `limit` before that one ("" for no bound)."""
        return await asyncio.to_thread(self._inventory, before, limit)

    def _inventory(self, before: str, limit: int) -> tuple[Extent, ...]:
        names = (name for name in _run_ids_in(self.directory) if not before or name < before)
        newest = heapq.nlargest(limit, names)
        return tuple(Extent(name, *index_of.extent(self.directory / name / "index")) for name in newest)

    async def piece(self, run_id: str, start: int, end: int, bytes_max: int) -> Piece:
        """Records from `start` on, before `end`, with their bytes: at most so many, or one record."""
        parts = await asyncio.to_thread(index_of.read_piece, self.directory / run_id, start, end, bytes_max)
        return Piece(run_id, start, *parts)

    async def fetch(self, run_id: str, start: int, before: bytes, bytes_max: int) -> Fetched:
        """What comes after record `start - 1`, if that is `before`."""
        return await asyncio.to_thread(self._fetch, run_id, start, before, bytes_max)

    def _fetch(self, run_id: str, start: int, before: bytes, bytes_max: int) -> Fetched:
        if not ids.is_id(run_id) or start < 0:
            raise PistageError(Code.INVALID, "no such run")
        directory = self.directory / run_id
        count, _ = index_of.extent(directory / "index")
        if start > count:
            return Fetched(Fit(False, count), b"", b"")
        if not index_of.is_at(directory / "index", start, before):
            return Fetched(Fit(False, index_of.place_before(directory / "index", start - 1)), b"", b"")
        _, records, data, stubs = index_of.read_piece(directory, start, count, bytes_max)
        return Fetched(Fit(True, start + len(records) // index_of.RECORD_BYTES), records, data, stubs)

    # --- sealing -------------------------------------------------------------------------------------------------

    async def streams(self, run_id: str, attempt_ids: Collection[str]) -> dict[StreamKey, Stream] | None:
        """How far the streams of these attempts are; None where only the run's index says it."""
        return await self._do(lambda: self._writer.streams(run_id, attempt_ids))

    async def seal(self, run_id: str, attempt_id: str, fresh: Path | None, seen: FilesSeen) -> bool:
        """Put a sealed file, or the one there is, in the place of plain ones, if these are as they were seen."""
        aside = self.directory / (attempt_id + _REMOVED)
        await asyncio.to_thread(shutil.rmtree, aside, ignore_errors=True)  # of another time, which was broken off
        is_done = await self._do(lambda: self._writer.seal(run_id, attempt_id, fresh, seen, aside))
        await asyncio.to_thread(shutil.rmtree, aside, ignore_errors=True)
        return is_done

    async def archive(self, run_id: str, attempt_id: str, stub: bytes) -> bool:
        """Put a stub in the place of the attempt's sealed file, which is in the archive; whether there was one."""
        return await self._do(lambda: self._writer.archive(run_id, attempt_id, stub))

    # --- ends ----------------------------------------------------------------------------------------------------

    async def end(self, *run_ids: str) -> None:
        """These runs are over: forget what was held for them, and wake their followers."""

        def forget() -> None:
            for run_id in run_ids:
                self._writer.forget(run_id)

        await self._do(forget)
        for run_id in run_ids:
            self.signals.wake(run_id)

    async def remove(self, run_id: str) -> None:
        """Delete a run's output here; PistageError `unavailable` where the disk does not let it go."""
        directory, aside = self.directory / run_id, self.directory / (run_id + _REMOVED)

        def set_aside() -> None:
            # In one step, by the thread that writes: nobody opens, or writes to, what is half gone.
            self._writer.forget(run_id)
            index_of.close_sealed(directory)
            try:
                directory.rename(aside)
            except FileNotFoundError:
                pass
            except OSError as error:  # whether the disk has failed is for those to find who need it
                raise PistageError(Code.UNAVAILABLE, f"run {run_id} is not removed: {error.strerror}") from None

        await asyncio.to_thread(shutil.rmtree, aside, ignore_errors=True)
        await self._do(set_aside)
        self.signals.wake(run_id)
        await asyncio.to_thread(shutil.rmtree, aside, ignore_errors=True)

    async def finish_removals(self) -> None:
        """Delete what earlier removals have left where a master was stopped in the middle of one."""

        def finish() -> None:
            for path in self.directory.glob(f"*{_REMOVED}"):
                shutil.rmtree(path, ignore_errors=True)

        await asyncio.to_thread(finish)

    async def run_ids(self) -> AsyncGenerator[list[str], None]:
        """The runs that have output here, some at a time, in no order."""
        names = _run_ids_in(self.directory)
        while page := await asyncio.to_thread(lambda: list(islice(names, _LISTED_AT_ONCE))):
            yield page

    def close(self) -> None:
        """Close every file."""
        self._thread.submit(self._writer.close).result()
        self._thread.shutdown()
        index_of.close_sealed(self.directory)

    async def _do(self, work: Callable[[], T]) -> T:
        job = _Job(work, asyncio.get_running_loop().create_future())
        await self._queue.put(job)
        answer: T = await job.answer
        return answer


@dataclass(frozen=True, slots=True)
class _Queued:
    placed: Placed
    answer: asyncio.Future[Appended]


@dataclass(frozen=True, slots=True)
class _Job:
    work: Callable[[], Any]
    answer: asyncio.Future[Any]

    def done(self) -> Any:
        try:
            return self.work()
        except PistageError as refusal:  # anything else ends the master: the disk failed
            return refusal


def _run_ids_in(directory: Path) -> Iterator[str]:
    # Closed by whoever lets go of it last, which may be the thread of a caller that has left meanwhile: an os.scandir
    # that is closed while another thread reads it takes the whole process with it (readdir of NULL).
    with os.scandir(directory) as entries:
        for entry in entries:
            if ids.is_id(entry.name):
                yield entry.name


def _settle(future: asyncio.Future[Any], answer: Any) -> None:
    if future.done():
        return
    if isinstance(answer, PistageError):
        future.set_exception(answer)
        future.exception()  # the session may be gone; that is no news to anybody
    else:
        future.set_result(answer)
