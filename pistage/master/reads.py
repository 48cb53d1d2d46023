"""What dispatch and the sessions read from the state, as values."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass, replace
from functools import lru_cache
from sqlite3 import Row

from pistage import wire
from pistage.core import codec, limits
from pistage.core.model import AgentInfo
from pistage.core.plan import Plan, Task
from pistage.core.schedule import Candidate, Room, View, WaitingTask
from pistage.errors import PistageError
from pistage.master.state import Snapshot

log = logging.getLogger(__name__)

WAITING_MAX = 1_000  # tasks looked at in one decision
Place = tuple[int, str, int]  # in line: priority (negative, for the highest stand first), run, position
FRONT: Place = (-(1 << 62), "", -1)


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


async def masters(snapshot: Snapshot) -> list[Row]:
    """Where each master is reached, and what it knows."""
    return await snapshot.rows("SELECT id, url, version, command_version FROM master ORDER BY id")


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


async def earlier_request(snapshot: Snapshot, key: str, sha256: str, now: int) -> list[tuple[str, int]] | None:
    """Id and number of each run that a submission under this Idempotency-Key and with this body has made.

    None if there was no such submission: this one may make them.
    """
    runs = await snapshot.value(
        "SELECT runs FROM request WHERE key = ? AND sha256 = ? AND at >= ?",
        (key, sha256, now - limits.IDEMPOTENCY_KEPT_MS),
    )
    return None if runs is None else [(run_id, number) for run_id, number in json.loads(runs)]


async def agents_up(snapshot: Snapshot) -> list[tuple[str, int, str]]:
    """Id, epoch and name of every agent that is not lost."""
    rows = await snapshot.rows("SELECT id, epoch, name FROM agent WHERE state = 'up' ORDER BY id")
    return [(row[0], row[1], row[2]) for row in rows]


async def plan_of(snapshot: Snapshot, run_id: str) -> Plan:
    """The plan that the run executes, put together again."""
    head: Plan = codec.from_json(Plan, await snapshot.value("SELECT plan FROM run WHERE id = ?", (run_id,)))
    specs = await snapshot.rows("SELECT spec FROM task WHERE run_id = ? ORDER BY position", (run_id,))
    return replace(head, tasks=tuple(codec.from_json(Task, spec) for (spec,) in specs))


async def candidates(snapshot: Snapshot) -> tuple[Candidate, ...]:
    """The agents that are up, and what room each has; whether one is connected is for the caller to fill in."""
    return tuple([agent for row in await snapshot.rows(_AGENTS) if (agent := _candidate(row))])


async def view(snapshot: Snapshot, after: Place = FRONT) -> tuple[View, Place | None]:
    """What the scheduler decides from, and the place in line of the last task in it if there may be more behind.

    Whether an agent is connected is for the caller to fill in.
    """
    rows = await snapshot.rows(_WAITING, (*after, WAITING_MAX))
    waiting = tuple([task for row in rows if (task := _waiting(row))])
    view = View(agents=await candidates(snapshot), waiting=waiting)
    if len(rows) < WAITING_MAX:
        return view, None
    return view, (-rows[-1]["priority"], rows[-1]["run_id"], rows[-1]["position"])


# The line is cut first, by what is small; only what is left is read whole. The networks and volumes of a gang stand
# on the agent that its latest attempt went to, while that agent is up.
_WAITING = """
WITH line AS (
  SELECT task.run_id, task.position, run.priority, run.created_at
  FROM task JOIN run ON run.id = task.run_id
  WHERE task.state = 'queued' AND run.cancel_reason IS NULL AND (-run.priority, task.run_id, task.position) > (?, ?, ?)
  ORDER BY run.priority DESC, task.run_id, task.position LIMIT ?
)
SELECT task.run_id, task.position, task.name, task.gang, task.ready_at, line.priority, line.created_at, task.spec,
  CASE WHEN task.attempts > 0 THEN (
    SELECT json_group_array(attempt.agent_id) FROM attempt
    WHERE attempt.run_id = task.run_id AND attempt.position = task.position
  ) END AS tried_on,
  CASE WHEN task.gang IS NOT NULL THEN (
    SELECT attempt.agent_id FROM attempt
    JOIN task AS other ON other.run_id = attempt.run_id AND other.position = attempt.position
    JOIN agent ON agent.id = attempt.agent_id AND agent.state = 'up'
    WHERE attempt.run_id = task.run_id AND other.gang = task.gang ORDER BY attempt.fence DESC LIMIT 1
  ) END AS bound_to
FROM line CROSS JOIN task ON task.run_id = line.run_id AND task.position = line.position
ORDER BY line.priority DESC, line.run_id, line.position
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


def _waiting(row: Row) -> WaitingTask | None:
    try:
        task = _task_from(row["spec"])
    except PistageError as error:  # a row that cannot be read must not stop the others
        log.error("run=%s task=%s cannot be scheduled: %s", row["run_id"], row["name"], error)
        return None
    return WaitingTask(
        run_id=row["run_id"],
        name=row["name"],
        gang=row["gang"],
        priority=row["priority"],
        queued_at=row["created_at"],
        ready_at=row["ready_at"],
        needs_images=any(context.image for context in task.contexts),
        needs_containers=bool(task.services) or any(context.networks for context in task.contexts),
        resources=task.resources,
        constraints=task.constraints,
        tried_on=frozenset(json.loads(row["tried_on"])) if row["tried_on"] else frozenset(),
        bound_to=row["bound_to"],
    )


@lru_cache(maxsize=4096)
def _task_from(spec: str) -> Task:
    task: Task = codec.from_json(Task, spec)
    return task


def _candidate(row: Row) -> Candidate | None:
    try:
        info = _info_from(row["info"])
    except PistageError as error:
        log.error("agent=%s gets no work: %s", row["id"], error)
        return None
    room = Room(
        cpus_milli=row["cpus_milli"], memory_bytes=row["memory_bytes"], gpus=row["gpus"], slots=row["slots"]
    )  # fmt: skip
    return Candidate(
        info=info,
        epoch=row["epoch"],
        is_draining=bool(row["is_draining"]),
        is_connected=False,
        free=room,
    )


@lru_cache(maxsize=4096)
def _info_from(text: str) -> AgentInfo:
    info: AgentInfo = codec.from_json(AgentInfo, text)
    return info
