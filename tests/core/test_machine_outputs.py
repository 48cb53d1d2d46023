"""The state machine: pins, what is said of retention, and output that is dropped."""

from collections.abc import Iterator

import pytest

from pistage.core import commands as c
from pistage.core import commands_of_output as of_output
from pistage.core import machine
from pistage.core.model import Result, State, StreamEnd
from pistage.core.plan import FailureClass
from pistage.core.retention import Drop, Retention
from pistage.errors import Code
from tests.core.plans import a_plan, a_task, retrying
from tests.core.test_machine import DONE, FAILED, Cluster


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    cluster = Cluster()
    cluster.register()
    yield cluster
    cluster.db.close()


def pin(cluster: Cluster, run_id: str = "r1", *, is_pinned: bool = True) -> machine.Outcome:
    return cluster.apply(of_output.PinRun(at=cluster.now, run_id=run_id, is_pinned=is_pinned, owner="o"))


def drop(cluster: Cluster, *run_ids: str) -> machine.Outcome:
    drops = tuple(Drop(run_id=run_id, reason="old") for run_id in run_ids)
    return cluster.apply(of_output.DropOutput(at=cluster.now, drops=drops))


def about(cluster: Cluster, run_id: str = "r1") -> tuple[object, ...]:
    sql = "SELECT is_pinned, output_bytes, output_dropped_at, output_dropped_reason FROM run WHERE id = ?"
    return tuple(cluster.db.execute(sql, (run_id,)).fetchone())


def print_and_end(cluster: Cluster, *ends: tuple[int, int, int], run_id: str = "r1", result: Result = DONE) -> None:
    """One attempt; a step for each of stdout's length, what of that is missing, and stderr's length."""
    attempt_id = f"{run_id}-{cluster.index}"
    fence = int(str(cluster.assign(attempt_id=attempt_id, run_id=run_id).value["fence"]))
    key = {"at": cluster.now, "attempt_id": attempt_id, "fence": fence}
    steps = [
        c.StepFinished(
            **key, step=str(number), result=result, stdout=StreamEnd(length=out, sha256="", missing=missing),
            stderr=StreamEnd(length=err, sha256=""),
        )
        for number, (out, missing, err) in enumerate(ends, 1)
    ]  # fmt: skip
    cluster.report(c.Accepted(**key), *steps, *steps, c.Finished(**key, result=result))


def test_a_run_that_has_ended_knows_how_much_its_steps_left(cluster: Cluster) -> None:
    cluster.submit(a_plan(a_task(retry=retrying(failure=1))))
    print_and_end(cluster, (100, 0, 7), result=FAILED)
    assert about(cluster) == (0, None, None, "")  # it goes on
    cluster.now += 100_000
    print_and_end(cluster, (50, 20, 0), (0, 0, 3))
    assert about(cluster) == (0, 140, None, "")


def test_a_run_without_a_step_that_ran_left_nothing(cluster: Cluster) -> None:
    cluster.submit(a_plan(a_task("a", skip_reason="not today")))
    cluster.submit(run_id="r2")
    cluster.apply(c.CancelRun(at=cluster.now, run_id="r2", owner="o", reason="x"))
    assert [about(cluster, run_id) for run_id in ("r1", "r2")] == [(0, 0, None, ""), (0, 0, None, "")]


def test_more_output_than_a_table_holds_is_counted_as_the_most_and_stops_nobody(cluster: Cluster) -> None:
    cluster.submit(a_plan(a_task()))
    most = 1 << 53
    print_and_end(cluster, *((most, 0, most) for _ in range(600)))  # their sum is beyond 64 bits
    assert about(cluster)[1] == most
    cluster.submit(a_plan(a_task()), run_id="r2")
    print_and_end(cluster, (5, most, 3), run_id="r2")  # nobody prints less than nothing
    assert about(cluster, "r2")[1] == 3


def test_a_run_is_pinned_and_unpinned_and_says_by_whom(cluster: Cluster) -> None:
    cluster.submit()  # a run that goes on may be pinned, too
    assert [pin(cluster).value, pin(cluster).value] == [{"is_new": True}, {"is_new": False}]
    assert about(cluster)[0] == 1
    assert pin(cluster, is_pinned=False).value == {"is_new": True}
    assert about(cluster)[0] == 0 and cluster.kinds()[-2:] == ["run_pinned", "run_unpinned"]
    refused = pin(cluster, "r9").error
    assert refused is not None and refused.code is Code.NOT_FOUND


