"""A row that cannot be read is one run's trouble: the master starts, and the others go on (S8)."""

import sqlite3
from pathlib import Path

from pistage import wire
from tests.master.fakes import a_master, an_agent


async def test_a_poisoned_row_stops_neither_a_restart_nor_the_other_runs(tmp_path: Path) -> None:
    async with a_master(tmp_path) as api:
        poisoned = await api.submit()
    with sqlite3.connect(tmp_path / "state" / "1" / "state.db") as db:
        db.execute("UPDATE task SET spec = '{\"name\": 7' WHERE run_id = ?", (poisoned["id"],))
        db.execute("UPDATE run SET plan = 'nothing' WHERE id = ?", (poisoned["id"],))
    db.close()
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
        status, _ = await api.call("POST", f"/api/v1/runs/{poisoned['id']}/cancel")
        assert status == 500
        _, listed = await api.call("GET", "/api/v1/runs?state=cancelled")
        assert [item["id"] for item in listed["items"]] == [poisoned["id"]]


async def test_an_agent_whose_row_cannot_be_read_stops_nobody_else(tmp_path: Path) -> None:
    async with a_master(tmp_path) as api, an_agent(api):
        pass
    with sqlite3.connect(tmp_path / "state" / "1" / "state.db") as db:
        db.execute("UPDATE agent SET info = '{'")
    db.close()
    async with a_master(tmp_path) as api, an_agent(api) as (agent, _):
        run = await api.submit()
        assert (await agent.receive(wire.Assign)).run_id == run["id"]
