"""What the state says of itself: how far it is applied, who its masters are, which commands it knows."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Position:
    """Where in the log this state is. `digest` is a chain over all that was applied and what came of it.

    `membership` is opaque here: consensus wrote it, and reads it again from a snapshot.
    """

    index: int = 0
    term: int = 0
    digest: bytes = b""
    at: int = 0  # the newest time that a command carried, milliseconds UTC
    membership: str = ""


def applied_index(db: sqlite3.Connection) -> int:
    """The index of the last entry in this state; 0 for none."""
    return int(get(db, "applied_index") or 0)


def position(db: sqlite3.Connection) -> Position:
    """Where in the log this state is."""
    return Position(
        index=applied_index(db),
        term=int(get(db, "applied_term") or 0),
        digest=bytes.fromhex(get(db, "digest") or ""),
        at=int(get(db, "at") or 0),
        membership=get(db, "membership") or "",
    )


def set_position(db: sqlite3.Connection, position: Position) -> None:
    """To be called in the transaction that applied the entries up to there."""
    put(
        db,
        {
            "applied_index": str(position.index),
            "applied_term": str(position.term),
            "digest": position.digest.hex(),
            "at": str(position.at),
            "membership": position.membership,
        },
    )


def get(db: sqlite3.Connection, key: str) -> str | None:
    """One value; None if it was never set."""
    row = db.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
    return None if row is None else str(row[0])


def put(db: sqlite3.Connection, values: Mapping[str, str]) -> None:
    """Set values."""
    db.executemany(
        "INSERT INTO meta (key, value) VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value",
        list(values.items()),
    )
