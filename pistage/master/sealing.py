"""Sealing: on each master, at leisure, what an attempt printed becomes one compressed file once that is over.

Before that it is compared with what the agent reported of it: a copy that is behind waits, and damage is told. The
plain files go only once what is in the sealed one has been read back and is on the disk.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import json
import logging
import os
import shutil
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import groupby
from pathlib import Path
from sqlite3 import Row
from typing import TypeVar

from pistage import wire
from pistage.core import ids
from pistage.core.changes import AttemptEnded
from pistage.core.machine import Outcome
from pistage.errors import Code, PistageError
from pistage.master import records as index_of
from pistage.master import sealed
from pistage.master.logrun import FilesSeen, Stream, files_seen
from pistage.master.logs import LogStore
from pistage.master.mending import Mender
from pistage.master.records import StreamKey
from pistage.master.sealed import Part, Source
from pistage.master.state import Reader
from pistage.wire import codecs

log = logging.getLogger(__name__)

_DELAY_S = 10.0  # after its end: copies are a moment behind, and who watched it still reads
_UNREPORTED_MS = 3_600_000  # an agent that was lost, and comes back, still brings what it has
_PAUSE_S, _PAUSE_MAX_S = 10.0, 3_600.0  # before it is looked at again
_WALK_EVERY_S = 3_600.0  # finds what was unsealed, and what there was no room for
_WAITING_MAX = 10_000  # attempts; of more, the next walk finds them
_AT_ONCE = 64  # attempts; their steps are read from the state together
_ASKED_AT_ONCE = 500
_LOOK_EVERY_S = 60.0
_TURN_S = 0.02  # of work, between two rests of the same length
T = TypeVar("T")


class Verdict(StrEnum):
    """What came of an attempt that was looked at."""

    SEALED = "sealed"
    LATER = "later"  # something of it is not here yet, or was changed meanwhile
    DAMAGED = "damaged"  # it is not what its agent reported
    NOTHING = "nothing"  # there is nothing to seal


@dataclass(frozen=True, slots=True)
class _Ended:
    """An attempt that is over, and of each stream that its agent reported the length and the SHA-256."""

    attempt_id: str
    run_id: str
    finished_at: int
    reported: Mapping[Part, tuple[int, str]]

    @property
    def has_printed(self) -> bool:
        """Whether there should be anything of it."""
        return any(length for length, _ in self.reported.values())

    def is_here(self, streams: Mapping[Part, Stream], now: int) -> bool:
        """Whether nothing more of it is to be expected."""
        if any(streams.get(part, Stream()).end != length for part, (length, _) in self.reported.items()):
            return False
        return streams.keys() <= self.reported.keys() or now >= self.finished_at + _UNREPORTED_MS

    def differs(self, part: Part, stream: Stream, sha256: str) -> bool:
        """Whether what is kept is known to be other bytes than were printed; behind a gap nobody can tell."""
        return part in self.reported and stream.last_gap is None and self.reported[part][1] != sha256


@dataclass(slots=True)
class _Pace:
    """Rests as long as it worked, for others need the machine more; ends the work when the master stops."""

    stopping: threading.Event
    since: float = field(default_factory=time.monotonic)

    def __call__(self) -> None:
        worked_s = time.monotonic() - self.since
        if worked_s >= _TURN_S or self.stopping.is_set():
            if self.stopping.wait(worked_s):
                raise _StoppingError
            self.since = time.monotonic()


class _StoppingError(Exception):
    pass


class Sealing:
    """Runs `serve` on every master; `notice` is for each outcome that is applied. `close` after it."""

    def __init__(
        self,
        reader: Callable[[], Reader],
        logs: LogStore,
        directory: Path,
        *,
        mender: Mender,
        delay_s: float = _DELAY_S,
    ) -> None:
        self._reader, self._logs, self._directory, self._delay_s = reader, logs, directory, delay_s
        self._mender = mender
        self._thread = ThreadPoolExecutor(1, "sealing")
        self._stopping = threading.Event()
        self._due: list[tuple[float, str]] = []  # a heap: when, monotonic seconds, and which attempt
        self._pauses: dict[str, float] = {}  # of all that wait: how long next time
        self._news, self._room = asyncio.Event(), asyncio.Event()
        self._codec = codecs.available()[-1]
        self.damaged: dict[str, bool] = {}  # attempts that are not what was printed: whether nobody has anything better
        self.sealed_count = 0

    def notice(self, outcome: Outcome) -> None:
        """See which attempts have ended."""
        for change in outcome.changes:
            if isinstance(change, AttemptEnded):
                self._offer(change.attempt_id, self._delay_s)

    async def serve(self) -> None:
        """Seal what is over, until cancelled."""
        await self._in_thread(self._remove_leftovers)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._walk_now_and_then())
            tasks.create_task(self._work())

    def close(self) -> None:
        """Wait for the thread, which ends in a moment."""
        self._stopping.set()
        self._thread.shutdown()

    # --- which attempts ------------------------------------------------------------------------------------------

    def _offer(self, attempt_id: str, after_s: float = 0.0) -> None:
        if attempt_id not in self._pauses and len(self._pauses) < _WAITING_MAX:
            self._pauses[attempt_id] = _PAUSE_S
            heapq.heappush(self._due, (time.monotonic() + after_s, attempt_id))
            self._news.set()

    async def _work(self) -> None:
        while True:
            self._news.clear()
            batch = self._taken_from_due()
            if not batch:
                wait_s = min(
                    _LOOK_EVERY_S, max(0.0, self._due[0][0] - time.monotonic()) if self._due else _LOOK_EVERY_S
                )
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(wait_s):
                        await self._news.wait()
                continue
            since = time.monotonic()
            try:
                verdicts = await self.attend(batch)
            except PistageError as refusal:
                log.info("sealing: %s", refusal)
                verdicts = {}
            for attempt_id in batch:
                self._note(attempt_id, verdicts.get(attempt_id, Verdict.LATER))
            self._room.set()
            await asyncio.sleep(min(time.monotonic() - since, 1.0))

    def _taken_from_due(self) -> list[str]:
        batch: list[str] = []
        while self._due and self._due[0][0] <= time.monotonic() and len(batch) < _AT_ONCE:
            batch.append(heapq.heappop(self._due)[1])
        return batch

    def _note(self, attempt_id: str, verdict: Verdict) -> None:
        pause_s = self._pauses.pop(attempt_id)
        # What never comes must not take the place of others for ever: it is left to the walk, which is as slow as that.
        if verdict is Verdict.LATER and pause_s < _PAUSE_MAX_S:
            self._pauses[attempt_id] = min(2 * pause_s, _PAUSE_MAX_S)
            heapq.heappush(self._due, (time.monotonic() + pause_s, attempt_id))

    async def _walk_now_and_then(self) -> None:
        while True:
            try:
                await self._walk()
            except PistageError as refusal:
                log.info("sealing: %s", refusal)
            await asyncio.sleep(_WALK_EVERY_S)

    async def _walk(self) -> None:
        """Offer every attempt that is over and not sealed."""
        gone = set(self.damaged)
        async with contextlib.aclosing(self._logs.run_ids()) as pages:
            async for run_ids in pages:
                plain = await self._in_thread(lambda run_ids=run_ids: self._plain_attempts(run_ids))  # type: ignore[misc]
                for start in range(0, len(plain), _ASKED_AT_ONCE):
                    asked = plain[start : start + _ASKED_AT_ONCE]
                    async with self._reader().single() as snapshot:
                        over = [row[0] for row in await snapshot.rows(_OVER, (json.dumps(asked),))]
                    while len(self._pauses) + len(over) > _WAITING_MAX // 2:
                        self._room.clear()
                        await self._room.wait()
                    for attempt_id in over:
                        if not self.damaged.get(attempt_id):
                            self._offer(attempt_id)
                    gone.difference_update(over)
        for attempt_id in gone:  # with its run
            self.damaged.pop(attempt_id, None)

    def _plain_attempts(self, run_ids: Iterable[str]) -> list[str]:
        found: list[str] = []
        for run_id in run_ids:
            with contextlib.suppress(FileNotFoundError), os.scandir(self._directory / run_id) as entries:
                found += [entry.name for entry in entries if ids.is_id(entry.name) and entry.is_dir()]
        return found

    def _remove_leftovers(self) -> None:
        for path in self._directory.glob("*.sealing"):
            path.unlink(missing_ok=True)
        for path in self._directory.glob("*.mending"):
            shutil.rmtree(path, ignore_errors=True)

    # --- what becomes of them ------------------------------------------------------------------------------------

    async def attend(self, attempt_ids: Sequence[str]) -> dict[str, Verdict]:
        """Seal those of these attempts that are over and all here. PistageError where the master is stopping."""
        verdicts = dict.fromkeys(attempt_ids, Verdict.NOTHING)
        async with self._reader().single() as snapshot:
            rows = await snapshot.rows(_ENDED, (json.dumps(list(attempt_ids)),))
        ended = [_ended(list(group)) for _, group in groupby(rows, lambda row: str(row["id"]))]
        for run_id, group in groupby(sorted(ended, key=lambda one: one.run_id), lambda one: one.run_id):
            verdicts |= await self._attend_run(run_id, list(group))
        for attempt_id, verdict in verdicts.items():
            self.sealed_count += verdict is Verdict.SEALED
            if verdict is not Verdict.DAMAGED:
                self.damaged.pop(attempt_id, None)
        return verdicts

    async def _attend_run(self, run_id: str, attempts: Sequence[_Ended]) -> dict[str, Verdict]:
        directory = self._directory / run_id
        if not directory.exists():
            return {}
        # Before the lengths: what is written after this look is found when the files are to make way.
        seen = {one.attempt_id: await asyncio.to_thread(files_seen, directory / one.attempt_id) for one in attempts}
        verdicts: dict[str, Verdict] = {}
        rest: list[_Ended] = []
        for one in attempts:
            files = seen[one.attempt_id]
            # Beside a sealed file they are left by a crash; beside a stub they are what came late.
            if files and index_of.sealed_path(directory, one.attempt_id).exists():
                is_done = await self._logs.seal(run_id, one.attempt_id, None, files)
                verdicts[one.attempt_id] = Verdict.SEALED if is_done else Verdict.LATER
            elif files or (one.has_printed and not index_of.is_sealed(directory, one.attempt_id)):
                rest.append(one)
        streams = await self._streams(directory, {one.attempt_id for one in rest}) if rest else {}
        for one in rest:
            parts = {key[1:]: stream for key, stream in streams.items() if key[0] == one.attempt_id}
            if one.is_here(parts, wire.now_ms()):
                verdicts[one.attempt_id] = await self._attend_files(one, seen[one.attempt_id], parts)
            else:
                verdicts[one.attempt_id] = Verdict.LATER
        return verdicts

    async def _streams(self, directory: Path, attempt_ids: Collection[str]) -> Mapping[StreamKey, Stream]:
        known = await self._logs.streams(directory.name, attempt_ids)
        if known is not None:
            return known
        pace = _Pace(self._stopping)

        def read() -> Mapping[StreamKey, Stream]:
            streams: dict[StreamKey, Stream] = {}
            for number, record in enumerate(index_of.all_records(directory / "index")):
                if record.is_barrier and record.is_sound:
                    continue
                stream = streams.setdefault(record.key, Stream())
                if not record.is_sound or not stream.is_followed_by(record):
                    break  # what a crash left, which is cut off when the run is opened
                stream.add(record)
                if number % 1024 == 0:
                    pace()
            return {key: stream for key, stream in streams.items() if key[0] in attempt_ids}

        return await self._in_thread(read)

    async def _attend_files(self, one: _Ended, seen: FilesSeen, streams: Mapping[Part, Stream]) -> Verdict:
        fresh = self._directory / f"{one.attempt_id}.sealing"
        if not any(stream.kept for stream in streams.values()):
            return Verdict.NOTHING
        try:
            verdict, damaged = await self._seal(one, streams, fresh, {})
            if verdict is Verdict.DAMAGED:
                verdict = await self._mend(one, streams, fresh, damaged)
            if verdict is Verdict.SEALED and not await self._logs.seal(one.run_id, one.attempt_id, fresh, seen):
                return Verdict.LATER
        finally:
            fresh.unlink(missing_ok=True)
        return verdict

    async def _seal(
        self, one: _Ended, streams: Mapping[Part, Stream], fresh: Path, instead: Mapping[Part, Path]
    ) -> tuple[Verdict, Collection[Part]]:
        """Make a sealed file of the plain ones, or of others `instead`, and compare; which streams are damaged."""
        plain = self._directory / one.run_id / one.attempt_id
        sources = [
            Source(*part, instead.get(part, plain / f"{part[0]}.{part[1]}"), stream.kept)
            for part, stream in sorted(streams.items())  # the same on every master
            if stream.kept
        ]
        where = f"run={one.run_id} attempt={one.attempt_id}"
        try:
            if shutil.disk_usage(self._directory).free < sum(source.length for source in sources):
                return Verdict.LATER, ()  # what is compressed is soon less, but until then others would have to wait
            pace = _Pace(self._stopping)
            told = await self._in_thread(lambda: sealed.write(fresh, sources, codec=self._codec, between=pace))
        except OSError as error:  # the run was removed, or there is no room
            log.info("%s is not sealed for now: %s", where, error)
            return Verdict.LATER, ()
        except PistageError as damage:
            if damage.code is not Code.STORAGE:
                raise
            self._tell_damaged(one, f"{where} is not sealed: {damage}")
            return Verdict.DAMAGED, streams.keys()
        damaged = [part for part, written in told.items() if one.differs(part, streams[part], written.sha256)]
        if damaged:
            of = "; ".join(f"step={part[0]} stream={part[1]} SHA-256 {told[part].sha256}" for part in damaged)
            self._tell_damaged(one, f"{where} its output here is not what was printed, and stays as it is: {of}")
        return (Verdict.DAMAGED if damaged else Verdict.SEALED), damaged

    async def _mend(
        self, one: _Ended, streams: Mapping[Part, Stream], fresh: Path, damaged: Collection[Part]
    ) -> Verdict:
        """Seal what another master has of the damaged streams instead, if that is what was printed."""
        into, where = self._directory / f"{one.attempt_id}.mending", f"run={one.run_id} attempt={one.attempt_id}"
        is_hopeless = True
        try:
            for node_id in self._mender.others:
                try:
                    await self._mender.fetch(node_id, one.run_id, one.attempt_id, into)
                except PistageError as refusal:
                    log.info("%s master=%s cannot mend it now: %s", where, node_id, refusal)
                    is_hopeless = False
                    continue
                instead = {part: into / f"{part[0]}.{part[1]}" for part in damaged}
                verdict, _ = await self._seal(one, streams, fresh, instead)
                if verdict is Verdict.SEALED:
                    log.warning("%s is mended from master=%s", where, node_id)
                    return verdict
                is_hopeless = is_hopeless and verdict is Verdict.DAMAGED
        finally:
            await asyncio.to_thread(shutil.rmtree, into, ignore_errors=True)
        self.damaged[one.attempt_id] = is_hopeless
        return Verdict.DAMAGED

    def _tell_damaged(self, one: _Ended, what: str) -> None:
        if one.attempt_id not in self.damaged:
            self.damaged[one.attempt_id] = False
            log.error("%s", what)

    async def _in_thread(self, work: Callable[[], T]) -> T:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, work)
        except _StoppingError:
            raise PistageError(Code.UNAVAILABLE, "this master is stopping") from None


_OVER = """
SELECT attempt.id FROM json_each(?) AS asked
JOIN attempt ON attempt.id = asked.value AND attempt.state NOT IN ('queued', 'running')
"""
_ENDED = """
SELECT attempt.id, attempt.run_id, attempt.finished_at, step.id AS step,
  step.stdout_bytes, step.stdout_sha256, step.stderr_bytes, step.stderr_sha256
FROM json_each(?) AS asked
JOIN attempt ON attempt.id = asked.value AND attempt.state NOT IN ('queued', 'running')
JOIN run ON run.id = attempt.run_id AND run.output_dropped_at IS NULL
LEFT JOIN step ON step.attempt_id = attempt.id
ORDER BY attempt.id, step.id
"""


def _ended(rows: Sequence[Row]) -> _Ended:
    reported: dict[Part, tuple[int, str]] = {}
    for row in rows:
        for number, name in ((1, "stdout"), (2, "stderr")):
            if row[f"{name}_sha256"]:  # of a step that was broken off nothing is
                reported[row["step"], number] = (row[f"{name}_bytes"], row[f"{name}_sha256"])
    return _Ended(rows[0]["id"], rows[0]["run_id"], rows[0]["finished_at"] or 0, reported)
