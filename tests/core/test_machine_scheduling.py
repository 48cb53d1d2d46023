"""The state machine where it schedules: groups and queues, patience, more memory, retries of runs, drains, removals."""

from dataclasses import replace
from typing import Any

import pytest

from pistage.core import changes as ch
from pistage.core import commands as c
from pistage.core import demand as demands
from pistage.core import machine
from pistage.core.model import Result, State
from pistage.core.plan import Concurrency, FailureClass, MemoryGrowth, Overflow, Plan, Resources, Retry
from pistage.errors import Code, PistageError
from tests.core.plans import a_plan, a_task, retrying
from tests.core.test_machine import DONE, FAILED, Cluster

GIB = 1 << 30
OOM = Result(state=State.FAILED, failure=FailureClass.OOM, exit_code=137, reason="out of memory")


@pytest.fixture
def cluster() -> Cluster:
    return Cluster()


def grouped(limit: int = 1, overflow: Overflow = Overflow.QUEUE, *, name: str = "demo") -> Plan:
    return replace(a_plan(name=name), concurrency=Concurrency(group="deploy", limit=limit, overflow=overflow))


def state_of(cluster: Cluster, run_id: str) -> tuple[str, str]:
    row: tuple[str, str] = cluster.db.execute("SELECT state, reason FROM run WHERE id = ?", (run_id,)).fetchone()
    return row


def task_of(cluster: Cluster, run_id: str, name: str = "main") -> dict[str, Any]:
    cursor = cluster.db.execute("SELECT * FROM task WHERE run_id = ? AND name = ?", (run_id, name))
    return dict(zip([column[0] for column in cursor.description], cursor.fetchone(), strict=True))


def finish(cluster: Cluster, attempt_id: str, result: Result = DONE) -> None:
    (fence,) = cluster.db.execute("SELECT fence FROM attempt WHERE id = ?", (attempt_id,)).fetchone()
    cluster.report(c.Finished(at=cluster.now, attempt_id=attempt_id, fence=fence, result=result))


# --- groups and queues ------------------------------------------------------------------------------------------------


def test_a_run_of_a_full_group_gets_no_place_until_there_is_one(cluster: Cluster) -> None:
    cluster.register()
    for run_id in ("r1", "r2"):
        cluster.submit(grouped(), run_id)
    assert cluster.assign(attempt_id="t1", run_id="r1").error is None
    refusal = cluster.assign(attempt_id="t2", run_id="r2").error
    assert refusal is not None
    assert "concurrency group" in str(refusal)
    finish(cluster, "t1")
    assert cluster.assign(attempt_id="t2", run_id="r2").error is None


def test_groups_of_other_projects_are_others(cluster: Cluster) -> None:
    cluster.register()
    cluster.submit(grouped(), "r1")
    cluster.apply(c.SubmitRun(at=1, run_id="r2", project="other", owner="o", plan=grouped(), source=""))
    assert cluster.assign(attempt_id="t1", run_id="r1").error is None
    assert cluster.assign(attempt_id="t2", run_id="r2").error is None


def test_a_group_that_refuses_takes_no_more_than_its_limit(cluster: Cluster) -> None:
    plan = grouped(2, Overflow.REFUSE)
    for run_id in ("r1", "r2"):
        assert cluster.submit(plan, run_id).error is None
    refusal = cluster.submit(plan, "r3").error
    assert refusal is not None
    assert (refusal.code, "demo#1, demo#2 are not over" in str(refusal)) == (Code.CONFLICT, True)
    cluster.apply(c.CancelRun(at=1, run_id="r1", owner="o", reason="x"))
    assert cluster.submit(plan, "r3").error is None


def test_a_group_that_refuses_counts_all_that_come_at_once_whatever_their_limits(cluster: Cluster) -> None:
    plans = (grouped(2, Overflow.REFUSE), grouped(3, Overflow.REFUSE))
    runs = tuple(c.NewRun(run_id=f"r{n}", plan=n % 2) for n in range(3))
    outcome = cluster.apply(c.SubmitRuns(at=1, project="default", owner="o", plans=plans, runs=runs, source=""))
    assert outcome.error is not None


def test_the_newest_is_who_came_last_whatever_its_id(cluster: Cluster) -> None:
    plan = grouped(1, Overflow.CANCEL_OLD)
    cluster.submit(plan, "r9")
    cluster.submit(plan, "r1")
    assert (state_of(cluster, "r9")[0], state_of(cluster, "r1")[0]) == ("cancelled", "queued")


