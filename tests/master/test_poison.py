"""A row that cannot be read is one run's trouble: the master starts, and the others go on (S8)."""

import sqlite3
from pathlib import Path

import pytest

from pistage import wire
from pistage.core.definition import Planned
from pistage.master.api.submissions import Planner, Submission
from tests.master.fakes import a_master, an_agent
from tests.master.test_afters import run_one, shown
from tests.master.test_schedules import until_fired


def poison(data_dir: Path, statement: str) -> None:
    """Change the state as a bug of ours would: a changed file is refused, a changed row has its checksum."""
    path = data_dir / "state" / "1" / "state.db"
    db = sqlite3.connect(path, isolation_level=None)
    db.execute(statement)
    db.close()
    path.with_name("state.db-sums").unlink(missing_ok=True)


async def test_a_poisoned_row_stops_neither_a_restart_nor_the_other_runs(tmp_path: Path) -> None:
    async with a_master(tmp_path) as api:
        poisoned = await api.submit()
    run_id = poisoned["id"]
    poison(tmp_path, f"UPDATE task SET spec = '{{\"name\": 7' WHERE run_id = '{run_id}'")
    poison(tmp_path, f"UPDATE run SET plan = 'nothing' WHERE id = '{run_id}'")
    async with a_master(tmp_path) as api, an_agent(api) as (agent, _):
        healthy = await api.submit()
        assign = await agent.receive(wire.Assign)
        assert assign.run_id == healthy["id"]
        await agent.accept(assign)
        await agent.finish(assign)
        assert (await api.ended(healthy["id"]))["state"] == "succeeded"
        assert len((await api.call("GET", "/api/v1/runs"))[1]["items"]) == 2
        status, refused = await api.call("GET", f"/api/v1/runs/{poisoned['id']}")
        assert (status, refused["code"]) == (500, "internal")
        _, listed = await api.call("GET", "/api/v1/runs?state=failed")
        assert [item["id"] for item in listed["items"]] == [poisoned["id"]]
        assert "cannot be read" in listed["items"][0]["reason"]


async def test_a_demand_that_cannot_be_read_is_not_scheduled_and_stops_nobody_else(tmp_path: Path) -> None:
    async with a_master(tmp_path) as api:
        poisoned = await api.submit()
    poison(tmp_path, f"UPDATE task SET demand = 'nothing' WHERE run_id = '{poisoned['id']}'")
    async with a_master(tmp_path) as api, an_agent(api) as (agent, _):
        healthy = await api.submit()
        assert (await agent.receive(wire.Assign)).run_id == healthy["id"]
        await api.call("POST", f"/api/v1/runs/{poisoned['id']}/cancel")
        assert (await api.ended(poisoned["id"]))["state"] == "cancelled"


TWO = """
name: Two
uses:
  a: [{run: echo a, image: busybox}]
  b: {needs: [a], steps: [{run: echo b, image: busybox}]}
"""


async def test_a_demand_that_cannot_be_read_when_its_task_is_due_ends_no_leader(tmp_path: Path) -> None:
    async with a_master(tmp_path) as api:
        poisoned = await api.submit(TWO)
        assert [task["state"] for task in poisoned["tasks"]] == ["queued", "pending"]
    poison(tmp_path, f"UPDATE task SET demand = 'nothing' WHERE run_id = '{poisoned['id']}' AND state = 'pending'")
    async with a_master(tmp_path) as api, an_agent(api) as (agent, _):
        first = await agent.receive(wire.Assign)
        await agent.accept(first)
        await agent.finish(first)
        healthy = await api.submit()
        assert (await agent.receive(wire.Assign)).run_id == healthy["id"]
        assert [task["state"] for task in (await api.run(poisoned["id"]))["tasks"]] == ["succeeded", "queued"]


async def test_an_agent_whose_row_cannot_be_read_stops_nobody_else(tmp_path: Path) -> None:
    async with a_master(tmp_path) as api, an_agent(api):
        pass
    poison(tmp_path, "UPDATE agent SET info = '{'")
    async with a_master(tmp_path) as api, an_agent(api) as (agent, _):
        run = await api.submit()
        assert (await agent.receive(wire.Assign)).run_id == run["id"]


@pytest.mark.slow
async def test_a_schedule_that_cannot_be_read_or_planned_stops_neither_the_leader_nor_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "name: {0}\nschedule: '* * * * * *'\nimage: busybox\nrun: echo\n"
    async with a_master(tmp_path) as api:
        for name in ("unreadable", "bug", "healthy"):
            assert (await api.call("POST", "/api/v1/runs", data=text.format(name)))[0] == 201
    poison(tmp_path, "UPDATE schedule SET spec = '{' WHERE name = 'unreadable'")
    plan = Planner.plan

    async def stumble(planner: Planner, submission: Submission, project: str) -> tuple[Planned, str]:
        if "name: bug" in str(submission.text):
            raise AssertionError("a bug of ours")
        return await plan(planner, submission, project)

    monkeypatch.setattr(Planner, "plan", stumble)
    async with a_master(tmp_path) as api:
        await until_fired(api, "healthy", lambda found: found[0]["outcome"] == "ran")
        (*_, last) = await until_fired(api, "bug", lambda found: found[0]["outcome"] == "failed")
        assert last["reason"] == "its plan cannot be made: AssertionError"


async def test_what_comes_after_a_run_and_cannot_be_read_or_planned_stops_neither_the_leader_nor_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "name: {0}\nafter: Build\nimage: busybox\nrun: echo\nretry: 0\n"
    async with a_master(tmp_path) as api:
        for name in ("unreadable", "bug", "late", "healthy"):
            assert (await api.call("POST", "/api/v1/runs", data=text.format(name)))[0] == 201
    poison(tmp_path, "UPDATE after_rule SET spec = '{' WHERE definition = 'unreadable'")
    plan, faults = Planner.plan, [sqlite3.OperationalError("disk I/O error")] * 2

    async def stumble(planner: Planner, submission: Submission, project: str) -> tuple[Planned, str]:
        if "name: bug" in str(submission.text):
            raise AssertionError("a bug of ours")
        if "name: late" in str(submission.text) and faults:
            raise faults.pop()
        return await plan(planner, submission, project)

    monkeypatch.setattr(Planner, "plan", stumble)
    monkeypatch.setattr("pistage.master.afters._AGAIN_S", 0.01)
    async with a_master(tmp_path) as api, an_agent(api) as (agent, _):
        await run_one(api, agent)
        for name, outcome in (("healthy", "ran"), ("bug", "failed"), ("late", "ran")):
            latest = await shown(api, name, lambda latest: latest[0]["outcome"] != "due")
            assert (latest["outcome"], bool(latest["reason"])) == (outcome, outcome == "failed"), name
        status, refused = await api.call("GET", "/api/v1/afters/unreadable")
        assert (status, refused["code"]) == (500, "internal")
    state = sqlite3.connect(tmp_path / "state" / "1" / "state.db")
    sql = "SELECT outcome, reason FROM after_due JOIN after_rule ON id = after_id WHERE definition = 'unreadable'"
    ((outcome, reason),) = state.execute(sql).fetchall()
    state.close()
    assert outcome == "failed" and "cannot be read" in reason
