"""Refusals: what becomes of a run whose placements the state machine does not take."""

from pistage.core import changes as ch
from tests.core.schedule.views import Desk


def test_a_run_that_may_not_begin_stays_away_though_its_tasks_are_refused_one_after_the_other() -> None:
    """Found by tests.fleet: each task kept the place of the run open for the next, and all were refused for ever."""
    desk = Desk()
    desk.agent(slots=4)
    desk.take(ch.QueueChanged(ch.QueueSettings(name="q", limit=2)))
    desk.task("other", queue="q")
    assert list(desk.places()) == ["other"]
    one = desk.task("one", run_id="r", queue="q")
    desk.task("two", run_id="r", queue="q")
    assert [placement.task for placement in desk.decide().placements] == ["one", "two"]
    desk.take(ch.QueueChanged(ch.QueueSettings(name="q", limit=1)))  # and both are refused
    desk.view.give_back(one.id)
    assert desk.decide().placements == ()


def test_the_rest_of_a_run_follows_once_one_of_its_placements_is_taken_after_all() -> None:
    desk = Desk()
    desk.agent(slots=4)
    one = desk.task("one", run_id="r", group="p/g", group_limit=1)
    desk.task("two", run_id="r", group="p/g", group_limit=1)
    assert len(desk.decide().placements) == 2
    desk.view.give_back(one.id)
    desk.commit("two", "a1")
    desk.task("stranger", group="p/g", group_limit=1)
    assert desk.places() == {"one": "a1"}
