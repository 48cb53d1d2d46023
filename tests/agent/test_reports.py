import asyncio

from pistage.agent.reports import Reports
from pistage.core import limits
from pistage.core.commands import Accepted
from pistage.wire import Report


def event(number: int, attempt: str = "a") -> Accepted:
    return Accepted(at=number, attempt_id=attempt, fence=1)


async def pumped(reports: Reports, count: int) -> list[Report]:
    sent: asyncio.Queue[Report] = asyncio.Queue()
    async with asyncio.TaskGroup() as group:
        pump = group.create_task(reports.pump(sent.put))
        got = [await sent.get() for _ in range(count)]
        pump.cancel()
    return got


async def test_events_stay_until_they_are_committed_and_come_again_in_order() -> None:
    reports = Reports()
    for number in range(3):
        reports.add(event(number))
    (first,) = await pumped(reports, 1)
    reports.begin_session()
    (again,) = await pumped(reports, 1)
    assert again.events == first.events
    assert again.number > first.number
    assert reports.on_reported(again.number) == list(first.events)
    assert reports.on_reported(again.number) == []


async def test_an_answer_to_a_report_of_an_earlier_session_commits_nothing_of_this_one() -> None:
    reports = Reports()
    reports.add(event(1))
    (first,) = await pumped(reports, 1)
    reports.begin_session()
    assert reports.on_reported(first.number) == []


async def test_a_report_is_bounded() -> None:
    reports = Reports()
    for number in range(limits.REPORT_BATCH_MAX + 1):
        reports.add(event(number))
    sizes = [len(report.events) for report in await pumped(reports, 2)]
    assert sizes == [limits.REPORT_BATCH_MAX, 1]


async def test_an_attempt_that_is_given_up_is_not_reported_any_more() -> None:
    reports = Reports()
    reports.add(event(1, "kept"))
    reports.add(event(2, "given up"))
    reports.forget("given up")
    (report,) = await pumped(reports, 1)
    assert [one.attempt_id for one in report.events] == ["kept"]
