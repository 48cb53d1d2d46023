"""Archiving: output of runs that ended goes to an object store, and after a while is read from there alone.

The leader stores what it has sealed, then all masters agree that it is there. Each of them keeps the index of the run,
and in place of each sealed file, once it is old enough, a stub that says where its blocks are.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pistage import wire
from pistage.core.commands_of_output import ArchiveOutput, ForgetArchive
from pistage.core.retention import DROPS_MAX
from pistage.errors import Code, PistageError
from pistage.master import reads
from pistage.master.archive import Archive, archive_at
from pistage.master.logs import LogStore
from pistage.master.replica import Replica
from pistage.master.sealed import SealedFile, stub_of
from pistage.master.state import Snapshot

log = logging.getLogger(__name__)

_LOOK_EVERY_S = 300.0


@dataclass(frozen=True, slots=True)
class Ended:
    """A run with output here that has ended, `finished_at` milliseconds UTC; until it is archived the rest is ""."""

    run_id: str
    finished_at: int
    url: str
    place: str


class Archiving:
    """`serve` on every master, `lead` beside it on the one that leads; both look every few minutes, or at `wake`.

    PistageError `usage` where the archive's URL names none.
    """

    def __init__(self, replica: Replica, logs: LogStore, directory: Path, *, url: str, after_s: float) -> None:
        self._replica, self._logs, self._directory = replica, logs, directory
        self._url, self._after_ms = url, int(after_s * 1000)
        self._news = asyncio.Event()
        self.trouble = ""  # why the archive takes nothing
        if url:
            Archive(url)

    def wake(self) -> None:
        """Look now."""
        self._news.set()
        self._news = asyncio.Event()

    async def serve(self) -> None:
        """Replace by stubs what is archived and old, until cancelled."""
        while True:
            news = self._news
            try:
                if await self._has_any():
                    await self._replace_old_ones()
            except PistageError as refusal:
                log.warning("archived output stays here for now: %s", refusal)
            await _until(news)

    async def lead(self) -> None:
        """Store what is sealed and delete what is dropped, until cancelled."""
        while True:
            news = self._news
            troubles: list[str] = []
            for work in (self._delete_dropped, self._store_sealed):  # what one is up against is nothing to the other
                try:
                    await work()
                except PistageError as refusal:
                    troubles.append(str(refusal))
            trouble = "; ".join(dict.fromkeys(troubles))
            if trouble not in {"", self.trouble}:
                log.warning("archive: %s", trouble)
            self.trouble = trouble
            await _until(news)

    async def _ended_runs(self) -> AsyncIterator[list[Ended]]:
        async with contextlib.aclosing(self._logs.run_ids()) as pages:
            async for run_ids in pages:
                async with self._replica.reader.single() as snapshot:
                    ended = await _ended_of(snapshot, run_ids)
                yield ended

    # --- on the leader -------------------------------------------------------------------------------------------

    async def _store_sealed(self) -> None:
        if not self._url:
            return
        async with self._replica.reader.single() as snapshot:
            cluster_id = await reads.cluster_id(snapshot)
        # A place of its own for each try: the thread of a leader that has fallen, or of a try that was given up, may
        # store and delete when another has stored the run and masters read it there. It does so where nobody looks.
        place = wire.new_id()
        stored: list[str] = []
        async for runs in self._ended_runs():
            for run in runs:
                if not run.url and await self._store(f"{cluster_id}/{run.run_id}/{place}", run.run_id):
                    stored.append(run.run_id)
                if len(stored) == DROPS_MAX:
                    await self._say(stored, place)
        await self._say(stored, place)

    async def _say(self, stored: list[str], place: str) -> None:
        if stored:
            command = ArchiveOutput(at=wire.now_ms(), run_ids=tuple(stored), url=self._url, place=place)
            await self._replica.propose(command)
            log.info("output of %d runs is in the archive", len(stored))
            stored.clear()

    async def _store(self, name: str, run_id: str) -> bool:
        """Store a run whose attempts are all here, and sealed; whether it was."""
        paths = await asyncio.to_thread(_files_of, self._directory / run_id)
        if not paths:
            return False
        async with self._replica.reader.single() as snapshot:
            printed = {row["id"] for row in await snapshot.rows(_PRINTED, (run_id,))}
        # A leader that is new may not have been sent all of it yet.
        return printed <= {path.stem for path in paths} and await asyncio.to_thread(_put, self._url, name, paths)

    async def _delete_dropped(self) -> None:
        last = ""
        away: dict[str, PistageError] = {}  # archives that do not answer, by URL: there may be others
        while True:
            async with self._replica.reader.single() as snapshot:
                cluster_id = await reads.cluster_id(snapshot)
                dropped = await snapshot.rows(_DROPPED, (last, DROPS_MAX))
            if not dropped:
                break
            gone: list[str] = []
            for row in dropped:
                if row["url"] not in away:
                    try:
                        await asyncio.to_thread(_delete, row["url"], f"{cluster_id}/{row['run_id']}")
                    except PistageError as refusal:
                        away[row["url"]] = refusal
                    else:
                        gone.append(row["run_id"])
            if gone:
                await self._replica.propose(ForgetArchive(at=wire.now_ms(), run_ids=tuple(gone)))
            last = dropped[-1]["run_id"]
        if away:
            raise next(iter(away.values()))

    # --- on every master -----------------------------------------------------------------------------------------

    async def _has_any(self) -> bool:
        async with self._replica.reader.single() as snapshot:
            return await snapshot.value("SELECT 1 FROM archived LIMIT 1") is not None

    async def _replace_old_ones(self) -> None:
        away: set[str] = set()
        async for runs in self._ended_runs():
            for run in runs:
                if run.url and run.url not in away and run.finished_at + self._after_ms <= self._replica.now_ms():
                    try:
                        await self._replace(run)
                    except PistageError as refusal:
                        log.warning("run=%s its archived output stays here for now: %s", run.run_id, refusal)
                        if refusal.code is not Code.STORAGE:  # damage is that of one file
                            away.add(run.url)

    async def _replace(self, run: Ended) -> None:
        async with self._replica.reader.single() as snapshot:
            cluster_id = await reads.cluster_id(snapshot)
        directory = self._directory / run.run_id
        for path in await asyncio.to_thread(_sealed_in, directory):
            name = f"{cluster_id}/{run.run_id}/{run.place}/{path.name}"
            try:
                stub = await asyncio.to_thread(_stub_for, path, run.url, name)
            except FileNotFoundError:  # the run was removed meanwhile
                return
            if stub and await self._logs.archive(run.run_id, path.stem, stub):
                log.info("attempt=%s its output is read from the archive from now on", path.stem)


def _there_in(directory: Path) -> list[Path]:
    try:
        return sorted(directory.iterdir())
    except FileNotFoundError:  # the run was removed meanwhile
        return []


def _sealed_in(directory: Path) -> list[Path]:
    return [path for path in _there_in(directory) if path.suffix == ".sealed"]


def _files_of(directory: Path) -> list[Path]:
    """What there is to store of a run: none while not all of it is sealed."""
    if any(path.is_dir() for path in _there_in(directory)):
        return []
    attempts = _sealed_in(directory)
    return [*attempts, directory / "index"] if attempts else []


def _put(url: str, name: str, paths: Sequence[Path]) -> bool:
    """Store these files of a run; not if one of them is gone: it was made plain, or dropped with the run."""
    archive = archive_at(url)
    try:
        for path in paths:
            archive.put(f"{name}/{path.name}", path)
    except (FileNotFoundError, PistageError) as error:
        with contextlib.suppress(PistageError):
            archive.delete_below(name)  # the place of this try, where nobody reads
        # One that was gone may be there again by now; the next look stores it.
        if isinstance(error, PistageError) and all(path.exists() for path in paths):
            raise
        return False
    return True


def _delete(url: str, name: str) -> None:
    archive_at(url).delete_below(name)


def _stub_for(path: Path, url: str, name: str) -> bytes:
    """The stub for a sealed file, if the archive has the same output; b"" if not."""
    stub, stored = stub_of(url, name)
    if SealedFile.open(path).streams == stored:  # the files may differ: another codec, on another master
        return stub
    log.error("%s is not what is in the archive as %s: it stays", path, name)
    return b""


async def _ended_of(snapshot: Snapshot, run_ids: Sequence[str]) -> list[Ended]:
    rows = await snapshot.rows(_ENDED, (json.dumps(run_ids),))
    return [Ended(row["id"], row["finished_at"], row["url"], row["place"]) for row in rows]


_ENDED: Final = """
SELECT run.id, run.finished_at, COALESCE(archived.url, '') AS url, COALESCE(archived.place, '') AS place
FROM json_each(?) AS asked JOIN run ON run.id = asked.value LEFT JOIN archived ON archived.run_id = run.id
WHERE run.finished_at IS NOT NULL AND run.output_dropped_at IS NULL ORDER BY run.id
"""
# Attempts of which there is output, by what their agents have reported.
_PRINTED: Final = """
SELECT DISTINCT attempt.id FROM attempt JOIN step ON step.attempt_id = attempt.id
WHERE attempt.run_id = ? AND (
  step.stdout_bytes > COALESCE(step.stdout_missing, 0) OR step.stderr_bytes > COALESCE(step.stderr_missing, 0))
"""
_DROPPED: Final = """
SELECT archived.run_id, archived.url FROM archived LEFT JOIN run ON run.id = archived.run_id
WHERE (run.id IS NULL OR run.output_dropped_at IS NOT NULL) AND archived.run_id > ? ORDER BY archived.run_id LIMIT ?
"""


async def _until(news: asyncio.Event) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_LOOK_EVERY_S):
            await news.wait()
