"""Retries over HTTP: what is done again, what stands, whose output is shown; and the end of one task alone."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from pistage import wire
from pistage.client import Client, Selection
from pistage.master.api import views
from tests.master.fakes import TOKEN, Api, FakeAgent, a_master, an_agent
from tests.master.test_queries import Explained

CHAIN = """
name: Chain
image: busybox
retry: 0
uses:
  fetch: [{run: echo fetch, image: busybox}]
  build: {needs: [fetch], steps: [{run: echo build, image: busybox}]}
  ship: {needs: [build], steps: [{run: echo ship, image: busybox}]}
"""


async def work(agent: FakeAgent, data: bytes, *, exit_code: int = 0) -> wire.Assign:
    """Do the next task: print, and end."""
    assign: wire.Assign = await agent.receive(wire.Assign)
    await agent.accept(assign)
    await agent.print(assign, data)
    await agent.finish(assign, length=len(data), exit_code=exit_code)
    return assign


async def failed_chain(api: Api, agent: FakeAgent) -> dict[str, Any]:
    """A run whose second task failed."""
    run = await api.submit(CHAIN)
    await work(agent, b"fetched\n")
    await work(agent, b"broken\n", exit_code=1)
    return await api.ended(run["id"])


def states(run: dict[str, Any]) -> dict[str, str]:
    """Of its tasks; what is queued may be with the agent already."""
    return {
        task["name"]: "queued" if task["state"] in {"assigned", "running"} else task["state"] for task in run["tasks"]
    }


async def retry(api: Api, run: str, body: object = None, **given: Any) -> tuple[int, Any]:
    return await api.call("POST", f"/api/v1/runs/{run.replace('#', '%23')}/retry", json=body or {}, **given)


async def test_what_failed_is_done_again_and_what_succeeded_stands_with_its_attempts(tmp_path: Path) -> None:
    async with a_master(tmp_path) as api, an_agent(api) as (agent, _):
        old = await failed_chain(api, agent)
        assert states(old) == {"fetch": "succeeded", "build": "failed", "ship": "skipped"}
        status, new = await retry(api, old["id"], {"failed": True})
        assert status == 201
        assert (new["number"], new["retry_of"], new["retry_of_number"]) == (2, old["id"], 1)
        assert states(new) == {"fetch": "succeeded", "build": "queued", "ship": "pending"}
        kept = new["tasks"][0]
        assert (kept["kept_from"], kept["reason"]) == (old["id"], "kept from Chain#1")
        assert kept["attempts"] == old["tasks"][0]["attempts"]
        assert new["tasks"][1]["kept_from"] is None
        for data in (b"built\n", b"shipped\n"):
            await work(agent, data)
        assert (await api.ended(new["id"]))["state"] == "succeeded"
        _, page = await api.call("GET", "/api/v1/runs")
        assert [run["retry_of"] for run in page["items"]] == [old["id"], None]


async def test_the_output_of_a_run_holds_that_of_the_tasks_that_were_kept(tmp_path: Path) -> None:
    async with a_master(tmp_path) as api, an_agent(api) as (agent, _):
        old = await failed_chain(api, agent)
        _, new = await retry(api, old["id"], {"failed": True})
        await work(agent, b"built\n")
        await work(agent, b"not shipped\n", exit_code=1)
        await api.ended(new["id"])
        _, third = await retry(api, new["id"], {"failed": True})
        assert [task["kept_from"] for task in third["tasks"]] == [old["id"], new["id"], None]
        await work(agent, b"shipped\n")
        await api.ended(third["id"])
        logs = f"/api/v1/runs/{third['id']}/logs"
        assert await api.call("GET", logs) == (200, "fetched\nbuilt\nshipped\n")
        assert await api.call("GET", logs + "?task=fetch") == (200, "fetched\n")
        assert await api.call("GET", logs + "?task=build&follow=1") == (200, "built\n")
        assert await api.call("GET", logs + "?kept=0") == (200, "shipped\n")
        assert await api.call("GET", logs + "?offset=10&limit=6") == (200, "ilt\nsh")
        async with Client((api.url,), TOKEN) as client:
            pieces = [chunk async for chunk in client.follow_chunks(third["id"])]
            assert [(one.task, one.data) for one in pieces] == [
                ("fetch", b"fetched\n"), ("build", b"built\n"), ("ship", b"shipped\n"),
            ]  # fmt: skip
            for first, piece in enumerate(pieces):  # whoever lost the connection goes on behind what came
                rest = [one async for one in client.follow_chunks(third["id"], start=piece.number)]
                assert rest == pieces[first:]
            own = [one async for one in client.follow_chunks(third["id"], Selection(has_kept=False))]
            assert own == pieces[2:]
        assert (await api.call("GET", f"/api/v1/runs/{old['id']}/logs"))[1] == "fetched\nbroken\n"


async def test_from_a_task_it_and_what_follows_is_done_again(tmp_path: Path) -> None:
    async with a_master(tmp_path) as api, an_agent(api) as (agent, _):
        old = await api.submit(CHAIN)
        for data in (b"1", b"2", b"3"):
            await work(agent, data)
        await api.ended(old["id"])
        status, new = await retry(api, "Chain#1", {"from": "build"})
        assert status == 201
        assert states(new) == {"fetch": "succeeded", "build": "queued", "ship": "pending"}
        _, whole = await retry(api, "Chain#1")
        assert states(whole) == {"fetch": "queued", "build": "pending", "ship": "pending"}


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ('{"failed": true}', 409, "nothing in the run has failed"),
        ('{"from": "biuld"}', 404, "no task 'biuld'"),
        ('{"from": "build", "failed": true}', 422, "one of failed and from"),
        ('{"form": "build"}', 422, "form: "),
        ('{"failed": 1}', 422, "failed: "),
        ("[]", 422, "the body: "),
        ("{", 422, "the body: "),
    ],
)
async def test_what_cannot_be_retried_is_refused_with_what_was_expected(
    tmp_path: Path, body: str, status: int, message: str
) -> None:
    async with a_master(tmp_path) as api, an_agent(api) as (agent, _):
        run = await api.submit()
        await work(agent, b"")
        await api.ended(run["id"])
        answered, refused = await api.call("POST", f"/api/v1/runs/{run['id']}/retry", data=body)
        assert answered == status and message in refused["detail"] and refused["hint"]


async def test_attempts_of_kept_tasks_are_found_by_an_index() -> None:
    explained = Explained()
    for sql in (views.ATTEMPTS, views._STEPS):
        await explained.rows(sql, ("r",))
    assert not any(step.startswith("SCAN") for step in explained.steps), explained.steps
    assert sum("attempt_by_run (run_id=? AND position=?)" in step for step in explained.steps) == 2, explained.steps


async def test_a_run_that_goes_on_is_not_retried(tmp_path: Path) -> None:
    async with a_master(tmp_path) as api:
        run = await api.submit()
        for body in ({}, {"failed": True}):
            status, refused = await retry(api, run["id"], body)
            assert status == 409 and "Hello#1 is queued: only a run that has ended" in refused["detail"]
        assert (await retry(api, "Hello#7"))[0] == 404


async def test_a_repeated_retry_makes_one_run(tmp_path: Path) -> None:
    async with a_master(tmp_path) as api, an_agent(api) as (agent, _):
        old = await failed_chain(api, agent)
        headers = {"Idempotency-Key": "k"}
        answers = await asyncio.gather(*(retry(api, old["id"], {"failed": True}, headers=headers) for _ in range(3)))
        assert len({run["id"] for _, run in answers}) == 1
        assert sorted(status for status, _ in answers)[-1] == 201
        assert (await retry(api, old["id"], {"failed": True}, headers=headers))[0] == 200
        assert (await retry(api, old["id"], {}, headers=headers))[0] == 409
        _, other = await retry(api, answers[0][1]["id"], {}, headers=headers)
        assert other["code"] == "conflict"  # the same body for another run is another request


async def test_one_task_is_cancelled_and_what_needs_it_is_skipped(tmp_path: Path) -> None:
    async with a_master(tmp_path) as api, an_agent(api) as (agent, _):
        run = await api.submit(CHAIN)
        path = f"/api/v1/runs/{run['id']}/cancel"
        status, refused = await api.call("POST", path + "?task=biuld")
        assert status == 404 and "it has fetch, build, ship" in refused["hint"]
        assign = await agent.receive(wire.Assign)
        await agent.accept(assign)
        status, shown = await api.call("POST", path + "?task=build&reason=enough")
        assert status == 202
        assert states(shown) == {"fetch": "queued", "build": "cancelled", "ship": "skipped"}
        assert shown["tasks"][1]["cancel_reason"] == "enough"
        await agent.finish(assign)
        assert (await api.ended(run["id"]))["state"] == "cancelled"


async def test_the_priority_of_a_run_is_set_while_it_lasts(tmp_path: Path) -> None:
    async with a_master(tmp_path) as api:
        run = await api.submit()
        path = f"/api/v1/runs/{run['id']}/priority"
        status, shown = await api.call("POST", path, json={"priority": 70})
        assert (status, shown["priority"]) == (200, 70)
        for body in ({"priority": 1001}, {"priority": -1}, {"priority": "1"}, {"priority": 1.5}, {}, {"p": 1}):
            status, refused = await api.call("POST", path, data=json.dumps(body))
            assert status == 422 and "0 to 1000" in refused["hint"], body
        await api.call("POST", f"/api/v1/runs/{run['id']}/cancel")
        status, refused = await api.call("POST", path, json={"priority": 1})
        assert status == 409 and "has ended" in refused["detail"]
