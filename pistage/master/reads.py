"""What dispatch and the sessions read from the state, as values."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from functools import lru_cache
from sqlite3 import Row

from pistage import wire
from pistage.core import codec
from pistage.core.model import AgentInfo
from pistage.core.plan import Plan, Task
from pistage.core.schedule import Candidate, Room, View, WaitingTask
from pistage.errors import PistageError
from pistage.master.state import Snapshot

log = logging.getLogger(__name__)

_WAITING_MAX = 1_000  # tasks looked at in one decision, the first in line


@dataclass(frozen=True, slots=True)
class LiveAttempt:
    """An attempt that an agent was given and that has not ended."""

    attempt_id: str
    run_id: str
    fence: int
    is_accepted: bool
    cancel_reason: str | None


async def cluster_id(snapshot: Snapshot) -> str:
    """The cluster's id; "" before it is founded."""
    return str(await snapshot.value("SELECT value FROM meta WHERE key = 'cluster_id'") or "")


async def live_attempts(snapshot: Snapshot, agent_id: str) -> list[LiveAttempt]:
    """What the agent should be at work on, oldest first."""
    rows = await snapshot.rows(
        "SELECT attempt.id, attempt.run_id, attempt.fence, attempt.state = 'running', run.cancel_reason"
        " FROM attempt JOIN run ON run.id = attempt.run_id"
        " WHERE attempt.agent_id = ? AND attempt.state IN ('queued', 'running') ORDER BY attempt.id",
        (agent_id,),
    )
    return [LiveAttempt(row[0], row[1], row[2], bool(row[3]), row[4]) for row in rows]


async def live_runs(snapshot: Snapshot, agent_id: str) -> list[str]:
    """Runs that have not ended and in which the agent has had an attempt: it may still hold their volumes."""
    # The + keeps SQLite from going through all that the agent ever did, once for each run.
    rows = await snapshot.rows(
        "SELECT run.id FROM run WHERE run.state IN ('pending', 'queued', 'running') AND EXISTS"
        " (SELECT 1 FROM attempt WHERE attempt.run_id = run.id AND +attempt.agent_id = ?) ORDER BY run.id",
        (agent_id,),
    )
    return [row[0] for row in rows]


async def run_of_attempt(snapshot: Snapshot, attempt_id: str, agent_id: str) -> str | None:
    """The run of an attempt of this agent; None if it is another's or nobody's."""
    run_id = await snapshot.value("SELECT run_id FROM attempt WHERE id = ? AND agent_id = ?", (attempt_id, agent_id))
    return None if run_id is None else str(run_id)


async def assignment(snapshot: Snapshot, attempt_id: str) -> wire.Assign:
    """The message that tells an agent of its attempt."""
    row = await snapshot.row(
        "SELECT attempt.fence, attempt.number, run.id AS run_id, run.number AS run_number, run.name, run.plan,"
        " task.spec"
        " FROM attempt JOIN run ON run.id = attempt.run_id"
        " JOIN task ON task.run_id = attempt.run_id AND task.position = attempt.position WHERE attempt.id = ?",
        (attempt_id,),
    )
    assert row is not None, f"no attempt {attempt_id}"
    head: Plan = codec.from_json(Plan, row["plan"])
    return wire.Assign(
        attempt_id=attempt_id,
        fence=row["fence"],
        run_id=row["run_id"],
        run_number=row["run_number"],
        run_name=row["name"],
        number=row["number"],
        cluster_id=await cluster_id(snapshot),
        task=codec.from_json(Task, row["spec"]),
        networks=head.networks,
        volumes=head.volumes,
    )


async def agents_up(snapshot: Snapshot) -> list[tuple[str, int, str]]:
    """Id, epoch and name of every agent that is not lost."""
    rows = await snapshot.rows("SELECT id, epoch, name FROM agent WHERE state = 'up' ORDER BY id")
    return [(row[0], row[1], row[2]) for row in rows]


async def plan_of(snapshot: Snapshot, run_id: str) -> Plan:
    """The plan that the run executes, put together again."""
    head: Plan = codec.from_json(Plan, await snapshot.value("SELECT plan FROM run WHERE id = ?", (run_id,)))
    specs = await snapshot.rows("SELECT spec FROM task WHERE run_id = ? ORDER BY position", (run_id,))
    return replace(head, tasks=tuple(codec.from_json(Task, spec) for (spec,) in specs))


