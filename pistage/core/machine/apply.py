"""Which command is carried out where, each in a savepoint of its own."""

from __future__ import annotations

import sqlite3
from importlib.resources import files
from typing import assert_never

from pistage.core import commands as c
from pistage.core.machine import actions, agents, attempts, masters, runs, submissions
from pistage.core.machine.outcome import Outcome, Turn
from pistage.errors import PistageError


def create_tables(db: sqlite3.Connection) -> None:
    """Make the tables in an empty database; leaves one that has them as it is."""
    for statement in files("pistage.core.machine").joinpath("schema.sql").read_text(encoding="utf-8").split(";\n"):
        if statement.strip():
            db.execute(statement)


def apply(db: sqlite3.Connection, index: int, command: c.Command) -> Outcome:
    """Carry out one command inside the caller's transaction.

    A refusal (PistageError) is an outcome; every other exception is a bug and must end the process uncommitted.
    """
    turn = Turn(db, index, command.at)
    db.execute("SAVEPOINT command")
    try:
        value = _carry_out(turn, command)
        turn.write_events()
    except PistageError as refusal:
        db.execute("ROLLBACK TO command")
        db.execute("RELEASE command")
        return Outcome(error=refusal)
    # Not in a `finally`: a full disk may have rolled back the transaction, and its error must stay the one raised.
    db.execute("RELEASE command")
    return Outcome(value=value, effects=tuple(turn.effects), runs=tuple(turn.runs))


def _carry_out(turn: Turn, command: c.Command) -> dict[str, object]:  # noqa: PLR0911, PLR0912 - one arm a command
    match command:
        case c.FoundCluster():
            return masters.found(turn, command)
        case c.RegisterMaster():
            return masters.register(turn, command)
        case c.RaiseVersion():
            return masters.raise_version(turn, command)
        case c.PutAction():
            return actions.put(turn, command)
        case c.DeleteAction():
            return actions.delete(turn, command)
        case c.SubmitRun():
            return submissions.submit(turn, command)
        case c.SubmitRuns():
            return submissions.submit_many(turn, command)
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
