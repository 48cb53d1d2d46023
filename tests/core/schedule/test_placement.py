"""Placement: who gets which agent, and when."""

import pytest

from pistage.core import changes as ch
from pistage.core.demand import is_met
from pistage.core.plan import Constraint, Resources
from tests.core.schedule.views import GIB, Desk, needs_label

MINUTE = 60_000


@pytest.fixture
def desk() -> Desk:
    return Desk()


# --- which agent ------------------------------------------------------------------------------------------------------


def test_the_emptiest_agent_is_chosen(desk: Desk) -> None:
    desk.agent("a1", slots=2)
    desk.agent("a2", slots=4)
    desk.task("first", constraints=())
    desk.task("second")
    desk.task("third")
    places = desk.places()
    assert sorted(places.values()) == ["a1", "a2", "a2"]


def test_a_queue_that_packs_fills_one_agent_before_the_next(desk: Desk) -> None:
    desk.take(ch.QueueChanged(ch.QueueSettings(name="default", placing="pack")))
    for name in ("a1", "a2", "a3"):
        desk.agent(name, slots=3)
    for number in range(4):
        desk.task(f"t{number}")
    places = desk.places()
    assert sorted(places.values()).count("a1") == 3
    assert set(places.values()) == {"a1", "a2"}


def test_agents_are_filled_no_further_than_they_have_room(desk: Desk) -> None:
    desk.agent("a1", slots=2)
    desk.agent("a2", slots=1)
    for number in range(5):
        desk.task(f"t{number}")
    places = desk.places()
    assert sorted(places) == ["t0", "t1", "t2"]
    assert sorted(places.values()) == ["a1", "a1", "a2"]
    assert desk.places() == {}


