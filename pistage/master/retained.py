"""What retention reads from the state: what was said of it, and what is kept of each pipeline."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Final

from pistage.core.machine.outputs import IS_BOUND, IS_READ
from pistage.core.retention import ALL_PIPELINES, EndedRun, Kept, Retention
from pistage.master.state import Snapshot

_READ_AT_ONCE = 500

Pipeline = tuple[str, str]  # its project, and its name


@dataclass(frozen=True, slots=True)
class Said:
    """What was said of retention, by project and name."""

    bounds: dict[Pipeline, Retention]

    def of(self, pipeline: Pipeline) -> Retention:
        """What holds for a pipeline: what was said of it alone, or of all of its project, or what holds unsaid."""
        of_all = (pipeline[0], ALL_PIPELINES)
        return self.bounds.get(pipeline) or self.bounds.get(of_all) or Retention()


async def said(snapshot: Snapshot) -> Said:
    """Everything that was said of retention."""
    rows = await snapshot.rows("SELECT project, name, age_ms, bytes_max, runs_max FROM retention")
    return Said({
        (row["project"], row["name"]): Retention(
            age_ms=row["age_ms"], bytes_max=row["bytes_max"], runs_max=row["runs_max"]
        )
        for row in rows
    })  # fmt: skip


async def pipelines(snapshot: Snapshot) -> AsyncIterator[tuple[Pipeline, int]]:
    """Each pipeline that has output which may be dropped one day, and when the oldest run of that ended."""
    at = ("", "")
    while rows := await snapshot.rows(PIPELINES, (*at, _READ_AT_ONCE)):
        at = (rows[-1]["project"], rows[-1]["name"])
        for row in rows:
            if row["oldest"] is not None:
                yield (row["project"], row["name"]), row["oldest"]


PIPELINES: Final = f"""
SELECT pipeline.project, pipeline.name, (
  SELECT run.finished_at FROM run WHERE run.project = pipeline.project AND run.name = pipeline.name AND {IS_BOUND}
  ORDER BY run.finished_at LIMIT 1) AS oldest
FROM pipeline WHERE (pipeline.project, pipeline.name) > (?, ?) ORDER BY pipeline.project, pipeline.name LIMIT ?
"""


async def kept(snapshot: Snapshot, pipeline: Pipeline) -> Kept:
    """How much retention has left of a pipeline; with the name "*", of a project."""
    sql, parameters = (KEPT_OF_ALL, pipeline[:1]) if pipeline[1] == ALL_PIPELINES else (KEPT, pipeline)
    [row] = await snapshot.rows(sql, parameters)
    return Kept(runs=row["runs"], output_bytes=int(row["output_bytes"]))


# TOTAL, not SUM: what agents report could be more than an integer holds.
_COUNTED = "SELECT COUNT(*) AS runs, TOTAL(run.output_bytes) AS output_bytes FROM run"
KEPT: Final = f"{_COUNTED} WHERE run.project = ? AND run.name = ? AND {IS_BOUND}"
KEPT_OF_ALL: Final = f"{_COUNTED} WHERE run.project = ? AND {IS_BOUND}"


async def oldest(snapshot: Snapshot, pipeline: Pipeline, after: EndedRun | None, limit: int) -> list[EndedRun]:
    """At most `limit` of the pipeline's ended runs that have their output and are not pinned, the oldest first."""
    begin = (-1, "") if after is None else (after.finished_at, after.run_id)
    return [
        EndedRun(
            run_id=row["id"], finished_at=row["finished_at"], output_bytes=row["output_bytes"],
            is_read=bool(row["is_read"]),
        )
        for row in await snapshot.rows(OLDEST, (*pipeline, *begin, limit))
    ]  # fmt: skip


OLDEST: Final = f"""
SELECT run.id, run.finished_at, run.output_bytes, {IS_READ} AS is_read
FROM run WHERE run.project = ? AND run.name = ? AND {IS_BOUND} AND (run.finished_at, run.id) > (?, ?)
ORDER BY run.finished_at, run.id LIMIT ?
"""
