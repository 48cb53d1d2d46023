"""The state machine where runs come after runs: due once for each end, decided once, and never without end."""

from collections.abc import Iterator
from typing import Any, cast

import pytest

from pistage.core import commands as c
from pistage.core import commands_of_triggers as t
from pistage.core import limits, machine
from pistage.core.model import State
from pistage.core.plan import Plan
from pistage.core.triggers.settings import After, AfterRule, Ending
from pistage.errors import Code
from tests.core.plans import a_plan, a_task
from tests.core.test_machine import DONE, FAILED, Cluster

DEPLOY = a_plan(name="deploy")


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    cluster = Cluster()
    cluster.register()
    yield cluster
    cluster.db.close()


def put(cluster: Cluster, definition: str = "deploy", *pipelines: str, state: Ending = Ending.SUCCEEDED) -> Any:
    afters = tuple(After(pipeline=name, state=state) for name in pipelines or ("build",))
    return cluster.apply(
        t.PutAfter(
            at=cluster.now, id=f"id-{definition}", project="default", owner="o", definition=definition, source="text",
            rule=AfterRule(afters=afters),
        )
    )  # fmt: skip


def end(cluster: Cluster, run_id: str, name: str = "build", result: Any = DONE) -> None:
    cluster.submit(a_plan(name=name), run_id)
    cluster.run_to("main", result, run_id)


def due(cluster: Cluster) -> list[tuple[str, str]]:
    sql = "SELECT after_id, run_id FROM after_due WHERE outcome = '' ORDER BY after_id, run_id"
    return cluster.db.execute(sql).fetchall()


def fire(
    cluster: Cluster, *runs: str, definition: str = "deploy", plan: Plan | None = DEPLOY, **said: Any
) -> list[str]:
    row = cluster.db.execute("SELECT fence FROM after_rule WHERE definition = ?", (definition,)).fetchone()
    fires = tuple(t.AfterFire(after_run=run_id, run_id=f"{definition}-{run_id}") for run_id in runs)
    given = {"fence": row[0] if row else 0, "after_id": f"id-{definition}"} | said
    outcome = cluster.apply(t.FireAfters(at=cluster.now, fires=fires, plan=plan, **given))
    assert outcome.error is None
    return cast(list[str], outcome.value["verdicts"])


def history(cluster: Cluster) -> list[tuple[str, str, str | None, str]]:
    sql = "SELECT run_id, outcome, made_run_id, reason FROM after_due WHERE outcome <> '' ORDER BY run_id"
    return cluster.db.execute(sql).fetchall()


def test_the_end_of_a_run_makes_one_that_says_so(cluster: Cluster) -> None:
    put(cluster)
    end(cluster, "r1")
    assert due(cluster) == [("id-deploy", "r1")]
    assert fire(cluster, "r1") == [""]
    assert fire(cluster, "r1") == ["it was decided before"]
    assert (due(cluster), history(cluster)) == ([], [("r1", "ran", "deploy-r1", "")])
    row = cluster.db.execute("SELECT started_by, owner, source FROM run WHERE id = 'deploy-r1'").fetchone()
    assert row == ('{"depth":1,"kind":"run","name":"build#1","nominal":null,"run_id":"r1"}', "o", "text")
    assert cluster.db.execute("SELECT COUNT(*) FROM run").fetchone() == (2,)


def test_a_leader_is_told_when_something_is_due(cluster: Cluster) -> None:
    assert not put(cluster).has_due_afters
    cluster.submit(a_plan(name="build"))
    outcome = cluster.run_to("main", DONE)
    assert outcome.has_due_afters
    cluster.submit(a_plan(name="other"), "r2")
    assert not cluster.run_to("main", DONE, "r2").has_due_afters
    assert put(cluster).has_due_afters  # the plan that it had may be another now


@pytest.mark.parametrize(
    ("wanted", "ends"),
    [(Ending.SUCCEEDED, {"done"}), (Ending.FAILED, {"failed"}), (Ending.ENDED, {"done", "failed", "cancelled"})],
)
def test_only_the_ends_that_were_asked_for_count(cluster: Cluster, wanted: Ending, ends: set[str]) -> None:
    put(cluster, state=wanted)
    end(cluster, "done")
    end(cluster, "failed", result=FAILED)
    end(cluster, "other", name="other")
    cluster.submit(a_plan(name="build"), "cancelled")
    cluster.apply(c.CancelRun(at=cluster.now, run_id="cancelled", owner="o", reason=""))
    assert {run_id for _, run_id in due(cluster)} == ends


