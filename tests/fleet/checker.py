"""What must hold of the tables, looked at each time a command was applied, where that command can have changed it."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable
from typing import TYPE_CHECKING

from pistage.core import changes as ch
from pistage.core import codec
from pistage.core import commands as c
from pistage.core.machine import Outcome
from pistage.core.model import Capacity
from pistage.core.plan import Concurrency, Constraint, Overflow, Task
from tests.sim.violation import Violation

if TYPE_CHECKING:
    from tests.fleet.world import World

_TERMINAL = ("succeeded", "failed", "cancelled", "lost", "skipped")
_LIVE_IN_RUN = """
SELECT position, COUNT(*) FROM attempt WHERE run_id = ? AND state IN ('queued', 'running')
GROUP BY position HAVING COUNT(*) > 1
"""
_ENDED_IN_RUN = """
SELECT id, state, exit_code, failure, finished_at, fence, position FROM attempt
WHERE run_id = ? AND state NOT IN ('queued', 'running')
"""
_STATES = """
SELECT run.state, task.position, task.state, task.attempt_id, attempt.state FROM task JOIN run ON run.id = task.run_id
LEFT JOIN attempt ON attempt.id = task.attempt_id WHERE task.run_id = ?
"""
_ROOM = """
SELECT agent.epoch, agent.state, agent.is_draining, agent.info, agent.cpus_milli, agent.memory_bytes, agent.gpus,
  agent.slots, COALESCE(SUM(task.cpus_milli), 0), COALESCE(SUM(task.memory_bytes), 0), COALESCE(SUM(task.gpus), 0),
  COUNT(*)
