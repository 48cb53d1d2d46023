"""The state machine: what each command does to the tables, and what it refuses."""

import json
import sqlite3
from collections.abc import Iterator
from dataclasses import replace
from typing import cast

import pytest

from pistage.core import commands as c
from pistage.core import machine
from pistage.core.machine.outcome import Turn
from pistage.core.model import AgentInfo, Capacity, Result, State
from pistage.core.plan import FailureClass, Plan, Resources, When
from pistage.errors import Code, PistageError
from tests.core.plans import a_plan, a_task, retrying

FAILED = Result(state=State.FAILED, failure=FailureClass.FAILURE, exit_code=1, reason="exit code 1")
DONE = Result(state=State.SUCCEEDED, exit_code=0)


class Cluster:
    """A state machine with a log index and a clock that only this class moves."""

    def __init__(self) -> None:
        self.db = sqlite3.connect(":memory:", isolation_level=None)
        machine.create_tables(self.db)
        self.index = 0
        self.now = 1_000

    def apply(self, command: c.Command) -> machine.Outcome:
        self.index += 1
        self.db.execute("BEGIN")
        outcome = machine.apply(self.db, self.index, command)
        machine.set_position(self.db, machine.Position(index=self.index))
        self.db.execute("COMMIT")
        return outcome

    def submit(self, plan: Plan | None = None, run_id: str = "r1", **fields: object) -> machine.Outcome:
        return self.apply(
            c.SubmitRun(
                at=self.now, run_id=run_id, project="default", owner="o", plan=plan or a_plan(), source="", **fields
            )
        )

    def register(self, agent_id: str = "a1", incarnation: str = "i1", **capacity: int) -> int:
        room = Capacity(**({"cpus_milli": 4000, "memory_bytes": 1 << 30, "slots": 4} | capacity))
        info = AgentInfo(
            id=agent_id, name=agent_id, incarnation=incarnation, version="1", runtimes=("docker",), capacity=room
        )
        outcome = self.apply(c.RegisterAgent(at=self.now, info=info))
        return int(str(outcome.value["epoch"]))

    def assign(self, task: str = "main", attempt_id: str = "t1", run_id: str = "r1", epoch: int = 1) -> machine.Outcome:
        """The answer about this one assignment, as if it had a command of its own."""
        row = self.db.execute("SELECT position FROM task WHERE run_id = ? AND name = ?", (run_id, task)).fetchone()
        wanted = c.Assignment(
            attempt_id=attempt_id, run_id=run_id, position=row[0] if row else 99, agent_id="a1", agent_epoch=epoch
        )
        outcome = self.apply(c.AssignTasks(at=self.now, assignments=(wanted,)))
        refused = cast(dict[str, str], outcome.value["refused"])
        if attempt_id in refused:
            return replace(outcome, error=PistageError(Code.CONFLICT, refused[attempt_id]))
        return outcome

    def report(self, *events: c.AttemptEvent) -> machine.Outcome:
        return self.apply(c.RecordEvents(at=self.now, events=events))

    def finish(self, attempt_id: str, fence: int, result: Result = DONE) -> machine.Outcome:
        return self.report(
            c.Accepted(at=self.now, attempt_id=attempt_id, fence=fence, runtime="docker"),
            c.Finished(at=self.now, attempt_id=attempt_id, fence=fence, result=result),
        )

    def run_to(self, task: str, result: Result, run_id: str = "r1") -> machine.Outcome:
        attempt_id = f"{run_id}-{task}-{self.index}"
        outcome = self.assign(task, attempt_id, run_id)
        return self.finish(attempt_id, int(str(outcome.value["fence"])), result)

    def states(self, run_id: str = "r1") -> dict[str, str]:
        rows = self.db.execute("SELECT name, state FROM task WHERE run_id = ? ORDER BY position", (run_id,))
        return dict(rows.fetchall())

    def run(self, run_id: str = "r1") -> tuple[str, str]:
        return tuple(self.db.execute("SELECT state, reason FROM run WHERE id = ?", (run_id,)).fetchone())  # type: ignore[return-value]

    def kinds(self, run_id: str = "r1") -> list[str]:
        return [kind for (kind,) in self.db.execute("SELECT kind FROM event WHERE run_id = ? ORDER BY id", (run_id,))]


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    cluster = Cluster()
    yield cluster
    cluster.db.close()


def test_a_run_goes_from_queued_to_succeeded_and_leaves_its_history(cluster: Cluster) -> None:
    cluster.register()
    cluster.submit()
    assert cluster.run() == ("queued", "")
    outcome = cluster.run_to("main", DONE)
    assert cluster.run() == ("succeeded", "")
    assert outcome.effects == (machine.ReleaseRun(run_id="r1", agent_ids=("a1",)),)
    assert cluster.kinds() == [
        "run_submitted", "task_queued", "task_assigned", "run_started", "attempt_accepted", "task_finished",
        "run_finished",
    ]  # fmt: skip