async def view(snapshot: Snapshot) -> View:
    """What the scheduler decides from; whether an agent is connected is for the caller to fill in."""
    waiting = [
        task for row in await snapshot.rows(_WAITING, (_WAITING_MAX,)) if (task := await _waiting(snapshot, row))
    ]
    return View(agents=tuple([_candidate(row) for row in await snapshot.rows(_AGENTS)]), waiting=tuple(waiting))


_WAITING = """
SELECT task.run_id, task.position, task.name, task.gang, task.ready_at, task.attempts, run.priority, run.created_at
FROM task JOIN run ON run.id = task.run_id
WHERE task.state = 'queued' AND run.cancel_reason IS NULL
ORDER BY run.priority DESC, task.run_id, task.position LIMIT ?
"""
_AGENTS = """
SELECT agent.id, agent.epoch, agent.is_draining, agent.info,
  agent.cpus_milli - COALESCE(SUM(task.cpus_milli), 0) AS cpus_milli,
  agent.memory_bytes - COALESCE(SUM(task.memory_bytes), 0) AS memory_bytes,
  agent.gpus - COALESCE(SUM(task.gpus), 0) AS gpus,
  agent.slots - COUNT(task.run_id) AS slots
FROM agent
LEFT JOIN attempt ON attempt.agent_id = agent.id AND attempt.state IN ('queued', 'running')
LEFT JOIN task ON task.run_id = attempt.run_id AND task.position = attempt.position
WHERE agent.state = 'up' GROUP BY agent.id ORDER BY agent.id
"""


async def _waiting(snapshot: Snapshot, row: Row) -> WaitingTask | None:
    run_id, position, name, gang, ready_at, attempts, priority, created_at = row
    spec = await snapshot.value("SELECT spec FROM task WHERE run_id = ? AND position = ?", (run_id, position))
    try:
        task = _task_from(spec)
    except PistageError as error:  # a row that cannot be read must not stop the others
        log.error("run=%s task=%s cannot be scheduled: %s", run_id, name, error)
        return None
    tried_on: frozenset[str] = frozenset()
    if attempts:
        rows = await snapshot.rows("SELECT agent_id FROM attempt WHERE run_id = ? AND position = ?", (run_id, position))
        tried_on = frozenset(agent for (agent,) in rows)
    bound_to = await snapshot.value(_GANG_AGENT, (run_id, gang)) if gang else None
    return WaitingTask(
        run_id=run_id,
        name=name,
        gang=gang,
        priority=priority,
        queued_at=created_at,
        ready_at=ready_at,
        needs_images=any(context.image for context in task.contexts),
        needs_containers=bool(task.services) or any(context.networks for context in task.contexts),
        resources=task.resources,
        constraints=task.constraints,
        tried_on=tried_on,
        bound_to=bound_to,
    )


# The networks and volumes of a gang stand on the agent that its latest attempt went to, while that agent is up.
_GANG_AGENT = """
SELECT attempt.agent_id FROM attempt
JOIN task ON task.run_id = attempt.run_id AND task.position = attempt.position
JOIN agent ON agent.id = attempt.agent_id AND agent.state = 'up'
WHERE attempt.run_id = ? AND task.gang = ? ORDER BY attempt.fence DESC LIMIT 1
"""


@lru_cache(maxsize=4096)
def _task_from(spec: str) -> Task:
    task: Task = codec.from_json(Task, spec)
    return task


def _candidate(row: Row) -> Candidate:
    room = Room(
        cpus_milli=row["cpus_milli"], memory_bytes=row["memory_bytes"], gpus=row["gpus"], slots=row["slots"]
    )  # fmt: skip
    return Candidate(
        info=_info_from(row["info"]),
        epoch=row["epoch"],
        is_draining=bool(row["is_draining"]),
        is_connected=False,
        free=room,
    )


@lru_cache(maxsize=4096)
def _info_from(text: str) -> AgentInfo:
    info: AgentInfo = codec.from_json(AgentInfo, text)
    return info