@pytest.mark.parametrize("state", list(State))
def test_an_end_is_met_by_ends_alone(state: State) -> None:
    met = {wanted for wanted in Ending if After(pipeline="x", state=wanted).is_met_by(state)}
    assert (Ending.ENDED in met) is state.is_terminal
    assert (Ending.FAILED in met) is (state in {State.FAILED, State.LOST})
    assert (Ending.SUCCEEDED in met) is (state is State.SUCCEEDED)


def test_a_run_that_ends_as_it_is_made_counts_too(cluster: Cluster) -> None:
    put(cluster, state=Ending.ENDED)
    cluster.submit(a_plan(a_task(skip_reason="nothing to do"), name="build"))
    assert cluster.run()[0] == "succeeded"
    assert due(cluster) == [("id-deploy", "r1")]


def test_runs_of_another_project_count_for_nothing(cluster: Cluster) -> None:
    put(cluster)
    plan = a_plan(name="build")
    cluster.apply(c.SubmitRun(at=1, run_id="r1", project="other", owner="o", plan=plan, source=""))
    cluster.run_to("main", DONE)
    assert due(cluster) == []


def test_two_that_come_after_one_are_due_each(cluster: Cluster) -> None:
    put(cluster)
    put(cluster, "report", "build", "test")
    end(cluster, "r1")
    end(cluster, "r2", name="test")
    assert due(cluster) == [("id-deploy", "r1"), ("id-report", "r1"), ("id-report", "r2")]


def test_each_is_decided_by_itself_and_what_could_not_be_planned_says_why(cluster: Cluster) -> None:
    put(cluster)
    for run_id in ("r1", "r2", "r3"):
        end(cluster, run_id)
    fire(cluster, "r2")
    assert fire(cluster, "r1", "r2", "r9", plan=None, reason="no action 'x'") == [
        "", "it was decided before", "it was decided before",
    ]  # fmt: skip
    assert history(cluster) == [("r1", "failed", None, "no action 'x'"), ("r2", "ran", "deploy-r2", "")]
    assert due(cluster) == [("id-deploy", "r3")]


def test_who_knows_an_older_definition_decides_nothing_and_what_is_due_stays_so(cluster: Cluster) -> None:
    put(cluster)
    end(cluster, "r1")
    (old,) = cluster.db.execute("SELECT fence FROM after_rule").fetchone()
    put(cluster, "deploy", "another")
    assert fire(cluster, "r1", fence=old) == ["the definition has changed"]
    assert due(cluster) == [("id-deploy", "r1")]
    end(cluster, "r2")
    assert due(cluster) == [("id-deploy", "r1")]  # it comes after another now
    assert fire(cluster, "r1") == [""]


def test_what_is_removed_is_due_no_more_and_its_runs_stay(cluster: Cluster) -> None:
    put(cluster)
    end(cluster, "r1")
    fire(cluster, "r1")
    end(cluster, "r2")
    delete = t.DeleteAfter(at=1, project="default", definition="deploy")
    assert cluster.apply(delete).error is None
    end(cluster, "r3")
    assert (due(cluster), history(cluster)) == ([], [])
    assert fire(cluster, "r2") == ["it was decided before"]
    assert cluster.db.execute("SELECT COUNT(*) FROM run WHERE name = 'deploy'").fetchone() == (1,)
    gone = cluster.apply(delete).error
    assert gone is not None
    assert gone.code is Code.NOT_FOUND


