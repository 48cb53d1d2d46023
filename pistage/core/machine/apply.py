"""Which command is carried out where, each in a savepoint of its own."""

from __future__ import annotations

import sqlite3
from importlib.resources import files
from typing import assert_never

from pistage.core import commands as c
from pistage.core.machine import actions, agents, attempts, runs
from pistage.core.machine.outcome import Outcome, Turn
from pistage.errors import Code, PistageError


def create_tables(db: sqlite3.Connection) -> None:
    """Make the tables in an empty database; leaves one that has them as it is."""
    for statement in files("pistage.core.machine").joinpath("schema.sql").read_text(encoding="utf-8").split(";\n"):
        if statement.strip():
            db.execute(statement)


def applied_index(db: sqlite3.Connection) -> int:
    """The index of the last command in this state; 0 for none."""
    return int(_meta(db, "applied_index") or 0)


def set_applied_index(db: sqlite3.Connection, index: int) -> None:
    """To be called in the transaction that applied the command with this index."""
    _set_meta(db, "applied_index", str(index))


def apply(db: sqlite3.Connection, index: int, command: c.Command) -> Outcome:
    """Carry out one command inside the caller's transaction.

    A refusal (PistageError) is an outcome; every other exception is a bug and must end the process uncommitted.
    """
    turn = Turn(db, index, command.at)
    db.execute("SAVEPOINT command")
    try:
        value = _carry_out(turn, command)
    except PistageError as refusal:
        db.execute("ROLLBACK TO command")
        db.execute("RELEASE command")
        return Outcome(error=refusal)
    # Not in a `finally`: a full disk may have rolled back the transaction, and its error must stay the one raised.
    db.execute("RELEASE command")
    return Outcome(value=value, effects=tuple(turn.effects), runs=tuple(turn.runs))


def _carry_out(turn: Turn, command: c.Command) -> dict[str, object]:  # noqa: PLR0911 - one arm a command
    match command:
        case c.FoundCluster():
            return _found_cluster(turn, command)
        case c.PutAction():
            return actions.put(turn, command)
        case c.DeleteAction():
            return actions.delete(turn, command)
        case c.SubmitRun():
            return runs.submit(turn, command)
        case c.CancelRun():
            return runs.cancel(turn, command)
        case c.RegisterAgent():
            return agents.register(turn, command)
        case c.LoseAgent():
            return agents.lose(turn, command)
        case c.SetAgentDrain():
            return agents.set_drain(turn, command)
        case c.AssignTask():
            return attempts.assign(turn, command)
        case c.RecordEvents():
            return attempts.record(turn, command)
        case _:
            assert_never(command)


def _found_cluster(turn: Turn, command: c.FoundCluster) -> dict[str, object]:
    known = _meta(turn.db, "cluster_id")
    if known is not None and known != command.cluster_id:
        raise PistageError(Code.CONFLICT, f"this cluster has the id {known} already")
    _set_meta(turn.db, "cluster_id", command.cluster_id)
    return {"cluster_id": command.cluster_id}


def _meta(db: sqlite3.Connection, key: str) -> str | None:
    row = db.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
    return None if row is None else str(row[0])


def _set_meta(db: sqlite3.Connection, key: str, value: str) -> None:
    db.execute(
        "INSERT INTO meta (key, value) VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value",
        (key, value),
    )
