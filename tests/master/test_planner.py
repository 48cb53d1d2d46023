"""The planner: small documents share a hop to a thread, and nothing else."""

import asyncio
import json
from pathlib import Path

import pytest

from pistage.errors import Code, PistageError
from pistage.master.api.submissions import Planner, Submission


class CountedPlanner(Planner):
    """Notes how many documents each hop takes with it."""

    def __init__(self) -> None:
        super().__init__(lambda: Path("/there is/no state.db"))
        self.hops: list[int] = []

    def _work_through(self, jobs):  # type: ignore[no-untyped-def]
        self.hops.append(len(jobs))
        return super()._work_through(jobs)


def a_document(name: str, *, size: int = 0) -> Submission:
    step = {"run": "true " + "x" * size, "image": "busybox"}
    return Submission(text=json.dumps({"name": name, "uses": {"main": [step]}}))


async def test_small_documents_share_a_hop_and_each_gets_its_own_answer() -> None:
    planner = CountedPlanner()
    found = await asyncio.gather(*(planner.lint(a_document(f"d{n}"), "") for n in range(100)))
    assert [one.name for one in found] == [f"d{n}" for n in range(100)]
    assert len(planner.hops) < 50


async def test_one_that_is_refused_refuses_no_other() -> None:
    planner = CountedPlanner()
    documents = [a_document("good"), Submission(text="{"), a_document("better"), a_document("best")]
    planned = await asyncio.gather(*(planner.plan(one, "") for one in documents), return_exceptions=True)
    assert isinstance(planned[1], PistageError) and planned[1].code is Code.INVALID
    assert [one[0].plan.name for one in planned if isinstance(one, tuple)] == ["good", "better", "best"]


async def test_a_large_document_goes_alone() -> None:
    planner = CountedPlanner()
    sizes = [0, 0, 0, 100_000, 0, 0]
    await asyncio.gather(*(planner.lint(a_document("d", size=size), "") for size in sizes))
    assert planner.hops == [1, 1, 1, 1, 2]  # two are at work from the start


async def test_who_goes_away_costs_nothing_and_holds_up_nobody() -> None:
    planner = CountedPlanner()
    async with asyncio.TaskGroup() as tasks:
        asked = [tasks.create_task(planner.lint(a_document(f"d{n}"), "")) for n in range(20)]
        await asyncio.sleep(0)
        for one in asked[::2]:
            one.cancel()
    assert [one.result().name for one in asked[1::2]] == [f"d{n}" for n in range(1, 20, 2)]


async def test_a_lookup_that_fails_is_the_error_of_who_asked() -> None:
    planner = CountedPlanner()
    with pytest.raises(Exception, match="unable to open"):
        await planner.find_action("anything", "")
