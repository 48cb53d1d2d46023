"""Output: how much there is of a run, for how long it is kept, and that it is dropped; the bytes are elsewhere."""

from __future__ import annotations

import sqlite3
from typing import Final

from pistage.core import commands_of_output as c
from pistage.core.machine.outcome import Turn
from pistage.core.model import COUNT_MAX
from pistage.errors import Code, PistageError

#: Whether a run that goes on, or is pinned, shows output of `run` as its own.
IS_READ: Final = """
EXISTS (SELECT 1 FROM task JOIN run AS reader ON reader.id = task.run_id
        WHERE task.kept_from = run.id AND (reader.finished_at IS NULL OR reader.is_pinned = 1))
"""
#: Runs whose output retention goes by: an index has them.
IS_BOUND: Final = "run.finished_at IS NOT NULL AND run.output_dropped_at IS NULL AND run.is_pinned = 0"
# TOTAL, not SUM: what agents report could be more than an integer holds, and an error here would stop every master.
_TOTAL = """
SELECT TOTAL(MAX(0, COALESCE(step.stdout_bytes, 0) - COALESCE(step.stdout_missing, 0))
           + MAX(0, COALESCE(step.stderr_bytes, 0) - COALESCE(step.stderr_missing, 0)))
FROM attempt JOIN step ON step.attempt_id = attempt.id WHERE attempt.run_id = ?
"""
_PUT = """
INSERT INTO retention (project, name, age_ms, bytes_max, runs_max) VALUES (?, ?, ?, ?, ?)
ON CONFLICT (project, name) DO UPDATE
SET age_ms = excluded.age_ms, bytes_max = excluded.bytes_max, runs_max = excluded.runs_max
"""
_DROP = f"""
UPDATE run SET output_dropped_at = ?, output_dropped_reason = ? WHERE id = ? AND {IS_BOUND} AND NOT {IS_READ}
"""


def kept_bytes(db: sqlite3.Connection, run_id: str) -> int:
    """How much output the run's steps have left, by what was reported of those that ended."""
    (total,) = db.execute(_TOTAL, (run_id,)).fetchone()
    return min(int(total), COUNT_MAX)


def pin(turn: Turn, command: c.PinRun) -> dict[str, object]:
    """The run's output stays, or goes by retention again; what was dropped is not to be pinned."""
    row = turn.db.execute(
        "SELECT is_pinned, output_dropped_at, output_dropped_reason FROM run WHERE id = ?", (command.run_id,)
    ).fetchone()
    if row is None:
        raise PistageError(Code.NOT_FOUND, f"no run {command.run_id}", hint="see pistage ps")
    if command.is_pinned and row[1] is not None:
        raise PistageError(
            Code.CONFLICT, f"its output was dropped: {row[2]}", hint="run it again: pistage retry"
        )  # fmt: skip
    is_new = bool(row[0]) is not command.is_pinned
    if is_new:
        turn.db.execute("UPDATE run SET is_pinned = ? WHERE id = ?", (int(command.is_pinned), command.run_id))
        turn.record(command.run_id, "run_pinned" if command.is_pinned else "run_unpinned", owner=command.owner)
    return {"is_new": is_new}


def put_retention(turn: Turn, command: c.PutRetention) -> dict[str, object]:
    """Keep output of the pipeline so from now on."""
    bounds = command.retention
    turn.db.execute(_PUT, (command.project, command.name, bounds.age_ms, bounds.bytes_max, bounds.runs_max))
    return {}


def delete_retention(turn: Turn, command: c.DeleteRetention) -> dict[str, object]:
    """Back to what holds for all pipelines, or, for that, to what holds where nothing is said."""
    gone = turn.db.execute(
        "DELETE FROM retention WHERE project = ? AND name = ?", (command.project, command.name)
    )  # fmt: skip
    if gone.rowcount == 0:
        raise PistageError(
            Code.NOT_FOUND, f"nothing was said about the output of {command.name!r}", hint="see pistage retention ls"
        )
    return {}


def drop(turn: Turn, command: c.DropOutput) -> dict[str, object]:
    """Each run whose output may go loses it; `dropped` is which. The others have changed since that was decided."""
    for one in command.drops:
        if turn.db.execute(_DROP, (turn.at, one.reason, one.run_id)).rowcount:
            turn.dropped.append(one.run_id)
            turn.record(one.run_id, "output_dropped", reason=one.reason)
    return {"dropped": list(turn.dropped)}


def archive(turn: Turn, command: c.ArchiveOutput) -> dict[str, object]:
    """Those of the runs that have ended are in the archive; what of them is dropped meanwhile is deleted there."""
    for run_id in command.run_ids:
        added = turn.db.execute(
            "INSERT INTO archived (run_id, url, place, at) SELECT id, ?, ?, ? FROM run"
            " WHERE id = ? AND finished_at IS NOT NULL ON CONFLICT (run_id) DO NOTHING",
            (command.url, command.place, turn.at, run_id),
        )
        if added.rowcount:
            turn.record(run_id, "output_archived", url=command.url)
    return {}


def forget_archive(turn: Turn, command: c.ForgetArchive) -> dict[str, object]:
    """The runs are in no archive."""
    turn.db.executemany("DELETE FROM archived WHERE run_id = ?", [(run_id,) for run_id in command.run_ids])
    return {}
