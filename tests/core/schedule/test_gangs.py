"""Gangs: tasks that come to one agent ask together for one that all of them fit on, also when one of them has grown."""

from dataclasses import replace

from pistage.core import changes as ch
from pistage.core import demand as demands
from pistage.core.limits import GIB
from pistage.core.model import Result, State
from pistage.core.plan import FailureClass, MemoryGrowth, Resources
from tests.core.plans import a_plan, a_task, retrying
from tests.core.test_machine import Cluster

OOM = Result(state=State.FAILED, failure=FailureClass.OOM, exit_code=137, reason="out of memory")


def test_when_one_of_a_gang_needs_more_memory_the_others_seek_an_agent_that_has_it() -> None:
    """Found by tests.fleet: one went where the grown one could never follow."""
    cluster = Cluster()
    growing = replace(retrying(oom=1), memory=MemoryGrowth(factor=4.0))
    big = a_task("big", retry=growing, resources=Resources(memory_bytes=GIB), gang="g")
    small = a_task("small", resources=Resources(memory_bytes=GIB // 2), gang="g")
    cluster.submit(a_plan(big, small))
    cluster.register(memory_bytes=8 * GIB)
    ended = cluster.run_to("big", OOM)
    queued = {change.task.name: change.task for change in ended.changes if isinstance(change, ch.TaskQueued)}
    asked = {name: demands.read(task.demand) for name, task in queued.items()}
    assert {name: demand.whole.memory_bytes for name, demand in asked.items()} == {"big": 4 * GIB, "small": 4 * GIB}
    assert {name: demand.resources.memory_bytes for name, demand in asked.items()} == {
        "big": 4 * GIB,
        "small": GIB // 2,
    }
