"""What applying a command gives: an answer for who proposed it, and effects for the leader to carry out."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass, field

from pistage.core import codec
from pistage.core.changes import Change, TaskId
from pistage.errors import PistageError

# An agent of a hundred places that is lost can end as many runs, and each skips up to 2,000 tasks; the id stays exact
# in JSON for the first 2**33 entries of the log.
_EVENT_BITS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class SendAssignment:
    """Tell the agent of its new attempt."""

    attempt_id: str
    agent_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CancelAttempt:
    """Tell the agent to stop the attempt."""

    attempt_id: str
    agent_id: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleaseRun:
    """The run is over: these agents may remove what they made for it."""

    run_id: str
    agent_ids: tuple[str, ...]


Effect = SendAssignment | CancelAttempt | ReleaseRun


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """The answer to a command. With `error` set nothing was changed.

    `effects` and `changes` can be lost with the leader: each can be found again in the state, and a new leader does.
    So can `dropped`, on each master: it looks at its start and now and then.
    """

    value: Mapping[str, object] = field(default_factory=dict)
    error: PistageError | None = None
    effects: tuple[Effect, ...] = ()
    runs: tuple[str, ...] = ()  # runs that changed, for who follows them
    changes: tuple[Change, ...] = ()  # for the scheduler
    dropped: tuple[str, ...] = ()  # runs whose output every master is to remove
    has_new_actions: bool = False  # or has some no more
    has_due_afters: bool = False  # what comes after a run that has ended, for the leader, who looks at all of it
    schedules: tuple[str, ...] = ()  # that changed, for the leader, who looks at them again
    deliveries: tuple[tuple[str, int], ...] = ()  # notices that are new or changed: run and position
    index: int = 0


@dataclass(frozen=True, slots=True)
class TaskKey:
    """A task of a run: by its position in SQL, by its name for people."""

    run_id: str
    position: int
    name: str

    @property
    def id(self) -> TaskId:
        return self.run_id, self.position

    def __str__(self) -> str:
        return f"task {self.name!r} of run {self.run_id}"


class Turn:
    """One command being applied: the connection, and what has come of it so far."""

    __slots__ = (
        "_events",
        "_rows",
        "at",
        "changes",
        "db",
        "deliveries",
        "dropped",
        "effects",
        "has_due_afters",
        "has_new_actions",
        "index",
        "runs",
        "schedules",
    )

    def __init__(self, db: sqlite3.Connection, index: int, at: int) -> None:
        self.db = db
        self.index = index
        self.at = at
        self.effects: list[Effect] = []
        self.changes: list[Change] = []
        self.dropped: list[str] = []
        self.schedules: list[str] = []
        self.deliveries: list[tuple[str, int]] = []
        self.has_new_actions = False
        self.has_due_afters = False
        self.runs: dict[str, None] = {}
        self._events = 0
        self._rows: list[tuple[int, str, int, str, str]] = []

    def record(self, run_id: str, kind: str, **fields: object) -> None:
        """Add an event to the history of a run; `write_events` puts it there."""
        self.record_text(run_id, kind, codec.canonical_json(fields))

    def record_text(self, run_id: str, kind: str, fields: str) -> None:
        """The same, for who has the fields in JSON already."""
        self.runs[run_id] = None
        if self._events >= 1 << _EVENT_BITS:
            return  # what happened stands in the tables; a history that is cut off must not stop a master
        self._rows.append(((self.index << _EVENT_BITS) | self._events, run_id, self.at, kind, fields))
        self._events += 1

    def write_events(self) -> None:
        """Write what was recorded: one statement for all of it."""
        self.db.executemany("INSERT INTO event (id, run_id, at, kind, fields) VALUES (?, ?, ?, ?, ?)", self._rows)
        self._rows.clear()