def test_a_batch_that_a_group_refuses_is_refused_whole(cluster: Cluster) -> None:
    runs = tuple(c.NewRun(run_id=f"r{n}", plan=0) for n in range(3))
    plans = (grouped(2, Overflow.REFUSE),)
    outcome = cluster.apply(c.SubmitRuns(at=1, project="default", owner="o", plans=plans, runs=runs, source=""))
    assert outcome.error is not None
    assert cluster.db.execute("SELECT COUNT(*) FROM run").fetchone() == (0,)


def test_a_group_that_cancels_old_ones_keeps_the_newest(cluster: Cluster) -> None:
    cluster.register()
    plan = grouped(1, Overflow.CANCEL_OLD)
    cluster.submit(plan, "r1")
    cluster.assign(attempt_id="t1", run_id="r1")
    outcome = cluster.submit(plan, "r2")
    assert [type(effect).__name__ for effect in outcome.effects] == ["CancelAttempt"]
    cluster.submit(plan, "r3")
    assert state_of(cluster, "r2") == ("cancelled", "demo#3 took its place in the concurrency group 'deploy'")
    assert state_of(cluster, "r1")[0] == "running"
    assert cluster.db.execute("SELECT cancel_reason IS NOT NULL FROM run WHERE id = 'r1'").fetchone() == (1,)
    finish(cluster, "t1", Result(state=State.CANCELLED, reason="gone"))
    assert cluster.assign(attempt_id="t3", run_id="r3").error is None


def test_a_queue_takes_no_more_runs_than_its_limit(cluster: Cluster) -> None:
    cluster.register()
    settings = ch.QueueSettings(name="nights", priority=3, limit=1, placing="pack")
    outcome = cluster.apply(c.PutQueue(at=1, queue=settings))
    assert outcome.changes == (ch.QueueChanged(settings),)
    for run_id in ("r1", "r2"):
        cluster.submit(replace(a_plan(), queue="nights"), run_id)
    assert cluster.assign(attempt_id="t1", run_id="r1").error is None
    assert cluster.assign(attempt_id="t2", run_id="r2").error is not None
    outcome = cluster.apply(c.DeleteQueue(at=1, name="nights"))
    assert outcome.changes == (ch.QueueChanged(ch.QueueSettings(name="nights")),)
    assert cluster.assign(attempt_id="t2", run_id="r2").error is None


# --- gangs ------------------------------------------------------------------------------------------------------------


def test_a_gang_is_not_parted_while_its_agent_is_up(cluster: Cluster) -> None:
    cluster.register("a1")
    cluster.register("a2")
    cluster.submit(a_plan(a_task("one", gang="g"), a_task("two", gang="g")))
    assert cluster.assign("one", "t1").error is None
    elsewhere = c.Assignment(attempt_id="t2", run_id="r1", position=1, agent_id="a2", agent_epoch=1)
    outcome = cluster.apply(c.AssignTasks(at=cluster.now, assignments=(elsewhere,)))
    assert "networks and volumes are on agent a1" in str(outcome.value["refused"])
    cluster.apply(c.LoseAgent(at=1, agent_id="a1", epoch=1, reason="silent"))
    outcome = cluster.apply(c.AssignTasks(at=cluster.now, assignments=(elsewhere,)))
    assert outcome.value["refused"] == {}


def test_what_works_on_volumes_that_are_lost_with_their_agent_fails_and_is_not_begun_on_empty_ones(
    cluster: Cluster,
) -> None:
    cluster.register()
    tasks = (
        a_task("build", gang="g", volume="v", retry=retrying(lost=3)),
        a_task("test", gang="g", volume="v", needs=("build",), retry=retrying(lost=3)),
        a_task("late", gang="g", volume="v", needs=("test",)),
        a_task("apart", needs=("build",)),
    )
    cluster.submit(a_plan(*tasks))
    cluster.assign("build", "t1")
    finish(cluster, "t1")
    cluster.assign("test", "t2")
    cluster.apply(c.LoseAgent(at=cluster.now, agent_id="a1", epoch=1, reason="silent"))
    told = {name: task_of(cluster, "r1", name)["state"] for name in ("build", "test", "late", "apart")}
    assert told == {"build": "succeeded", "test": "failed", "late": "failed", "apart": "queued"}
    assert "volumes that it shares are lost with their agent: silent" in task_of(cluster, "r1", "test")["reason"]


