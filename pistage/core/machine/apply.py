"""Which command is carried out where, each in a savepoint of its own."""

from __future__ import annotations

import sqlite3
from importlib.resources import files
from typing import Final

from pistage.core import commands as c
from pistage.core import commands_of_notices as of_notices
from pistage.core import commands_of_output as of_output
from pistage.core import commands_of_triggers as of_triggers
from pistage.core.commands_of_schedules import ScheduleCommand
from pistage.core.machine import (
    actions,
    afters,
    agents,
    attempts,
    masters,
    meta,
    notices,
    outputs,
    placing,
    queues,
    retrying,
    runs,
    schedules,
    submissions,
    webhooks,
)
from pistage.core.machine.outcome import Outcome, Turn
from pistage.errors import Code, PistageError

#: Raised with every change of schema.sql that a state written before it would not bear.
_SCHEMA: Final = "7"


def create_tables(db: sqlite3.Connection) -> None:
    """Make the tables in an empty database; leaves one that has them as it is.

    PistageError `storage` for tables of another version of this program.
    """
    if db.execute("SELECT 1 FROM sqlite_master WHERE name = 'meta'").fetchone() and meta.get(db, "schema") != _SCHEMA:
        raise PistageError(
            Code.STORAGE,
            "this state was written by an earlier version of Pistage, which was never released",
            hint="begin with an empty data_dir",
        )
    for statement in files("pistage.core.machine").joinpath("schema.sql").read_text(encoding="utf-8").split(";\n"):
        if statement.strip():
            db.execute(statement)
    meta.put(db, {"schema": _SCHEMA})


def apply(db: sqlite3.Connection, index: int, command: c.Command) -> Outcome:
    """Carry out one command inside the caller's transaction.

    A refusal (PistageError) is an outcome; every other exception is a bug and must end the process uncommitted.
    """
    turn = Turn(db, index, command.at)
    db.execute("SAVEPOINT command")
    try:
        value = _carry_out(turn, command)
        turn.write_events()
    except (PistageError, OverflowError) as error:
        # A number that SQLite cannot hold is no bug that must stop every master, now and at each start.
        refusal = error if isinstance(error, PistageError) else PistageError(Code.INVALID, "a number is too large")
        db.execute("ROLLBACK TO command")
        db.execute("RELEASE command")
        return Outcome(error=refusal, index=index)
    # Not in a `finally`: a full disk may have rolled back the transaction, and its error must stay the one raised.
    db.execute("RELEASE command")
    return Outcome(
        value=value, effects=tuple(turn.effects), runs=tuple(turn.runs), changes=tuple(turn.changes),
        dropped=tuple(turn.dropped), schedules=tuple(turn.schedules), has_new_actions=turn.has_new_actions,
        has_due_afters=turn.has_due_afters,
        deliveries=tuple(turn.deliveries),
        index=index,
    )  # fmt: skip


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
        case c.RetryRun():
            return retrying.retry(turn, command)
        case c.CancelRun():
            return runs.cancel(turn, command)
        case c.CancelTask():
            return runs.cancel_task(turn, command)
        case c.SetRunPriority():
            return runs.set_priority(turn, command)
        case c.ExpireTask():
            return runs.expire(turn, command)
        case c.PutQueue():
            return queues.put(turn, command)
        case c.DeleteQueue():
            return queues.delete(turn, command)
        case of_output.PinRun():
            return outputs.pin(turn, command)
        case of_output.PutRetention():
            return outputs.put_retention(turn, command)
        case of_output.DeleteRetention():
            return outputs.delete_retention(turn, command)
        case of_output.DropOutput():
            return outputs.drop(turn, command)
        case of_output.ArchiveOutput():
            return outputs.archive(turn, command)
        case of_output.ForgetArchive():
            return outputs.forget_archive(turn, command)
        case c.RegisterAgent():
            return agents.register(turn, command)
        case c.LoseAgent():
            return agents.lose(turn, command)
        case c.PauseLosses():
            return agents.pause_losses(turn, command)
        case c.SetAgentDrain():
            return agents.set_drain(turn, command)
        case c.RemoveAgent():
            return agents.remove(turn, command)
        case c.AssignTasks():
            return placing.assign(turn, command)
        case c.RecordEvents():
            return attempts.record(turn, command)
        case of_notices.PutReceiver() | of_notices.DeleteReceiver() | of_notices.RecordTry():
            return notices.carry_out(turn, command)
        case _:
            return _carry_out_of_triggers(turn, command)


def _carry_out_of_triggers(turn: Turn, command: ScheduleCommand | of_triggers.TriggerCommand) -> dict[str, object]:
    match command:
        case of_triggers.PutWebhook() | of_triggers.DeleteWebhook() | of_triggers.DeliverWebhook():
            return webhooks.carry_out(turn, command)
        case of_triggers.PutAfter() | of_triggers.DeleteAfter() | of_triggers.FireAfters():
            return afters.carry_out(turn, command)
        case _:
            return schedules.carry_out(turn, command)
