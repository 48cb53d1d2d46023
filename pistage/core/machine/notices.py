"""Notices: which are due when a run ends, decided in the same turn so that none is lost, and how each ends itself."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, assert_never

from pistage.core import codec, limits
from pistage.core import commands_of_notices as c
from pistage.core.machine.outcome import Turn
from pistage.core.notices import ENDS_DEFAULT, End, Notify, Receiver, Verdict
from pistage.errors import Code, PistageError

_PUT = """
INSERT INTO receiver (project, name, owner, at, spec) VALUES (?, ?, ?, ?, ?)
ON CONFLICT (project, name) DO UPDATE SET owner = excluded.owner, at = excluded.at, spec = excluded.spec
"""
_RECEIVERS = "SELECT name, spec FROM receiver WHERE project = ? ORDER BY name"
# A row that cannot be read must neither keep a run from ending nor stop every master.
_ENDED = """
SELECT project, name, state, CASE WHEN json_valid(plan) THEN json_extract(plan, '$.notify') END FROM run WHERE id = ?
"""
_INSERT = """
INSERT INTO delivery (run_id, position, project, pipeline, receiver, notify, state, tries, due_at, created_at, ended_at,
                      status, reason)
VALUES (?, ?, ?, ?, ?, ?, ?, 0, ?, ?, ?, NULL, ?)
"""
_OLDEST = """
SELECT run_id, position FROM delivery WHERE state = 'waiting'
ORDER BY created_at DESC, run_id DESC, position DESC LIMIT -1 OFFSET ?
"""
_WAITING_FOR = "SELECT run_id, position FROM delivery WHERE state = 'waiting' AND project = ? AND receiver = ?"
_GIVE_UP = """
UPDATE delivery SET state = 'given_up', due_at = NULL, ended_at = ?, reason = ?
WHERE run_id = ? AND position = ? AND state = 'waiting'
"""
_RECORD = """
UPDATE delivery SET state = ?, tries = ?, due_at = ?, ended_at = ?, status = ?, reason = ?
WHERE run_id = ? AND position = ? AND state = 'waiting' AND tries = ?
"""
_REMOVED: Final = "its receiver was removed"


def carry_out(turn: Turn, command: c.NoticeCommand) -> dict[str, object]:
    """Any of their commands."""
    match command:
        case c.PutReceiver():
            return put(turn, command)
        case c.DeleteReceiver():
            return delete(turn, command)
        case c.RecordTry():
            return record(turn, command)
        case _:
            assert_never(command)


def put(turn: Turn, command: c.PutReceiver) -> dict[str, object]:
    """Set it; what was on its way to the one before goes to this one."""
    known = {name for name, _ in turn.db.execute(_RECEIVERS, (command.project,))}
    if command.name not in known and len(known) >= limits.RECEIVERS_MAX:
        raise PistageError(
            Code.CONFLICT, f"there are {len(known)} receivers of notices; a project has at most {limits.RECEIVERS_MAX}",
            hint="remove some with pistage notice rm",
        )  # fmt: skip
    spec = codec.to_json(Receiver, command.receiver)
    turn.db.execute(_PUT, (command.project, command.name, command.owner, turn.at, spec))
    return {"is_new": command.name not in known}


def delete(turn: Turn, command: c.DeleteReceiver) -> dict[str, object]:
    """Forget it, and give up what was on its way."""
    key = (command.project, command.name)
    if not turn.db.execute("DELETE FROM receiver WHERE project = ? AND name = ?", key).rowcount:
        raise PistageError(Code.NOT_FOUND, f"no receiver {command.name!r}", hint="see pistage notice ls")
    for run_id, position in turn.db.execute(_WAITING_FOR, key).fetchall():
        _give_up(turn, run_id, position, _REMOVED)
    return {}


def record(turn: Turn, command: c.RecordTry) -> dict[str, object]:
    """Note a try."""
    ended_at = None if command.verdict is Verdict.WAITING else turn.at
    reason = command.reason[: limits.REASON_CHARS_MAX]
    said = (command.verdict, command.number, command.due_at, ended_at, command.status, reason)
    changed = turn.db.execute(_RECORD, (*said, command.run_id, command.position, command.number - 1)).rowcount
    if not changed:
        raise PistageError(Code.CONFLICT, "this try is not the next one of a notice that waits")
    turn.deliveries.append((command.run_id, command.position))
    return {}


@dataclass(frozen=True, slots=True)
class _Due:
    """A notice that a run's end makes due; `problem` says why it never will be delivered."""

    receiver: str | None
    notify: int | None
    problem: str = ""


def run_ended(turn: Turn, run_id: str) -> None:
    """The run is in its last state: note who is to be told. Called once, in the turn that brings it there."""
    project, pipeline, state, said = turn.db.execute(_ENDED, (run_id,)).fetchone()
    notifies: tuple[Notify, ...] = codec.readable(tuple[Notify, ...], said) or () if said else ()
    rows = turn.db.execute(_RECEIVERS, (project,)).fetchall()
    if not notifies and not rows:
        return
    read = {name: codec.readable(Receiver, spec) for name, spec in rows}
    receivers: dict[str, Receiver] = {name: receiver for name, receiver in read.items() if receiver is not None}
    due = list(_due(pipeline, End(state), notifies, receivers))
    for position, one in enumerate(due, 1):
        is_over = bool(one.problem)
        verdict = Verdict.GIVEN_UP if is_over else Verdict.WAITING
        times = (None if is_over else turn.at, turn.at, turn.at if is_over else None)
        head = (run_id, position, project, pipeline, one.receiver, one.notify, verdict)
        turn.db.execute(_INSERT, (*head, *times, one.problem))
        turn.deliveries.append((run_id, position))
    if due:
        _give_up_what_is_too_much(turn)


def _due(pipeline: str, end: End, notifies: tuple[Notify, ...], receivers: dict[str, Receiver]) -> Iterator[_Due]:
    """First what the definition says, then who asks by itself; nobody is told twice because both do."""
    told: set[str] = set()
    for number, notify in enumerate(notifies):
        receiver = receivers.get(notify.to)
        if end not in (notify.on or (ENDS_DEFAULT if receiver is None else receiver.on)):
            continue
        told.add(notify.to)
        is_missing = bool(notify.to) and receiver is None
        yield _Due(notify.to or None, number, f"there is no receiver {notify.to!r}" if is_missing else "")
    for name, receiver in receivers.items():
        if name not in told and receiver.is_told_of(pipeline, end):
            yield _Due(name, None)


def _give_up_what_is_too_much(turn: Turn) -> None:
    for run_id, position in turn.db.execute(_OLDEST, (limits.NOTICES_WAITING_MAX,)).fetchall():
        _give_up(turn, run_id, position, f"more than {limits.NOTICES_WAITING_MAX} notices wait, and this is the oldest")


def _give_up(turn: Turn, run_id: str, position: int, reason: str) -> None:
    turn.db.execute(_GIVE_UP, (turn.at, reason, run_id, position))
    turn.deliveries.append((run_id, position))
