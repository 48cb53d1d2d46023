"""Blocked shapes: what no agent has room for is not tried again until one has got some, and then it is."""

from pistage.core import changes as ch
from tests.core.schedule.views import Desk, needs_label


def test_room_that_came_while_nobody_asked_for_it_is_there_for_who_asks_next() -> None:
    """Found by tests.fleet, in a version that looked only at those who waited when the room came."""
    desk = Desk()
    desk.agent("a1")
    first = desk.task("first", constraints=needs_label("ssd"))
    assert desk.places() == {}
    desk.take(ch.TaskUnqueued(*first.id))
    desk.agent("a2", labels={"ssd": ""})
    assert desk.places() == {}
    desk.task("second", constraints=needs_label("ssd"))
    assert desk.places() == {"second": "a2"}
