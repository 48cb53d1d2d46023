"""What comes after runs, over HTTP: set by sending a definition, made by the leader, by the next one too."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pistage import wire
from pistage.errors import Code, PistageError
from pistage.master.afters import Afters
from tests.master.fakes import Api, FakeAgent, a_master, an_agent
from tests.master.test_output_failover import three_masters

BUILD = "name: Build\nimage: busybox\nrun: echo\nretry: 0\n"
DEPLOY = "name: Deploy\nimage: busybox\nrun: echo {{ .to }}\nretry: 0\nafter: Build\nwith: {to: here}\n"


async def run_one(api: Api, agent: FakeAgent, text: str = BUILD, *, exit_code: int = 0) -> dict[str, Any]:
    run = await api.submit(text)
    await see_through(agent, exit_code=exit_code)
    return await api.ended(run["id"])


async def see_through(agent: FakeAgent, *, exit_code: int = 0) -> str:
    """Do the next task that comes; the id of its run."""
    assign = await agent.receive(wire.Assign)
    await agent.accept(assign)
    await agent.finish(assign, exit_code=exit_code)
    return str(assign.run_id)


async def put(api: Api, text: str = DEPLOY, **more: Any) -> dict[str, Any]:
    status, made = await api.call("POST", "/api/v1/runs", json={"definition": text} | more)
    assert status == 201, made
    return dict(made)


async def shown(api: Api, name: str, is_wanted: Callable[[Any], bool]) -> dict[str, Any]:
    """What became of the latest, once that is so."""
    async with asyncio.timeout(20):
        while True:
            _, after = await api.call("GET", f"/api/v1/afters/{name}")
            if after["latest"] and is_wanted(after["latest"]):
                return dict(after["latest"][0])
            await asyncio.sleep(0.02)


async def test_a_run_that_ends_well_is_followed_by_one_that_says_so(tmp_path: Path) -> None:
    async with a_master(tmp_path) as api, an_agent(api) as (agent, _):
        made = await put(api, **{"with": {"to": "there"}})
        assert (made["schedules"], made["after"]["after"]) == ([], [{"pipeline": "Build", "state": "succeeded"}])
        assert (await api.call("GET", "/api/v1/runs"))[1]["items"] == []
        build = await run_one(api, agent)
        deploy = await api.ended(await see_through(agent))
        assert (deploy["name"], deploy["state"]) == ("Deploy", "succeeded")
        assert deploy["started_by"] == {"kind": "run", "name": "Build#1", "nominal": None, "run": build["id"]}
        _, plan = await api.call("GET", f"/api/v1/runs/{deploy['id']}/plan")
        assert plan["plan"]["tasks"][0]["body"]["children"][0]["script"] == "echo there"
        await run_one(api, agent, exit_code=1)
        assert len((await api.call("GET", "/api/v1/runs"))[1]["items"]) == 3
        (latest,) = (await api.call("GET", "/api/v1/afters/Deploy"))[1]["latest"]
        assert (latest["outcome"], latest["run"]["id"], latest["after"]["id"]) == ("ran", deploy["id"], build["id"])


async def test_a_run_that_cannot_be_planned_any_more_leaves_its_reason(tmp_path: Path) -> None:
    async with a_master(tmp_path) as api, an_agent(api) as (agent, _):
        await api.call("PUT", "/api/v1/actions/Hello", data=b"name: Hello\nimage: busybox\nrun: echo\n")
        await put(api, "name: Deploy\nafter: Build\nuses:\n  main: [{dep: Hello}]\n")
        await api.call("DELETE", "/api/v1/actions/Hello")
        await run_one(api, agent)
        latest = await shown(api, "Deploy", lambda latest: latest[0]["outcome"] != "due")
        assert (latest["outcome"], latest["run"], "'Hello'" in latest["reason"]) == ("failed", None, True)


async def test_now_runs_it_at_once_and_another_document_takes_its_place(tmp_path: Path) -> None:
    async with a_master(tmp_path) as api:
        await put(api)
        status, run = await api.call("POST", "/api/v1/runs?now=1", data=DEPLOY.encode())
        assert (status, run["started_by"]["kind"]) == (201, "api")
        made = await put(api, DEPLOY.replace("after: Build", "after: Test\nschedule: '@daily'"))
        assert (len(made["schedules"]), made["after"]["after"][0]["pipeline"]) == (1, "Test")
        made = await put(api, DEPLOY.replace("after: Build", "schedule: '@daily'"))
        assert (len(made["schedules"]), made["after"]) == (1, None)
        assert (await api.call("GET", "/api/v1/afters"))[1]["items"] == []
        made = await put(api)
        assert (made["schedules"], made["after"]["name"]) == ([], "Deploy")
        assert (await api.call("GET", "/api/v1/schedules"))[1]["items"] == []
        assert (await api.call("DELETE", "/api/v1/afters/Deploy"))[0] == 204
        assert (await api.call("DELETE", "/api/v1/afters/Deploy"))[0] == 404
        assert (await api.call("GET", "/api/v1/afters/Deploy"))[0] == 404


async def test_a_circle_and_what_could_never_run_are_refused_when_they_are_set(tmp_path: Path) -> None:
    async with a_master(tmp_path) as api:
        await put(api)
        circle = BUILD + "after: {pipeline: Deploy, state: ended}\n"
        status, problem = await api.call("POST", "/api/v1/runs", data=circle.encode())
        assert (status, "Build → Deploy → Build" in problem["detail"]) == (409, True)
        for text in (DEPLOY.replace("with: {to: here}\n", ""), DEPLOY.replace("image: busybox\n", "")):
            assert (await api.call("POST", "/api/v1/runs", data=text.encode()))[0] == 422
        assert (await api.call("GET", "/api/v1/runs"))[1]["items"] == []


async def test_pages_are_by_name(tmp_path: Path) -> None:
    async with a_master(tmp_path) as api:
        for name in ("a", "b", "c"):
            await put(api, DEPLOY.replace("Deploy", name))
        _, first = await api.call("GET", "/api/v1/afters?limit=2")
        _, rest = await api.call("GET", f"/api/v1/afters?limit=2&cursor={first['next']}")
        assert [one["name"] for one in first["items"] + rest["items"]] == ["a", "b", "c"]
        assert rest["next"] is None


async def test_what_cannot_be_proposed_now_is_proposed_again_and_what_never_can_be_is_decided(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refusals = [PistageError(Code.UNAVAILABLE, "no majority"), PistageError(Code.TOO_LARGE, "too much of it")]
    whole = Afters._propose

    async def refused_at_first(self: Afters, command: Any, runs: Any) -> None:
        if refusals:
            raise refusals.pop(0)
        await whole(self, command, runs)

    monkeypatch.setattr(Afters, "_propose", refused_at_first)
    monkeypatch.setattr("pistage.master.afters._AGAIN_S", 0.01)
    async with a_master(tmp_path) as api, an_agent(api) as (agent, _):
        await put(api)
        await run_one(api, agent)
        latest = await shown(api, "Deploy", lambda latest: latest[0]["outcome"] != "due")
        assert (latest["outcome"], latest["reason"]) == ("failed", "too much of it")


@pytest.mark.slow
async def test_what_one_leader_leaves_behind_the_next_one_makes_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first leader sees runs end and does nothing about it."""
    async with three_masters(tmp_path) as masters:
        leader = await masters.leader()
        await put(leader)
        silent = masters.up[leader.url].context.afters

        async def nothing(due: Any) -> None:
            await asyncio.sleep(3600)

        monkeypatch.setattr(silent, "_fire", nothing)
        async with an_agent(leader) as (agent, _):
            for _ in range(3):
                await run_one(leader, agent)
            _, after = await leader.call("GET", "/api/v1/afters/Deploy")
            assert [one["outcome"] for one in after["latest"]] == ["due"] * 3
        await masters.stop(leader.url)
        api = await masters.leader(other_than=leader.url)
        await shown(api, "Deploy", lambda latest: all(one["outcome"] == "ran" for one in latest))
        items = (await api.call("GET", "/api/v1/runs?name=Deploy"))[1]["items"]
        assert sorted(one["started_by"]["name"] for one in items) == ["Build#1", "Build#2", "Build#3"]
