"""The state machine where it fires schedules: each time decided once, what overlaps, what is set and paused."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, cast

import pytest

from pistage.core import commands as c
from pistage.core import commands_of_schedules as s
from pistage.core import limits, machine
from pistage.core.cron import Overlap, Schedule
from pistage.core.plan import Concurrency, Plan
from pistage.errors import Code
from tests.core.plans import a_plan
from tests.core.test_machine import DONE, Cluster

HOUR = 3_600_000
DEFAULT = a_plan(name="night")


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    cluster = Cluster()
    yield cluster
    cluster.db.close()


def put(cluster: Cluster, *names: str, definition: str = "night", source: str = "text", **said: Any) -> machine.Outcome:
    schedule = Schedule(cron="0 * * * *", **said)
    new = tuple(s.NewSchedule(id=f"id-{name}", name=name, schedule=schedule) for name in names or ("night",))
    return cluster.apply(
        s.PutSchedules(
            at=cluster.now,
            since=cluster.now,
            project="default",
            owner="o",
            definition=definition,
            schedules=new,
            source=source,
        )
    )


def fence(cluster: Cluster, name: str = "night") -> int:
    return int(cluster.db.execute("SELECT fence FROM schedule WHERE name = ?", (name,)).fetchone()[0])


def decided_until(cluster: Cluster, name: str = "night") -> int:
    return int(cluster.db.execute("SELECT decided_until FROM schedule WHERE name = ?", (name,)).fetchone()[0])


def fire(
    cluster: Cluster, nominal: int, name: str = "night", plan: Plan | None = DEFAULT, **said: Any
) -> str:  # fmt: skip
    """The verdict; without a plan it makes no run."""
    one = s.Fire(
        schedule_id=f"id-{name}", fence=said.pop("fence", None) or fence(cluster, name), nominal=nominal,
        after=said.pop("after", None) or decided_until(cluster, name),
        plan=None if plan is None else 0, run_id=f"run-{name}-{nominal}",
    )  # fmt: skip
    plans = () if plan is None else (s.FirePlan(plan=plan),)
    outcome = cluster.apply(s.FireSchedules(at=cluster.now, plans=plans, fires=(replace(one, **said),)))
    assert outcome.error is None
    return cast(list[str], outcome.value["verdicts"])[0]


def history(cluster: Cluster, name: str = "night") -> list[tuple[int, str, str]]:
    rows = cluster.db.execute(
        "SELECT nominal, outcome, reason FROM fire WHERE schedule_id = ? ORDER BY nominal", (f"id-{name}",)
    )
    return rows.fetchall()


def runs(cluster: Cluster) -> list[tuple[str, int, str]]:
    return cluster.db.execute("SELECT schedule_id, nominal, state FROM run ORDER BY nominal, id").fetchall()


def test_a_time_makes_one_run_that_says_what_started_it(cluster: Cluster) -> None:
    put(cluster)
    assert fire(cluster, 2 * HOUR) == ""
    assert fire(cluster, 2 * HOUR, run_id="another") == "another leader decided meanwhile"
    assert runs(cluster) == [("id-night", 2 * HOUR, "queued")]
    row = cluster.db.execute("SELECT started_by, owner, source, name, number FROM run").fetchone()
    assert row == (
        f'{{"depth":0,"kind":"schedule","name":"night","nominal":{2 * HOUR},"run_id":""}}',
        "o",
        "text",
        "night",
        1,
    )
    assert history(cluster) == [(2 * HOUR, "ran", "")]


def test_times_are_decided_in_their_order(cluster: Cluster) -> None:
    put(cluster)
    fire(cluster, 3 * HOUR)
    assert fire(cluster, 2 * HOUR) == "another leader decided meanwhile"


def test_who_does_not_know_of_all_that_is_decided_passes_over_nothing(cluster: Cluster) -> None:
    put(cluster)
    before = decided_until(cluster)
    fire(cluster, 2 * HOUR)
    assert fire(cluster, 4 * HOUR, after=before) == "another leader decided meanwhile"
    assert history(cluster) == [(2 * HOUR, "ran", "")]


def test_who_knows_an_older_schedule_decides_nothing(cluster: Cluster) -> None:
    put(cluster)
    old = fence(cluster)
    put(cluster, source="another text")
    assert fire(cluster, 2 * HOUR, fence=old) == "the schedule has changed"
    assert fire(cluster, 2 * HOUR, name="night", schedule_id="gone") == "the schedule has changed"
    assert runs(cluster) == []


def test_what_is_set_again_unchanged_goes_on_and_what_is_dropped_is_gone(cluster: Cluster) -> None:
    put(cluster, "night", "day")
    fire(cluster, 2 * HOUR)
    before = fence(cluster)
    put(cluster, "night")
    assert fence(cluster) == before
    assert [name for (name,) in cluster.db.execute("SELECT name FROM schedule")] == ["night"]
    assert fire(cluster, 2 * HOUR) == "another leader decided meanwhile"


def test_a_change_does_not_decide_anything_again(cluster: Cluster) -> None:
    put(cluster)
    fire(cluster, 5 * HOUR)
    put(cluster, jitter_ms=1)
    assert fire(cluster, 5 * HOUR) == "another leader decided meanwhile"
    assert fire(cluster, 6 * HOUR) == ""


def test_what_came_before_it_was_set_or_resumed_is_over(cluster: Cluster) -> None:
    cluster.now = 3 * HOUR
    put(cluster)
    assert fire(cluster, 2 * HOUR) == "another leader decided meanwhile"
    cluster.apply(
        s.EnableSchedule(at=cluster.now, since=cluster.now, project="default", name="night", is_enabled=False)
    )
    assert fire(cluster, 4 * HOUR) == "the schedule has changed"
    cluster.now = 5 * HOUR
    cluster.apply(s.EnableSchedule(at=cluster.now, since=cluster.now, project="default", name="night", is_enabled=True))
    assert (fire(cluster, 5 * HOUR), fire(cluster, 6 * HOUR)) == ("another leader decided meanwhile", "")


def test_what_is_due_already_is_decided_by_what_it_is_changed_to_unless_other_times_are_asked_for(
    cluster: Cluster,
) -> None:
    put(cluster)
    cluster.now = 9 * HOUR
    put(cluster, jitter_ms=1, source="another text")
    assert fire(cluster, 2 * HOUR) == ""
    put(cluster, timezone="Asia/Shanghai")
    assert fire(cluster, 3 * HOUR) == "another leader decided meanwhile"


def test_one_that_was_to_run_once_and_is_paused_by_hand_stays_paused(cluster: Cluster) -> None:
    put(cluster, is_once=True)
    fire(cluster, HOUR)
    cluster.apply(s.EnableSchedule(at=1, since=1, project="default", name="night", is_enabled=False))
    put(cluster, is_once=True)
    assert cluster.db.execute("SELECT is_enabled, paused_reason FROM schedule").fetchone() == (0, "somebody paused it")


def test_what_somebody_paused_stays_paused_when_it_is_set_again(cluster: Cluster) -> None:
    put(cluster)
    cluster.apply(s.EnableSchedule(at=1, since=1, project="default", name="night", is_enabled=False))
    put(cluster, source="another text")
    paused = cluster.db.execute("SELECT is_enabled, paused_reason FROM schedule").fetchone()
    assert paused == (0, "somebody paused it")


def test_one_that_is_to_run_once_is_paused_after_its_run_and_armed_by_being_set_again(cluster: Cluster) -> None:
    put(cluster, is_once=True)
    fire(cluster, HOUR)
    assert cluster.db.execute("SELECT is_enabled, paused_reason FROM schedule").fetchone() == (
        0, "it was to run once, and did",
    )  # fmt: skip
    assert fire(cluster, 2 * HOUR) == "the schedule has changed"
    put(cluster, is_once=True)
    assert fire(cluster, 2 * HOUR) == ""


def test_one_that_is_to_run_once_waits_for_a_time_that_is_not_missed(cluster: Cluster) -> None:
    put(cluster, is_once=True)
    fire(cluster, HOUR, plan=None, reason="no leader")
    assert fire(cluster, 2 * HOUR) == ""


# --- what overlaps ------------------------------------------------------------------------------------------------


def test_a_time_that_overlaps_is_passed_over_and_says_with_what(cluster: Cluster) -> None:
    cluster.register()
    put(cluster)
    fire(cluster, HOUR)
    fire(cluster, 2 * HOUR)
    ((_, ran, _), (_, skipped, reason)) = history(cluster)
    assert (ran, skipped) == ("ran", "skipped")
    assert reason.startswith("overlap: ") and "night#1 is not over" in reason
    cluster.run_to("main", DONE, f"run-night-{HOUR}")
    fire(cluster, 3 * HOUR)
    assert [nominal for _, nominal, _ in runs(cluster)] == [HOUR, 3 * HOUR]


def test_a_run_by_hand_overlaps_with_nothing(cluster: Cluster) -> None:
    put(cluster)
    cluster.submit(a_plan(name="night"))
    fire(cluster, HOUR)
    assert history(cluster) == [(HOUR, "ran", "")]


def test_runs_that_queue_begin_one_after_the_other_and_not_without_end(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "SCHEDULE_QUEUED_MAX", 2)
    cluster.register()
    put(cluster, overlap=Overlap.QUEUE)
    for hour in (1, 2, 3):
        fire(cluster, hour * HOUR)
    assert [what for _, what, _ in history(cluster)] == ["ran", "ran", "skipped"]
    assert cluster.assign("main", "t1", f"run-night-{HOUR}").error is None
    assert cluster.assign("main", "t2", f"run-night-{2 * HOUR}").error is not None


def test_a_run_takes_the_place_of_the_old_one(cluster: Cluster) -> None:
    put(cluster, overlap=Overlap.CANCEL_OLD)
    fire(cluster, HOUR)
    fire(cluster, 2 * HOUR)
    assert [state for *_, state in runs(cluster)] == ["cancelled", "queued"]


def test_a_group_of_the_definition_decides_what_overlaps(cluster: Cluster) -> None:
    put(cluster, "night", "day")
    plan = replace(a_plan(name="night"), concurrency=Concurrency(group="deploy"))
    fire(cluster, HOUR, plan=plan)
    fire(cluster, HOUR, "day", plan=plan)
    fire(cluster, 2 * HOUR, plan=plan)
    assert [what for _, what, _ in history(cluster)] == ["ran", "ran"]
    assert {row[0] for row in cluster.db.execute("SELECT concurrency FROM run")} == {"default/deploy"}


# --- what makes no run --------------------------------------------------------------------------------------------


def test_times_that_were_missed_are_one_row_and_are_over(cluster: Cluster) -> None:
    put(cluster)
    fire(cluster, HOUR, plan=None, until=5 * HOUR, count=5, reason="no leader, catch_up none")
    row = cluster.db.execute("SELECT nominal, until, count, outcome, reason FROM fire").fetchone()
    assert row == (HOUR, 5 * HOUR, 5, "missed", "no leader, catch_up none")
    assert (fire(cluster, 5 * HOUR), fire(cluster, 6 * HOUR)) == ("another leader decided meanwhile", "")


def test_a_time_whose_plan_cannot_be_made_says_so_and_the_next_one_fires(cluster: Cluster) -> None:
    put(cluster)
    fire(cluster, HOUR, plan=None, outcome="failed", reason="no action 'x'")
    fire(cluster, 2 * HOUR)
    assert history(cluster) == [(HOUR, "failed", "no action 'x'"), (2 * HOUR, "ran", "")]


def test_the_history_is_as_long_as_is_kept(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "FIRES_KEPT", 3)
    put(cluster)
    for hour in range(1, 8):
        fire(cluster, hour * HOUR, plan=None)
    assert [nominal for nominal, *_ in history(cluster)] == [5 * HOUR, 6 * HOUR, 7 * HOUR]


def test_of_many_that_fire_together_each_is_taken_or_refused_by_itself(cluster: Cluster) -> None:
    names = [f"s{n}" for n in range(4)]
    put(cluster, *names)
    after = decided_until(cluster, "s1")
    fire(cluster, HOUR, "s1")
    fires = tuple(
        s.Fire(schedule_id=f"id-{name}", fence=fence(cluster, name), after=after, nominal=HOUR, plan=0, run_id=name)
        for name in names
    )
    command = s.FireSchedules(at=cluster.now, plans=(s.FirePlan(plan=a_plan(name="night")),), fires=fires)
    outcome = cluster.apply(command)
    assert outcome.value["verdicts"] == ["", "another leader decided meanwhile", "", ""]
    assert set(outcome.schedules) == {f"id-{name}" for name in names}
    numbers = [number for (number,) in cluster.db.execute("SELECT number FROM run ORDER BY number")]
    assert numbers == [1, 2, 3, 4]


# --- what is refused ----------------------------------------------------------------------------------------------


def test_a_name_belongs_to_one_definition(cluster: Cluster) -> None:
    put(cluster)
    refused = put(cluster, definition="other").error
    assert refused is not None and refused.code is Code.CONFLICT and "'night'" in refused.message


def test_two_of_one_name_are_refused(cluster: Cluster) -> None:
    refused = put(cluster, "night", "night")
    assert refused.error is not None and refused.error.code is Code.INVALID


def test_one_that_cannot_be_read_is_replaced_by_being_set_again(cluster: Cluster) -> None:
    put(cluster)
    since = decided_until(cluster)
    cluster.db.execute("UPDATE schedule SET spec = '{'")
    cluster.now += 1
    assert put(cluster).error is None
    assert decided_until(cluster) == since + 1
    assert fire(cluster, 3_600_000) == ""


def test_there_are_no_more_than_a_leader_can_know(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "SCHEDULES_MAX", 2)
    assert put(cluster, "a", "b").error is None
    assert put(cluster, "b", "c").error is None  # the other one goes
    assert put(cluster, "d", definition="more").error is not None


@pytest.mark.parametrize(
    "command",
    [
        s.DeleteSchedule(at=1, project="default", name="x"),
        s.EnableSchedule(at=1, since=1, project="default", name="x", is_enabled=True),
    ],
)
def test_what_is_not_there_is_not_found(cluster: Cluster, command: c.Command) -> None:
    refused = cluster.apply(command).error
    assert refused is not None and refused.code is Code.NOT_FOUND


def test_what_is_removed_leaves_its_runs_and_nothing_else(cluster: Cluster) -> None:
    put(cluster)
    fire(cluster, HOUR)
    cluster.apply(s.DeleteSchedule(at=1, project="default", name="night"))
    assert cluster.db.execute("SELECT COUNT(*) FROM fire").fetchone() == (0,)
    assert runs(cluster) == [("id-night", HOUR, "queued")]


def test_a_run_that_is_retried_is_for_the_same_time_and_none_of_the_schedules_own(cluster: Cluster) -> None:
    cluster.register()
    put(cluster)
    fire(cluster, HOUR)
    cluster.run_to("main", DONE, f"run-night-{HOUR}")
    retried = c.RetryRun(at=cluster.now, run_id="again", retry_of=f"run-night-{HOUR}", owner="o")
    assert cluster.apply(retried).error is None
    row = cluster.db.execute("SELECT nominal, schedule_id, concurrency FROM run WHERE id = 'again'").fetchone()
    assert row == (HOUR, None, "default/schedule night")