@pytest.mark.parametrize(
    ("want", "count"),
    [
        (Resources(cpus_milli=1500), 2),
        (Resources(memory_bytes=GIB // 3), 3),
        (Resources(gpus=1), 2),
        (Resources(), 4),
    ],
)
def test_every_kind_of_room_is_reserved(desk: Desk, want: Resources, count: int) -> None:
    desk.agent("a1", gpus=2)
    for number in range(6):
        desk.task(f"t{number}", resources=want)
    assert len(desk.places()) == count
    desk.end("t0")
    assert len(desk.places()) == 1


def test_gpus_are_kept_for_those_who_ask_for_them(desk: Desk) -> None:
    desk.agent("a1", gpus=1, slots=8)
    desk.agent("a2", slots=1)
    desk.task("plain")
    assert desk.places() == {"plain": "a2"}
    desk.task("also")
    assert desk.places() == {"also": "a1"}


def test_an_agent_that_a_task_failed_on_is_taken_last_but_taken(desk: Desk) -> None:
    desk.agent("a1")
    desk.agent("a2", slots=1)
    desk.task("t", tried_on=frozenset({"a1"}))
    assert desk.places() == {"t": "a2"}
    desk.task("u", tried_on=frozenset({"a1"}))
    assert desk.places() == {"u": "a1"}


def test_a_sandbox_that_ignores_images_takes_them_but_no_networks(desk: Desk) -> None:
    desk.agent("a1", runtimes=("sandbox",), ignores_images=True)
    desk.task("image")
    desk.task("network", needs_containers=True)
    assert desk.places() == {"image": "a1"}


def test_constraints_read_labels_as_written() -> None:
    labels = {"zone": "a", "ssd": ""}
    assert is_met(Constraint(key="zone", operator="in", values=("a", "b")), labels)
    assert is_met(Constraint(key="zone", operator="not_in", values=("c",)), labels)
    assert is_met(Constraint(key="ssd", operator="present"), labels)
    assert is_met(Constraint(key="spot", operator="absent"), labels)
    assert not is_met(Constraint(key="zone", operator="absent"), labels)


def test_an_agent_that_joins_takes_what_waited_for_one_like_it(desk: Desk) -> None:
    desk.agent("a1")
    desk.task("t", constraints=needs_label("gpu=true"))
    assert desk.places() == {}
    desk.agent("a2", labels={"gpu": "true"})
    assert desk.places() == {"t": "a2"}


def test_an_agent_whose_labels_change_is_looked_at_again(desk: Desk) -> None:
    desk.agent("a1")
    desk.task("t", constraints=needs_label("ssd"))
    assert desk.places() == {}
    desk.agent("a1", labels={"ssd": ""})
    assert desk.places() == {"t": "a1"}


@pytest.mark.parametrize("how", ["draining", "away", "lost"])
def test_an_agent_that_takes_no_work_gets_none_until_it_does(desk: Desk, how: str) -> None:
    desk.agent("a1", is_draining=how == "draining", is_present=how != "away", is_up=how != "lost")
    desk.task("t")
    assert desk.places() == {}
    desk.agent("a1")
    assert desk.places() == {"t": "a1"}


def test_a_removed_agent_is_none(desk: Desk) -> None:
    desk.agent("a1")
    desk.take(ch.AgentRemoved("a1"))
    desk.task("t")
    assert desk.places() == {}


# --- gangs ------------------------------------------------------------------------------------------------------------


def test_tasks_of_a_gang_go_to_one_agent_in_one_decision(desk: Desk) -> None:
    desk.agent("a1")
    desk.agent("a2")
    for number in range(3):
        desk.task(f"t{number}", run_id="r", gang="g1")
    places = desk.places()
    assert len(places) == 3
    assert len(set(places.values())) == 1


def test_a_gang_waits_for_its_agent_and_goes_elsewhere_only_once_that_is_lost(desk: Desk) -> None:
    desk.agent("a1", slots=1)
    desk.agent("a2", slots=1)
    desk.task("one", run_id="r", gang="g1")
    home = desk.places()["one"]
    desk.task("two", run_id="r", gang="g1")
    assert desk.places() == {}
    desk.end("one", is_run_over=False)
    desk.agent(home, slots=1, is_up=False)
    other = {"a1": "a2", "a2": "a1"}[home]
    assert desk.places() == {"two": other}


def test_a_gang_goes_back_to_its_agent_when_that_comes_back_before_it_has_gone_elsewhere(desk: Desk) -> None:
    desk.agent("a1", slots=1)
    desk.agent("a2", slots=1, is_draining=True)
    desk.task("one", run_id="r", gang="g1")
    assert desk.places() == {"one": "a1"}
    desk.end("one", is_run_over=False)
    desk.agent("a1", slots=1, is_up=False)
    desk.task("two", run_id="r", gang="g1")
    assert desk.places() == {}
    desk.agent("a1", slots=1, epoch=2)
    desk.agent("a2", slots=1)
    assert desk.places() == {"two": "a1"}


def test_a_gang_whose_agent_is_removed_may_go_anywhere(desk: Desk) -> None:
    desk.agent("a1", slots=1)
    desk.task("one", run_id="r", gang="g1")
    assert desk.places() == {"one": "a1"}
    desk.task("two", run_id="r", gang="g1")
    desk.end("one", is_run_over=False)
    desk.take(ch.AgentRemoved("a1"))
    desk.agent("a2", slots=1)
    assert desk.places() == {"two": "a2"}


def test_a_gang_whose_first_placement_is_refused_may_go_anywhere(desk: Desk) -> None:
    desk.agent("a1", slots=1)
    desk.agent("a2", slots=1, labels={"big": ""})
    first = desk.task("one", run_id="r", gang="g1")
    desk.task("two", run_id="r", gang="g1")
    (placement,) = desk.decide().placements
    desk.agent(placement.agent_id, slots=1, is_draining=True)
    desk.view.give_back(first.id)
    other = {"a1": "a2", "a2": "a1"}[placement.agent_id]
    assert desk.places() == {"one": other}


# --- order ------------------------------------------------------------------------------------------------------------


def order_of(desk: Desk, count: int) -> list[str]:
    """Who is placed when there is one place at a time."""
    placed = []
    for _ in range(count):
        (name,) = desk.places()
        placed.append(name)
        desk.end(name)
    return placed


def test_the_oldest_run_goes_first_and_what_has_begun_before_what_has_not(desk: Desk) -> None:
    desk.agent(slots=1)
    desk.task("new", created_at=500)
    desk.task("old", created_at=100)
    assert order_of(desk, 2) == ["old", "new"]


def test_priority_goes_before_age(desk: Desk) -> None:
    desk.agent(slots=1)
    desk.task("old", created_at=100)
    desk.task("urgent", created_at=500, priority=5)
    assert order_of(desk, 2) == ["urgent", "old"]


def test_the_priority_of_a_queue_adds_to_that_of_a_run(desk: Desk) -> None:
    desk.agent(slots=1)
    desk.take(ch.QueueChanged(ch.QueueSettings(name="fast", priority=10)))
    desk.task("plain", priority=5)
    desk.task("fast", queue="fast")
    assert order_of(desk, 2) == ["fast", "plain"]


def test_the_priority_of_a_run_that_waits_can_be_changed(desk: Desk) -> None:
    desk.agent(slots=1)
    desk.task("first")
    desk.task("second")
    desk.take(ch.RunReprioritised("second", 9))
    assert order_of(desk, 2) == ["second", "first"]


def test_owners_share_what_there_is_however_much_one_of_them_submits(desk: Desk) -> None:
    desk.agent(slots=4)
    for number in range(20):
        desk.task(f"a{number}", owner="ann")
    desk.now += MINUTE
    for number in range(2):
        desk.task(f"b{number}", owner="bob")
    places = desk.places()
    assert sorted(name[0] for name in places) == ["a", "a", "b", "b"]


def test_a_share_is_measured_by_what_is_scarcest_to_its_owner(desk: Desk) -> None:
    desk.agent(slots=100, cpus_milli=10_000, memory_bytes=10 * GIB)
    for number in range(10):
        desk.task(f"cpu{number}", owner="ann", resources=Resources(cpus_milli=1000))
        desk.task(f"mem{number}", owner="bob", resources=Resources(memory_bytes=2 * GIB))
    placed = [one.task[:3] for one in desk.decide(most=6).placements]
    assert placed.count("cpu") == 4
    assert placed.count("mem") == 2


def test_nobody_starves_behind_those_with_a_higher_priority(desk: Desk) -> None:
    desk.agent(slots=1)
    desk.task("low")
    placed = []
    for number in range(10):
        desk.task(f"high{number}", priority=3, owner="p")
        desk.now += MINUTE
        placed += order_of(desk, 1)
    assert "low" in placed[:5]
    assert placed.index("low") >= 3


def test_small_tasks_pass_a_large_one_until_it_has_waited_for_long_and_gets_an_agent_kept_free(desk: Desk) -> None:
    desk.agent("a1", slots=4)
    for number in range(3):
        desk.task(f"small{number}")
    assert len(desk.places()) == 3
    desk.task("large", resources=Resources(cpus_milli=4000))
    desk.task("cpu", resources=Resources(cpus_milli=100))
    desk.places()
    assert "cpu" in desk.attempts
    desk.now += 6 * MINUTE
    desk.end("small0")
    desk.task("next")
    assert desk.places() == {}
    assert desk.explain("next").agents[0].reasons == ("kept free for a task that has waited longer",)
    for name in ("small1", "small2", "cpu"):
        desk.end(name)
    assert desk.places() == {"large": "a1"}
    desk.end("large")
    assert desk.places() == {"next": "a1"}


def test_an_agent_that_is_kept_is_let_go_when_the_task_gives_up_or_finds_another(desk: Desk) -> None:
    desk.agent("a1", slots=1)
    desk.task("busy")
    desk.places()
    large = desk.task("large", resources=Resources(cpus_milli=4000))
    desk.places()
    desk.now += 6 * MINUTE
    desk.places()
    assert desk.view.fleet.kept == {large.id: "a1"}
    desk.take(ch.TaskUnqueued(*large.id))
    assert desk.view.fleet.kept == {}
    desk.task("other")
    desk.end("busy")
    assert desk.places() == {"other": "a1"}


# --- groups and queues ------------------------------------------------------------------------------------------------


def test_no_more_runs_of_a_group_run_than_its_limit(desk: Desk) -> None:
    desk.agent(slots=10)
    for number in range(4):
        desk.task(f"t{number}", group="p/deploy", group_limit=2)
    assert sorted(desk.places()) == ["t0", "t1"]
    assert desk.places() == {}
    desk.end("t0")
    assert sorted(desk.places()) == ["t2"]


def test_a_run_that_has_begun_places_the_rest_of_its_tasks_though_its_group_is_full(desk: Desk) -> None:
    desk.agent(slots=10)
    desk.task("one", run_id="r", group="p/g", group_limit=1)
    desk.task("two", run_id="r", group="p/g", group_limit=1)
    desk.task("other", run_id="s", group="p/g", group_limit=1)
    assert sorted(desk.places()) == ["one", "two"]
    desk.task("three", run_id="r", group="p/g", group_limit=1)
    assert sorted(desk.places()) == ["three"]


def test_a_queue_with_a_limit_runs_so_many_at_one_time_and_the_limit_can_be_moved(desk: Desk) -> None:
    desk.agent(slots=10)
    desk.take(ch.QueueChanged(ch.QueueSettings(name="nights", limit=1)))
    for number in range(4):
        desk.task(f"t{number}", queue="nights")
    assert sorted(desk.places()) == ["t0"]
    desk.take(ch.QueueChanged(ch.QueueSettings(name="nights", limit=3)))
    assert sorted(desk.places()) == ["t1", "t2"]
    desk.take(ch.QueueChanged(ch.QueueSettings(name="nights")))
    assert sorted(desk.places()) == ["t3"]


def test_a_refused_placement_gives_back_room_and_its_place_in_the_group(desk: Desk) -> None:
    desk.agent(slots=1)
    task = desk.task("t", group="p/g", group_limit=1)
    assert len(desk.decide().placements) == 1
    assert desk.decide().placements == ()
    desk.view.give_back(task.id)
    assert desk.places() == {"t": "a1"}


def test_a_task_cancelled_while_its_placement_is_under_way_does_not_come_back(desk: Desk) -> None:
    desk.agent(slots=1)
    task = desk.task("t")
    desk.decide()
    desk.take(ch.TaskUnqueued(*task.id))
    desk.view.give_back(task.id)
    assert desk.places() == {}
    assert len(desk.view) == 0


# --- time -------------------------------------------------------------------------------------------------------------


def test_a_task_waits_out_its_backoff_and_the_decision_says_when_to_look_again(desk: Desk) -> None:
    desk.agent()
    desk.task("t", ready_at=desk.now + 5)
    desk.task("u", ready_at=desk.now + 9)
    decision = desk.decide()
    assert (decision.placements, decision.wake_at) == ((), desk.now + 5)
    desk.now += 5
    assert desk.places() == {"t": "a1"}


def test_a_task_that_has_waited_for_too_long_is_named_once(desk: Desk) -> None:
    task = desk.task("t", expires_at=desk.now + 5)
    assert desk.decide().expired == ()
    desk.now += 5
    assert desk.decide().expired == (task.id,)
    assert desk.decide().expired == ()
    desk.view.expire_again(task.id)
    desk.now += 1000
    assert desk.decide().expired == (task.id,)


def test_a_decision_places_no_more_than_it_is_asked_to_and_says_that_there_is_more(desk: Desk) -> None:
    desk.agent(slots=10)
    for number in range(5):
        desk.task(f"t{number}")
    decision = desk.decide(most=2)
    assert (len(decision.placements), decision.is_more) == (2, True)
    assert len(desk.decide().placements) == 3


@pytest.mark.slow
def test_who_got_a_place_in_time_is_not_remembered_as_one_who_waits(desk: Desk) -> None:
    desk.agent(slots=10)
    patient = desk.task("patient", expires_at=desk.now + 10**9, constraints=needs_label("none"))
    for number in range(5_000):
        desk.task(f"t{number}", expires_at=desk.now + 10**9)
        desk.places()
        desk.end(f"t{number}")
    assert len(desk.view._expiring) < 4_200
    desk.now += 10**9
    assert desk.decide().expired == (patient.id,)


def test_an_agent_that_was_removed_and_came_back_is_not_emptier_than_empty(desk: Desk) -> None:
    desk.agent("a1", slots=1)
    task = desk.task("t")
    assert len(desk.decide().placements) == 1
    desk.take(ch.AgentRemoved("a1"))
    desk.agent("a1", slots=1)
    desk.view.give_back(task.id)
    assert desk.view.fleet.agents["a1"].used.slots == 0
    assert desk.places() == {"t": "a1"}
    desk.task("u")
    assert desk.places() == {}


def test_room_on_many_agents_is_found_for_many_shapes_though_not_in_one_decision(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pistage.core.schedule.shapes._CHECKS_AT_ONCE", 64)
    for number in range(40):
        desk.agent(f"a{number}", is_present=False, slots=1)
        desk.task(f"t{number}", resources=Resources(cpus_milli=number + 1))
    assert desk.places() == {}
    for number in range(40):
        desk.view.fleet.set_present(f"a{number}", is_present=True)
    placed: dict[str, str] = {}
    decisions = 0
    while (decision := desk.decide()).is_more:
        decisions += 1
        for one in decision.placements:
            desk.commit(one.task, one.agent_id)
            placed[one.task] = one.agent_id
    for one in decision.placements:
        placed[one.task] = one.agent_id
    assert (len(placed), len(set(placed.values()))) == (40, 40)
    assert decisions > 5
