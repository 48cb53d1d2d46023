"""Jobs: plans of every kind, and the people who submit, cancel, retry, reprioritise, and change queues and agents."""

from __future__ import annotations

from dataclasses import replace
from random import Random
from typing import TYPE_CHECKING, Any

from pistage import wire
from pistage.core import commands as c
from pistage.core.changes import QueueSettings
from pistage.core.limits import GIB
from pistage.core.model import AgentInfo, Capacity
from pistage.core.plan import (
    Backoff,
    Concurrency,
    Constraint,
    FailureClass,
    MemoryGrowth,
    OnPartition,
    Overflow,
    Plan,
    Resources,
    Retry,
    Task,
    When,
)
from pistage.errors import PistageError
from tests.core.plans import a_plan, a_task

if TYPE_CHECKING:
    from tests.fleet.world import World

OWNERS = ("ann", "bob", "cy")
QUEUES = ("default", "default", "fast", "nights")
_BACKOFF = Backoff(initial_s=0.5, factor=2.0, max_s=8.0, jitter=0.3)


def an_agent(rng: Random, name: str) -> AgentInfo:
    """Small or large, with or without labels and GPUs; a few run no images."""
    room = Capacity(
        cpus_milli=rng.choice((2_000, 4_000, 8_000)), memory_bytes=rng.choice((2, 4, 8)) * GIB,
        gpus=rng.choice((0, 0, 0, 2)), slots=rng.choice((1, 2, 4, 8)),
    )  # fmt: skip
    labels = {"zone": rng.choice(("a", "b"))} | ({"ssd": ""} if rng.random() < 0.5 else {})
    runtime = "sandbox" if rng.random() < 0.1 else "docker"
    ignores = runtime == "sandbox" and rng.random() < 0.5
    return AgentInfo(
        id=name, name=name, incarnation="", version="1", runtimes=(runtime,), capacity=room, labels=labels,
        ignores_images=ignores,
    )  # fmt: skip


def a_giant(name: str) -> AgentInfo:
    """An agent that any task fits on, so that in the end nothing waits for room alone."""
    room = Capacity(cpus_milli=64_000, memory_bytes=64 * GIB, gpus=8, slots=64)
    return AgentInfo(
        id=name, name=name, incarnation="", version="1", runtimes=("docker",), capacity=room,
        labels={"zone": name[-1], "ssd": "", "rare": ""},
    )  # fmt: skip


def a_job(rng: Random) -> Plan:
    """A plan of one to six tasks."""
    gang = "g" if rng.random() < 0.25 else None
    tasks: list[Task] = []
    for number in range(rng.choice((1, 1, 2, 3, 4, 6))):
        needs = tuple(task.name for task in tasks if rng.random() < 0.35)
        tasks.append(_a_task(rng, f"t{number}", needs, gang))
    limit = rng.choice((1, 1, 2))
    overflow = rng.choice((Overflow.QUEUE, Overflow.QUEUE, Overflow.CANCEL_OLD, Overflow.REFUSE))
    group = Concurrency(group=f"{overflow}{limit}", limit=limit, overflow=overflow) if rng.random() < 0.3 else None
    plan = a_plan(*tasks, name=f"p{rng.randrange(5)}")
    return replace(plan, priority=rng.choice((0, 0, 0, 2, 9)), queue=rng.choice(QUEUES), concurrency=group)


