"""Schedules: what is to be run by itself, and, once and for all, what became of each of their times."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Final, assert_never

from pistage.core import codec, limits
from pistage.core import commands_of_schedules as c
from pistage.core.cron.schedules import Overlap, Schedule
from pistage.core.machine import groups
from pistage.core.machine.outcome import Turn
from pistage.core.machine.submissions import Draft, Origin, drafted, make
from pistage.core.model import Starter, Trigger
from pistage.core.plan import Concurrency, Overflow
from pistage.errors import Code, PistageError

_OVERFLOW: Final = {
    Overlap.SKIP: Overflow.REFUSE,
    Overlap.QUEUE: Overflow.QUEUE,
    Overlap.CANCEL_OLD: Overflow.CANCEL_OLD,
}
_RAN, _SKIPPED = "ran", "skipped"

_BY_HAND: Final = "somebody paused it"
_ONCE: Final = "it was to run once, and did"

_OF_DEFINITION = """
SELECT name, id, is_enabled, paused_reason, spec, action, start_node, sha256 FROM schedule
WHERE project = ? AND definition = ?
"""
_INSERT = """
INSERT INTO schedule (id, project, name, definition, owner, fence, is_enabled, paused_reason, decided_until,
                      created_at, at, spec, action, start_node, sha256, source)
VALUES (?, ?, ?, ?, ?, ?, ?, '', ?, ?, ?, ?, ?, ?, ?, ?)
"""
_CHANGE = """
UPDATE schedule
SET owner = ?, fence = ?, is_enabled = ?, paused_reason = ?, decided_until = MAX(decided_until, ?), at = ?, spec = ?,
    action = ?, start_node = ?, sha256 = ?, source = ?
WHERE id = ?
"""
_ENABLE = """
UPDATE schedule
SET fence = ?, is_enabled = ?, paused_reason = ?, decided_until = MAX(decided_until, ?), at = ? WHERE id = ?
"""
_DELETE_FIRES = "DELETE FROM fire WHERE schedule_id = ?"
_DELETE = "DELETE FROM schedule WHERE id = ?"
_KNOWN = """
SELECT id, project, name, owner, fence, is_enabled, decided_until, spec, source FROM schedule WHERE id = ?
"""
_DECIDE = "UPDATE schedule SET decided_until = ? WHERE id = ?"
_NOTE = """
INSERT INTO fire (schedule_id, nominal, until, count, outcome, run_id, at, reason) VALUES (?, ?, ?, ?, ?, ?, ?, ?)
"""
_FORGET = """
DELETE FROM fire WHERE schedule_id = :id AND nominal < (
  SELECT nominal FROM fire WHERE schedule_id = :id ORDER BY nominal DESC LIMIT 1 OFFSET :kept)
