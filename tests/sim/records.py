"""I14 and I15, read from the replicated tables themselves each time an entry is first applied anywhere."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pistage import raft
from pistage.core import commands as c
from tests.sim.sqlite_machine import SqliteMachine, commands_in
from tests.sim.violation import Violation

if TYPE_CHECKING:
    from tests.sim.world import World

_TWO_LIVE = """
SELECT run_id, position, COUNT(*) FROM attempt WHERE state IN ('queued', 'running')
GROUP BY run_id, position HAVING COUNT(*) > 1
"""
_LIVE_NOWHERE = """
SELECT attempt.id, agent.id FROM attempt JOIN agent ON agent.id = attempt.agent_id
WHERE attempt.state IN ('queued', 'running') AND agent.state != 'up'
"""
_TWO_SUCCEEDED = """
SELECT run_id, position FROM attempt WHERE state = 'succeeded' GROUP BY run_id, position HAVING COUNT(*) > 1
"""
_ENDED = """
SELECT id, state, exit_code, finished_at, fence FROM attempt WHERE state NOT IN ('queued', 'running')
"""
_AGENT = "SELECT epoch, state FROM agent WHERE id = ?"
_ASSIGNED = "SELECT state, attempt_id FROM task WHERE run_id = ? AND position = ?"


class Records:
    """Remembers how each attempt ended, and who was told so."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.ended: dict[str, tuple[object, ...]] = {}

    def applied(self, machine: SqliteMachine, entry: raft.Entry) -> None:
        if entry.kind is not raft.Kind.NORMAL or entry.payload[0] < 0x80:
            return
        (command,) = commands_in(entry)
        outcome = machine.outcomes[entry.index]
        self.world.count(f"{command.kind}" if outcome.error is None else f"{command.kind} refused")
        if outcome.error is None:
            if isinstance(command, c.AssignTasks):
                for assignment in command.assignments:
                    if assignment.attempt_id in outcome.value["refused"]:  # type: ignore[operator]
                        self.world.count("assignment refused")
                    else:
                        self._assigned(machine, entry.index, assignment)
            self._check(machine)

    def _assigned(self, machine: SqliteMachine, index: int, command: c.Assignment) -> None:
        epoch, state = machine.db.execute(_AGENT, (command.agent_id,)).fetchone()
        if (epoch, state) != (command.agent_epoch, "up"):
            told = f"{command.agent_id}, epoch {command.agent_epoch}"
            raise Violation("I15", f"{index} assigns to {told}, which is {state} in epoch {epoch}")
        task = machine.db.execute(_ASSIGNED, (command.run_id, command.position)).fetchone()
        if task != ("running", command.attempt_id):
            raise Violation("I14", f"{index} assigns {command.attempt_id}, and its task is {task}")

    def _check(self, machine: SqliteMachine) -> None:
        if (two := machine.db.execute(_TWO_LIVE).fetchone()) is not None:
            raise Violation("I14", f"two live attempts of one task: {two}")
        if (two := machine.db.execute(_TWO_SUCCEEDED).fetchone()) is not None:
            raise Violation("I14", f"two successes of one task: {two}")
        if (live := machine.db.execute(_LIVE_NOWHERE).fetchone()) is not None:
            raise Violation("I15", f"attempt {live[0]} lives on agent {live[1]}, which is lost")
        for attempt_id, *how in machine.db.execute(_ENDED).fetchall():
            if self.ended.setdefault(attempt_id, tuple(how)) != tuple(how):
                raise Violation("I14", f"attempt {attempt_id} ended {self.ended[attempt_id]} and then {how}")

    def acknowledged(self, event: c.Finished) -> None:
        """An agent is told that its result is taken: it must be the one in the tables."""
        state, exit_code, _, fence = self.ended.get(event.attempt_id, ("nowhere", None, 0, 0))
        if (state, exit_code, fence) != (event.result.state, event.result.exit_code, event.fence):
            raise Violation("I14", f"{event.attempt_id} is acknowledged as {event.result.state} and stands as {state}")
        self.world.count("result acknowledged")