def test_what_shares_a_network_or_has_done_nothing_yet_goes_on_elsewhere(cluster: Cluster) -> None:
    cluster.register()
    cluster.submit(a_plan(a_task("one", gang="g"), a_task("two", gang="g", needs=("one",))))
    cluster.submit(a_plan(a_task("one", gang="g", volume="v", retry=retrying(lost=3))), "r2")
    cluster.assign("one", "t1")
    finish(cluster, "t1")
    cluster.assign("one", "t2", "r2")
    cluster.apply(c.LoseAgent(at=cluster.now, agent_id="a1", epoch=1, reason="silent"))
    assert task_of(cluster, "r1", "two")["state"] == "queued"
    assert task_of(cluster, "r2", "one")["state"] == "queued"


def test_a_task_of_a_gang_asks_for_an_agent_that_could_take_all_of_it() -> None:
    small = a_task("small", gang="g", resources=Resources(cpus_milli=100))
    large = a_task("large", gang="g", resources=Resources(cpus_milli=900, memory_bytes=5))
    alone = a_task("alone", resources=Resources(cpus_milli=100))
    asked = [demands.read(text) for text in demands.demands_of(a_plan(small, large, alone))]
    assert asked[0].resources.cpus_milli == 100
    assert (asked[0].whole.cpus_milli, asked[0].whole.memory_bytes) == (900, 5)
    assert asked[2].whole.cpus_milli == 100


# --- many placements in one command -----------------------------------------------------------------------------------


def test_placements_of_one_command_are_taken_or_refused_one_by_one(cluster: Cluster) -> None:
    cluster.register(slots=2)
    for number in range(4):
        cluster.submit(run_id=f"r{number}")
    wanted = tuple(
        c.Assignment(attempt_id=f"t{n}", run_id=f"r{n}", position=0, agent_id="a1", agent_epoch=1) for n in (0, 9, 1, 2)
    )
    outcome = cluster.apply(c.AssignTasks(at=cluster.now, assignments=wanted))
    refused = outcome.value["refused"]
    assert isinstance(refused, dict)
    assert sorted(refused) == ["t2", "t9"]
    assert [type(change).__name__ for change in outcome.changes] == ["AttemptBegun", "RunBegun"] * 2
    assert {effect.attempt_id for effect in outcome.effects if hasattr(effect, "attempt_id")} == {"t0", "t1"}


# --- patience and priority --------------------------------------------------------------------------------------------


def test_a_task_that_waited_for_too_long_fails_and_so_does_its_run(cluster: Cluster) -> None:
    task = replace(a_task(), queue_timeout_s=2.5)
    outcome = cluster.submit(a_plan(task))
    (queued,) = [change for change in outcome.changes if isinstance(change, ch.TaskQueued)]
    assert queued.task.expires_at == cluster.now + 2_500
    assert cluster.apply(c.ExpireTask(at=cluster.now + 2_499, run_id="r1", position=0)).error is not None
    outcome = cluster.apply(c.ExpireTask(at=cluster.now + 2_500, run_id="r1", position=0))
    assert outcome.changes == (ch.TaskUnqueued("r1", 0), ch.RunEnded("r1"))
    assert state_of(cluster, "r1") == (
        "failed",
        "task 'main': it waited for a place for longer than its queue_timeout of 2.5 s",
    )


def test_the_priority_of_a_run_can_be_changed_until_it_ends(cluster: Cluster) -> None:
    cluster.submit()
    outcome = cluster.apply(c.SetRunPriority(at=1, run_id="r1", priority=7, owner="o"))
    assert outcome.changes == (ch.RunReprioritised("r1", 7),)
    assert cluster.apply(c.SetRunPriority(at=1, run_id="r1", priority=7, owner="o")).changes == ()
    cluster.apply(c.CancelRun(at=1, run_id="r1", owner="o", reason="x"))
    assert cluster.apply(c.SetRunPriority(at=1, run_id="r1", priority=8, owner="o")).error is not None


# --- cancelling a task ------------------------------------------------------------------------------------------------


def test_a_task_that_waits_is_cancelled_at_once_and_what_needs_it_is_skipped(cluster: Cluster) -> None:
    cluster.submit(a_plan(a_task("a"), a_task("b", needs=("a",)), a_task("c")))
    outcome = cluster.apply(c.CancelTask(at=1, run_id="r1", task="a", owner="o", reason="not wanted"))
    assert outcome.changes == (ch.TaskUnqueued("r1", 0),)
    assert (task_of(cluster, "r1", "a")["state"], task_of(cluster, "r1", "b")["state"]) == ("cancelled", "skipped")
    assert task_of(cluster, "r1", "c")["state"] == "queued"
    assert cluster.apply(c.CancelTask(at=1, run_id="r1", task="a", owner="o", reason="again")).value["is_new"] is False


