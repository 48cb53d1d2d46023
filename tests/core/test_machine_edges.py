"""The state machine at its edges: what is unknown, repeated or not for it, and what masters say of themselves."""

from dataclasses import dataclass
from typing import Any, cast

import pytest

from pistage.core import commands as c
from pistage.core import machine
from pistage.core.model import State
from pistage.core.plan import Resources
from pistage.errors import Code
from tests.core.plans import a_plan, a_task
from tests.core.test_machine import DONE, FAILED, Cluster


def code_of(outcome: machine.Outcome) -> Code | None:
    return None if outcome.error is None else outcome.error.code


def tables(cluster: Cluster) -> list[str]:
    return [line for line in cluster.db.iterdump() if "'applied_" not in line]


@pytest.mark.parametrize(
    ("command", "code"),
    [
        (c.CancelRun(at=1, run_id="r9", owner="o", reason="x"), Code.NOT_FOUND),
        (c.SetAgentDrain(at=1, agent_id="a9", is_draining=True), Code.NOT_FOUND),
        (c.DeleteAction(at=1, project="default", name="none"), Code.NOT_FOUND),
        (c.LoseAgent(at=1, agent_id="a9", epoch=1, reason="x"), Code.CONFLICT),
        (c.LoseAgent(at=1, agent_id="a1", epoch=7, reason="x"), Code.CONFLICT),
        (c.CancelTask(at=1, run_id="r9", task="main", owner="o", reason="x"), Code.NOT_FOUND),
        (c.CancelTask(at=1, run_id="r1", task="none", owner="o", reason="x"), Code.NOT_FOUND),
        (c.SetRunPriority(at=1, run_id="r9", priority=3, owner="o"), Code.NOT_FOUND),
        (c.ExpireTask(at=1, run_id="r9", position=0), Code.CONFLICT),
        (c.ExpireTask(at=9_999_999, run_id="r1", position=0), Code.CONFLICT),
        (c.RetryRun(at=1, run_id="r2", retry_of="r9", owner="o"), Code.NOT_FOUND),
        (c.RetryRun(at=1, run_id="r2", retry_of="r1", owner="o"), Code.CONFLICT),
        (c.DeleteQueue(at=1, name="none"), Code.NOT_FOUND),
        (c.RemoveAgent(at=1, agent_id="a9"), Code.NOT_FOUND),
    ],
    ids=lambda value: getattr(value, "kind", ""),
)
def test_what_is_about_nothing_known_is_refused_and_changes_nothing(command: c.Command, code: Code) -> None:
    cluster = Cluster()
    cluster.register()
    cluster.submit()
    before = tables(cluster)
    assert code_of(cluster.apply(command)) is code
    assert tables(cluster) == before


def test_a_command_of_no_known_kind_is_a_bug_and_no_outcome() -> None:
    @dataclass
    class Newer:
        at: int = 1

    cluster = Cluster()
    with pytest.raises(AssertionError):
        cluster.apply(cast(Any, Newer()))


def test_an_event_of_no_known_kind_is_a_bug_and_no_verdict() -> None:
    @dataclass
    class Newer:
        attempt_id: str
        fence: int
        at: int = 1

    cluster = Cluster()
    cluster.register()
    cluster.submit()
    fence = int(str(cluster.assign().value["fence"]))
    with pytest.raises(AssertionError):
        cluster.report(cast(Any, Newer("t1", fence)))


def test_a_step_ends_once_and_an_attempt_is_accepted_once() -> None:
    cluster = Cluster()
    cluster.register()
    cluster.submit()
    fence = int(str(cluster.assign().value["fence"]))
    accepted = c.Accepted(at=5, attempt_id="t1", fence=fence, runtime="docker", notes=("a note",))
    ended = c.StepFinished(at=6, attempt_id="t1", fence=fence, step="1", result=DONE)
    otherwise = c.StepFinished(at=7, attempt_id="t1", fence=fence, step="1", result=FAILED)
    cluster.report(accepted, accepted, ended, otherwise)
    assert cluster.db.execute("SELECT state, finished_at FROM step").fetchall() == [("succeeded", 6)]
    assert cluster.kinds().count("attempt_accepted") == cluster.kinds().count("step_finished") == 1
    assert cluster.db.execute("SELECT notes FROM run").fetchone() == ('["a note"]',)


def test_a_result_that_comes_again_with_another_outcome_changes_nothing() -> None:
    cluster = Cluster()
    cluster.register()
    cluster.submit()
    fence = int(str(cluster.assign().value["fence"]))
    cluster.finish("t1", fence)
    before = tables(cluster)
    assert cluster.finish("t1", fence, FAILED).value["refused"] == []
    assert tables(cluster) == before


def test_what_a_lost_attempt_reports_is_refused_also_while_nobody_has_its_task() -> None:
    cluster = Cluster()
    cluster.register()
    cluster.submit(a_plan(a_task()))
    fence = int(str(cluster.assign().value["fence"]))
    cluster.apply(c.LoseAgent(at=cluster.now, agent_id="a1", epoch=1, reason="silent"))
    assert cluster.finish("t1", fence).value["refused"] == ["t1"]
    assert cluster.finish("t7", fence).value["refused"] == ["t7"]
    assert cluster.run()[0] == State.LOST


def test_masters_are_known_until_the_membership_forgets_them() -> None:
    cluster = Cluster()
    for node_id, version in (("m1", 1), ("m2", 2), ("m1", 2)):
        cluster.apply(
            c.RegisterMaster(
                at=cluster.now, node_id=node_id, url=f"http://{node_id}", version="1", command_version=version
            )
        )
    assert cluster.db.execute("SELECT id, command_version FROM master ORDER BY id").fetchall() == [("m1", 2), ("m2", 2)]
    machine.forget_all_but(cluster.db, ["m2"])
    assert cluster.db.execute("SELECT id FROM master").fetchall() == [("m2",)]


def test_the_version_of_the_commands_never_falls() -> None:
    cluster = Cluster()
    assert machine.command_version(cluster.db) == 1
    for asked, now in ((3, 3), (2, 3)):
        assert cluster.apply(c.RaiseVersion(at=1, command_version=asked)).value == {"command_version": now}
    assert machine.command_version(cluster.db) == 3


def test_a_history_that_has_no_room_for_more_is_cut_off_and_stops_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pistage.core.machine.outcome._EVENT_BITS", 2)
    cluster = Cluster()
    assert cluster.submit(a_plan(*(a_task(f"t{n}") for n in range(9)))).error is None
    assert len(cluster.kinds()) == 4


def test_a_number_that_no_table_can_hold_is_refused_and_stops_nobody() -> None:
    cluster = Cluster()
    huge = a_task(resources=Resources(memory_bytes=1 << 70))
    assert code_of(cluster.submit(a_plan(huge))) is Code.INVALID
    assert cluster.db.execute("SELECT COUNT(*) FROM run").fetchone() == (0,)
    assert cluster.submit().error is None
