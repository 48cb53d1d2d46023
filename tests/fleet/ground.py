"""The ground: what really runs, where and when, whatever anybody believes of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pistage import wire
from pistage.core.changes import TaskId
from pistage.core.model import Result, State
from pistage.core.plan import FailureClass, OnPartition, Resources
from tests.sim.violation import Violation

if TYPE_CHECKING:
    from tests.fleet.agents import Agent
    from tests.fleet.work import Work
    from tests.fleet.world import World

_STATE = "SELECT state FROM attempt WHERE id = ?"
_TASK = "SELECT position FROM task WHERE run_id = ? AND name = ?"


class Execution:
    """The containers of one attempt: they outlive the agent's process, not its machine."""

    def __init__(self, world: World, agent: Agent, assign: wire.Assign, task: TaskId) -> None:
        self.world, self.agent, self.assign, self.task = world, agent, assign, task
        self.work: Work | None = None  # who watches it, in the agent's process
        self.is_over = False
        self.is_excused = assign.task.on_partition is OnPartition.CONTINUE
        self.result: Result | None = None  # of its own; None while it runs, or if it was killed
        self._left_s = world.rng.expovariate(1 / world.mix.work_s)
        self._turn = 0
        self.go_on()

    @property
    def is_guarded(self) -> bool:
        """Whether it must end before its task runs elsewhere."""
        return not self.is_excused and not (self.agent.is_blind and self.agent.is_lease_over)

    def stand_still(self) -> None:
        self._left_s = max(0.0, self._ends_s - self.world.now_s)
        self._turn += 1

    def go_on(self) -> None:
        self._turn += 1
        self._ends_s = self.world.now_s + self._left_s
        self.world.at(self._left_s, self._ends, self._turn)

    def kill(self) -> None:
        if not self.is_over:
            self.is_over = True
            self.world.ground.ended(self)

    def _ends(self, turn: int) -> None:
        if turn == self._turn and not self.is_over:
            self.result = _chance(self.world, self.assign)
            self.world.count("out of memory", self.result.failure is FailureClass.OOM)
            self.kill()
            if self.work is not None:
                self.work.noticed()


def _chance(world: World, assign: wire.Assign) -> Result:
    """A task that is too small for its memory runs out of it; otherwise most go well."""
    rng, had = world.rng, assign.task.resources.memory_bytes
    if assign.task.retry.memory is not None and had and rng.random() < 0.5:
        return Result(state=State.FAILED, failure=FailureClass.OOM, exit_code=137, reason="out of memory")
    if rng.random() < world.mix.failure:
        failure = rng.choice((FailureClass.FAILURE, FailureClass.FAILURE, FailureClass.PULL, FailureClass.TIMEOUT))
        return Result(state=State.FAILED, failure=failure, exit_code=1, reason="exit code 1")
    return Result(state=State.SUCCEEDED, exit_code=0)


class Ground:
    """Every execution there is, and the checks that need to know of all of them."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.of_task: dict[TaskId, list[Execution]] = {}
        self.of_agent: dict[str, list[Execution]] = {}
        self.of_attempt: dict[str, Execution] = {}

    def begin(self, agent: Agent, assign: wire.Assign) -> Execution:
        """Start the containers of an attempt. Violation if its task runs elsewhere, or there is no room."""
        row = self.world.cluster.db.execute(_TASK, (assign.run_id, assign.task.name)).fetchone()
        execution = Execution(self.world, agent, assign, (assign.run_id, row[0]))
        for other in self.of_task.get(execution.task, ()):
            self._overlaps(other, execution)
        here = self.of_agent.setdefault(agent.id, [])
        here.append(execution)
        self.of_task.setdefault(execution.task, []).append(execution)
        if assign.attempt_id in self.of_attempt:
            raise Violation("overlap", f"attempt {assign.attempt_id} was begun twice")
        self.of_attempt[assign.attempt_id] = execution
        self._check_room(agent, here)
        self.world.count("execution")
        return execution

    def ended(self, execution: Execution) -> None:
        self.of_task[execution.task].remove(execution)
        self.of_agent[execution.agent.id].remove(execution)

    def _overlaps(self, other: Execution, execution: Execution) -> None:
        if other.is_guarded and execution.is_guarded:
            raise Violation(
                "overlap",
                f"task {execution.task} begins as {execution.assign.attempt_id} on {execution.agent.id}, and still runs"
                f" as {other.assign.attempt_id} on {other.agent.id}",
            )
        self.world.count("overlap that was allowed")

    def _check_room(self, agent: Agent, executions: list[Execution]) -> None:
        """Nothing may be more than the agent has, but for what was declared lost, or assigned when it had more."""
        live = [one for one in executions if self._is_live(one)]
        if any(one.assign.fence < self.world.checker.resized.get(agent.id, 0) for one in live):
            return
        used = [_sizes(one.assign.task.resources) for one in live] or [(0, 0, 0, 0)]
        room, sums = agent.info.capacity, [sum(wants) for wants in zip(*used, strict=True)]
        whole = (room.cpus_milli, room.memory_bytes, room.gpus, room.slots)
        if any(want > have for want, have in zip(sums, whole, strict=True)):
            raise Violation("room", f"{agent.id} runs {sums} of {whole}")
        self.world.most("executions on one agent", len(live))

    def _is_live(self, execution: Execution) -> bool:
        row = self.world.cluster.db.execute(_STATE, (execution.assign.attempt_id,)).fetchone()
        return row[0] != State.LOST


def _sizes(want: Resources) -> tuple[int, int, int, int]:
    return want.cpus_milli or 0, want.memory_bytes or 0, want.gpus, 1
