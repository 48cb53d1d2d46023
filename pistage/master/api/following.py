"""What is known of a run while its output is read: how far it may be shown, whether it is over, what got lost."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from pistage.core.model import State
from pistage.master import reads
from pistage.master.api import views
from pistage.master.api.asked import OFFSET_MAX
from pistage.master.api.context import Context
from pistage.master.api.sending import Sender
from pistage.master.reading import gaps
from pistage.master.reading.files import Files
from pistage.master.reading.gaps import Missing
from pistage.master.reading.locate import Layout
from pistage.master.reading.selection import Selection
from pistage.master.records import Kind, Record


@dataclass(frozen=True, slots=True, kw_only=True)
class Following:
    """For one answer, that `sender` sends."""

    context: Context
    files: Files
    is_stale: bool
    has_kept: bool
    has_gaps: bool  # whether the answer can tell of gaps
    sender: Sender

    # --- for a Walk ----------------------------------------------------------------------------------------------

    def news(self, run_id: str) -> asyncio.Event:
        """See Live."""
        return self.context.logs.signals.changed(run_id)

    async def readable(self, run_id: str) -> int:
        """See Live. PistageError `unavailable` where this master does not lead any more."""
        return OFFSET_MAX if self.is_stale else await self.context.copies.readable(run_id)

    async def is_over(self, run_id: str, news: asyncio.Event) -> bool:
        """See Live."""
        return await self._has_ended(run_id)

    async def _has_ended(self, run_id: str) -> bool:
        async with self.context.replica.reader.snapshot() as snapshot:
            return State(await snapshot.value("SELECT state FROM run WHERE id = ?", (run_id,))).is_terminal

    async def learn_attempts(self, selection: Selection) -> None:
        """See Live."""
        async with self.context.replica.reader.snapshot() as snapshot:
            selection.learn(await reads.attempts_with_output(snapshot, selection.run_id))

    async def wait(self, news: asyncio.Event) -> None:
        """See Live."""
        await self.sender.wait(news)

    async def lost(self, selection: Selection, source: int) -> Sequence[tuple[Record, Missing]]:
        """See Live."""
        run_id = selection.sources[source]
        if not self.has_gaps or not self.is_read(selection, source) or not await self._has_ended(run_id):
            return ()
        async with self.context.replica.reader.snapshot() as snapshot:
            rows = await snapshot.rows(_ENDS, (run_id,))
        ends = [
            (Record(row["attempt_id"], row["id"], stream, 0, row[2 * stream], row["finished_at"]), row[2 * stream + 1])
            for row in rows
            for stream in (1, 2)
            if row[2 * stream] and selection.takes(source, (row["attempt_id"], row["id"], stream))
        ]
        if not ends:
            return ()
        there = (await self.layout(selection)).sizes[source]
        found = []
        for end, missing in ends:
            if (count := end.offset - missing - there[end.key]) > 0:
                offset = end.offset - count
                record = Record(*end.key, count, offset, end.at, place=there[end.key], kind=Kind.GAP_LOST)
                found.append((record, gaps.lost(count)))
        return [(record, missing) for record, missing in found if selection.wanted.has(record.at)]

    async def layout(self, selection: Selection) -> Layout:
        """What there is now."""
        readable = [
            await self.readable(run_id) if self.is_read(selection, source) else 0
            for source, run_id in enumerate(selection.sources)
        ]
        directories = [self.files.of(run_id) for run_id in selection.sources]
        return await self.files.do(lambda: Layout(selection, directories, readable))

    async def dropped(self, selection: Selection, source: int) -> Sequence[tuple[Record, Missing]]:
        """See Live."""
        run_id = selection.sources[source]
        if run_id == selection.run_id or not self.has_gaps or not self.is_read(selection, source):
            return ()
        async with self.context.replica.reader.snapshot() as snapshot:
            found = (await reads.output_dropped(snapshot, [run_id])).get(run_id)
            if found is None:
                return ()
            rows = await snapshot.rows(_KEPT_TASKS, (selection.run_id, run_id))
            title = (await views.titles_in(snapshot, [run_id]))(run_id)
        at, reason = found
        missing = gaps.dropped(title, str(views.at(at)), reason)
        return [
            (Record(row["attempt_id"], "", 0, 0, 0, at), missing)
            for row in rows
            if row["attempt_id"] and selection.wanted.task in {None, row["name"]}
        ]

    def is_read(self, selection: Selection, source: int) -> bool:
        """Whether a source is to be read at all."""
        return self.has_kept or selection.sources[source] == selection.run_id


_ENDS: Final = """
SELECT step.attempt_id, step.id, step.stdout_bytes, COALESCE(step.stdout_missing, 0), step.stderr_bytes,
  COALESCE(step.stderr_missing, 0), step.finished_at
FROM run JOIN attempt ON attempt.run_id = run.id JOIN step ON step.attempt_id = attempt.id
WHERE run.id = ? AND run.output_dropped_at IS NULL AND step.finished_at IS NOT NULL ORDER BY step.attempt_id, step.id
"""
_KEPT_TASKS: Final = """
SELECT task.name, (
  SELECT attempt.id FROM attempt WHERE attempt.run_id = task.kept_from AND attempt.position = task.position
  ORDER BY attempt.number DESC LIMIT 1) AS attempt_id
FROM task WHERE task.run_id = ? AND task.kept_from = ? ORDER BY task.position
"""
