"""What dispatch and the sessions read from the state, as values."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from sqlite3 import Row

from pistage import wire
from pistage.core import codec, limits
from pistage.core import demand as demands
from pistage.core.changes import (
    AgentChanged,
    AttemptBegun,
    AttemptEnded,
    Change,
    QueueChanged,
    QueueSettings,
    RunBegun,
    TaskQueued,
    TaskUnqueued,
)
from pistage.core.commands import Finished
from pistage.core.keeping import EndedTask
from pistage.core.machine.agents import AGENTS, agent_in
from pistage.core.machine.waiting import TRIED_ON, WAITING, waiting_task
from pistage.core.model import Result, State
from pistage.core.plan import FailureClass, Plan, Task
from pistage.errors import PistageError
from pistage.master.state import Snapshot

log = logging.getLogger(__name__)

_READ_AT_ONCE = 1_000  # rows; between them the loop is free for others


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
        "SELECT attempt.id, attempt.run_id, attempt.fence, attempt.state = 'running',"
        " COALESCE(run.cancel_reason, task.cancel_reason)"
        " FROM attempt JOIN run ON run.id = attempt.run_id"
        " JOIN task ON task.run_id = attempt.run_id AND task.position = attempt.position"
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


async def run_of_attempt(snapshot: Snapshot, attempt_id: str, agent_id: str, *, is_live: bool = False) -> str | None:
    """The run of an attempt of this agent; None if it is another's or nobody's, or, if that is asked, has ended."""
    live = " AND state IN ('queued', 'running')" if is_live else ""
    sql = f"SELECT run_id FROM attempt WHERE id = ? AND agent_id = ?{live}"
    run_id = await snapshot.value(sql, (attempt_id, agent_id))
    return None if run_id is None else str(run_id)


async def assignments(
    snapshot: Snapshot, attempt_ids: Sequence[str]
) -> tuple[list[wire.Assign], list[Finished]]:  # fmt: skip
    """The messages that tell agents of these attempts, and the ends of those whose rows cannot be read."""
    if not attempt_ids:
        return [], []
    messages, ends = [], []
    for row in await snapshot.rows(_ASSIGNMENTS, (json.dumps(attempt_ids),)):
        try:
            messages.append(_assignment(row))
        except PistageError as error:  # a row that cannot be read must not stop the others
            log.error("attempt=%s cannot be assigned: %s", row["id"], error)
            result = Result(state=State.FAILED, failure=FailureClass.REFUSED, reason=f"it cannot be read: {error}")
            ends.append(Finished(at=wire.now_ms(), attempt_id=row["id"], fence=row["fence"], result=result))
    return messages, ends


_ASSIGNMENTS = """
SELECT attempt.id, attempt.fence, attempt.number, run.id AS run_id, run.number AS run_number, run.name, run.nominal,
  run.plan, task.spec, (SELECT value FROM meta WHERE key = 'cluster_id') AS cluster_id
FROM json_each(?) AS asked JOIN attempt ON attempt.id = asked.value AND attempt.state = 'queued'
JOIN run ON run.id = attempt.run_id
JOIN task ON task.run_id = attempt.run_id AND task.position = attempt.position
ORDER BY asked.key
"""


def _assignment(row: Row) -> wire.Assign:
    head, task = _plan_from(row["plan"]), _task_from(row["spec"])
    return wire.Assign(
        attempt_id=row["id"],
        fence=row["fence"],
        run_id=row["run_id"],
        run_number=row["run_number"],
        run_name=row["name"],
        number=row["number"],
        cluster_id=row["cluster_id"] or "",
        task=task,
        networks=head.networks,
        volumes=head.volumes,
        scheduled_at=row["nominal"],
        masks=task.credentials(),
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


@dataclass(frozen=True, slots=True)
class AgentUp:
    """An agent that is not lost."""

    agent_id: str
    epoch: int
    name: str


async def agents_up(snapshot: Snapshot) -> list[AgentUp]:
    """Every agent that is not lost."""
    rows = await snapshot.rows("SELECT id, epoch, name FROM agent WHERE state = 'up' ORDER BY id")
    return [AgentUp(row[0], row[1], row[2]) for row in rows]


async def losses_paused_until(snapshot: Snapshot) -> int:
    """Until when no agent is to be declared lost, milliseconds UTC; 0 if that was never said."""
    return int(await snapshot.value("SELECT value FROM meta WHERE key = 'losses_paused_until'") or 0)


async def attempts_to_evict(snapshot: Snapshot, now: int, accept_ms: int) -> list[tuple[str, str, bool]]:
    """Attempts that are to be given up, each with its agent, and whether that has not accepted it for `accept_ms`.

    The others are of agents whose time to drain is over.
    """
    rows = await snapshot.rows(_TO_EVICT, (now, now - accept_ms))
    return [(row["id"], row["agent_id"], row["drain_until"] is None or row["drain_until"] > now) for row in rows]


_TO_EVICT = """
SELECT attempt.id, attempt.agent_id, agent.drain_until
FROM agent JOIN attempt ON attempt.agent_id = agent.id
WHERE agent.state = 'up' AND (
  agent.drain_until <= ? AND attempt.state IN ('queued', 'running')
  OR attempt.state = 'queued' AND attempt.assigned_at <= ?)
