"""Submissions: a batch leaves what as many single submissions leave, once for each key."""

from collections.abc import Iterator
from dataclasses import replace

import pytest

from pistage.core import commands as c
from pistage.core import limits, machine
from pistage.core.plan import Plan, When
from pistage.errors import Code
from tests.core.plans import a_plan, a_task
from tests.core.test_machine import DONE, Cluster

PLANS = (
    a_plan(a_task("a"), a_task("b", needs=("a",)), a_task("c", needs=("b",))),
    a_plan(a_task("a", skip_reason="not today"), a_task("b", needs=("a",)), name="other"),
    a_plan(a_task("a", skip_reason="not today"), a_task("b", needs=("a",), when=When.FAILURE)),
    replace(a_plan(a_task("ä", "echo ü")), priority=7, queue="slow"),
)
TABLES = ("run", "task", "pipeline")


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    cluster = Cluster()
    yield cluster
    cluster.db.close()


def a_batch(*plan_of: int, plans: tuple[Plan, ...] = PLANS, prefix: str = "r", **fields: object) -> c.SubmitRuns:
    runs = tuple(c.NewRun(run_id=f"{prefix}{n:04}", plan=plan) for n, plan in enumerate(plan_of))
    given = {"at": 1_000, "project": "default", "owner": "o", "plans": plans, "runs": runs, "source": "text"}
    return c.SubmitRuns(**(given | fields))


def singles(batch: c.SubmitRuns) -> list[c.SubmitRun]:
    shared = {"at": batch.at, "project": batch.project, "owner": batch.owner, "source": batch.source}
    return [c.SubmitRun(run_id=run.run_id, plan=batch.plans[run.plan], **shared) for run in batch.runs]


def tables(cluster: Cluster) -> dict[str, list[tuple[object, ...]]]:
    """What the state holds of runs; events in their order, without their ids."""
    rows = {name: cluster.db.execute(f"SELECT * FROM {name} ORDER BY 1, 2, 3").fetchall() for name in TABLES}
    rows["event"] = cluster.db.execute("SELECT run_id, at, kind, fields FROM event ORDER BY id").fetchall()
    return rows


def test_a_batch_leaves_the_tables_that_as_many_single_submissions_leave(cluster: Cluster) -> None:
    one_by_one = Cluster()
    batch = a_batch(0, 1, 0, 2, 3, 3, 1, 2, 0)
    outcome = cluster.apply(batch)
    outcomes = [one_by_one.apply(command) for command in singles(batch)]
    assert tables(cluster) == tables(one_by_one)
    assert outcome.value["items"] == [{"id": one.value["run_id"], "number": one.value["number"]} for one in outcomes]
    assert outcome.effects == tuple(effect for one in outcomes for effect in one.effects) != ()
    assert outcome.runs == tuple(run for one in outcomes for run in one.runs)
    one_by_one.db.close()


def test_runs_of_a_batch_go_on_as_any_other(cluster: Cluster) -> None:
    cluster.register()
    cluster.apply(a_batch(0, 0))
    for task in ("a", "b", "c"):
        cluster.run_to(task, DONE, "r0001")
    assert (cluster.run("r0001")[0], cluster.run("r0000")[0]) == ("succeeded", "queued")


def test_numbers_go_on_through_batches_and_single_runs(cluster: Cluster) -> None:
    cluster.submit()
    assert cluster.apply(a_batch(0, 1, 0)).value["items"] == [
        {"id": "r0000", "number": 2}, {"id": "r0001", "number": 1}, {"id": "r0002", "number": 3},
    ]  # fmt: skip
    assert cluster.submit(run_id="last").value["number"] == 4


def test_a_repeated_batch_is_answered_with_the_runs_it_made(cluster: Cluster) -> None:
    key = {"request_key": "k", "request_sha256": "s"}
    first = cluster.apply(a_batch(0, 1, **key))
    before = tables(cluster)
    again = cluster.apply(a_batch(0, 1, prefix="x", **key))
    assert (first.value["is_new"], again.value) == (True, {**first.value, "is_new": False})
    for other in (a_batch(0, prefix="y", request_key="k", request_sha256="t"), *singles(a_batch(0, prefix="z"))):
        refused = cluster.apply(replace(other, request_key="k", request_sha256="t"))
        assert refused.error is not None and refused.error.code is Code.CONFLICT
    assert tables(cluster) == before


def test_a_batch_that_cannot_be_made_whole_leaves_nothing(cluster: Cluster) -> None:
    with pytest.raises(ValueError, match="no plan"):
        a_batch(0, len(PLANS))
    cluster.submit(run_id="r0001")
    before = tables(cluster)
    cluster.db.execute("BEGIN")
    with pytest.raises(Exception, match="UNIQUE"):  # a bug of the proposer's: the process stops, uncommitted
        machine.apply(cluster.db, 9, a_batch(0, 0))
    cluster.db.execute("ROLLBACK")
    assert tables(cluster) == before


def test_requests_are_forgotten_a_few_at_a_time_and_count_for_nothing_until_then(cluster: Cluster) -> None:
    for n in range(40):
        cluster.submit(run_id=f"r{n}", request_key=f"k{n}", request_sha256="s")
    cluster.now += limits.IDEMPOTENCY_KEPT_MS + 1
    fresh = cluster.submit(run_id="new", request_key="k9", request_sha256="t")
    assert fresh.value["is_new"] is True
    left = []
    for n in range(3):
        left.append(cluster.db.execute("SELECT COUNT(*) FROM request").fetchone()[0])
        cluster.submit(run_id=f"more{n}", request_key=f"more{n}", request_sha256="s")
    assert left[0] < 40 and left[2] < left[1] < left[0]
    assert cluster.submit(run_id="x", request_key="k9", request_sha256="t").value["run_id"] == "new"


def test_the_end_of_a_task_that_nothing_waits_for_does_not_read_the_whole_run(cluster: Cluster) -> None:
    cluster.register()
    cluster.submit(a_plan(*(a_task(f"t{n}") for n in range(100))))
    seen: list[str] = []
    cluster.db.set_trace_callback(seen.append)
    cluster.run_to("t0", DONE)
    cluster.db.set_trace_callback(None)
    assert not any("ORDER BY position" in statement and "FROM task" in statement for statement in seen)