def test_the_fence_is_the_index_of_the_assignment(cluster: Cluster) -> None:
    cluster.register()
    cluster.submit()
    outcome = cluster.assign()
    assert outcome.value == {"fence": cluster.index, "refused": {}}
    assert outcome.effects == (machine.SendAssignment(attempt_id="t1", agent_id="a1"),)


def test_runs_of_one_pipeline_are_numbered(cluster: Cluster) -> None:
    numbers = [cluster.submit(run_id=f"r{n}").value["number"] for n in range(3)]
    other = cluster.submit(a_plan(name="other"), run_id="x").value["number"]
    assert (numbers, other) == ([1, 2, 3], 1)


def test_a_repeated_request_is_answered_with_the_run_it_made(cluster: Cluster) -> None:
    cluster.submit(request_key="k", request_sha256="s")
    again = cluster.submit(run_id="r2", request_key="k", request_sha256="s")
    assert again.value == {"run_id": "r1", "number": 1, "is_new": False}
    other_body = cluster.submit(run_id="r3", request_key="k", request_sha256="t")
    assert other_body.error is not None and other_body.error.code is Code.CONFLICT
    assert cluster.db.execute("SELECT COUNT(*) FROM run").fetchone() == (1,)


def test_a_request_key_is_forgotten_by_the_clock_of_the_log(cluster: Cluster) -> None:
    cluster.submit(request_key="k", request_sha256="s")
    cluster.now += 24 * 3_600_000 + 1
    assert cluster.submit(run_id="r2", request_key="k", request_sha256="t").value["is_new"] is True


def test_a_task_waits_for_what_it_needs_and_the_others_do_not(cluster: Cluster) -> None:
    cluster.register()
    cluster.submit(a_plan(a_task("a"), a_task("b"), a_task("c", needs=("a", "b"))))
    assert cluster.states() == {"a": "queued", "b": "queued", "c": "pending"}
    cluster.run_to("a", DONE)
    assert cluster.states()["c"] == "pending"
    cluster.run_to("b", DONE)
    assert cluster.states()["c"] == "queued"


def test_a_failure_skips_what_depends_on_it_and_nothing_else(cluster: Cluster) -> None:
    cluster.register()
    tasks = (a_task("a"), a_task("b", needs=("a",)), a_task("c", needs=("b",)), a_task("d"))
    cluster.submit(a_plan(*tasks))
    cluster.run_to("a", FAILED)
    assert cluster.states() == {"a": "failed", "b": "skipped", "c": "skipped", "d": "queued"}
    assert cluster.run()[0] == "running"
    cluster.run_to("d", DONE)
    assert cluster.run() == ("failed", "task 'a': exit code 1")


def test_when_failure_and_always_run_after_a_failure(cluster: Cluster) -> None:
    cluster.register()
    on_failure = a_task("mend", needs=("a",), when=When.FAILURE)
    always = a_task("clean", needs=("a",), when=When.ALWAYS)
    cluster.submit(a_plan(a_task("a"), on_failure, always))
    cluster.run_to("a", FAILED)
    assert cluster.states() == {"a": "failed", "mend": "queued", "clean": "queued"}


def test_when_failure_is_skipped_after_success(cluster: Cluster) -> None:
    cluster.register()
    cluster.submit(a_plan(a_task("a"), a_task("mend", needs=("a",), when=When.FAILURE)))
    cluster.run_to("a", DONE)
    assert cluster.states()["mend"] == "skipped"
    assert cluster.run()[0] == "succeeded"


def test_a_task_skipped_by_the_plan_holds_nobody_up(cluster: Cluster) -> None:
    cluster.submit(a_plan(a_task("a", skip_reason="before the start node"), a_task("b", needs=("a",))))
    assert cluster.states() == {"a": "skipped", "b": "queued"}


def test_a_run_of_skipped_tasks_succeeds_at_once(cluster: Cluster) -> None:
    cluster.submit(a_plan(a_task("a", skip_reason="not today")))
    assert cluster.run()[0] == "succeeded"


def test_a_failed_attempt_is_retried_after_its_backoff_and_no_more_than_its_limit(cluster: Cluster) -> None:
    cluster.register()
    cluster.submit(a_plan(a_task(retry=retrying(failure=1))))
    cluster.run_to("main", FAILED)
    assert cluster.states() == {"main": "queued"}
    (ready_at,) = cluster.db.execute("SELECT ready_at FROM task").fetchone()
    assert cluster.now + 900 <= ready_at <= cluster.now + 1_100
    early = cluster.assign(attempt_id="early")
    assert early.error is not None and early.error.code is Code.CONFLICT
    cluster.now = ready_at
    cluster.run_to("main", FAILED)
    assert cluster.run() == ("failed", "task 'main': exit code 1")


