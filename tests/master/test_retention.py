"""Retention through a master: what is dropped is gone from the disk, stays gone, and what is pinned stays."""

import json
from pathlib import Path
from typing import Any

import pytest

from pistage import wire
from pistage.core.retention import ALL_PIPELINES, EndedRun
from pistage.master import reads, retained
from pistage.master.service import Master
from tests.master.fakes import TOKEN, Api, FakeAgent, a_master, an_agent
from tests.master.test_copies import a_group, put
from tests.master.test_output_failover import three_masters
from tests.master.test_queries import Explained
from tests.master.test_retry import failed_chain, retry, work
from tests.waiting import until

OTHER = "name: Other\nimage: busybox\nrun: echo\nretry: 0\n"


async def a_run(api: Api, agent: FakeAgent, data: bytes = b"hello\n", text: str | None = None) -> dict[str, Any]:
    """A run that has printed so much and ended."""
    run = await (api.submit() if text is None else api.submit(text))
    await work(agent, data)
    return await api.ended(run["id"])


async def keep(api: Api, name: str = "Hello", **bounds: object) -> dict[str, Any]:
    status, said = await api.call("PUT", f"/api/v1/retention/{name}", json=bounds)
    assert status == 200, said
    return dict(said)


def has_output(data_dir: Path, run: dict[str, Any]) -> bool:
    return (data_dir / "logs" / run["id"]).exists()


async def events_of(api: Api, run: dict[str, Any]) -> list[str]:
    _, listed = await api.call("GET", f"/api/v1/runs/{run['id']}/events")
    return [event["kind"] for event in listed["items"]]


async def test_what_is_too_much_is_dropped_at_once_when_a_bound_is_set_and_the_run_says_why(tmp_path: Path) -> None:
    async with a_master(tmp_path) as api, an_agent(api) as (agent, _):
        first, second = await a_run(api, agent, b"1" * 10), await a_run(api, agent, b"2" * 20)
        other = await a_run(api, agent, text=OTHER)
        assert (first["output_bytes"], first["output_dropped_at"], first["is_pinned"]) == (10, None, False)
        said = await keep(api, runs_max=1)
        assert said == {
            "name": "Hello", "age_s": 90 * 86_400, "bytes_max": None, "runs_max": 1, "is_set": True, "runs": 2,
            "output_bytes": 30,
        }  # fmt: skip
        await until(lambda: not has_output(tmp_path, first))
        assert has_output(tmp_path, second) and has_output(tmp_path, other)
        shown = await api.run(first["id"])
        assert shown["output_dropped_reason"] == "of its pipeline the newest 1 run is kept"
        assert shown["output_dropped_at"] >= shown["finished_at"] and shown["output_bytes"] == 10
        assert (await events_of(api, first))[-1] == "output_dropped"
        _, listed = await api.call("GET", "/api/v1/runs?name=Hello")
        assert [run["output_dropped_at"] is None for run in listed["items"]] == [True, False]
        assert (await retain(api, "Hello"))["runs"] == 1


async def retain(api: Api, name: str) -> dict[str, Any]:
    _, listed = await api.call("GET", "/api/v1/retention")
    return next(dict(item) for item in listed["items"] if item["name"] == name)


async def test_age_and_size_drop_too_and_what_is_said_of_a_pipeline_replaces_what_is_said_of_all(
    tmp_path: Path,
) -> None:
    async with a_master(tmp_path) as api, an_agent(api) as (agent, _):
        runs = [await a_run(api, agent, bytes(10)) for _ in range(4)]
        other = await a_run(api, agent, text=OTHER)
        await keep(api, "Hello", age_s=None, bytes_max=25)
        await until(lambda: not has_output(tmp_path, runs[1]))
        assert [has_output(tmp_path, run) for run in runs] == [False, False, True, True]
        await keep(api, ALL_PIPELINES, age_s=0.001)
        await until(lambda: not has_output(tmp_path, other))
        assert (await api.run(other["id"]))["output_dropped_reason"] == "it ended more than 0.001 seconds ago"
        assert [has_output(tmp_path, run) for run in runs] == [False, False, True, True]
        assert (await api.call("DELETE", "/api/v1/retention/Hello"))[0] == 204
        await until(lambda: not any(has_output(tmp_path, run) for run in runs))


async def test_runs_that_end_later_are_looked_at_in_time_and_all_when_a_master_takes_the_lead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with a_master(tmp_path) as api, an_agent(api) as (agent, _):
        await keep(api, runs_max=1)
        runs = [await a_run(api, agent) for _ in range(2)]
    monkeypatch.setattr("pistage.master.retention._LOOK_EVERY_S", 0.05)
    async with a_master(tmp_path) as api, an_agent(api, agent.id) as (agent, _):
        await until(lambda: not has_output(tmp_path, runs[0]))
        runs.append(await a_run(api, agent))
        await until(lambda: not has_output(tmp_path, runs[1]))
        assert has_output(tmp_path, runs[2])


