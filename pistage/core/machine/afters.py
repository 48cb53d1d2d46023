"""After: which definitions come after which runs; what is due once one has ended, and, once, what became of that."""

from __future__ import annotations

from typing import assert_never

from pistage.core import codec, limits
from pistage.core import commands_of_triggers as c
from pistage.core.machine.outcome import Turn
from pistage.core.machine.submissions import Draft, Origin, drafted, make
from pistage.core.model import Starter, Trigger
from pistage.core.triggers.settings import AfterRule
from pistage.errors import Code, PistageError

_RAN, _SKIPPED, _FAILED = "ran", "skipped", "failed"

_INSERT = """
INSERT INTO after_rule (id, project, definition, owner, fence, created_at, at, spec, source)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)
"""
_CHANGE = "UPDATE after_rule SET owner = ?, fence = ?, at = ?, spec = ?, source = ? WHERE id = ?"
_NEXT = """
SELECT DISTINCT after_rule.definition FROM after_pipeline JOIN after_rule ON after_rule.id = after_pipeline.after_id
WHERE after_pipeline.project = ? AND after_pipeline.pipeline = ? AND after_rule.definition <> ?
ORDER BY after_rule.definition
"""
_DUE = """
SELECT after_due.depth, after_rule.project, after_rule.definition, after_rule.owner, after_rule.fence,
  after_rule.source, run.name, run.number
FROM after_due JOIN after_rule ON after_rule.id = after_due.after_id JOIN run ON run.id = after_due.run_id
WHERE after_due.after_id = ? AND after_due.run_id = ? AND after_due.outcome = ''
"""
_DECIDE = """
UPDATE after_due SET outcome = ?, made_run_id = ?, at = ?, reason = ?
WHERE after_id = ? AND run_id = ? AND outcome = ''
"""
_FORGET = """
DELETE FROM after_due WHERE after_id = :id AND outcome <> '' AND run_id NOT IN (
  SELECT run_id FROM after_due WHERE after_id = :id AND outcome <> '' ORDER BY at DESC, run_id DESC LIMIT :kept)
"""


def carry_out(turn: Turn, command: c.AfterCommand) -> dict[str, object]:
    """Any of their commands."""
    match command:
        case c.PutAfter():
            return put(turn, command)
        case c.DeleteAfter():
            return delete(turn, command)
        case c.FireAfters():
            return fire(turn, command)
        case _:
            assert_never(command)


def put(turn: Turn, command: c.PutAfter) -> dict[str, object]:
    """Set it. What was due stays due, and runs as it is now."""
    _refuse_circles(turn, command)
    known = _id_of(turn, command.project, command.definition)
    _refuse_too_many(turn, command, known)
    spec = codec.to_json(AfterRule, command.rule)
    if known is None:
        head = (command.id, command.project, command.definition, command.owner, turn.index, turn.at, turn.at)
        turn.db.execute(_INSERT, (*head, spec, command.source))
        known = command.id
    else:
        turn.db.execute("DELETE FROM after_pipeline WHERE after_id = ?", (known,))
        turn.db.execute(_CHANGE, (command.owner, turn.index, turn.at, spec, command.source, known))
        turn.has_due_afters = True
    for pipeline in dict.fromkeys(after.pipeline for after in command.rule.afters):
        turn.db.execute(
            "INSERT INTO after_pipeline (project, pipeline, after_id) VALUES (?, ?, ?)",
            (command.project, pipeline, known),
        )
    return {}


def delete(turn: Turn, command: c.DeleteAfter) -> dict[str, object]:
    """Forget it, what is due and what was."""
    known = _id_of(turn, command.project, command.definition)
    if known is None:
        raise PistageError(
            Code.NOT_FOUND, f"{command.definition!r} comes after nothing", hint="see pistage after ls"
        )  # fmt: skip
    for sql in (
        "DELETE FROM after_due WHERE after_id = ?",
        "DELETE FROM after_pipeline WHERE after_id = ?",
        "DELETE FROM after_rule WHERE id = ?",
    ):
        turn.db.execute(sql, (known,))
    return {}