def test_each_class_of_failure_has_a_limit_of_its_own(cluster: Cluster) -> None:
    cluster.register()
    cluster.submit(a_plan(a_task(retry=retrying(failure=1, lost=1))))
    lost = Result(state=State.LOST, failure=FailureClass.LOST, reason="gone")
    for result in (FAILED, lost):
        cluster.run_to("main", result)
        assert cluster.states() == {"main": "queued"}
        cluster.now += 100_000
    cluster.run_to("main", lost)
    assert cluster.run()[0] == "lost"


def test_a_stale_fence_is_refused_and_a_repeat_is_not(cluster: Cluster) -> None:
    cluster.register()
    cluster.submit()
    fence = int(str(cluster.assign().value["fence"]))
    assert cluster.finish("t1", fence + 1).value == {"refused": ["t1"]}
    assert cluster.finish("t1", fence).value == {"refused": []}
    before = cluster.kinds()
    assert cluster.finish("t1", fence, FAILED).value == {"refused": []}
    assert (cluster.run()[0], cluster.kinds()) == ("succeeded", before)
    assert cluster.finish("nobody", 1).value == {"refused": ["nobody"]}


def test_cancel_ends_what_waits_and_asks_agents_to_stop_the_rest(cluster: Cluster) -> None:
    cluster.register()
    cluster.submit(a_plan(a_task("a"), a_task("b"), a_task("c", needs=("a",))))
    fence = int(str(cluster.assign("a").value["fence"]))
    cancel = c.CancelRun(at=cluster.now, run_id="r1", owner="o", reason="enough")
    outcome = cluster.apply(cancel)
    assert outcome.effects == (machine.CancelAttempt(attempt_id="t1", agent_id="a1", reason="enough"),)
    assert cluster.states() == {"a": "running", "b": "cancelled", "c": "cancelled"}
    assert cluster.run()[0] == "running"
    assert cluster.apply(cancel).effects == ()
    cluster.finish("t1", fence, Result(state=State.CANCELLED, reason="enough"))
    assert cluster.run() == ("cancelled", "enough")


def test_a_cancelled_run_is_not_retried(cluster: Cluster) -> None:
    cluster.register()
    cluster.submit(a_plan(a_task(retry=retrying(failure=5))))
    fence = int(str(cluster.assign().value["fence"]))
    cluster.apply(c.CancelRun(at=cluster.now, run_id="r1", owner="o", reason="enough"))
    cluster.finish("t1", fence, FAILED)
    assert cluster.run()[0] == "failed"


def test_a_lost_agent_loses_its_attempts_and_they_are_tried_again(cluster: Cluster) -> None:
    epoch = cluster.register()
    cluster.submit(a_plan(a_task(retry=retrying(lost=3))))
    fence = int(str(cluster.assign().value["fence"]))
    lose = c.LoseAgent(at=cluster.now, agent_id="a1", epoch=epoch, reason="silent")
    assert cluster.apply(lose).value == {"lost": ["t1"]}
    assert cluster.states() == {"main": "queued"}
    assert cluster.finish("t1", fence).value == {"refused": ["t1"]}
    again = cluster.apply(lose)
    assert again.error is not None and again.error.code is Code.CONFLICT


def test_an_agent_that_restarts_or_returns_gets_a_higher_epoch(cluster: Cluster) -> None:
    assert [cluster.register(), cluster.register(), cluster.register(incarnation="i2")] == [1, 1, 2]
    cluster.apply(c.LoseAgent(at=1, agent_id="a1", epoch=2, reason="silent"))
    assert cluster.register(incarnation="i2") == 3


@pytest.mark.parametrize(
    ("wanted", "is_free"),
    [
        (Resources(cpus_milli=4000), True),
        (Resources(cpus_milli=4001), False),
        (Resources(memory_bytes=(1 << 30) + 1), False),
        (Resources(gpus=1), False),
    ],
)
def test_an_assignment_never_exceeds_the_agents_room(cluster: Cluster, wanted: Resources, is_free: bool) -> None:
    cluster.register()
    cluster.submit(a_plan(a_task(resources=wanted)))
    assert (cluster.assign().error is None) is is_free


def test_places_run_out(cluster: Cluster) -> None:
    cluster.register(slots=1)
    cluster.submit(a_plan(a_task("a"), a_task("b")))
    assert cluster.assign("a", "t1").error is None
    assert cluster.assign("b", "t2").error is not None