async def test_a_pinned_run_stays_until_it_is_unpinned(tmp_path: Path) -> None:
    async with a_master(tmp_path) as api, an_agent(api) as (agent, _):
        old, new = await a_run(api, agent), await a_run(api, agent)
        status, shown = await api.call("POST", f"/api/v1/runs/{old['id']}/pin")
        assert (status, shown["is_pinned"]) == (200, True)
        await keep(api, age_s=0.001)
        await until(lambda: not has_output(tmp_path, new))
        assert has_output(tmp_path, old)
        status, refused = await api.call("POST", f"/api/v1/runs/{new['id']}/pin")
        assert status == 409 and "its output was dropped: it ended more than" in refused["detail"]
        status, shown = await api.call("POST", f"/api/v1/runs/{old['id']}/unpin")
        assert (status, shown["is_pinned"]) == (200, False)
        await until(lambda: not has_output(tmp_path, old))


async def test_output_that_a_run_has_kept_tasks_of_stays_until_that_has_ended(tmp_path: Path) -> None:
    async with a_master(tmp_path) as api, an_agent(api) as (agent, _):
        old = await failed_chain(api, agent)
        _, again = await retry(api, old["id"], {"failed": True})
        assign = await agent.receive(wire.Assign)
        other = await a_run(api, agent, text=OTHER)
        await keep(api, ALL_PIPELINES, age_s=0.001)
        await until(lambda: not has_output(tmp_path, other))
        assert has_output(tmp_path, old)
        await agent.accept(assign)
        await agent.finish(assign, exit_code=1)
        await api.ended(again["id"])
        await keep(api, ALL_PIPELINES, age_s=0.001)
        await until(lambda: not has_output(tmp_path, old))


async def test_many_runs_are_dropped_some_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pistage.master.retention.DROPS_MAX", 2)
    async with a_master(tmp_path) as api, an_agent(api) as (agent, _):
        runs = [await a_run(api, agent) for _ in range(6)]
        others = [await a_run(api, agent, text=OTHER) for _ in range(3)]
        proposed = []
        master: Master = api.master  # type: ignore[attr-defined]
        master.context.replica.on_applied(lambda outcome: proposed.append(outcome.dropped))
        await keep(api, ALL_PIPELINES, runs_max=1)
        await until(lambda: not any(has_output(tmp_path, run) for run in [*runs[:-1], *others[:-1]]))
        assert has_output(tmp_path, runs[-1]) and has_output(tmp_path, others[-1])
        assert [len(dropped) for dropped in proposed if dropped] == [2, 2, 2, 1]


async def test_what_was_dropped_while_a_master_was_down_is_removed_when_it_starts(tmp_path: Path) -> None:
    async with a_master(tmp_path) as api, an_agent(api) as (agent, _):
        old, new = await a_run(api, agent), await a_run(api, agent)
        await keep(api, runs_max=1)
        await until(lambda: not has_output(tmp_path, old))
    logs = tmp_path / "logs"
    for left in (logs / old["id"], logs / f"{old['id']}.removed"):  # from before, and from the middle of a removal
        left.mkdir(exist_ok=True)  # a master that stops in the middle of a removal leaves the rest of it
        (left / "index").write_bytes(b"")
    async with a_master(tmp_path) as api:
        await until(lambda: not has_output(tmp_path, old) and not (logs / f"{old['id']}.removed").exists())
        assert has_output(tmp_path, new)
        status, text = await api.call("GET", f"/api/v1/runs/{new['id']}/logs")
        assert (status, text) == (200, "hello\n")


@pytest.mark.parametrize(
    "accept", ["text/plain", "application/octet-stream", "application/x-ndjson", "text/event-stream"]
)
async def test_who_asks_for_what_was_dropped_is_told_when_and_why(tmp_path: Path, accept: str) -> None:
    async with a_master(tmp_path) as api, an_agent(api) as (agent, _):
        old = await a_run(api, agent)
        await a_run(api, agent)
        await keep(api, runs_max=1)
        await until(lambda: not has_output(tmp_path, old))
        for query in ("", "?follow=1", "?grep=hello", "?offset=-1&by=line"):
            status, refused = await api.call("GET", f"/api/v1/runs/{old['id']}/logs{query}", headers={"Accept": accept})
            if (status, "grep" in query or "by" in query) == (400, True):
                continue  # events have no lines
            assert (status, refused["code"]) == (404, "not_found")
            told = refused["detail"]
            assert told.startswith("what Hello#1 printed was dropped at 20") and told.endswith("1 run is kept")