ORDER BY attempt.id
"""


async def plan_of(snapshot: Snapshot, run_id: str) -> Plan:
    """The plan that the run executes, put together again."""
    head: Plan = codec.from_json(Plan, await snapshot.value("SELECT plan FROM run WHERE id = ?", (run_id,)))
    specs = await snapshot.rows("SELECT spec FROM task WHERE run_id = ? ORDER BY position", (run_id,))
    return replace(head, tasks=tuple(codec.from_json(Task, spec) for (spec,) in specs))


async def changes(snapshot: Snapshot) -> AsyncIterator[list[Change]]:
    """The whole state as the scheduler knows it, as if all of it had just come about, in pieces."""
    queues = await snapshot.rows("SELECT name, priority, run_limit, placing FROM queue ORDER BY name")
    yield [QueueChanged(QueueSettings(name=row[0], priority=row[1], limit=row[2], placing=row[3])) for row in queues]
    yield [agent for row in await snapshot.rows(f"{AGENTS} ORDER BY id") if (agent := _agent(row))]
    running = await snapshot.rows("SELECT id, queue, concurrency FROM run WHERE state = 'running' ORDER BY id")
    yield [RunBegun(row[0], row[1], row[2]) for row in running]
    yield [change for row in await snapshot.rows(_GANGS) for change in (_begun(row), AttemptEnded(row["id"]))]
    yield [_begun(row) for row in await snapshot.rows(_LIVE)]
    run_id, position = "", -1
    while rows := await snapshot.rows(_QUEUED, (run_id, position, _READ_AT_ONCE)):
        run_id, position = rows[-1]["run_id"], rows[-1]["position"]
        tried = {
            (row["run_id"], row["position"]): await snapshot.rows(TRIED_ON, (row["run_id"], row["position"]))
            for row in rows
            if row["attempts"]
        }
        yield [
            TaskQueued(waiting_task(tuple(row), (one for (one,) in tried.get((row["run_id"], row["position"]), ()))))
            for row in rows
        ]


_QUEUED = f"""{WAITING}
WHERE task.state = 'queued' AND (task.run_id, task.position) > (?, ?)
ORDER BY task.run_id, task.position LIMIT ?
"""
_BEGUN = """
SELECT attempt.id, attempt.agent_id, attempt.run_id, attempt.position, run.owner, task.gang,
  task.cpus_milli, task.memory_bytes, task.gpus