def test_a_task_that_runs_is_stopped_by_its_agent_and_not_tried_again(cluster: Cluster) -> None:
    cluster.register()
    cluster.submit(a_plan(a_task(retry=retrying(lost=3, failure=3))))
    cluster.assign()
    outcome = cluster.apply(c.CancelTask(at=1, run_id="r1", task="main", owner="o", reason="not wanted"))
    (effect,) = outcome.effects
    assert (effect.attempt_id, effect.reason) == ("t1", "not wanted")  # type: ignore[union-attr]
    finish(cluster, "t1", FAILED)
    assert task_of(cluster, "r1")["state"] == "failed"


# --- more memory ------------------------------------------------------------------------------------------------------


def test_a_task_that_ran_out_of_memory_is_tried_again_with_more_up_to_the_most(cluster: Cluster) -> None:
    cluster.register(memory_bytes=8 * GIB)
    policy = Retry(limits={FailureClass.OOM: 3}, memory=MemoryGrowth(factor=2, most=3 * GIB))
    task = a_task(resources=Resources(memory_bytes=GIB), retry=policy)
    context = replace(task.contexts[0], resources=Resources(memory_bytes=GIB))
    cluster.submit(a_plan(replace(task, contexts=(context,))))
    had = []
    for number in range(3):
        cluster.now += 100_000
        assert cluster.assign(attempt_id=f"t{number}").error is None
        finish(cluster, f"t{number}", OOM)
        row = task_of(cluster, "r1")
        spec = demands.codec.from_json(type(task), row["spec"])
        had.append((row["memory_bytes"], spec.contexts[0].resources.memory_bytes))
        assert demands.read(row["demand"]).resources.memory_bytes == row["memory_bytes"]
    assert had == [(2 * GIB, 2 * GIB), (3 * GIB, 3 * GIB), (3 * GIB, 3 * GIB)]


def test_a_task_gets_no_more_memory_than_the_largest_agent_has(cluster: Cluster) -> None:
    cluster.register(memory_bytes=3 * GIB)
    policy = Retry(limits={FailureClass.OOM: 3}, memory=MemoryGrowth(factor=10))
    cluster.submit(a_plan(a_task(resources=Resources(memory_bytes=GIB), retry=policy)))
    cluster.assign()
    finish(cluster, "t1", OOM)
    assert task_of(cluster, "r1")["memory_bytes"] == 3 * GIB


# --- retrying a run ---------------------------------------------------------------------------------------------------


def ended(cluster: Cluster) -> None:
    """A run whose first task succeeded, whose second failed, and whose third was skipped for that."""
    cluster.register()
    cluster.submit(a_plan(a_task("a"), a_task("b", needs=("a",)), a_task("c", needs=("b",))))
    cluster.assign("a", "t1")
    finish(cluster, "t1")
    cluster.assign("b", "t2")
    finish(cluster, "t2", FAILED)
    assert state_of(cluster, "r1")[0] == "failed"


def test_a_run_is_tried_again_whole(cluster: Cluster) -> None:
    ended(cluster)
    outcome = cluster.apply(c.RetryRun(at=cluster.now, run_id="r2", retry_of="r1", owner="p"))
    assert outcome.value == {"run_id": "r2", "number": 2, "is_new": True}
    assert [task_of(cluster, "r2", name)["state"] for name in "abc"] == ["queued", "pending", "pending"]
    row = cluster.db.execute("SELECT owner, retry_of, state FROM run WHERE id = 'r2'").fetchone()
    assert row == ("p", "r1", "queued")
    assert [type(change).__name__ for change in outcome.changes] == ["TaskQueued"]


def test_what_succeeded_can_be_kept_also_twice(cluster: Cluster) -> None:
    ended(cluster)
    cluster.apply(c.RetryRun(at=cluster.now, run_id="r2", retry_of="r1", owner="p", kept=("a",)))
    kept = task_of(cluster, "r2", "a")
    assert (kept["state"], kept["kept_from"], kept["reason"]) == ("succeeded", "r1", "kept from demo#1")
    assert task_of(cluster, "r2", "b")["state"] == "queued"
    cluster.assign("b", "t3", "r2")
    finish(cluster, "t3", FAILED)
    cluster.apply(c.RetryRun(at=cluster.now, run_id="r3", retry_of="r2", owner="p", kept=("a",)))
    assert task_of(cluster, "r3", "a")["kept_from"] == "r1"