async def test_a_retry_whose_kept_tasks_have_lost_their_output_says_so_where_it_was(tmp_path: Path) -> None:
    async with a_master(tmp_path) as api, an_agent(api) as (agent, _):
        old = await failed_chain(api, agent)
        _, again = await retry(api, old["id"], {"failed": True})
        await work(agent, b"built\n")
        await work(agent, b"shipped\n")
        await api.ended(again["id"])
        await keep(api, "Chain", runs_max=1)
        await until(lambda: not has_output(tmp_path, old))
        logs = f"/api/v1/runs/{again['id']}/logs"
        sentence = "what Chain#1 printed was dropped at 20"
        _, text = await api.call("GET", logs)
        gap, *rest = text.splitlines()
        assert gap.startswith(f"[{sentence}") and rest == ["built", "shipped"]
        assert await api.call("GET", logs, headers={"Accept": "application/octet-stream"}) == (200, "built\nshipped\n")
        assert (await api.call("GET", logs + "?task=build"))[1] == "built\n"
        _, told = await api.call("GET", logs, headers={"Accept": "application/x-ndjson"})
        first, *others = [json.loads(line) for line in told.splitlines()]
        assert (first["kind"], first["task"], first["reason"], first["missing"]) == ("gap", "fetch", "retention", None)
        assert [one["text"] for one in others] == ["built\n", "shipped\n"]
        _, told = await api.call("GET", logs + "?follow=1", headers={"Accept": "text/event-stream"})
        assert told.count("event: gap\n") == 1 and told.count(sentence) == 1 and told.count("event: output") == 2


async def test_a_removal_that_fails_is_tried_again_and_ends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pistage.master.retention._AGAIN_S", 0.01)
    async with a_master(tmp_path) as api, an_agent(api) as (agent, _):
        old = await a_run(api, agent)
        await a_run(api, agent)
        failures = []

        def rename(path: Path, target: Path) -> None:
            failures.append(path)
            if len(failures) > 2:
                monkeypatch.setattr(Path, "rename", original)
            raise OSError(28, "No space left on device")

        original = Path.rename
        monkeypatch.setattr(Path, "rename", rename)
        await keep(api, runs_max=1)
        await until(lambda: not has_output(tmp_path, old))
        assert len(failures) == 3 and await a_run(api, agent)


async def test_retention_is_listed_with_what_there_is_and_what_cannot_be_said_is_refused(tmp_path: Path) -> None:
    async with a_master(tmp_path) as api, an_agent(api) as (agent, _):
        await a_run(api, agent, bytes(7))
        await a_run(api, agent, bytes(5), OTHER)
        unsaid = {"age_s": 90 * 86_400, "bytes_max": None, "runs_max": None}
        _, listed = await api.call("GET", "/api/v1/retention")
        assert listed["items"] == [{"name": "*", "is_set": False, "runs": 2, "output_bytes": 12} | unsaid]
        await keep(api, "a%2Fb%20c", age_s=None)
        await keep(api, "Other")
        _, listed = await api.call("GET", "/api/v1/retention")
        assert [(one["name"], one["age_s"], one["is_set"], one["runs"]) for one in listed["items"]] == [
            ("*", 90 * 86_400, False, 2), ("Other", 90 * 86_400, True, 1), ("a/b c", None, True, 0),
        ]  # fmt: skip
        status, refused = await api.call("DELETE", "/api/v1/retention/nothing")
        assert status == 404 and "pistage retention ls" in refused["hint"]
        for body in ({"age_s": 0}, {"age_s": "1d"}, {"bytes_max": 0}, {"runs_max": 0}, {"runs_max": 1.5}, {"age": 1}):
            status, refused = await api.call("PUT", "/api/v1/retention/Hello", data=json.dumps(body))
            assert status == 422 and '"runs_max": number of runs or null' in refused["hint"], body
        assert (await api.call("PUT", f"/api/v1/retention/{'x' * 201}", json={}))[0] == 422
        assert (await api.call("GET", "/api/v1/retention?project=nobody"))[0] == 404
        assert (await api.call("POST", "/api/v1/runs/Hello%237/pin"))[0] == 404


async def test_each_project_has_what_was_said_of_it(tmp_path: Path) -> None:
    async with a_master(tmp_path, projects=("default", "lab")) as api, an_agent(api) as (agent, _):
        here = await a_run(api, agent)
        there = await api.submit(params={"project": "lab"})
        await work(agent, b"x")
        await api.call("PUT", "/api/v1/retention/*?project=lab", json={"age_s": 0.001})
        await until(lambda: not has_output(tmp_path, there))
        assert has_output(tmp_path, here)