def test_output_is_dropped_once_and_that_is_told_to_every_master(cluster: Cluster) -> None:
    cluster.submit()
    cluster.run_to("main", DONE)
    outcome = drop(cluster, "r1", "r1", "r9")
    assert (outcome.value, outcome.dropped, outcome.runs) == ({"dropped": ["r1"]}, ("r1",), ("r1",))
    assert about(cluster) == (0, 0, cluster.now, "old") and cluster.kinds()[-1] == "output_dropped"
    cluster.now += 1
    assert drop(cluster, "r1").dropped == () and about(cluster)[2] == cluster.now - 1
    refused = pin(cluster).error
    assert refused is not None and (refused.code, refused.message) == (Code.CONFLICT, "its output was dropped: old")
    assert pin(cluster, is_pinned=False).error is None


def test_output_of_a_run_that_goes_on_or_is_pinned_is_not_dropped_whatever_was_decided(cluster: Cluster) -> None:
    for run_id in ("r1", "r2", "r3"):
        cluster.submit(run_id=run_id)
    cluster.run_to("main", DONE, "r2")
    cluster.run_to("main", DONE, "r3")
    pin(cluster, "r2")
    assert drop(cluster, "r1", "r2", "r3").value == {"dropped": ["r3"]}
    pin(cluster, "r2", is_pinned=False)
    assert drop(cluster, "r1", "r2").value == {"dropped": ["r2"]}


def test_output_is_not_dropped_while_a_run_that_kept_tasks_of_it_goes_on_or_is_pinned(cluster: Cluster) -> None:
    cluster.submit(a_plan(a_task("a"), a_task("b", needs=("a",))))
    cluster.run_to("a", DONE)
    cluster.run_to("b", FAILED)
    for run_id, source in (("r2", "r1"), ("r3", "r2")):  # what r3 keeps from r2 stands in r1
        retry = c.RetryRun(at=cluster.now, run_id=run_id, retry_of=source, owner="o", kept=("a",))
        assert cluster.apply(retry).error is None
        assert drop(cluster, "r1").dropped == ()
        cluster.run_to("b", FAILED, run_id)
    pin(cluster, "r2")
    assert drop(cluster, "r1").dropped == ()
    pin(cluster, "r2", is_pinned=False)
    assert drop(cluster, "r1").dropped == ("r1",)


def test_what_is_said_of_retention_is_kept_for_each_project_and_forgotten(cluster: Cluster) -> None:
    def put(project: str, name: str, retention: Retention) -> None:
        command = of_output.PutRetention(at=1, project=project, name=name, retention=retention)
        assert cluster.apply(command).error is None

    put("default", "*", Retention(age_ms=5))
    put("default", "demo", Retention(bytes_max=6))
    put("other", "demo", Retention(age_ms=None, runs_max=7))
    put("default", "demo", Retention(runs_max=8))
    delete = of_output.DeleteRetention(at=1, project="default", name="*")
    assert cluster.apply(delete).error is None
    refused = cluster.apply(delete).error
    assert refused is not None and refused.code is Code.NOT_FOUND
    rows = cluster.db.execute("SELECT * FROM retention ORDER BY project, name").fetchall()
    assert rows == [("default", "demo", 90 * 86_400_000, None, 8), ("other", "demo", None, None, 7)]


def test_what_a_lost_attempt_had_reported_of_its_steps_counts(cluster: Cluster) -> None:
    cluster.submit(a_plan(a_task(retry=retrying(lost=0))))
    fence = int(str(cluster.assign().value["fence"]))
    key = {"at": cluster.now, "attempt_id": "t1", "fence": fence}
    out = StreamEnd(length=9, sha256="")
    cluster.report(c.Accepted(**key), c.StepFinished(**key, step="1", result=DONE, stdout=out))
    lost = Result(state=State.LOST, failure=FailureClass.LOST, reason="gone")
    cluster.report(c.Finished(**key, result=lost))
    assert cluster.run()[0] == "lost" and about(cluster)[1] == 9


def test_a_run_that_ended_can_be_archived_and_forgotten_and_a_live_one_cannot(cluster: Cluster) -> None:
    cluster.submit(a_plan(a_task()))
    print_and_end(cluster, (1, 0, 0))
    cluster.submit(a_plan(a_task()), run_id="r2")
    cluster.apply(of_output.ArchiveOutput(at=7, run_ids=("r1", "r2", "nobody's"), url="s3://a", place="p1"))
    cluster.apply(of_output.ArchiveOutput(at=8, run_ids=("r1",), url="s3://b", place="p2"))
    rows = cluster.db.execute("SELECT run_id, url, place, at FROM archived").fetchall()
    assert [tuple(row) for row in rows] == [("r1", "s3://a", "p1", 7)]  # of which there may be stubs by now
    cluster.apply(of_output.ForgetArchive(at=9, run_ids=("r1", "r2")))
    assert cluster.db.execute("SELECT COUNT(*) FROM archived").fetchone()[0] == 0