def _a_task(rng: Random, name: str, needs: tuple[str, ...], gang: str | None) -> Task:
    when = rng.choice((When.SUCCESS, When.SUCCESS, When.ALWAYS, When.FAILURE)) if needs else When.SUCCESS
    has_gang = gang is not None and rng.random() < 0.8
    resources = Resources(
        cpus_milli=rng.choice((None, 500, 1_000, 2_000)),
        memory_bytes=rng.choice((None, GIB // 2, GIB, 2 * GIB)),
        gpus=int(rng.random() < 0.05),
    )
    limits = {
        FailureClass.LOST: rng.choice((3, 10)),
        FailureClass.FAILURE: 1,
        FailureClass.PULL: 2,
        FailureClass.OOM: 2,
    }
    growth = MemoryGrowth(factor=2.0, most=rng.choice((None, 8 * GIB))) if rng.random() < 0.15 else None
    task = a_task(
        name, needs=needs, when=when, resources=resources, gang=gang if has_gang else None,
        retry=Retry(limits=limits, backoff=_BACKOFF, memory=growth), image="" if rng.random() < 0.1 else "busybox",
    )  # fmt: skip
    return replace(
        task,
        constraints=tuple(_constraints(rng)),
        queue_timeout_s=rng.choice((20.0, 90.0)) if rng.random() < 0.1 else None,
        on_partition=OnPartition.CONTINUE if rng.random() < 0.1 else OnPartition.KILL,
    )


def _constraints(rng: Random) -> list[Constraint]:
    choices = (
        Constraint(key="zone", operator="in", values=("a",)),
        Constraint(key="zone", operator="not_in", values=("a",)),
        Constraint(key="ssd", operator="present"),
        Constraint(key="ssd", operator="absent"),
        Constraint(key="rare", operator="present"),
    )
    return [rng.choices(choices, weights=(4, 4, 4, 2, 1))[0]] if rng.random() < 0.25 else []


class People:
    """They do one thing after the other, for as long as the storm lasts."""

    def __init__(self, world: World) -> None:
        self.world, self.rng = world, world.rng
        self._pool = [a_job(self.rng) for _ in range(12)]
        self._turn()

    def _turn(self) -> None:
        if self.world.is_stormy:
            if self.world.cluster.leader is not None:
                deeds = (self._submit, self._submit_many, self._meddle, self._mind_queue, self._mind_agent)
                weights = (12, 1, 5, 1, self.world.mix.operator)
                command = self.rng.choices(deeds, weights=weights)[0]()
                if command is not None:
                    self.world.go(self._propose(command))
            self.world.at(self.rng.expovariate(self.world.mix.deeds_per_s), self._turn)

    async def _propose(self, command: c.Command) -> None:
        master = self.world.cluster.leader
        if master is None:
            return
        try:
            await master.propose(command)
        except PistageError:
            self.world.count(f"{command.kind} refused")
            return
        if isinstance(command, c.RemoveAgent):
            master.sessions.drop(command.agent_id)

    # --- runs -------------------------------------------------------------------------------------------------------

    def _submit(self) -> c.Command:
        return c.SubmitRun(
            at=0, run_id=wire.new_id(), project="default", owner=self.rng.choice(OWNERS), plan=self._plan(), source=""
        )

    def _submit_many(self) -> c.Command:
        runs = tuple(c.NewRun(run_id=wire.new_id(), plan=0) for _ in range(self.rng.randint(2, 8)))
        return c.SubmitRuns(
            at=0, project="default", owner=self.rng.choice(OWNERS), plans=(self._plan(),), runs=runs, source=""
        )

    def _plan(self) -> Plan:
        if self.rng.random() < 0.2:
            self._pool[self.rng.randrange(len(self._pool))] = a_job(self.rng)
        return self.rng.choice(self._pool)

    def _some(self, sql: str) -> tuple[Any, ...] | None:
        rows = self.world.cluster.db.execute(sql).fetchall()
        return self.rng.choice(rows) if rows else None

    def _meddle(self) -> c.Command | None:
        """With a run that is there."""
        match self.rng.randrange(4):
            case 0 if row := self._some("SELECT id FROM run WHERE state IN ('queued', 'running')"):
                return c.CancelRun(at=0, run_id=row[0], owner="o", reason="unwanted")
            case 1 if row := self._some(
                "SELECT run_id, name FROM task WHERE state IN ('queued', 'running', 'pending')"
            ):
                return c.CancelTask(at=0, run_id=row[0], task=row[1], owner="o", reason="unwanted")
            case 2 if row := self._some("SELECT id FROM run WHERE state IN ('queued', 'running')"):
                return c.SetRunPriority(at=0, run_id=row[0], priority=self.rng.choice((0, 1, 5)), owner="o")
            case 3 if row := self._some("SELECT id FROM run WHERE state IN ('failed', 'lost', 'cancelled')"):
                kept = self.world.cluster.db.execute(
                    "SELECT name FROM task WHERE run_id = ? AND state = 'succeeded'", row
                ).fetchall()
                names = tuple(name for (name,) in kept) if self.rng.random() < 0.5 else ()
                return c.RetryRun(at=0, run_id=wire.new_id(), retry_of=row[0], owner="o", kept=names)
        return None

    # --- operators --------------------------------------------------------------------------------------------------

    def _mind_queue(self) -> c.Command:
        name = self.rng.choice(QUEUES)
        if self.rng.random() < 0.3:
            return c.DeleteQueue(at=0, name=name)
        settings = QueueSettings(
            name=name, priority=self.rng.choice((0, 0, 5)), limit=self.rng.choice((None, 2, 4, 10)),
            placing=self.rng.choice(("spread", "pack")),
        )  # fmt: skip
        return c.PutQueue(at=0, queue=settings)

    def _mind_agent(self) -> c.Command | None:
        row = self._some("SELECT id, is_draining, state FROM agent")
        if row is None:
            return None
        agent_id, is_draining, state = row
        if self.rng.random() < (0.6 if state == "lost" else 0.1):
            return self._remove(agent_id)
        until = self.world.now_ms() + self.rng.randint(0, 60_000) if self.rng.random() < 0.6 else None
        return c.SetAgentDrain(at=0, agent_id=agent_id, is_draining=not is_draining, until=until)

    def _remove(self, agent_id: str) -> c.Command:
        is_forced = self.rng.random() < 0.3
        if is_forced:  # what runs there is given up while it runs: whoever does that is told so
            for execution in self.world.ground.of_agent.get(agent_id, ()):
                execution.is_excused = True
        return c.RemoveAgent(at=0, agent_id=agent_id, is_forced=is_forced)
