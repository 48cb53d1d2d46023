"""Queues over HTTP: what is said of one, what runs and waits in it, and what is refused."""

import json
from pathlib import Path

import pytest

from pistage.core.definition import planning, storage
from pistage.master.api import queues
from tests.master.fakes import a_master, an_agent

NIGHTLY = "name: Night\nimage: busybox\nrun: echo\nqueue: nightly\npriority: 7\n"


async def test_a_queue_is_listed_once_it_was_set_or_has_runs(tmp_path: Path) -> None:
    async with a_master(tmp_path) as api:
        assert (await api.call("GET", "/api/v1/queues"))[1]["items"] == []
        await api.submit(NIGHTLY)
        await api.submit()
        _, listed = await api.call("GET", "/api/v1/queues")
        assert [(one["name"], one["is_set"], one["running"], one["waiting"]) for one in listed["items"]] == [
            ("default", False, 0, 1), ("nightly", False, 0, 1),
        ]  # fmt: skip
        body = {"priority": 5, "limit": 1, "placing": "pack"}
        status, shown = await api.call("PUT", "/api/v1/queues/nightly", json=body)
        assert status == 200
        assert shown == {"name": "nightly", "is_set": True, "running": 0, "waiting": 1} | body
        _, runs = await api.call("GET", "/api/v1/runs?queue=nightly")
        assert [(run["name"], run["queue"], run["priority"]) for run in runs["items"]] == [("Night", "nightly", 7)]


async def test_a_queue_with_a_limit_lets_no_more_runs_begin_and_says_which_ones_hold_it_up(tmp_path: Path) -> None:
    async with a_master(tmp_path) as api:
        await api.call("PUT", "/api/v1/queues/nightly", json={"limit": 1})
        first, second = await api.submit(NIGHTLY), await api.submit(NIGHTLY)
        async with an_agent(api):
            async with api.session.get(
                f"{api.url}/api/v1/runs/{first['id']}/events", headers={"Accept": "text/event-stream"}
            ) as events:
                async for line in events.content:
                    if b"run_started" in line:
                        break
            _, listed = await api.call("GET", "/api/v1/queues")
            assert [(one["running"], one["waiting"]) for one in listed["items"]] == [(1, 1)]
            waiting = (await api.run(second["id"]))["tasks"][0]["waiting"]
            assert waiting == "queue nightly: 1 of 1 runs running (Night#1)"


async def test_what_was_said_of_a_queue_is_forgotten(tmp_path: Path) -> None:
    async with a_master(tmp_path) as api:
        await api.call("PUT", "/api/v1/queues/q", json={"limit": 3})
        status, shown = await api.call("PUT", "/api/v1/queues/q")  # nothing said: the defaults
        assert (status, shown["limit"], shown["placing"]) == (200, None, "spread")
        assert (await api.call("DELETE", "/api/v1/queues/q"))[0] == 204
        status, refused = await api.call("DELETE", "/api/v1/queues/q")
        assert status == 404 and "pistage queue ls" in refused["hint"]


@pytest.mark.parametrize(
    "body", [{"limit": 0}, {"limit": 10_001}, {"priority": 1001}, {"priority": -1}, {"placing": "best"}, {"limits": 1}]
)
async def test_what_cannot_be_said_of_a_queue_is_refused_with_what_can(tmp_path: Path, body: object) -> None:
    async with a_master(tmp_path) as api:
        status, refused = await api.call("PUT", "/api/v1/queues/q", data=json.dumps(body))
        assert status == 422 and '"spread" or "pack"' in refused["hint"]
        status, refused = await api.call("PUT", "/api/v1/queues/-q", json={})
        assert status == 422 and "letters, digits" in refused["hint"]


def test_names_and_priorities_are_those_that_definitions_allow() -> None:
    assert queues.NAME.pattern == storage._NAME.pattern
    assert queues.PRIORITY_MAX == planning._PRIORITY_MAX