"""
_WAITING = """
SELECT COUNT(*) FROM run WHERE concurrency = ? AND state IN ('pending', 'queued') AND cancel_reason IS NULL
"""


def carry_out(turn: Turn, command: c.ScheduleCommand) -> dict[str, object]:
    """Any of their commands."""
    match command:
        case c.PutSchedules():
            return put(turn, command)
        case c.DeleteSchedule():
            return delete(turn, command)
        case c.EnableSchedule():
            return enable(turn, command)
        case c.FireSchedules():
            return fire(turn, command)
        case _:
            assert_never(command)


def put(turn: Turn, command: c.PutSchedules) -> dict[str, object]:
    """Set them, and drop those of the definition that are not among them.

    What stays the same goes on as it was, and what somebody paused stays paused.
    """
    known = {row[0]: row[1:] for row in turn.db.execute(_OF_DEFINITION, (command.project, command.definition))}
    _refuse_too_many(turn, command, known.keys())
    what = (command.action, command.start_node, hashlib.sha256(command.source.encode()).hexdigest())
    for new in command.schedules:
        spec, is_enabled = codec.to_json(Schedule, new.schedule), int(new.schedule.is_enabled)
        row = known.pop(new.name, None)
        if row is None:
            head = (new.id, command.project, new.name, command.definition, command.owner, turn.index, is_enabled)
            turn.db.execute(_INSERT, (*head, command.since, turn.at, turn.at, spec, *what, command.source))
            turn.schedules.append(new.id)
            continue
        schedule_id, was_enabled, reason, *said = row
        is_enabled = 0 if reason == _BY_HAND else is_enabled
        if said != [spec, *what] or was_enabled != is_enabled:
            # What is due already is decided as it is now, unless it was paused, or other times are asked for.
            goes_on = was_enabled and _times_of(said[0]) == _times_of(spec)
            since = 0 if goes_on else command.since
            state = (turn.index, is_enabled, reason if reason == _BY_HAND else "", since, turn.at)
            turn.db.execute(_CHANGE, (command.owner, *state, spec, *what, command.source, schedule_id))
            turn.schedules.append(schedule_id)
    for row in known.values():
        _drop(turn, row[0])
    return {"names": [new.name for new in command.schedules]}


def _times_of(spec: str) -> tuple[str, str] | None:
    schedule: Schedule | None = codec.readable(Schedule, spec)  # which a new one takes the place of
    return None if schedule is None else (schedule.cron, schedule.timezone)


def _refuse_too_many(turn: Turn, command: c.PutSchedules, known: Collection[str]) -> None:
    (count,) = turn.db.execute("SELECT COUNT(*) FROM schedule").fetchone()
    names = {new.name for new in command.schedules}
    if count - len(known) + len(names) > limits.SCHEDULES_MAX:
        raise PistageError(
            Code.CONFLICT, f"there are {count} schedules; a cluster has at most {limits.SCHEDULES_MAX}",
            hint="remove some with pistage cron rm",
        )  # fmt: skip
    if len(names) < len(command.schedules):
        raise PistageError(Code.INVALID, "two of these schedules have one name", hint="give each a name of its own")
    for new in command.schedules:
        row = _named(turn, command.project, new.name)
        if row is not None and row[1] != command.definition:
            raise PistageError(
                Code.CONFLICT, f"there is a schedule {new.name!r} already, of {row[1]!r}",
                hint="give this one another name, or remove that one",
            )  # fmt: skip


def delete(turn: Turn, command: c.DeleteSchedule) -> dict[str, object]:
    """Forget it and its history."""
    _drop(turn, _required(turn, command.project, command.name))
    return {}


def enable(turn: Turn, command: c.EnableSchedule) -> dict[str, object]:
    """Pause it or let it go on; one that is so already stays as it is."""
    schedule_id = _required(turn, command.project, command.name)
    was = turn.db.execute("SELECT is_enabled, paused_reason FROM schedule WHERE id = ?", (schedule_id,)).fetchone()
    reason = "" if command.is_enabled else _BY_HAND
    if was != (int(command.is_enabled), reason):
        # What came while it was paused is over, and what is decided stays decided.
        until = command.since if command.is_enabled else 0
        turn.db.execute(_ENABLE, (turn.index, int(command.is_enabled), reason, until, turn.at, schedule_id))
        turn.schedules.append(schedule_id)
    return {}


def fire(turn: Turn, command: c.FireSchedules) -> dict[str, object]:
    """Decide what comes next of each schedule; the answer has a verdict for each time, "" where it was decided now."""
    drafts = [drafted(one.plan, turn.at) for one in command.plans]
    sources = [one.source for one in command.plans]
    verdicts = []
    for one in command.fires:
        known = _known(turn, one.schedule_id)
        if known is None or known.fence != one.fence or not known.is_enabled:
            verdicts.append("the schedule has changed")
        elif one.after != known.decided_until or one.nominal <= one.after:
            verdicts.append("another leader decided meanwhile")
        else:
            verdicts.append("")
            _decide(turn, known, one, drafts, sources)
        turn.schedules.append(one.schedule_id)
    return {"verdicts": verdicts}


@dataclass(frozen=True, slots=True)
class _Known:
    id: str
    project: str
    name: str
    owner: str
    fence: int
    is_enabled: int
    decided_until: int
    spec: str
    source: str


def _decide(turn: Turn, known: _Known, one: c.Fire, drafts: Sequence[Draft], sources: Sequence[str]) -> None:
    outcome, run_id, reason = str(one.outcome), None, one.reason[: limits.REASON_CHARS_MAX]
    schedule: Schedule = codec.from_json(Schedule, known.spec)
    if one.plan is not None:
        draft = _held_apart(drafts[one.plan], known, schedule)
        trigger = Trigger(kind=Starter.SCHEDULE, name=known.name, nominal=one.nominal)
        origin = Origin(
            project=known.project, owner=known.owner, source=sources[one.plan] or known.source, trigger=trigger,
            schedule_id=known.id,
        )  # fmt: skip
        try:
            _refuse_a_long_queue(turn, known, draft)
            make(turn, origin, [(one.run_id, draft)])
        except PistageError as refusal:
            outcome, reason = _SKIPPED, f"overlap: {refusal.message}"
        else:
            outcome, run_id, reason = _RAN, one.run_id, ""
    until = one.nominal if one.until is None else one.until
    turn.db.execute(_DECIDE, (until, known.id))
    turn.db.execute(_NOTE, (known.id, one.nominal, until, one.count, outcome, run_id, turn.at, reason))
    turn.db.execute(_FORGET, {"id": known.id, "kept": limits.FIRES_KEPT - 1})
    if schedule.is_once and outcome == _RAN:
        turn.db.execute(_ENABLE, (turn.index, 0, _ONCE, 0, turn.at, known.id))


def _held_apart(draft: Draft, known: _Known, schedule: Schedule) -> Draft:
    """Runs of a schedule are a concurrency group of one, unless their definition has a group of its own."""
    if draft.concurrency is not None:
        return draft
    group = Concurrency(group=f"schedule {known.name}", limit=1, overflow=_OVERFLOW[schedule.overlap])
    return replace(draft, concurrency=group)


def _refuse_a_long_queue(turn: Turn, known: _Known, draft: Draft) -> None:
    (waiting,) = turn.db.execute(_WAITING, (groups.group_of(known.project, draft.concurrency),)).fetchone()
    if waiting >= limits.SCHEDULE_QUEUED_MAX:
        raise PistageError(Code.CONFLICT, f"{waiting} runs wait for each other already")


def _known(turn: Turn, schedule_id: str) -> _Known | None:
    row = turn.db.execute(_KNOWN, (schedule_id,)).fetchone()
    return None if row is None else _Known(*row)


def _named(turn: Turn, project: str, name: str) -> tuple[str, str] | None:
    found: tuple[str, str] | None = turn.db.execute(
        "SELECT id, definition FROM schedule WHERE project = ? AND name = ?", (project, name)
    ).fetchone()
    return found


def _required(turn: Turn, project: str, name: str) -> str:
    row = _named(turn, project, name)
    if row is None:
        raise PistageError(Code.NOT_FOUND, f"no schedule {name!r}", hint="see pistage cron ls")
    return row[0]


def _drop(turn: Turn, schedule_id: str) -> None:
    turn.db.execute(_DELETE_FIRES, (schedule_id,))
    turn.db.execute(_DELETE, (schedule_id,))
    turn.schedules.append(schedule_id)
