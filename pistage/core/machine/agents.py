"""Agents: who they are, in which epoch, and whether they are up."""

from __future__ import annotations

import sqlite3

from pistage.core import codec
from pistage.core import commands as c
from pistage.core.machine import attempts
from pistage.core.machine.outcome import Turn
from pistage.core.model import AgentInfo, Result, State
from pistage.core.plan import FailureClass
from pistage.errors import Code, PistageError

_UPSERT = """
INSERT INTO agent (id, name, incarnation, epoch, state, reason, is_draining, info,
                   cpus_milli, memory_bytes, gpus, slots, at)
VALUES (?, ?, ?, ?, 'up', '', 0, ?, ?, ?, ?, ?, ?)
ON CONFLICT (id) DO UPDATE SET
  name = excluded.name, incarnation = excluded.incarnation, epoch = excluded.epoch, state = 'up', reason = '',
  info = excluded.info, cpus_milli = excluded.cpus_milli, memory_bytes = excluded.memory_bytes,
  gpus = excluded.gpus, slots = excluded.slots, at = excluded.at
"""


def register(turn: Turn, command: c.RegisterAgent) -> dict[str, object]:
    """The agent is up. Another incarnation, or one that had been lost, gets the next epoch."""
    info = command.info
    known = turn.db.execute("SELECT incarnation, epoch, state FROM agent WHERE id = ?", (info.id,)).fetchone()
    epoch = 1 if known is None else known[1]
    if known is not None and (known[0] != info.incarnation or known[2] != "up"):
        epoch += 1
    room = info.capacity
    text = codec.to_json(AgentInfo, info)
    row = (info.id, info.name, info.incarnation, epoch, text)
    turn.db.execute(_UPSERT, (*row, room.cpus_milli, room.memory_bytes, room.gpus, room.slots, command.at))
    return {"epoch": epoch}


def lose(turn: Turn, command: c.LoseAgent) -> dict[str, object]:
    """End every live attempt of the agent as lost; refused if the agent has come back since."""
    changed = turn.db.execute(
        "UPDATE agent SET state = 'lost', reason = ?, at = ? WHERE id = ? AND epoch = ? AND state = 'up'",
        (command.reason, command.at, command.agent_id, command.epoch),
    )
    if changed.rowcount == 0:
        raise PistageError(Code.CONFLICT, f"agent {command.agent_id} is not up in epoch {command.epoch}")
    lost = Result(state=State.LOST, failure=FailureClass.LOST, reason=command.reason)
    live = attempts.live_attempts_of(turn.db, command.agent_id)
    for attempt_id in live:
        attempts.end(turn, attempt_id, lost)
    return {"lost": live}


def set_drain(turn: Turn, command: c.SetAgentDrain) -> dict[str, object]:
    """Stop or resume giving the agent new work."""
    changed = turn.db.execute(
        "UPDATE agent SET is_draining = ?, at = ? WHERE id = ?",
        (int(command.is_draining), command.at, command.agent_id),
    )
    if changed.rowcount == 0:
        raise PistageError(Code.NOT_FOUND, f"no agent {command.agent_id}", hint="see pistage agent ls")
    return {}


def refuse_unless_free(db: sqlite3.Connection, agent_id: str, epoch: int, wanted: tuple[int, int, int]) -> None:
    """PistageError `conflict` unless the agent is up in this epoch, not draining, and has room for `wanted`.

    `wanted` is thousandths of a core, bytes of memory, GPUs.
    """
    row = db.execute(
        "SELECT epoch, state, is_draining, cpus_milli, memory_bytes, gpus, slots FROM agent WHERE id = ?", (agent_id,)
    ).fetchone()
    if row is None or row[0] != epoch or row[1] != "up" or row[2]:
        raise PistageError(Code.CONFLICT, f"agent {agent_id} takes no work in epoch {epoch}")
    used = db.execute(_USED, (agent_id,)).fetchone()
    over = [used[i] + wanted[i] > row[3 + i] for i in range(3)] + [used[3] + 1 > row[6]]
    if any(over):
        raise PistageError(Code.CONFLICT, f"agent {agent_id} has no room")


_USED = """
SELECT COALESCE(SUM(task.cpus_milli), 0), COALESCE(SUM(task.memory_bytes), 0), COALESCE(SUM(task.gpus), 0), COUNT(*)
FROM attempt JOIN task ON task.run_id = attempt.run_id AND task.position = attempt.position
WHERE attempt.agent_id = ? AND attempt.state IN ('queued', 'running')
"""
