"""Fairness and ageing: worlds without faults in which more waits than there is room for, and what that does to whom."""

from __future__ import annotations

from dataclasses import replace
from random import Random

from pistage.core import commands as c
from pistage.core.limits import GIB
from pistage.core.model import AgentInfo, Capacity
from tests.core.plans import a_plan, a_task
from tests.fleet.faults import FAULTS, Mix
from tests.fleet.world import World

OWNERS = ("ann", "bob", "cy")
BACKLOG = 200  # runs of each owner, of one task each
_LIVE = """
SELECT run.owner, COUNT(*) FROM attempt JOIN run ON run.id = attempt.run_id
WHERE attempt.state IN ('queued', 'running') GROUP BY run.owner
"""
_BEGAN = """
SELECT MIN(attempt.assigned_at), run.created_at FROM attempt JOIN run ON run.id = attempt.run_id WHERE run.owner = ?
"""


def calm(work_s: float) -> Mix:
    """Nothing goes wrong, and nobody does anything."""
    return Mix(
        commit_s=0.01, delay_s=0.005, slow_read=0.0, clocks=0.0, work_s=work_s, failure=0.0, deeds_per_s=1e-9,
        operator=0.0, faults_per_s=0.0, weights=dict.fromkeys(FAULTS, 0.0),
    )  # fmt: skip


class Crowd(World):
    """Equal agents, and as many equal tasks of each owner as they can do in a long time."""

    def __init__(self, seed: int, *, agents: int, slots: int, work_s: float) -> None:
        super().__init__(seed, agents=0, mix=calm(work_s))
        room = Capacity(cpus_milli=64_000, memory_bytes=64 * GIB, slots=slots)
        self.slots = agents * slots
        with self.doors():
            for number in range(agents):
                name = f"a{number}"
                self.join(
                    AgentInfo(
                        id=name, name=name, incarnation="", version="1", runtimes=("docker",), capacity=room
                    )
                )  # fmt: skip

    def submit(self, owner: str, count: int, *, priority: int = 0) -> None:
        """So many runs of one task."""
        runs = tuple(c.NewRun(run_id=self.new_id(), plan=0) for _ in range(count))
        plan = replace(a_plan(a_task()), priority=priority)
        self.go(
            self.insist(c.SubmitRuns(at=0, project="default", owner=owner, plans=(plan,), runs=runs, source=""))
        )  # fmt: skip


def widest_gap(seed: int) -> tuple[int, int]:
    """By how many places the owners are apart at the most while all of them have tasks that wait; and looks at that."""
    rng = Random(seed)
    world = Crowd(seed, agents=rng.choice((1, 3, 6)), slots=rng.choice((3, 4, 8)), work_s=5.0)
    widest = looks = 0
    with world.doors():
        try:
            for owner in OWNERS:
                world.submit(owner, BACKLOG)
            world.loop.run_until(20.0)
            for _ in range(100):
                world.loop.run_until(world.now_s + 0.1 + rng.random())
                live = dict(world.cluster.db.execute(_LIVE).fetchall())
                if sum(live.values()) == world.slots:
                    looks += 1
                    held = [live.get(owner, 0) for owner in OWNERS]
                    widest = max(widest, max(held) - min(held))
        finally:
            world.close()
    return widest, looks


def wait_of_the_least(seed: int, priority: int) -> float:
    """Seconds that one task of priority 0 waits behind as many as there can be of a higher one."""
    world = Crowd(seed, agents=1, slots=2, work_s=4.0)
    with world.doors():
        try:
            world.submit("ann", 3 * BACKLOG, priority=priority)
            world.loop.run_until(20.0)
            world.submit("bob", 1)
            world.loop.run_until(
                60.0 * (priority + 3), lambda: world.cluster.db.execute(_BEGAN, ("bob",)).fetchone()[0]
            )
            at, created_at = world.cluster.db.execute(_BEGAN, ("bob",)).fetchone()
        finally:
            world.close()
    return float("inf") if at is None else (at - created_at) / 1000
