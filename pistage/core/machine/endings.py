"""Endings: a run is over, and what comes after it is due from now on."""

from __future__ import annotations

from typing import Final

from pistage.core import codec, limits
from pistage.core.machine.outcome import Turn
from pistage.core.model import State, Trigger
from pistage.core.triggers.settings import AfterRule

_WHAT_COMES = """
SELECT after_rule.id, after_rule.spec, run.name, run.state, run.started_by
FROM run
JOIN after_pipeline ON after_pipeline.project = run.project AND after_pipeline.pipeline = run.name
JOIN after_rule ON after_rule.id = after_pipeline.after_id
WHERE run.id = ? ORDER BY after_rule.id
"""
#: Why nothing comes after a run of which, or of whose follower, no more can be said.
UNREADABLE: Final = "what the state says of it cannot be read"
_NOTE = "INSERT INTO after_due (after_id, run_id, at, depth, outcome, made_run_id, reason) VALUES (?, ?, ?, ?, ?, ?, ?)"


def note_end(turn: Turn, run_id: str) -> None:
    """What comes after the run, which has just ended, is due: once, since a run ends once.

    A chain of such runs has a length: what would make it longer is not due, and its history says why. What cannot be
    read is not due either, and keeps no run from its end.
    """
    for after_id, spec, name, state, started_by in turn.db.execute(_WHAT_COMES, (run_id,)).fetchall():
        rule: AfterRule | None = codec.readable(AfterRule, spec)
        trigger: Trigger | None = codec.readable(Trigger, started_by)
        depth, outcome, reason = 0, "", ""
        if rule is None or trigger is None:
            outcome, reason = "failed", UNREADABLE
        elif not any(after.pipeline == name and after.is_met_by(State(state)) for after in rule.afters):
            continue
        elif (depth := trigger.depth + 1) > limits.AFTER_DEPTH_MAX:
            outcome = "skipped"
            reason = (
                f"it would be number {depth} of runs that came after each other; at most {limits.AFTER_DEPTH_MAX} do"
            )
        turn.db.execute(_NOTE, (after_id, run_id, turn.at, depth, outcome, None, reason))
        turn.has_due_afters = True
