"""Schedules over HTTP: set by a document or by hand, seen, paused, fired, and what is refused."""

import asyncio
import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from pistage import wire
from pistage.core import limits
from tests.core.definition.documents import seed
from tests.master.fakes import Api, a_master, an_agent
from tests.master.test_retry import work

NIGHT = "name: night\nschedule: '30 2 * * *'\nimage: busybox\nrun: echo\n"
TICK = (
    "name: tick\nschedule: {cron: '* * * * * *', with: {day: now}}\nwith: {day: null}\n"
    "image: busybox\nrun: echo {{ .day }}\n"
)
PIPELINE = {"name": "once", "crontab": "* * * * * *", "pipelineTasks": [{"name": "t", "steps": [{"image": "busybox"}]}]}


async def schedules(api: Api) -> dict[str, dict[str, Any]]:
    _, listed = await api.call("GET", "/api/v1/schedules")
    return {one["name"]: one for one in listed["items"]}


async def fires(api: Api, name: str) -> list[dict[str, Any]]:
    _, listed = await api.call("GET", f"/api/v1/schedules/{name}/fires")
    return list(listed["items"])


async def until_fired(
    api: Api, name: str, is_enough: Callable[[list[dict[str, Any]]], bool] = bool
) -> list[dict[str, Any]]:
    """What became of its times, the first one first, once that is enough; they are told of once a second at most."""
    async with asyncio.timeout(20):
        while not (found := await fires(api, name)) or not is_enough(found):  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    return found[::-1]


async def test_a_document_with_a_schedule_is_set_and_not_run(tmp_path: Path) -> None:
    async with a_master(tmp_path) as api:
        status, answer = await api.call("POST", "/api/v1/runs", data=NIGHT)
        assert status == 201
        ((name, upcoming),) = [(one["name"], one["next"]) for one in answer["schedules"]]
        assert name == "night" and len(upcoming) == 10 and all("T02:30:00.000Z" in at for at in upcoming)
        assert (await api.call("GET", "/api/v1/runs"))[1]["items"] == []
        listed = (await schedules(api))["night"]
        assert (listed["cron"], listed["timezone"], listed["overlap"], listed["last"]) == (
            "30 2 * * *", "UTC", "skip", None,
        )  # fmt: skip
        assert listed["next"] == upcoming[:1]


async def test_it_is_run_at_once_where_that_is_asked_and_as_an_action(tmp_path: Path) -> None:
    async with a_master(tmp_path) as api:
        status, run = await api.call("POST", "/api/v1/runs?now=1", data=NIGHT)
        assert (status, run["name"], run["started_by"]["kind"]) == (201, "night", "api")
        await api.call("PUT", "/api/v1/actions/night", data=NIGHT)
        status, run = await api.call("POST", "/api/v1/runs", json={"action": "night"})
        assert (status, run["number"]) == (201, 2)
        assert await schedules(api) == {}


@pytest.mark.slow
async def test_a_time_makes_a_run_that_says_for_which_time_it_is(tmp_path: Path) -> None:
    async with a_master(tmp_path) as api, an_agent(api) as (agent, _):
        before = datetime.now(UTC)
        await api.call("POST", "/api/v1/runs", data=TICK)
        (fire, *_) = await until_fired(api, "tick")
        assert fire["outcome"] == "ran" and fire["nominal"] == fire["until"] and fire["count"] == 1
        assert before <= datetime.fromisoformat(fire["nominal"]) <= datetime.fromisoformat(fire["at"])
        run = await api.run(fire["run"]["id"])
        assert run["started_by"] == {"kind": "schedule", "name": "tick", "nominal": fire["nominal"], "run": None}
        assign = await agent.receive(wire.Assign)
        assert assign.scheduled_at == datetime.fromisoformat(fire["nominal"]).timestamp() * 1000
        await agent.accept(assign)
        await agent.finish(assign)
        assert (await api.ended(run["id"]))["state"] == "succeeded"
        _, plan = await api.call("GET", f"/api/v1/runs/{run['id']}/plan")
        assert "echo now" in json.dumps(plan)


@pytest.mark.slow
async def test_what_overlaps_is_passed_over_until_the_run_is_over(tmp_path: Path) -> None:
    async with a_master(tmp_path) as api:
        await api.call("POST", "/api/v1/runs", data=TICK)
        first, second, *_ = await until_fired(api, "tick", lambda found: len(found) > 1)
        assert (first["outcome"], second["outcome"], second["run"]) == ("ran", "skipped", None)
        assert "tick#1 is not over" in second["reason"]
        await api.call("POST", f"/api/v1/runs/{first['run']['id']}/cancel")
        await until_fired(api, "tick", lambda found: found[0]["outcome"] == "ran" and len(found) > 2)


