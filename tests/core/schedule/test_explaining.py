"""Explanations: why a task waits."""

import pytest

from pistage.core import changes as ch
from pistage.core.plan import Resources
from pistage.core.schedule import Explainer
from tests.core.schedule.views import GIB, Desk, needs_label


@pytest.fixture
def desk() -> Desk:
    return Desk()


def brief(desk: Desk, name: str = "t") -> str:
    assert desk.places() == {}
    return desk.explain(name).brief


def test_without_an_agent_that_is_what_is_missing(desk: Desk) -> None:
    desk.task()
    assert brief(desk) == "no agent has registered"


@pytest.mark.parametrize(
    ("agent", "task", "said"),
    [
        ({"is_present": False}, {}, "a1: not connected"),
        ({"is_draining": True}, {}, "a1: draining"),
        ({"is_up": False, "reason": "silent for 30 s"}, {}, "a1: lost: silent for 30 s"),
        ({"runtimes": ("sandbox",)}, {}, "a1: has no engine to run images with"),
        (
            {"runtimes": ("sandbox",), "ignores_images": True},
            {"needs_containers": True},
            "a1: has no engine for networks, volumes and services",
        ),
        ({}, {"constraints": needs_label("gpu=true")}, "a1: label gpu=true is missing"),
        (
            {},
            {"resources": Resources(memory_bytes=8 * GIB)},
            "a1: has 1.0 GiB of memory, 8.0 are asked for",
        ),
        ({}, {"resources": Resources(cpus_milli=64_000)}, "a1: has 4 CPUs, 64 are asked for"),
        ({}, {"resources": Resources(gpus=1)}, "a1: has no GPUs, 1 asked for"),
    ],
)
def test_each_obstacle_is_named(
    desk: Desk, agent: dict[str, object], task: dict[str, object], said: str
) -> None:  # fmt: skip
    desk.agent(**agent)
    desk.task(**task)
    assert brief(desk) == said


def test_what_is_free_is_told_beside_what_is_asked(desk: Desk) -> None:
    desk.agent(slots=2, memory_bytes=4 * GIB, gpus=1)
    desk.task("one", resources=Resources(memory_bytes=GIB * 4 // 5, cpus_milli=3000, gpus=1))
    assert desk.places() == {"one": "a1"}
    desk.task("two", resources=Resources(memory_bytes=4 * GIB, cpus_milli=2000, gpus=1))
    assert brief(desk, "two") == "a1: 1.0 of 2.0 CPUs free, 3.2 of 4.0 GiB free, 0 of 1 GPUs free"
    desk.task("three")
    assert desk.places() == {"three": "a1"}
    desk.task("four")
    assert brief(desk, "four") == "a1: 0 of 2 places free"


def test_a_task_that_only_waits_its_turn_is_told_from_one_that_no_agent_could_take(desk: Desk) -> None:
    desk.agent("a1", slots=1)
    desk.agent("a2", is_present=False)
    desk.task("busy")
    desk.places()
    desk.task("waits")
    desk.task("huge", resources=Resources(cpus_milli=64_000))
    desk.task("labelled", constraints=needs_label("gpu"))
    assert desk.places() == {}
    assert {name: desk.explain(name).is_placeable for name in ("waits", "huge", "labelled")} == {
        "waits": True,
        "huge": False,
        "labelled": False,
    }


def test_the_turn_counts_who_stands_before_and_names_whose_tasks_those_are(desk: Desk) -> None:
    desk.agent(slots=1)
    for number in range(10):
        desk.task(f"a{number}", owner="ann")
    assert list(desk.places()) == ["a0"]
    for number in range(3):
        desk.task(f"b{number}", owner="bob")
    turn = desk.explain("b2").turn
    assert turn is not None
    assert (turn.place, turn.count, turn.behind) == (5, 12, "bob")
    turn = desk.explain("a9").turn
    assert turn is not None
    assert (turn.place, turn.count) == (12, 12)


def test_a_full_group_and_a_full_queue_say_who_is_running(desk: Desk) -> None:
    desk.agent(slots=10)
    desk.take(ch.QueueChanged(ch.QueueSettings(name="q", limit=1)))
    desk.task("one", group="default/deploy", group_limit=1)
    desk.task("two", queue="q")
    assert len(desk.places()) == 2
    desk.task("three", group="default/deploy", group_limit=1)
    desk.task("four", queue="q")
    assert brief(desk, "three") == "concurrency group deploy: 1 of 1 running (one)"
    assert brief(desk, "four") == "queue q: 1 of 1 runs running (two)"


def test_a_backoff_says_how_long(desk: Desk) -> None:
    desk.agent()
    desk.task("t", ready_at=desk.now + 2_500)
    assert brief(desk) == "it waits 2.5 s before its next try"


def test_many_agents_are_told_of_in_few_words(desk: Desk) -> None:
    for number in range(8):
        desk.agent(f"a{number}", is_draining=True)
    desk.task()
    assert brief(desk).endswith("; and 3 more agents")
    assert len(desk.explain("t").agents) == 8


def test_an_explainer_that_is_kept_for_a_while_knows_of_tasks_that_came_since(desk: Desk) -> None:
    desk.task("first", owner="ann")
    explainer = Explainer(desk.view, desk.now)
    assert explainer.explain(desk.waiting["first"].id) is not None
    for name, owner in (("second", "bob"), ("third", "ann")):
        desk.task(name, owner=owner)
        found = explainer.explain(desk.waiting[name].id)
        assert found is not None and found.turn is not None
        assert found.turn.place <= found.turn.count