FROM agent
JOIN attempt ON attempt.agent_id = agent.id AND attempt.state IN ('queued', 'running')
JOIN task ON task.run_id = attempt.run_id AND task.position = attempt.position
WHERE agent.id = ?
"""
_TASK = "SELECT spec, gang, state, attempt_id, ready_at FROM task WHERE run_id = ? AND position = ?"
_GANG = """
SELECT attempt.agent_id, task.spec FROM task JOIN attempt
ON attempt.run_id = task.run_id AND attempt.position = task.position AND attempt.state IN ('queued', 'running')
WHERE task.run_id = ? AND task.gang = ?
"""
_GANG_WAS = """
SELECT attempt.agent_id FROM attempt
JOIN task ON task.run_id = attempt.run_id AND task.position = attempt.position
WHERE task.run_id = ? AND task.gang = ? AND attempt.id <> ? ORDER BY attempt.fence DESC LIMIT 1
"""
_LIVE_ON = "SELECT id FROM attempt WHERE agent_id = ? AND state IN ('queued', 'running') LIMIT 1"
_RUN = "SELECT concurrency, concurrency_limit, queue FROM run WHERE id = ?"


_ACTIVE = """
SELECT id, cancel_reason FROM run WHERE concurrency = ? AND state IN ('pending', 'queued', 'running') ORDER BY id
"""
_REFUSALS_MAX = 20


class Checker:
    """Remembers how each attempt and each run ended."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.ended: dict[str, tuple[object, ...]] = {}
        self.results: dict[tuple[str, int], str] = {}  # the attempt whose success counts for a task
        self.runs: dict[str, str] = {}
        self._sizes: dict[str, Capacity] = {}
        self.resized: dict[str, int] = {}  # since which entry an agent offers more or less than before
        self._refusals: dict[tuple[str, int], int] = {}  # of a task, since it had a place

    @property
    def _db(self) -> sqlite3.Connection:
        return self.world.cluster.db

    def applied(self, command: c.Command, outcome: Outcome) -> None:
        if outcome.error is not None:
            self.world.count(f"{command.kind}: refused")
            return
        self.world.count(command.kind)
        match command:
            case c.RegisterAgent(info=info):
                if self._sizes.setdefault(info.id, info.capacity) != info.capacity:
                    self._sizes[info.id] = info.capacity
                    self.resized[info.id] = outcome.index
            case c.AssignTasks():
                self._check_assignments(command, outcome.value["refused"])  # type: ignore[arg-type]
            case c.SubmitRun(plan=plan) | c.SubmitRuns(plans=(plan,)) if plan.concurrency is not None:
                self._submitted(plan.concurrency, outcome.runs[0])
            case c.LoseAgent() | c.RemoveAgent():
                self._nothing_lives_on(command.agent_id)
            case _:
                pass
        for run_id in outcome.runs:
            self._check_run(run_id)
        for change in outcome.changes:
            if isinstance(change, ch.RunBegun):
                self._begun(change.run_id)

    def acknowledged(self, event: c.Finished) -> None:
        """An agent is told that its result is taken: it must be the one in the tables."""
        ended = self.ended.get(event.attempt_id)
        told = (event.result.state, event.result.exit_code, event.result.failure)
        if ended is None or ended[:3] != told or ended[4] != event.fence:
            raise Violation("I14", f"{event.attempt_id} is acknowledged as {told} and stands as {ended}")
        self.world.count("result acknowledged")

    def _check_assignments(self, command: c.AssignTasks, refused: dict[str, str]) -> None:
        for one in command.assignments:
            if one.attempt_id in refused:
                self._refused(one, refused[one.attempt_id])
            else:
                self._refusals.pop((one.run_id, one.position), None)
                self._assigned(one, command.at)

    def _refused(self, one: c.Assignment, reason: str) -> None:
        """The state may have moved on once or twice: not again and again."""
        task = (one.run_id, one.position)
        self._refusals[task] = self._refusals.get(task, 0) + 1
        if self._refusals[task] > _REFUSALS_MAX:
            raise Violation("stuck", f"{task} was given a place {_REFUSALS_MAX} times, and refused each time: {reason}")
        kinds = ("is not waiting", "takes no work", "has no room", "networks and volumes", "group", "queue")
        self.world.count(f"assignment refused: {next((kind for kind in kinds if kind in reason), reason)}")

    # --- I14 --------------------------------------------------------------------------------------------------------

    def _check_run(self, run_id: str) -> None:
        if (two := self._db.execute(_LIVE_IN_RUN, (run_id,)).fetchone()) is not None:
            raise Violation("I14", f"{two[1]} live attempts of task {two[0]} of {run_id}")
        for attempt_id, *how, position in self._db.execute(_ENDED_IN_RUN, (run_id,)).fetchall():
            if self.ended.setdefault(attempt_id, tuple(how)) != tuple(how):
                raise Violation("I14", f"{attempt_id} ended {self.ended[attempt_id]} and then {how}")
            if how[0] == "succeeded" and self.results.setdefault((run_id, position), attempt_id) != attempt_id:
                raise Violation("I14", f"two results of task {position} of {run_id}")
        rows = self._db.execute(_STATES, (run_id,)).fetchall()
        state = rows[0][0]
        if self.runs.setdefault(run_id, state) != state and self.runs[run_id] in _TERMINAL:
            raise Violation("I14", f"run {run_id} was {self.runs[run_id]} and is {state}")
        self.runs[run_id] = state
        for _, position, task, attempt_id, attempt in rows:
            if (task == "running") != (attempt in ("queued", "running")):
                raise Violation("I14", f"task {position} of {run_id} is {task}, and its attempt {attempt_id} {attempt}")
        if state in _TERMINAL and any(task not in _TERMINAL for _, _, task, _, _ in rows):
            raise Violation("stuck", f"run {run_id} is {state}, and not all of its tasks have ended")

    # --- I15, room and fit ------------------------------------------------------------------------------------------

    def _nothing_lives_on(self, agent_id: str) -> None:
        if (live := self._db.execute(_LIVE_ON, (agent_id,)).fetchone()) is not None:
            raise Violation("I15", f"{live[0]} lives on {agent_id}, which is gone")

    def _assigned(self, one: c.Assignment, at: int) -> None:
        epoch, state, is_draining, info, *sizes = self._db.execute(_ROOM, (one.agent_id,)).fetchone()
        told = f"{one.attempt_id} on {one.agent_id}"
        if (epoch, state, is_draining) != (one.agent_epoch, "up", 0):
            raise Violation("I15", f"{told} of epoch {one.agent_epoch}: it is {state} in epoch {epoch}, {is_draining=}")
        if any(used > whole for used, whole in zip(sizes[4:], sizes[:4], strict=True)):
            raise Violation("room", f"{told}: {sizes[4:]} of {sizes[:4]}")
        spec, gang, state, attempt_id, ready_at = self._db.execute(_TASK, (one.run_id, one.position)).fetchone()
        if (state, attempt_id) != ("running", one.attempt_id) or ready_at > at:
            raise Violation(
                "I14", f"{told}: its task is {state}, its attempt {attempt_id}, ready at {ready_at} of {at}"
            )
        task: Task = codec.from_json(Task, spec)
        plain = json.loads(info)
        if not is_fit([task], plain):
            raise Violation("fit", f"{told}: {task.constraints}, image {task.contexts[0].image!r} on {plain}")
        self.world.count("constraint met", bool(task.constraints))
        self.world.count("GPU given", task.resources.gpus)
        if gang is not None:
            live = self._db.execute(_GANG, (one.run_id, gang)).fetchall()
            if any(agent_id != one.agent_id for agent_id, _ in live):
                raise Violation("fit", f"{told}: its gang is on {live[0][0]} and {live[-1][0]}")
            self.world.count("gang together", len(live) > 1)
            earlier = self._db.execute(_GANG_WAS, (one.run_id, gang, one.attempt_id)).fetchone()
            self.world.count("gang moved", earlier is not None and earlier[0] != one.agent_id)

    # --- limits -----------------------------------------------------------------------------------------------------

    def _begun(self, run_id: str) -> None:
        """A run begins to run: with it there are no more of its group and its queue than may be."""
        group, limit, queue = self._db.execute(_RUN, (run_id,)).fetchone()
        if group is not None:
            self._compare("concurrency", group, limit)
        row = self._db.execute("SELECT run_limit FROM queue WHERE name = ?", (queue,)).fetchone()
        if row is not None and row[0] is not None:
            self._compare("queue", queue, row[0])

    def _submitted(self, asked: Concurrency, run_id: str) -> None:
        """A group that takes no more than may run at one time has no more; and makes room only for as many."""
        if asked.overflow is Overflow.QUEUE:
            return
        rows = self._db.execute(_ACTIVE, (f"default/{asked.group}",)).fetchall()
        active = [row[0] for row in rows if row[1] is None]
        if len(active) > asked.limit:
            raise Violation("limits", f"{len(active)} runs of {asked.group} are wanted, and {asked.limit} may")
        newest = rows[-1][0] if rows else ""
        if newest in self.runs and newest not in active and newest == run_id:
            raise Violation("limits", f"{run_id} is the newest of {asked.group}, and was cancelled to make room")
        self.world.count(f"submitted to a group: {asked.overflow}")

    def _compare(self, column: str, name: str, limit: int) -> None:
        sql = f"SELECT COUNT(*) FROM run WHERE {column} = ? AND state = 'running'"
        (count,) = self._db.execute(sql, (name,)).fetchone()
        if count > limit:
            raise Violation("limits", f"{count} runs of {column} {name} run, and {limit} may")
        self.world.count(f"{column} full", count == limit)


def is_fit(tasks: Iterable[Task], info: dict[str, object]) -> bool:
    """Whether an agent may take these, told from what they ask and what it says of itself, and from no Demand."""
    labels: dict[str, str] = info["labels"]  # type: ignore[assignment]
    runs_images = "docker" in info["runtimes"] or info["ignores_images"]  # type: ignore[operator]
    return all(
        all(_is_met(constraint, labels) for constraint in task.constraints)
        and (runs_images or not any(context.image for context in task.contexts))
        for task in tasks
    )


def _is_met(constraint: Constraint, labels: dict[str, str]) -> bool:
    is_there = constraint.key in labels
    is_one = is_there and labels[constraint.key] in constraint.values
    return {"in": is_one, "not_in": not is_one, "present": is_there, "absent": not is_there}[constraint.operator]