def test_a_draining_or_foreign_epoch_agent_takes_nothing(cluster: Cluster) -> None:
    cluster.register()
    cluster.submit()
    assert cluster.assign(epoch=2).error is not None
    cluster.apply(c.SetAgentDrain(at=1, agent_id="a1", is_draining=True))
    assert cluster.assign().error is not None
    cluster.apply(c.SetAgentDrain(at=1, agent_id="a1", is_draining=False))
    assert cluster.assign().error is None


def test_a_refused_command_changes_nothing(cluster: Cluster) -> None:
    cluster.submit(request_key="k", request_sha256="s")
    before = list(cluster.db.iterdump())
    cluster.submit(run_id="r2", request_key="k", request_sha256="t")
    cluster.assign("nothing")
    after = list(cluster.db.iterdump())
    assert [line for line in after if '"meta"' not in line] == [line for line in before if '"meta"' not in line]


def test_steps_keep_how_they_ended_and_open_ones_end_with_their_attempt(cluster: Cluster) -> None:
    cluster.register()
    cluster.submit()
    fence = int(str(cluster.assign().value["fence"]))
    key = {"attempt_id": "t1", "fence": fence, "at": 5}
    cluster.report(c.Accepted(**key, notes=("images were not used",)), c.StepStarted(**key, step="1", container="x"))
    cluster.report(c.StepStarted(**key, step="1"), c.StepFinished(**key, step="1", result=FAILED))
    cluster.report(c.StepStarted(**key, step="2"), c.Finished(**key, result=FAILED))
    rows = cluster.db.execute("SELECT id, state, exit_code, container FROM step ORDER BY id").fetchall()
    assert rows == [("1", "failed", 1, "x"), ("2", "failed", None, "")]
    assert json.loads(cluster.db.execute("SELECT notes FROM run").fetchone()[0]) == ["images were not used"]


def test_actions_are_versioned_by_their_text(cluster: Cluster) -> None:
    def put(sha256: str) -> machine.Outcome:
        return cluster.apply(c.PutAction(at=1, project="default", owner="o", name="n", text=sha256, sha256=sha256))

    assert [put("a").value, put("a").value, put("b").value] == [
        {"version": 1, "is_new": True}, {"version": 1, "is_new": False}, {"version": 2, "is_new": True},
    ]  # fmt: skip
    delete = c.DeleteAction(at=1, project="default", name="n")
    assert cluster.apply(delete).value == {"versions": 2}
    refused = cluster.apply(delete)
    assert refused.error is not None and refused.error.code is Code.NOT_FOUND


def test_a_cluster_is_founded_once(cluster: Cluster) -> None:
    assert cluster.apply(c.FoundCluster(at=1, cluster_id="x")).error is None
    assert cluster.apply(c.FoundCluster(at=1, cluster_id="x")).error is None
    other = cluster.apply(c.FoundCluster(at=1, cluster_id="y"))
    assert other.error is not None and other.error.code is Code.CONFLICT


def test_the_same_commands_give_the_same_tables() -> None:
    def history() -> list[str]:
        cluster = Cluster()
        cluster.register()
        cluster.submit(a_plan(a_task("a", retry=retrying(failure=2)), a_task("b", needs=("a",))))
        for result in (FAILED, FAILED, DONE):
            cluster.run_to("a", result)
            cluster.now += 100_000
        cluster.run_to("b", DONE)
        dump = list(cluster.db.iterdump())
        cluster.db.close()
        return dump

    assert history() == history()


@pytest.mark.slow
def test_one_command_may_have_as_many_events_as_the_runs_it_ends_have_tasks(cluster: Cluster) -> None:
    turn = Turn(cluster.db, 7, 1)
    for _ in range(100_000):
        turn.record("r1", "task_finished")
    turn.write_events()
    later = Turn(cluster.db, 8, 1)
    later.record("r1", "run_finished")
    later.write_events()
    assert cluster.kinds()[-1] == "run_finished"


def test_an_attempt_ends_although_its_task_cannot_be_read(cluster: Cluster) -> None:
    epoch = cluster.register()
    cluster.submit(a_plan(a_task(retry=retrying(lost=3))))
    cluster.submit(a_plan(a_task(retry=retrying(lost=3))), run_id="r2")
    cluster.assign()
    cluster.assign(attempt_id="t2", run_id="r2")
    cluster.db.execute("UPDATE task SET spec = '{' WHERE run_id = 'r1'")
    outcome = cluster.apply(c.LoseAgent(at=cluster.now, agent_id="a1", epoch=epoch, reason="silent"))
    assert outcome.error is None
    assert (cluster.run("r1")[0], cluster.states("r2")) == ("lost", {"main": "queued"})