def test_what_did_not_succeed_is_not_kept(cluster: Cluster) -> None:
    ended(cluster)
    refusal = cluster.apply(c.RetryRun(at=1, run_id="r2", retry_of="r1", owner="p", kept=("a", "b"))).error
    assert refusal is not None
    assert cluster.db.execute("SELECT COUNT(*) FROM run").fetchone() == (1,)


def test_a_retry_is_made_once_for_one_request(cluster: Cluster) -> None:
    ended(cluster)
    again = {"retry_of": "r1", "owner": "p", "request_key": "k", "request_sha256": "x"}
    cluster.apply(c.RetryRun(at=cluster.now, run_id="r2", **again))
    outcome = cluster.apply(c.RetryRun(at=cluster.now, run_id="r3", **again))
    assert outcome.value == {"run_id": "r2", "number": 2, "is_new": False}


def test_a_retry_of_a_run_that_keeps_everything_ends_at_once(cluster: Cluster) -> None:
    cluster.register()
    cluster.submit()
    cluster.assign()
    finish(cluster, "t1")
    cluster.apply(c.RetryRun(at=cluster.now, run_id="r2", retry_of="r1", owner="p", kept=("main",)))
    assert state_of(cluster, "r2")[0] == "succeeded"


# --- agents -----------------------------------------------------------------------------------------------------------


def test_a_drain_says_until_when_and_resuming_forgets_it(cluster: Cluster) -> None:
    cluster.register()
    outcome = cluster.apply(c.SetAgentDrain(at=1, agent_id="a1", is_draining=True, until=99))
    (change,) = outcome.changes
    assert isinstance(change, ch.AgentChanged)
    assert (change.is_draining, change.drain_until) == (True, 99)
    (change,) = cluster.apply(c.SetAgentDrain(at=1, agent_id="a1", is_draining=False, until=99)).changes
    assert isinstance(change, ch.AgentChanged)
    assert (change.is_draining, change.drain_until) == (False, None)


def test_an_agent_at_work_is_removed_only_by_force_and_its_work_is_tried_elsewhere(cluster: Cluster) -> None:
    cluster.register()
    cluster.submit(a_plan(a_task(retry=retrying(lost=1))))
    cluster.assign()
    refusal = cluster.apply(c.RemoveAgent(at=1, agent_id="a1")).error
    assert refusal is not None
    assert "at work on 1 task" in str(refusal)
    outcome = cluster.apply(c.RemoveAgent(at=cluster.now, agent_id="a1", is_forced=True))
    assert outcome.value == {"lost": ["t1"]}
    assert isinstance(outcome.changes[-1], ch.AgentRemoved)
    assert task_of(cluster, "r1")["state"] == "queued"
    assert cluster.db.execute("SELECT COUNT(*) FROM agent").fetchone() == (0,)


def test_an_agent_that_was_removed_comes_back_in_a_higher_epoch(cluster: Cluster) -> None:
    assert [cluster.register("a1", incarnation) for incarnation in ("i1", "i2")] == [1, 2]
    cluster.apply(c.RemoveAgent(at=1, agent_id="a1"))
    assert cluster.apply(c.LoseAgent(at=1, agent_id="a1", epoch=2, reason="x")).error is not None
    assert cluster.register("a1", "i2") == 3


def test_that_losses_are_paused_stands_in_the_state(cluster: Cluster) -> None:
    cluster.apply(c.PauseLosses(at=1, until=77, reason="many at once"))
    row = cluster.db.execute("SELECT value FROM meta WHERE key = 'losses_paused_until'").fetchone()
    assert row == ("77",)


def test_an_agent_whose_row_cannot_be_read_is_none_to_the_scheduler(cluster: Cluster) -> None:
    cluster.register()
    cluster.db.execute("UPDATE agent SET info = 'nothing'")
    outcome = cluster.apply(c.SetAgentDrain(at=1, agent_id="a1", is_draining=True))
    assert outcome.changes == (ch.AgentRemoved("a1"),)


def test_a_state_of_another_version_is_refused(cluster: Cluster) -> None:
    cluster.db.execute("UPDATE meta SET value = '1' WHERE key = 'schema'")
    with pytest.raises(PistageError) as refusal:
        machine.create_tables(cluster.db)
    assert refusal.value.code is Code.STORAGE