FROM attempt JOIN run ON run.id = attempt.run_id
JOIN task ON task.run_id = attempt.run_id AND task.position = attempt.position
"""
_LIVE = f"{_BEGUN} WHERE attempt.state IN ('queued', 'running') ORDER BY attempt.fence, attempt.id"
# What is on an agent of a gang's networks and volumes is told by the latest of its attempts, also when none is live.
_GANGS = f"""{_BEGUN}
WHERE run.state = 'running' AND task.gang IS NOT NULL ORDER BY attempt.fence, attempt.id
"""


def schedulable(change: Change) -> Change:
    """The change as the scheduler can take it: a task of which nobody can tell what it needs waits for nothing."""
    if isinstance(change, TaskQueued) and not _can_be_read(change.task.demand):
        return TaskUnqueued(run_id=change.task.run_id, position=change.task.position)
    return change


@lru_cache(maxsize=4096)
def _can_be_read(demand: str) -> bool:
    try:
        demands.read(demand)
    except PistageError as error:  # a row that cannot be read must not stop the others
        log.error("a task cannot be scheduled: %s", error)
        return False
    return True


def _begun(row: Row) -> AttemptBegun:
    return AttemptBegun(
        attempt_id=row["id"], agent_id=row["agent_id"], run_id=row["run_id"], position=row["position"],
        owner=row["owner"], gang=row["gang"], cpus_milli=row["cpus_milli"], memory_bytes=row["memory_bytes"],
        gpus=row["gpus"],
    )  # fmt: skip


def _agent(row: Row) -> AgentChanged | None:
    try:
        return agent_in(tuple(row))
    except PistageError as error:  # a row that cannot be read must not stop the others
        log.error("an agent gets no work: %s", error)
        return None


@lru_cache(maxsize=4096)
def _task_from(spec: str) -> Task:
    task: Task = codec.from_json(Task, spec)
    return task


@lru_cache(maxsize=4096)
def _plan_from(text: str) -> Plan:
    plan: Plan = codec.from_json(Plan, text)
    return plan


@dataclass(frozen=True, slots=True, kw_only=True)
class RunToRetry:
    """A run as `core.keeping` wants it: its state, and its tasks with what they need."""

    title: str
    state: str
    tasks: tuple[EndedTask, ...]


async def run_to_retry(snapshot: Snapshot, run_id: str) -> RunToRetry:
    """What is to be known of the run before it is tried again; it must be there."""
    [head] = await snapshot.rows("SELECT name, number, state FROM run WHERE id = ?", (run_id,))
    rows = await snapshot.rows(
        "SELECT name, state, needs, gang, is_skip_planned FROM task WHERE run_id = ? ORDER BY position", (run_id,)
    )
    tasks = tuple(
        EndedTask(
            name=row["name"], state=State(row["state"]), needs=tuple(json.loads(row["needs"])), gang=row["gang"],
            is_skip_planned=bool(row["is_skip_planned"]),
        )
        for row in rows
    )  # fmt: skip
    return RunToRetry(title=f"{head['name']}#{head['number']}", state=head["state"], tasks=tasks)


async def output_sources(snapshot: Snapshot, run_id: str) -> list[str]:
    """The runs whose output is that of this one: those that tasks were kept from, the oldest first, then itself."""
    rows = await snapshot.rows(
        "SELECT DISTINCT kept_from FROM task WHERE run_id = ? AND kept_from IS NOT NULL ORDER BY kept_from", (run_id,)
    )
    return [*(kept_from for (kept_from,) in rows), run_id]


async def attempts_with_output(snapshot: Snapshot, run_id: str) -> dict[str, tuple[str, int]]:
    """Task and number of each attempt of the run; those of a task that was kept are of the run it was kept from."""
    rows = await snapshot.rows(
        "SELECT attempt.id, task.name, attempt.number FROM task JOIN attempt"
        " ON attempt.run_id = COALESCE(task.kept_from, task.run_id) AND attempt.position = task.position"
        " WHERE task.run_id = ?",
        (run_id,),
    )
    return {attempt_id: (task, number) for attempt_id, task, number in rows}


async def output_dropped(snapshot: Snapshot, run_ids: Sequence[str]) -> dict[str, tuple[int, str]]:
    """Of these runs those whose output was dropped: when, milliseconds UTC, and why."""
    rows = await snapshot.rows(DROPPED, (json.dumps(list(run_ids)),))
    return {row["id"]: (row["output_dropped_at"], row["output_dropped_reason"]) for row in rows}


DROPPED = """
SELECT run.id, run.output_dropped_at, run.output_dropped_reason
FROM json_each(?) AS asked JOIN run ON run.id = asked.value WHERE run.output_dropped_at IS NOT NULL
"""


async def queues(snapshot: Snapshot) -> list[tuple[QueueSettings, bool, int, int]]:
    """Each queue that something was said about or that has runs: how it is served, whether that was said, and how many
    of its runs are running and waiting."""
    said = {
        row["name"]: QueueSettings(
            name=row["name"], priority=row["priority"], limit=row["run_limit"], placing=row["placing"]
        )
        for row in await snapshot.rows("SELECT name, priority, run_limit, placing FROM queue")
    }
    counts: dict[str, list[int]] = {name: [0, 0] for name in said}
    for row in await snapshot.rows(_LIVE_IN_QUEUES):
        counts.setdefault(row["queue"], [0, 0])[row["state"] != State.RUNNING] += row["count"]
    return [
        (said.get(name) or QueueSettings(name=name), name in said, running, waiting)
        for name, (running, waiting) in sorted(counts.items())
    ]


_LIVE_IN_QUEUES = """
SELECT queue, state, COUNT(*) AS count FROM run WHERE state IN ('pending', 'queued', 'running') GROUP BY queue, state
"""