@pytest.mark.slow
@pytest.mark.parametrize("is_once", [True, False])
async def test_j10_a_pipeline_with_a_crontab_runs_once_or_again(tmp_path: Path, is_once: bool) -> None:
    async with a_master(tmp_path) as api, an_agent(api) as (agent, _):
        status, answer = await api.call("POST", "/api/v1/runs", json=PIPELINE | {"runOnce": is_once})
        assert status == 201 and [one["is_once"] for one in answer["schedules"]] == [is_once]
        await until_fired(api, "once")
        await work(agent, b"")
        one = (await schedules(api))["once"]
        assert (one["is_enabled"], one["paused_reason"]) == (
            (False, "it was to run once, and did") if is_once else (True, "")
        )
        if is_once:
            assert one["next"] == []
        else:
            await until_fired(api, "once", lambda found: [one["outcome"] for one in found].count("ran") > 1)
            await work(agent, b"")


@pytest.mark.slow
@pytest.mark.parametrize("is_once", [True, False])
async def test_j10_the_seeds_own_pipeline_with_its_crontab_set_is_run_by_itself(tmp_path: Path, is_once: bool) -> None:
    document = json.loads(seed("test")) | {"crontab": "* * * * * *", "runOnce": is_once}
    async with a_master(tmp_path) as api:
        status, answer = await api.call("POST", "/api/v1/runs", json=document)
        assert status == 201 and [one["name"] for one in answer["schedules"]] == ["test"]
        (first, *_) = await until_fired(api, "test")
        run = await api.run(first["run"]["id"])
        assert (run["name"], run["number"], run["started_by"]["kind"]) == ("test", 1, "schedule")
        assert [task["name"] for task in run["tasks"]] == [task["name"] for task in document["pipelineTasks"]]
        if is_once:
            assert (await schedules(api))["test"]["paused_reason"] == "it was to run once, and did"
        else:
            await until_fired(api, "test", lambda found: len(found) > 1)


async def test_without_a_crontab_a_pipeline_that_runs_once_is_a_run_by_hand(tmp_path: Path) -> None:
    async with a_master(tmp_path) as api:
        body = {key: value for key, value in PIPELINE.items() if key != "crontab"} | {"runOnce": True}
        status, run = await api.call("POST", "/api/v1/runs", json=body)
        assert (status, run["name"], await schedules(api)) == (201, "once", {})


async def test_what_is_sent_again_replaces_what_it_had_set(tmp_path: Path) -> None:
    async with a_master(tmp_path) as api:
        two = NIGHT.replace("'30 2 * * *'", "['30 2 * * *', '30 14 * * *']")
        await api.call("POST", "/api/v1/runs", data=two)
        assert set(await schedules(api)) == {"night", "night-2"}
        before = (await schedules(api))["night"]
        await api.call("POST", "/api/v1/runs", data=NIGHT.replace("30 2", "31 2"))
        after = await schedules(api)
        assert set(after) == {"night"}
        assert (after["night"]["id"], after["night"]["cron"]) == (before["id"], "31 2 * * *")


@pytest.mark.slow
async def test_one_of_an_action_runs_it_as_it_is_when_its_time_comes(tmp_path: Path) -> None:
    async with a_master(tmp_path) as api:
        body = {"action": "hello", "schedule": {"cron": "* * * * * *", "overlap": "queue"}}
        status, refused = await api.call("PUT", "/api/v1/schedules/hi", json=body)
        assert (status, refused["detail"]) == (404, "no action 'hello'")
        await api.call("PUT", "/api/v1/actions/hello", data="name: hello\nimage: busybox\nrun: echo one\n")
        status, shown = await api.call("PUT", "/api/v1/schedules/hi", json=body)
        assert (status, shown["action"], shown["overlap"]) == (200, "hello", "queue")
        await until_fired(api, "hi")
        await api.call("PUT", "/api/v1/actions/hello", data="name: hello\nimage: busybox\nrun: echo two\n")
        known = len(await fires(api, "hi"))
        last = (await until_fired(api, "hi", lambda found: len(found) > known + 1))[-1]
        _, plan = await api.call("GET", f"/api/v1/runs/{last['run']['id']}/plan")
        assert "echo two" in json.dumps(plan)
        await api.call("DELETE", "/api/v1/actions/hello")
        gone = (await until_fired(api, "hi", lambda found: found[0]["outcome"] == "failed"))[-1]
        assert gone["reason"].startswith("no action 'hello'")