def fire(turn: Turn, command: c.FireAfters) -> dict[str, object]:
    """Decide what is due; the answer has a verdict for each, "" where it was decided now."""
    draft = None if command.plan is None else drafted(command.plan, turn.at)
    verdicts = []
    for one in command.fires:
        row = turn.db.execute(_DUE, (command.after_id, one.after_run)).fetchone()
        if row is None:
            verdicts.append("it was decided before")
        elif row[4] != command.fence:
            verdicts.append("the definition has changed")
        else:
            verdicts.append("")
            _decide(turn, command, one, draft, row)
    turn.db.execute(_FORGET, {"id": command.after_id, "kept": limits.FIRES_KEPT})
    turn.has_due_afters = True  # whoever leads looks again, at what is left
    return {"verdicts": verdicts}


def _decide(
    turn: Turn, command: c.FireAfters, one: c.AfterFire, draft: Draft | None, row: tuple[object, ...]
) -> None:  # fmt: skip
    depth, project, _, owner, _, source, name, number = row
    outcome, made, reason = _FAILED, None, command.reason[: limits.REASON_CHARS_MAX]
    if draft is not None:
        trigger = Trigger(kind=Starter.RUN, name=f"{name}#{number}", run_id=one.after_run, depth=int(str(depth)))
        origin = Origin(project=str(project), owner=str(owner), source=str(source), trigger=trigger)
        try:
            make(turn, origin, [(one.run_id, draft)])
        except PistageError as refusal:
            outcome, reason = _SKIPPED, refusal.message
        else:
            outcome, made, reason = _RAN, one.run_id, ""
    turn.db.execute(_DECIDE, (outcome, made, turn.at, reason, command.after_id, one.after_run))


def _refuse_circles(turn: Turn, command: c.PutAfter) -> None:
    """A definition that comes after itself, over others or at once, would run for ever."""
    came_from: dict[str, str] = {command.definition: ""}
    waiting = [command.definition]
    first = {after.pipeline for after in command.rule.afters}
    while waiting:
        name = waiting.pop()
        if name in first:
            chain = [command.definition, name]
            while name := came_from[name]:
                chain.insert(1, name)
            names = " → ".join(chain[1:] if len(chain) > 2 else [command.definition])
            raise PistageError(
                Code.CONFLICT, f"each would come after the other without end: {names} → {command.definition}",
                hint="take one of them out of the circle; pistage after ls shows what comes after what",
            )  # fmt: skip
        following = turn.db.execute(_NEXT, (command.project, name, command.definition)).fetchall()
        for (after,) in following:
            if after not in came_from:
                came_from[after] = name
                waiting.append(after)


def _refuse_too_many(turn: Turn, command: c.PutAfter, known: str | None) -> None:
    (count,) = turn.db.execute("SELECT COUNT(*) FROM after_rule").fetchone()
    if known is None and count >= limits.AFTERS_MAX:
        raise PistageError(
            Code.CONFLICT, f"{count} definitions come after others; a cluster has at most {limits.AFTERS_MAX}",
            hint="remove some with pistage after rm",
        )  # fmt: skip
    for after in command.rule.afters:
        (others,) = turn.db.execute(
            "SELECT COUNT(*) FROM after_pipeline WHERE project = ? AND pipeline = ? AND after_id IS NOT ?",
            (command.project, after.pipeline, known),
        ).fetchone()
        if others >= limits.AFTERS_OF_PIPELINE_MAX:
            raise PistageError(
                Code.CONFLICT, f"{others} definitions come after {after.pipeline!r} already", hint="remove some"
            )  # fmt: skip


def _id_of(turn: Turn, project: str, definition: str) -> str | None:
    row = turn.db.execute(
        "SELECT id FROM after_rule WHERE project = ? AND definition = ?", (project, definition)
    ).fetchone()
    return None if row is None else str(row[0])
