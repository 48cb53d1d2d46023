"""Agents: who they are, in which epoch, and whether they are up."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from pistage.core import codec
from pistage.core import commands as c
from pistage.core.changes import AgentChanged, AgentRemoved
from pistage.core.machine import attempts, meta, runs
from pistage.core.machine.outcome import TaskKey, Turn
from pistage.core.model import AgentInfo, Result, State
from pistage.core.plan import FailureClass
from pistage.errors import Code, PistageError

_EPOCHS_GONE = "epochs_gone"  # the highest epoch of an agent that was removed
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
    # Above that of any agent that was removed: it may have been this one, and what was decided then must not hold now.
    epoch = known[1] if known else int(meta.get(turn.db, _EPOCHS_GONE) or 0) + 1
    if known is not None and (known[0] != info.incarnation or known[2] != "up"):
        epoch += 1
    room = info.capacity
    text = codec.to_json(AgentInfo, info)
    row = (info.id, info.name, info.incarnation, epoch, text)
    turn.db.execute(_UPSERT, (*row, room.cpus_milli, room.memory_bytes, room.gpus, room.slots, command.at))
    _announce(turn, info.id)
    return {"epoch": epoch}


def lose(turn: Turn, command: c.LoseAgent) -> dict[str, object]:
    """End every live attempt of the agent as lost; refused if the agent has come back since."""
    changed = turn.db.execute(
        "UPDATE agent SET state = 'lost', reason = ?, at = ? WHERE id = ? AND epoch = ? AND state = 'up'",
        (command.reason, command.at, command.agent_id, command.epoch),
    )
    if changed.rowcount == 0:
        raise PistageError(Code.CONFLICT, f"agent {command.agent_id} is not up in epoch {command.epoch}")
    live = _lose_attempts(turn, command.agent_id, command.reason)
    _announce(turn, command.agent_id)
    return {"lost": live}


def _lose_attempts(turn: Turn, agent_id: str, reason: str) -> list[str]:
    live = attempts.live_attempts_of(turn.db, agent_id)
    for attempt_id in live:
        attempts.end(turn, attempt_id, Result(state=State.LOST, failure=FailureClass.LOST, reason=reason))
    _fail_who_needs_what_is_lost(turn, agent_id, reason)
    return live


def _fail_who_needs_what_is_lost(turn: Turn, agent_id: str, reason: str) -> None:
    """Tasks on volumes in which others have left their work on that agent: elsewhere they would find them empty."""
    waiting = turn.db.execute(_ON_LOST_VOLUMES, (agent_id,)).fetchall()
    for run_id, position, name, state in waiting:
        why = f"the volumes that it shares are lost with their agent: {reason}"
        runs.end_task(turn, TaskKey(run_id, position, name), State(state), State.FAILED, why)
    for run_id in dict.fromkeys(row[0] for row in waiting):
        runs.settle(turn, run_id)


# A gang stands where its latest attempt went. What was done there has succeeded, or it would be done again anyway.
_ON_LOST_VOLUMES = """
SELECT task.run_id, task.position, task.name, task.state FROM run
JOIN task ON task.run_id = run.id
WHERE run.state = 'running' AND task.has_volumes AND task.gang IS NOT NULL AND task.state IN ('pending', 'queued')
AND EXISTS (
  SELECT 1 FROM task AS done WHERE done.run_id = task.run_id AND done.gang = task.gang AND done.has_volumes
  AND done.state = 'succeeded' AND done.attempt_id IS NOT NULL)
AND ? = (
  SELECT attempt.agent_id FROM attempt
  JOIN task AS other ON other.run_id = attempt.run_id AND other.position = attempt.position
  WHERE attempt.run_id = task.run_id AND other.gang = task.gang ORDER BY attempt.fence DESC, attempt.id DESC LIMIT 1)
ORDER BY task.run_id, task.position
"""


def pause_losses(turn: Turn, command: c.PauseLosses) -> dict[str, object]:
    """No agent is to be declared lost before `until`; who leads then reads it from the state."""
    meta.put(turn.db, {"losses_paused_until": str(command.until)})
    return {}


def set_drain(turn: Turn, command: c.SetAgentDrain) -> dict[str, object]:
    """Stop or resume giving the agent new work."""
    changed = turn.db.execute(
        "UPDATE agent SET is_draining = ?, drain_until = ?, at = ? WHERE id = ?",
        (int(command.is_draining), command.until if command.is_draining else None, command.at, command.agent_id),
    )
    if changed.rowcount == 0:
        raise _unknown(command.agent_id)
    _announce(turn, command.agent_id)
    return {}


def remove(turn: Turn, command: c.RemoveAgent) -> dict[str, object]:
    """Forget the agent; its attempts stay with their runs."""
    row = turn.db.execute("SELECT name, epoch FROM agent WHERE id = ?", (command.agent_id,)).fetchone()
    if row is None:
        raise _unknown(command.agent_id)
    live = attempts.live_attempts_of(turn.db, command.agent_id)
    if live and not command.is_forced:
        raise PistageError(
            Code.CONFLICT,
            f"agent {row[0]} is at work on {len(live)} task{'s' * (len(live) != 1)}",
            hint=f"pistage agent drain {row[0]} first, or give its work up with --force",
        )
    _lose_attempts(turn, command.agent_id, f"agent {row[0]} was removed")
    turn.db.execute("DELETE FROM agent WHERE id = ?", (command.agent_id,))
    meta.put(turn.db, {_EPOCHS_GONE: str(max(row[1], int(meta.get(turn.db, _EPOCHS_GONE) or 0)))})
    turn.changes.append(AgentRemoved(command.agent_id))
    return {"lost": live}


#: Agents as the scheduler knows them.
AGENTS = "SELECT info, epoch, state, is_draining, drain_until, reason FROM agent"


def agent_in(row: Sequence[Any]) -> AgentChanged:
    """What a row of `AGENTS` says; PistageError `internal` if it cannot be read."""
    info, epoch, state, is_draining, drain_until, reason = row
    return AgentChanged(
        info=_info_in(info), epoch=epoch, is_up=state == "up", is_draining=bool(is_draining), drain_until=drain_until,
        reason=reason,
    )  # fmt: skip


@lru_cache(maxsize=4096)
def _info_in(text: str) -> AgentInfo:
    info: AgentInfo = codec.from_json(AgentInfo, text)
    return info


def _announce(turn: Turn, agent_id: str) -> None:
    row = turn.db.execute(f"{AGENTS} WHERE id = ?", (agent_id,)).fetchone()
    try:
        turn.changes.append(agent_in(row))
    except PistageError:  # a row that cannot be read gets no work, and keeps nobody else from theirs
        turn.changes.append(AgentRemoved(agent_id))


def _unknown(agent_id: str) -> PistageError:
    return PistageError(Code.NOT_FOUND, f"no agent {agent_id}", hint="see pistage agent ls")