@pytest.mark.slow
async def test_one_that_is_paused_fires_no_more_until_it_is_resumed(tmp_path: Path) -> None:
    async with a_master(tmp_path) as api:
        await api.call("POST", "/api/v1/runs", data=TICK)
        status, shown = await api.call("POST", "/api/v1/schedules/tick/pause")
        assert (status, shown["is_enabled"], shown["paused_reason"], shown["next"]) == (
            200, False, "somebody paused it", [],
        )  # fmt: skip
        status, shown = await api.call("POST", "/api/v1/schedules/tick/resume")
        assert (status, shown["is_enabled"], len(shown["next"])) == (200, True, 10)
        await until_fired(api, "tick")
        assert (await api.call("DELETE", "/api/v1/schedules/tick"))[0] == 204
        assert (await api.call("GET", "/api/v1/schedules/tick"))[0] == 404


@pytest.mark.slow
async def test_after_a_restart_it_goes_on_and_says_what_it_missed(tmp_path: Path) -> None:
    async with a_master(tmp_path) as api:
        await api.call("POST", "/api/v1/runs", data=TICK)
        seen = await until_fired(api, "tick", lambda found: len(found) > 1)
    await asyncio.sleep(2.2)  # times that nobody can start
    async with a_master(tmp_path) as api:
        found = await until_fired(api, "tick", lambda found: any(one["outcome"] == "missed" for one in found))
        assert found[: len(seen)] == seen
        missed = next(one for one in found if one["outcome"] == "missed")
        assert missed["count"] >= 1 and missed["reason"] == "no leader, catch_up none" and missed["run"] is None
        times = [datetime.fromisoformat(one["nominal"]) for one in found]
        ends = [datetime.fromisoformat(one["until"]) for one in found]
        assert all((after - before).total_seconds() == 1 for before, after in zip(ends, times[1:], strict=False))


@pytest.mark.slow
async def test_the_history_is_told_in_pages(tmp_path: Path) -> None:
    async with a_master(tmp_path) as api:
        await api.call("POST", "/api/v1/runs", data=TICK)
        whole = await until_fired(api, "tick", lambda found: len(found) > 2)
        await api.call("POST", "/api/v1/schedules/tick/pause")
        whole = await fires(api, "tick")
        told, cursor = [], ""
        while True:
            _, page = await api.call("GET", f"/api/v1/schedules/tick/fires?limit=2{cursor}")
            told += page["items"]
            if page["next"] is None:
                break
            cursor = f"&cursor={page['next']}"
        assert told == whole


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        ({"schedule": {"cron": "@daily"}}, 422, "one of action and definition"),
        ({"definition": NIGHT, "action": "x", "schedule": {"cron": "@daily"}}, 422, "one of action and definition"),
        ({"definition": NIGHT}, 422, "schedule: "),
        ({"definition": NIGHT, "schedule": {}}, 422, "the schedule has no 'cron'"),
        ({"definition": NIGHT, "schedule": {"cron": "61 * * * *"}}, 422, "61"),
        ({"definition": NIGHT, "schedule": {"cron": "@daily", "timezone": "Mars"}}, 422, "Mars"),
        ({"definition": NIGHT, "schedule": {"cron": "@daily", "overlap": "maybe"}}, 422, "skip"),
        ({"definition": "name: x", "schedule": {"cron": "@daily"}}, 422, ""),
        ({"definition": TICK, "schedule": {"cron": "@daily"}}, 422, "day"),
        ({"definition": NIGHT, "schedule": {"cron": "@daily"}, "oops": 1}, 422, "oops"),
    ],
)
async def test_what_cannot_be_a_schedule_is_refused_at_once(
    tmp_path: Path, body: dict[str, Any], status: int, said: str
) -> None:
    async with a_master(tmp_path) as api:
        answered, refused = await api.call("PUT", "/api/v1/schedules/x", json=body)
        assert answered == status and said in json.dumps(refused), refused
        assert await schedules(api) == {}


async def test_a_document_whose_plan_could_not_be_made_at_night_is_refused_by_day(tmp_path: Path) -> None:
    async with a_master(tmp_path) as api:
        text = TICK.replace(", with: {day: now}", "")
        status, refused = await api.call("POST", "/api/v1/runs", data=text)
        assert status == 422 and "day" in refused["detail"]
        assert await schedules(api) == {}


async def test_a_name_that_cannot_be_and_one_that_is_taken_are_refused(tmp_path: Path) -> None:
    async with a_master(tmp_path) as api:
        await api.call("POST", "/api/v1/runs", data=NIGHT.replace("'30 2 * * *'", "['0 1 * * *', '0 2 * * *']"))
        body = {"definition": NIGHT, "schedule": {"cron": "@daily"}}
        status, refused = await api.call("PUT", "/api/v1/schedules/night-2", json=body)
        assert status == 409 and "of 'night'" in refused["detail"]
        long = "x" * (limits.NAME_CHARS_MAX + 1)
        assert (await api.call("PUT", f"/api/v1/schedules/{long}", json=body))[0] == 422
        for method, path in (("POST", "/pause"), ("POST", "/resume"), ("DELETE", ""), ("GET", "/fires"), ("GET", "")):
            assert (await api.call(method, f"/api/v1/schedules/none{path}"))[0] == 404


