"""A view that a test moves by hand: tasks and agents of few words, and decisions as name -> agent."""

from __future__ import annotations

from typing import Any

from pistage.core import changes as ch
from pistage.core import demand as demands
from pistage.core.demand import Demand
from pistage.core.model import AgentInfo, Capacity
from pistage.core.plan import Constraint, Resources
from pistage.core.schedule import Decision, Explainer, Explanation, View, decide

GIB = 1 << 30


class Desk:
    """A view, its time, and what a leader does with its decisions."""

    def __init__(self) -> None:
        self.view = View()
        self.now = 1_000
        self.waiting: dict[str, ch.WaitingTask] = {}
        self.attempts: dict[str, str] = {}  # by task
        self._count = 0

    def take(self, *changes: ch.Change) -> None:
        for change in changes:
            self.view.take(change, self.now)

    def agent(self, name: str = "a1", *, is_present: bool = True, **given: Any) -> None:
        """An agent of 4 cores, 1 GiB and 4 places, unless said otherwise."""
        size = {"cpus_milli": 4000, "memory_bytes": GIB, "gpus": 0, "slots": 4}
        size |= {key: given.pop(key) for key in list(given) if key in size}
        about = {"runtimes": ("docker",), "labels": {}, "ignores_images": False}
        about |= {key: given.pop(key) for key in list(given) if key in about}
        info = AgentInfo(id=name, name=name, incarnation="i", version="1", capacity=Capacity(**size), **about)
        state = {"epoch": 1, "is_up": True, "is_draining": False} | given
        self.take(ch.AgentChanged(info=info, **state))
        self.view.fleet.set_present(name, is_present=is_present)

    def task(self, name: str = "t", **given: Any) -> ch.WaitingTask:
        """A task that waits: of a run of its own, unless `run_id` is given."""
        self._count += 1
        asked = {key: given.pop(key) for key in ("resources", "constraints") if key in given}
        asked |= {"whole": asked.get("resources", Resources()), "needs_images": given.pop("needs_images", True)}
        asked |= {"needs_containers": given.pop("needs_containers", False)}
        demand = Demand(**({"resources": Resources()} | asked))
        about = {
            "run_id": name, "position": self._count, "queue": "default", "owner": "o", "priority": 0,
            "created_at": self.now, "ready_at": self.now,
        }  # fmt: skip
        task = ch.WaitingTask(name=name, demand=demands.written(demand), **(about | given))
        self.waiting[name] = task
        self.take(ch.TaskQueued(task))
        return task

    def decide(self, **given: Any) -> Decision:
        return decide(self.view, self.now, **given)

    def places(self, **given: Any) -> dict[str, str]:
        """Decide, and have all of it committed; task -> agent."""
        placements = self.decide(**given).placements
        for one in placements:
            self.commit(one.task, one.agent_id)
        return {one.task: one.agent_id for one in placements}

    def commit(self, name: str, agent_id: str) -> None:
        task, attempt_id = self.waiting[name], f"{name}.{len(self.attempts)}"
        want = demands.read(task.demand).resources
        self.attempts[name] = attempt_id
        self.take(
            ch.AttemptBegun(
                attempt_id=attempt_id, agent_id=agent_id, run_id=task.run_id, position=task.position, owner=task.owner,
                gang=task.gang, cpus_milli=want.cpus_milli or 0, memory_bytes=want.memory_bytes or 0, gpus=want.gpus,
            ),
            ch.RunBegun(task.run_id, task.queue, task.group),
        )  # fmt: skip

    def end(self, name: str, *, is_run_over: bool = True) -> None:
        """The task's attempt is over, and so is its run."""
        self.take(ch.AttemptEnded(self.attempts[name]))
        if is_run_over:
            self.take(ch.RunEnded(self.waiting[name].run_id))

    def explain(self, name: str) -> Explanation:
        found = Explainer(self.view, self.now).explain(self.waiting[name].id)
        assert found is not None
        return found


def needs_label(text: str) -> tuple[Constraint, ...]:
    key, _, value = text.partition("=")
    return (Constraint(key=key, operator="in" if value else "present", values=(value,) if value else ()),)
