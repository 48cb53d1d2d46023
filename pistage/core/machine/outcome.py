"""What applying a command gives: an answer for who proposed it, and effects for the leader to carry out."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass, field

from pistage.errors import PistageError


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

    `effects` can be lost with the leader: each can be found again in the state, and a new leader does.
    """

    value: Mapping[str, object] = field(default_factory=dict)
    error: PistageError | None = None
    effects: tuple[Effect, ...] = ()
    runs: tuple[str, ...] = ()  # runs that changed, for who follows them


@dataclass(frozen=True, slots=True)
class TaskKey:
    """A task of a run: by its position in SQL, by its name for people."""

    run_id: str
    position: int
    name: str

    def __str__(self) -> str:
        return f"task {self.name!r} of run {self.run_id}"


class Turn:
    """One command being applied: the connection, and what has come of it so far."""

    __slots__ = ("_events", "at", "db", "effects", "index", "runs")

    def __init__(self, db: sqlite3.Connection, index: int, at: int) -> None:
        self.db = db
        self.index = index
        self.at = at
        self.effects: list[Effect] = []
        self.runs: dict[str, None] = {}
        self._events = 0

    def record(self, run_id: str, kind: str, **fields: object) -> None:
        """Add an event to the history of a run."""
        if self._events >= 1 << 16:
            raise AssertionError("more than 65,536 events from one command")
        text = json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        row = ((self.index << 16) | self._events, run_id, self.at, kind, text)
        self.db.execute("INSERT INTO event (id, run_id, at, kind, fields) VALUES (?, ?, ?, ?, ?)", row)
        self._events += 1
        self.runs[run_id] = None