@pytest.mark.parametrize(
    ("schedule", "said"),
    [
        ({"cron": "@daily", "catchup": "all"}, "did you mean 'catch_up'"),
        ({"cron": "@daily", "with": {"a": "x" * 70_000}}, "65536 bytes"),
        ({"cron": "@daily", "overlap": "queue"}, "concurrency group"),
    ],
)
async def test_what_a_schedule_would_not_do_is_not_taken_in_silence(
    tmp_path: Path, schedule: dict[str, Any], said: str
) -> None:
    async with a_master(tmp_path) as api:
        definition = "name: x\nconcurrency: deploy\nimage: busybox\nrun: echo\n"
        status, refused = await api.call(
            "PUT", "/api/v1/schedules/x", json={"definition": definition, "schedule": schedule}
        )
        assert status == 422 and said in json.dumps(refused), refused


async def test_one_that_is_set_by_hand_and_one_of_a_document_do_not_replace_each_other(tmp_path: Path) -> None:
    async with a_master(tmp_path) as api:
        await api.call("POST", "/api/v1/runs", data=NIGHT)
        body = {"definition": NIGHT, "schedule": {"cron": "@daily"}}
        assert (await api.call("PUT", "/api/v1/schedules/night", json=body))[0] == 409
        assert (await api.call("PUT", "/api/v1/schedules/other", json=body))[0] == 200
        assert (await api.call("POST", "/api/v1/runs", data=NIGHT.replace("name: night", "name: other")))[0] == 409


@pytest.mark.slow
async def test_many_times_that_fail_together_are_one_row_and_hold_up_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with a_master(tmp_path) as api:
        await api.call("PUT", "/api/v1/actions/hello", data="name: hello\nimage: busybox\nrun: echo\n")
        body = {"action": "hello", "schedule": {"cron": "* * * * * *", "catch_up": "all", "jitter": "1s"}}
        await api.call("PUT", "/api/v1/schedules/hi", json=body)
        await until_fired(api, "hi")
        await api.call("DELETE", "/api/v1/actions/hello")
    await asyncio.sleep(3.2)  # times that nobody can start
    async with a_master(tmp_path) as api:
        found = await until_fired(
            api, "hi", lambda found: any(one["outcome"] == "failed" and one["count"] > 1 for one in found)
        )
        assert next(one for one in found if one["outcome"] == "failed")["run"] is None


@pytest.mark.parametrize("number", ["1" + 30 * "0", "NaN", "-Infinity"])
async def test_a_parameter_that_cannot_be_kept_is_refused_when_it_is_set(tmp_path: Path, number: str) -> None:
    text = "name: N\nimage: busybox\nrun: echo\n"
    headers = {"Content-Type": "application/json"}
    async with a_master(tmp_path) as api:
        for more in ("schedule: '@daily'\n", "after: Build\n"):
            body = f'{{"definition": {json.dumps(text + more)}, "with": {{"n": [{number}]}}}}'
            status, problem = await api.call("POST", "/api/v1/runs", data=body, headers=headers)
            assert (status, problem["code"]) == (422, "invalid"), problem
            assert "cannot be kept" in problem["detail"]
        body = f'{{"definition": {json.dumps(text)}, "schedule": {{"cron": "@daily", "with": {{"n": {number}}}}}}}'
        status, answer = await api.call("PUT", "/api/v1/schedules/n", data=body, headers=headers)
        if number.isdigit():
            assert (status, "more than 64 bits" in answer["detail"]) == (422, True), answer
        else:  # as in YAML, where it is no number
            assert (status, answer["with"]) == (200, {"n": number})


@pytest.mark.parametrize("depth", [60, 100, 600])
async def test_parameters_that_are_kept_are_no_deeper_than_a_document_can_be(tmp_path: Path, depth: int) -> None:
    text = "name: N\nimage: busybox\nrun: echo\nschedule: '@daily'\n"
    body = f'{{"definition": {json.dumps(text)}, "with": {{"n": {depth * """{"k":"""}1{depth * "}"}}}}}'
    async with a_master(tmp_path) as api:
        status, answer = await api.call("POST", "/api/v1/runs", data=body, headers={"Content-Type": "application/json"})
        assert status == (201 if depth == 60 else 422), answer
        assert depth == 60 or "nested deeper than" in answer["detail"]