async def test_what_retention_asks_for_is_found_by_an_index_however_many_runs_there_have_been() -> None:
    explained = Explained()
    last = EndedRun(run_id="x", finished_at=1, output_bytes=0)
    await retained.oldest(explained, ("p", "n"), last, 9)
    assert "run_with_output (project=? AND name=? AND (finished_at,id)>(?,?))" in explained.steps[0], explained.steps
    assert any("task_kept (kept_from=?)" in step for step in explained.steps), explained.steps
    for sql, parameters in ((retained.KEPT, ("p", "n")), (retained.KEPT_OF_ALL, ("p",))):
        await explained.rows(sql, parameters)
        assert "COVERING INDEX run_with_output" in explained.steps[-1], explained.steps
    async for _ in retained.pipelines(explained):
        pass
    assert "COVERING INDEX run_with_output (project=? AND name=?" in explained.steps[-1], explained.steps
    await reads.output_dropped(explained, ["x"])
    assert "run (id=?)" in explained.steps[-1] or "(id=?)" in explained.steps[-1], explained.steps
    assert not any(step.startswith(("SCAN run", "SCAN task", "USE TEMP")) for step in explained.steps), explained.steps


@pytest.mark.slow
async def test_a_copy_of_a_master_that_is_behind_does_not_bring_dropped_output_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("_LOOK_EVERY_S", 0.02), ("_SWEEP_AGAIN_S", 0.05), ("_SWEEP_EVERY_S", 0.1)):
        monkeypatch.setattr(f"pistage.master.tenure.{name}", value)
    missing, dropped = wire.new_id(), wire.new_id()  # a sweep comes to the newer one first
    async with a_group(tmp_path, ("m1", "m2")) as group:
        leader = await group.elect("m1")
        for run_id in (missing, dropped):
            await put(leader, b"hello", run_id=run_id)
            await group.until_alike(run_id)

        async def gone(run_ids: object) -> set[str]:
            return {dropped}

        leader.copies._dropped = gone
        for run_id in (missing, dropped):
            await leader.logs.remove(run_id)
        leader.copies.drop([missing, dropped])
        await group.elect("m1")  # which then asks what the other has
        await until((tmp_path / "m1" / missing / "index").exists)
        await group.until_alike(missing)
        assert (tmp_path / "m2" / dropped).exists() and not (tmp_path / "m1" / dropped).exists()


@pytest.mark.slow
async def test_a_run_that_is_dropped_while_it_is_fed_to_another_master_ends_the_feeding(tmp_path: Path) -> None:
    async with a_group(tmp_path, ("m1", "m2"), replicas=1) as group:
        leader = await group.elect("m1")
        group.lost = (wire.Copy,)
        run_id, after = wire.new_id(), wire.new_id()
        await put(leader, b"hello", run_id=run_id)
        await leader.logs.remove(run_id)  # before the feed is told
        await put(leader, b"hello", run_id=after)
        group.lost = ()
        await group.until_alike(after)
        asked = len(group.asked)
        feed = leader.copies._tenure._feeding.feeds["m2"]  # type: ignore[union-attr]
        await until(lambda: not feed.due)
        assert len(group.asked) - asked < 20


@pytest.mark.slow
async def test_a_master_that_was_away_removes_what_was_dropped_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pistage.master.tenure._SWEEP_AGAIN_S", 0.05)
    monkeypatch.setattr("pistage.master.tenure._SWEEP_EVERY_S", 0.1)
    async with three_masters(tmp_path) as masters:
        leader = await masters.leader()
        async with an_agent(leader) as (agent, _):
            old, new = await a_run(leader, agent), await a_run(leader, agent)
        places = {url: master._settings.data_dir for url, master in masters.up.items()}
        await until(lambda: all(has_output(place, run) for place in places.values() for run in (old, new)))
        away = next(url for url in masters.urls if url != leader.url)
        settings = masters.up[away]._settings
        await masters.stop(away)
        leader = await masters.leader()
        await keep(leader, runs_max=1)
        there = [place for url, place in places.items() if url != away]
        await until(lambda: not any(has_output(place, old) for place in there))
        assert has_output(places[away], old)
        async with Master(settings, token=TOKEN):
            await until(lambda: not has_output(places[away], old))
            await keep(leader, runs_max=5)  # a change that all three have had
            assert [has_output(place, old) for place in places.values()] == [False] * 3
            assert [has_output(place, new) for place in places.values()] == [True] * 3
