"""Decisions: what one costs after one change, and from nothing, with 1,000 agents and 100,000 tasks that wait.

The floor is a sort of those tasks: what a scheduler that looks at all of them would pay before it began.
"""

from __future__ import annotations

import resource
import statistics
import time
from collections.abc import Callable
from functools import partial
from random import Random

from pistage.core import changes as ch
from pistage.core import demand as demands
from pistage.core.demand import Demand
from pistage.core.model import AgentInfo, Capacity
from pistage.core.plan import Constraint, Resources
from pistage.core.schedule import Decision, Explainer, View, decide

GIB = 1 << 30
AGENTS, TASKS = 1_000, 100_000
CHANGES = 3_000


class Crowd:
    """Many agents and many tasks, and a view that follows what becomes of them."""

    def __init__(self, seed: int, agents: int = AGENTS, tasks: int = TASKS) -> None:
        self.rng = Random(seed)
        self.now = 1_700_000_000_000
        self.view = View()
        self.agents = [self._agent(n) for n in range(agents)]
        self.demands = [self._demand() for _ in range(200)]
        self.tasks = {task.id: task for task in (self._task(n) for n in range(tasks))}
        self.live: list[tuple[str, ch.TaskId]] = []
        self._count = tasks

    def _agent(self, number: int) -> AgentInfo:
        rng = self.rng
        labels = {"zone": rng.choice("abcd"), "os": "linux"} | ({"spot": "true"} if rng.random() < 0.3 else {})
        size = Capacity(
            cpus_milli=rng.choice((4, 8, 16)) * 1000,
            memory_bytes=rng.choice((8, 16, 32)) * GIB,
            gpus=rng.choice((0,) * 9 + (4,)),
            slots=16,
        )
        return AgentInfo(
            id=f"a{number:05}", name=f"agent-{number}", incarnation="i", version="1", runtimes=("docker",),
            capacity=size, labels=labels,
        )  # fmt: skip

    def _demand(self) -> str:
        rng = self.rng
        want = Resources(
            cpus_milli=rng.choice((None, 500, 1000, 2000, 4000)),
            memory_bytes=rng.choice((None, GIB // 2, GIB, 4 * GIB)),
            gpus=int(rng.random() < 0.05),
        )
        constraints = []
        if rng.random() < 0.4:
            constraints.append(Constraint(key="zone", operator="in", values=tuple(rng.sample("abcd", 2))))
        if rng.random() < 0.2:
            constraints.append(Constraint(key="spot", operator="absent"))
        return demands.written(Demand(resources=want, whole=want, needs_images=True, constraints=tuple(constraints)))

    def _task(self, number: int) -> ch.WaitingTask:
        rng = self.rng
        return ch.WaitingTask(
            run_id=f"r{number:08}", position=0, name="main", queue=rng.choice(("default", "nights")),
            owner=f"owner{int(rng.paretovariate(1)) % 20}", priority=rng.choice((0, 0, 0, 5, 10)),
            created_at=self.now - 1000 + number % 1000, ready_at=self.now, demand=rng.choice(self.demands),
        )  # fmt: skip

    def fill(self) -> None:
        """Tell the view of all there is."""
        for info in self.agents:
            self.view.take(ch.AgentChanged(info=info, epoch=1, is_up=True, is_draining=False), self.now)
            self.view.fleet.set_present(info.id, is_present=True)
        for task in self.tasks.values():
            self.view.take(ch.TaskQueued(task), self.now)

    def commit(self, decision: Decision) -> None:
        """All of it is taken."""
        for one in decision.placements:
            task = self.tasks[one.run_id, one.position]
            want = demands.read(task.demand).resources
            attempt_id = f"t{len(self.live)}.{one.run_id}"
            begun = ch.AttemptBegun(
                attempt_id=attempt_id, agent_id=one.agent_id, run_id=one.run_id, position=one.position,
                owner=task.owner, gang=None, cpus_milli=want.cpus_milli or 0, memory_bytes=want.memory_bytes or 0,
                gpus=want.gpus,
            )  # fmt: skip
            self.view.take(begun, self.now)
            self.view.take(ch.RunBegun(one.run_id, task.queue, None), self.now)
            self.live.append((attempt_id, task.id))

    def one_change(self) -> list[ch.Change]:
        """Mostly an attempt that ends; now and then a new task, a cancellation, another priority, an agent that goes."""
        rng, kind = self.rng, self.rng.random()
        self.now += 1
        if kind < 0.6 and self.live:
            at = rng.randrange(len(self.live))
            self.live[at], self.live[-1] = self.live[-1], self.live[at]
            attempt_id, task = self.live.pop()
            return [ch.AttemptEnded(attempt_id), ch.RunEnded(task[0])]
        if kind < 0.9:
            self._count += 1
            task = self._task(self._count)
            self.tasks[task.id] = task
            return [ch.TaskQueued(task)]
        waiting = rng.choice(list(self.view._waiting))
        if kind < 0.95:
            return [ch.TaskUnqueued(waiting, 0)]
        if kind < 0.98:
            return [ch.RunReprioritised(waiting, rng.choice((0, 5, 10)))]
        info = rng.choice(self.agents)
        return [ch.AgentChanged(info=info, epoch=1, is_up=True, is_draining=rng.random() < 0.5)]


def run() -> None:
    """Print all of it."""
    print(f"decisions: {AGENTS:,} agents, {TASKS:,} tasks that wait, 200 demands, 20 owners, 3 priorities, 2 queues")
    floors, colds, placed = [], [], 0
    for seed in range(3):
        crowd = Crowd(seed)
        tasks = list(crowd.tasks.values())
        crowd.rng.shuffle(tasks)
        floors.append(_timed(partial(sorted, tasks, key=lambda task: (-task.priority, task.created_at, task.run_id))))
        begun = time.perf_counter()
        crowd.fill()
        placed = 0
        while (decision := decide(crowd.view, crowd.now)).placements:
            crowd.commit(decision)
            placed += len(decision.placements)
        colds.append(time.perf_counter() - begun)
    _line("from nothing, until nothing more fits", colds, floors)
    print(f"  of them placed                     {placed:8,}")
    _changes(crowd, statistics.median(floors))
    some = list(crowd.tasks)[-1:-200:-10]
    explained = [_timed(partial(Explainer(crowd.view, crowd.now).explain, task)) for task in some]
    _line("why one of them waits", explained, floors)
    print(f"  memory of this process             {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:8.0f} MiB")


def _changes(crowd: Crowd, floor: float) -> None:
    taken = []
    for _ in range(CHANGES):
        changes = crowd.one_change()
        begun = time.perf_counter()
        for change in changes:
            crowd.view.take(change, crowd.now)
        decision = decide(crowd.view, crowd.now)
        taken.append(time.perf_counter() - begun)
        crowd.commit(decision)
    taken.sort()
    p50, p99 = taken[len(taken) // 2], taken[len(taken) * 99 // 100]
    print(
        f"  after one change                   {p50 * 1000:8.2f} ms p50, {p99 * 1000:.2f} p99, {taken[-1] * 1000:.2f} worst"
        f"  (n={CHANGES}, floor {floor * 1000:.0f} ms, p99 is {p99 / floor:.3f} of it)"
    )


def _timed(what: Callable[[], object]) -> float:
    begun = time.perf_counter()
    what()
    return time.perf_counter() - begun


def _line(name: str, seconds: list[float], floors: list[float]) -> None:
    middle, floor = statistics.median(seconds), statistics.median(floors)
    spread = f"{min(seconds) * 1000:.1f}–{max(seconds) * 1000:.1f}"
    print(f"  {name:<34} {middle * 1000:8.1f} ms  ({spread}, n={len(seconds)}; {middle / floor:.1f} of the floor)")