@pytest.mark.parametrize(
    ("there", "new", "told"),
    [
        ([], ("a", "a"), "a → a"),
        ([("b", "a")], ("a", "b"), "a → b → a"),
        ([("b", "a"), ("c", "b"), ("d", "b")], ("a", "x", "c"), "a → b → c → a"),
    ],
)
def test_a_circle_is_refused_and_named(
    cluster: Cluster, there: list[tuple[str, ...]], new: tuple[str, ...], told: str
) -> None:
    for definition, *pipelines in there:
        assert put(cluster, definition, *pipelines).error is None
    error = put(cluster, new[0], *new[1:], state=Ending.FAILED).error
    assert error is not None
    assert error.code is Code.CONFLICT
    assert error.message.endswith(told)
    assert cluster.db.execute("SELECT COUNT(*) FROM after_rule").fetchone() == (len(there),)


def test_what_forms_no_circle_is_taken_and_one_that_is_taken_out_of_it_can_be_set(cluster: Cluster) -> None:
    for definition, *pipelines in (("b", "a"), ("c", "a", "b"), ("d", "c", "b")):
        assert put(cluster, definition, *pipelines).error is None
    assert put(cluster, "b", "d").error is not None
    assert put(cluster, "b", "a").error is None  # set again as it was
    for definition in ("c", "d"):
        cluster.apply(t.DeleteAfter(at=1, project="default", definition=definition))
    assert put(cluster, "a", "c").error is None


def test_a_chain_that_does_not_end_is_ended(cluster: Cluster) -> None:
    """A circle over names that was not seen: the definition was set first, and makes runs of its own name later."""
    put(cluster, "deploy", "build", "loop")
    end(cluster, "r0")
    last = "r0"
    for _ in range(limits.AFTER_DEPTH_MAX):
        assert due(cluster) == [("id-deploy", last)]
        assert fire(cluster, last, plan=a_plan(name="loop")) == [""]
        last = f"deploy-{last}"
        cluster.run_to("main", DONE, last)
    assert due(cluster) == []
    (row,) = [one for one in history(cluster) if one[1] == "skipped"]
    assert row == (
        last, "skipped", None, "it would be number 21 of runs that came after each other; at most 20 do"
    )  # fmt: skip


def test_a_retry_is_where_its_run_was_in_the_chain(cluster: Cluster) -> None:
    put(cluster)
    put(cluster, "check", "deploy")
    end(cluster, "r1")
    fire(cluster, "r1")
    cluster.run_to("main", FAILED, "deploy-r1")
    cluster.apply(c.RetryRun(at=1, run_id="again", retry_of="deploy-r1", owner="o"))
    cluster.run_to("main", DONE, "again")
    assert cluster.db.execute("SELECT depth FROM after_due WHERE run_id = 'again'").fetchone() == (2,)


def test_history_is_bounded_and_what_is_due_is_never_forgotten(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "FIRES_KEPT", 3)
    put(cluster)
    for number in range(8):
        cluster.now += 1
        end(cluster, f"r{number}")
        if number < 6:
            fire(cluster, f"r{number}")
    assert [run_id for run_id, *_ in history(cluster)] == ["r3", "r4", "r5"]
    assert due(cluster) == [("id-deploy", "r6"), ("id-deploy", "r7")]


def test_there_are_only_so_many(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "AFTERS_OF_PIPELINE_MAX", 2)
    monkeypatch.setattr(limits, "AFTERS_MAX", 3)
    outcomes: list[machine.Outcome] = [put(cluster, "a"), put(cluster, "b"), put(cluster, "b"), put(cluster, "c")]
    assert [outcome.error is None for outcome in outcomes] == [True, True, True, False]
    assert put(cluster, "c", "x").error is None
    assert put(cluster, "d", "y").error is not None


@pytest.mark.parametrize(
    "poison",
    [
        "UPDATE after_rule SET spec = '{' WHERE definition = 'deploy'",
        "UPDATE run SET started_by = '{' WHERE id = 'r1'",
    ],
)
def test_what_cannot_be_read_keeps_no_run_from_its_end_and_says_so(cluster: Cluster, poison: str) -> None:
    put(cluster)
    cluster.submit(a_plan(name="build"), "r1")
    cluster.db.execute(poison)
    assert cluster.run_to("main", DONE, "r1").error is None
    assert cluster.db.execute("SELECT state FROM run WHERE id = 'r1'").fetchone() == ("succeeded",)
    assert (due(cluster), history(cluster)) == (
        [],
        [("r1", "failed", None, "what the state says of it cannot be read")],
    )
