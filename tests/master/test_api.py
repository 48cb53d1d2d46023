"""The HTTP API: what it answers, what it refuses, and how it says so."""

import asyncio
import base64
import hashlib
import io
import json
from pathlib import Path

import pytest

from pistage import wire
from pistage.config import MasterConfig
from pistage.errors import Code, PistageError
from pistage.master.api.http import OPEN_PATHS, OPEN_ROUTES
from pistage.master.replica import Replica
from pistage.master.service import Master
from tests.master.fakes import HELLO_YAML, a_master, an_agent

PAIR_YAML = """
name: Pair
image: busybox
uses:
  left: [{run: echo left, image: busybox}]
  right: [{run: echo right, image: busybox}]
"""


async def test_every_route_wants_the_token_but_two(tmp_path: Path) -> None:
    async with a_master(tmp_path) as api:
        api.session.headers.clear()  # type: ignore[attr-defined]
        for route in api.master.routes:  # type: ignore[attr-defined]
            path = route.path.replace("{id}", "x").replace("{name}", "x")
            for headers in ({}, {"Authorization": "Bearer nothing"}, {"Authorization": "Basic YTpi"}):
                status, body = await api.call(route.method, path, headers=headers)
                assert status == (200 if route.path in OPEN_PATHS else 401), (route, body)
    assert {"/livez", "/readyz"} == OPEN_PATHS
    assert {"/hooks/{name}"} == OPEN_ROUTES  # it wants a signature instead, and says 401 to what has none


async def test_the_token_is_asked_for_before_the_body_is_read(tmp_path: Path) -> None:
    async with a_master(tmp_path) as api:
        host, port = api.url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"POST /api/v1/runs HTTP/1.1\r\nHost: x\r\nContent-Length: 8000000\r\n\r\n")
        async with asyncio.timeout(5):
            assert b"401" in await reader.readline()
        writer.close()


async def test_listening_beyond_loopback_without_a_token_is_refused(tmp_path: Path) -> None:
    for listen in ("0.0.0.0:0", ":0", "[::]:0", "127.example.com:0"):
        with pytest.raises(PistageError, match="without a token"):
            async with Master(MasterConfig(data_dir=tmp_path, listen=listen), token=None):
                pass
    assert list(tmp_path.iterdir()) == []


async def test_a_lease_that_heartbeats_cannot_keep_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PistageError, match="every agent would be lost"):
        async with a_master(tmp_path, lease=2.0, heartbeat=1.0):
            pass
    assert list(tmp_path.iterdir()) == []


async def test_two_masters_do_not_share_a_directory(tmp_path: Path) -> None:
    async with a_master(tmp_path):
        with pytest.raises(PistageError, match="another master"):
            async with a_master(tmp_path):
                pass


async def test_a_definition_a_json_envelope_and_an_action_all_make_runs(tmp_path: Path) -> None:
    async with a_master(tmp_path) as api:
        plain = await api.submit()
        envelope = await api.submit(
            json.dumps({"definition": "name: E\nimage: a\nrun: echo {{ .x }}", "with": {"x": 1}})
        )
        assert (await api.call("PUT", "/api/v1/actions/Hello", data=HELLO_YAML))[0] == 201
        action = await api.submit(json.dumps({"action": "Hello"}), headers={"Content-Type": "application/json"})
        assert [plain["name"], envelope["name"], action["name"]] == ["Hello", "E", "Hello"]
        assert (plain["number"], action["number"]) == (1, 2)
        _, planned = await api.call("GET", f"/api/v1/runs/{envelope['id']}/plan")
        assert planned["plan"]["tasks"][0]["body"]["children"][0]["script"] == "echo 1"


async def test_a_wrong_definition_is_refused_with_every_finding(tmp_path: Path) -> None:
    async with a_master(tmp_path) as api:
        status, refused = await api.call("POST", "/api/v1/runs", data="name: 0\nrun: [1]\n")
        assert (status, refused["code"]) == (422, "invalid")
        assert {finding["line"] for finding in refused["findings"]} >= {1, 2}
        assert (await api.call("GET", "/api/v1/runs"))[1]["items"] == []


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("", "body is empty"),
        ('{"action": "a", "definition": "b"}', "one of action and definition"),
        ('{"action": "a", "wiht": {}}', "wiht"),
        ('{"action": "No Such"}', "no action 'No Such'"),
        ('{"action": "\\ud800"}', "action: "),
        ('{"definition": "name: \\ud800"}', "definition: "),
        ('{"action": "No Such", "start_node": "\\ud800"}', "start_node: "),
    ],
)
async def test_a_wrong_submission_says_what_was_expected(tmp_path: Path, body: str, message: str) -> None:
    async with a_master(tmp_path) as api:
        status, refused = await api.call("POST", "/api/v1/runs", data=body)
        assert status in {404, 422} and message in refused["detail"]


async def test_the_same_idempotency_key_makes_one_run(tmp_path: Path) -> None:
    async with a_master(tmp_path) as api:
        headers = {"Idempotency-Key": "k-1"}
        first, second = await asyncio.gather(api.submit(headers=headers), api.submit(headers=headers))
        assert first["id"] == second["id"]
        status, refused = await api.call("POST", "/api/v1/runs", data=PAIR_YAML, headers=headers)
        assert (status, refused["code"]) == (409, "conflict")
        status, _ = await api.call("POST", "/api/v1/runs", data=PAIR_YAML, headers={"Idempotency-Key": "x" * 201})
        assert status == 400


async def test_a_repeat_is_answered_although_its_action_is_gone(tmp_path: Path) -> None:
    async with a_master(tmp_path) as api:
        await api.call("PUT", "/api/v1/actions/Hello", data=HELLO_YAML)
        given = {"data": '{"action": "Hello"}', "headers": {"Idempotency-Key": "k-1"}}
        status, first = await api.call("POST", "/api/v1/runs", **given)
        assert status == 201
        await api.call("DELETE", "/api/v1/actions/Hello")
        status, second = await api.call("POST", "/api/v1/runs", **given)
        assert (status, second["id"], second["warnings"]) == (200, first["id"], [])


async def test_a_problem_says_the_status_that_it_comes_with(tmp_path: Path) -> None:
    async with a_master(tmp_path) as api:
        for method, path in (("PATCH", "/api/v1/runs"), ("GET", "/nothing"), ("GET", "/api/v1/runs/zzz")):
            status, problem = await api.call(method, path)
            assert problem["status"] == status


async def test_runs_are_found_by_id_prefix_and_number(tmp_path: Path) -> None:
    async with a_master(tmp_path) as api:
        first, second = await api.submit(), await api.submit()
        assert (await api.run(first["id"].upper().lower()))["id"] == first["id"]
        assert (await api.run("Hello%232"))["id"] == second["id"]
        assert (await api.run(second["id"][:25]))["id"] == second["id"]
        status, refused = await api.call("GET", f"/api/v1/runs/{first['id'][:5]}")
        assert (status, refused["code"]) == (409, "conflict")
        for unknown in ("zzz", "Hello%233", "..", "%00", "%2e%2e%2f"):
            status, _ = await api.call("GET", f"/api/v1/runs/{unknown}")
            assert status == 404, unknown


async def test_runs_are_paged_from_the_newest(tmp_path: Path) -> None:
    async with a_master(tmp_path) as api:
        made = [(await api.submit())["id"] for _ in range(5)]
        seen, cursor = [], ""
        while cursor is not None:
            _, page = await api.call("GET", f"/api/v1/runs?limit=2{cursor and '&cursor=' + cursor}")
            seen += [item["id"] for item in page["items"]]
            cursor = page["next"]
        assert seen == made[::-1]
        assert (await api.call("GET", "/api/v1/runs?state=succeeded"))[1]["items"] == []
        assert (await api.call("GET", "/api/v1/runs?state=odd"))[0] == 400
        assert (await api.call("GET", "/api/v1/runs?limit=0"))[0] == 400


async def test_a_run_that_has_not_changed_is_not_sent_again(tmp_path: Path) -> None:
    async with a_master(tmp_path) as api:
        run = await api.submit()
        path = f"{api.url}/api/v1/runs/{run['id']}"
        async with asyncio.timeout(10):
            while not (await api.run(run["id"]))["tasks"][0]["waiting"]:  # noqa: ASYNC110 - the API has no event of it
                await asyncio.sleep(0.01)
        async with api.session.get(path) as response:
            etag = response.headers["ETag"]
        await api.submit()  # something else may have
        async with api.session.get(path, headers={"If-None-Match": etag}) as response:
            assert response.status == 304


async def test_output_is_read_as_bytes_as_json_and_as_events(tmp_path: Path) -> None:
    data = bytes(range(256)) * 10
    async with a_master(tmp_path) as api, an_agent(api) as (agent, _):
        run = await api.submit()
        assign = await agent.receive(wire.Assign)
        await agent.accept(assign)
        await agent.print(assign, data[:1000])
        logs = f"{api.url}/api/v1/runs/{run['id']}/logs"
        exact = {"Accept": "application/octet-stream"}
        async with api.session.get(logs, params={"follow": "1"}, headers=exact) as following:
            assert await following.content.readexactly(1000) == data[:1000]
            await agent.print(assign, data[1000:], 1000)
            await agent.finish(assign, length=len(data))
            assert await following.read() == data[1000:]
        async with api.session.get(logs, params={"offset": "990", "limit": "20"}, headers=exact) as response:
            assert await response.read() == data[990:1010]
        async with api.session.get(logs, headers={"Accept": "application/x-ndjson"}) as response:
            pieces = [json.loads(line) for line in (await response.read()).splitlines()]
        assert b"".join(base64.b64decode(piece["data"]) for piece in pieces) == data
        assert [(p["number"], p["task"], p["stream"], p["offset"]) for p in pieces] == [
            (0, "main", "stdout", 0), (1, "main", "stdout", 1000),
        ]  # fmt: skip
        headers = {"Accept": "text/event-stream", "Last-Event-ID": "0"}
        async with api.session.get(logs, headers=headers) as response:
            text = await response.text()
        assert text.startswith("id: 1\nevent: output\n") and text.endswith("event: end\ndata: {}\n\n")
        for query, status in (
            ("stream=stdin", 400),
            ("task=none", 404),
            ("offset=x", 400),
            ("offset=999999999999999999", 400),
        ):
            assert (await api.call("GET", f"/api/v1/runs/{run['id']}/logs?{query}"))[0] == status


async def test_events_are_replayed_and_followed_to_the_end(tmp_path: Path) -> None:
    async with a_master(tmp_path) as api, an_agent(api) as (agent, _):
        run = await api.submit()
        assign = await agent.receive(wire.Assign)
        await agent.accept(assign)
        await agent.finish(assign)
        headers = {"Accept": "text/event-stream"}
        async with api.session.get(f"{api.url}/api/v1/runs/{run['id']}/events", headers=headers) as response:
            text = await response.text()
        kinds = [line.removeprefix("event: ") for line in text.splitlines() if line.startswith("event: ")]
        assert kinds == [
            "run_submitted", "task_queued", "task_assigned", "run_started", "attempt_accepted", "step_started",
            "step_finished", "task_finished", "run_finished", "end",
        ]  # fmt: skip
        _, listed = await api.call("GET", f"/api/v1/runs/{run['id']}/events")
        assert [item["kind"] for item in listed["items"]] == kinds[:-1]
        after = {"Last-Event-ID": str(listed["items"][-2]["id"])}
        async with api.session.get(f"{api.url}/api/v1/runs/{run['id']}/events", headers=headers | after) as response:
            assert (await response.text()).count("event: ") == 2


async def test_actions_are_registered_listed_shown_and_deleted(tmp_path: Path) -> None:
    async with a_master(tmp_path) as api:
        assert (await api.call("PUT", "/api/v1/actions/Hello", data=HELLO_YAML))[0] == 201
        status, again = await api.call("PUT", "/api/v1/actions/Hello", data=HELLO_YAML)
        assert (status, again["version"], again["is_new"]) == (200, 1, False)
        _, shown = await api.call("GET", "/api/v1/actions/Hello")
        assert (shown["text"], shown["sha256"]) == (HELLO_YAML, hashlib.sha256(HELLO_YAML.encode()).hexdigest())
        _, listed = await api.call("GET", "/api/v1/actions")
        assert {"Hello": False, "Clone Repository": True}.items() <= {
            item["name"]: item["is_predefined"] for item in listed["items"]
        }.items()
        status, refused = await api.call("PUT", "/api/v1/actions/Other", data=HELLO_YAML)
        assert (status, refused["detail"]) == (422, "the document's name is 'Hello', not 'Other'")
        assert (await api.call("PUT", "/api/v1/actions/Bad", data="name: Bad\n"))[0] == 422
        assert (await api.call("DELETE", "/api/v1/actions/Hello"))[0] == 204
        assert (await api.call("DELETE", "/api/v1/actions/Hello"))[0] == 404
        assert (await api.call("GET", "/api/v1/actions/Hello"))[0] == 404


SCALE_YAML = """name: Scale
image: busybox
inputs:
  size: {type: integer, min: 1, max: 9, required: true}
  zone: {enum: [north, south], default: north}
run: scale {{ .size }} {{ .zone }}
"""


async def test_an_action_says_what_it_takes_as_a_schema(tmp_path: Path) -> None:
    async with a_master(tmp_path) as api:
        await api.call("PUT", "/api/v1/actions/Scale", data=SCALE_YAML)
        status, schema = await api.call("GET", "/api/v1/actions/Scale/schema")
        assert (status, schema["required"], schema["additionalProperties"]) == (200, ["size"], False)
        assert schema["properties"]["size"] == {"type": "integer", "minimum": 1, "maximum": 9}
        _, open_schema = await api.call("GET", "/api/v1/actions/Clone%20Repository/schema")
        assert open_schema["additionalProperties"] is True
        assert (await api.call("GET", "/api/v1/actions/No/schema"))[0] == 404


async def test_what_is_given_is_held_against_the_inputs_of_an_action(tmp_path: Path) -> None:
    async with a_master(tmp_path) as api:
        await api.call("PUT", "/api/v1/actions/Scale", data=SCALE_YAML)
        body = {"action": "Scale", "with": {"size": "10", "zone": "east", "sise": 1}}
        for path in ("/api/v1/runs", "/api/v1/plan"):
            status, refused = await api.call("POST", path, data=json.dumps(body))
            assert (status, refused["code"]) == (422, "invalid")
            assert [finding["path"] for finding in refused["findings"]] == ["with.size", "with.zone", "with.sise"]
        run = await api.submit(json.dumps({"action": "Scale", "with": {"size": "9"}}))
        _, shown = await api.call("GET", f"/api/v1/runs/{run['id']}/plan")
        assert shown["plan"]["tasks"][0]["body"]["children"][0]["script"] == "scale 9 north"


async def test_an_action_with_inputs_that_are_declared_wrongly_is_not_registered(tmp_path: Path) -> None:
    async with a_master(tmp_path) as api:
        text = SCALE_YAML.replace("default: north", "default: west")
        status, refused = await api.call("PUT", "/api/v1/actions/Scale", data=text)
        assert (status, refused["findings"][0]["path"]) == (422, "inputs.zone.default")


async def test_registering_an_action_again_does_not_change_a_run_that_exists(tmp_path: Path) -> None:
    async with a_master(tmp_path) as api:
        await api.call("PUT", "/api/v1/actions/Hello", data=HELLO_YAML)
        run = await api.submit("name: Caller\nuses: {main: [{dep: Hello}]}\n")
        await api.call("PUT", "/api/v1/actions/Hello", data=HELLO_YAML.replace("echo hello", "echo changed"))
        _, planned = await api.call("GET", f"/api/v1/runs/{run['id']}/plan")
        assert "echo hello" in json.dumps(planned) and "changed" not in json.dumps(planned)
        assert planned["plan"]["pins"][0]["version"] == 1


async def test_credentials_of_a_registry_are_never_shown(tmp_path: Path) -> None:
    auth = {"username": "robot", "password": "hunter2hunter2", "serveraddress": "127.0.0.1:5000"}
    step = {"name": "s", "image": "i", "authConfig": auth}
    document = {"name": "P", "pipelineTasks": [{"name": "t", "steps": [step]}]}
    async with a_master(tmp_path) as api:
        run = await api.submit(json.dumps(document))
        for path in ("", "/plan", "/events"):
            _, shown = await api.call("GET", f"/api/v1/runs/{run['id']}{path}")
            assert "hunter2" not in json.dumps(shown) and "robot" not in json.dumps(shown)
        _, planned = await api.call("POST", "/api/v1/plan", data=json.dumps(document))
        assert "hunter2" not in json.dumps(planned)


async def test_lint_and_plan_answer_without_making_anything(tmp_path: Path) -> None:
    async with a_master(tmp_path) as api:
        _, found = await api.call("POST", "/api/v1/lint", data="name: X\nimage: a\nrun: echo {{ .who }}\n")
        assert (found["findings"], found["parameters_needed"]) == ([], ["who"])
        status, refused = await api.call("POST", "/api/v1/plan", data="name: X\nimage: a\nrun: echo {{ .who }}\n")
        assert status == 422 and refused["findings"]
        _, planned = await api.call("POST", "/api/v1/plan", data=PAIR_YAML)
        assert [task["name"] for task in planned["plan"]["tasks"]] == ["left", "right"]
        assert (await api.call("GET", "/api/v1/runs"))[1]["items"] == []


async def test_unknown_routes_and_methods_are_problems_too(tmp_path: Path) -> None:
    async with a_master(tmp_path) as api:
        for method, path, status in (("GET", "/nothing", 404), ("DELETE", "/api/v1/runs", 405)):
            got, refused = await api.call(method, path)
            assert (got, refused["status"] >= 400, "detail" in refused) == (status, True, True)
        assert (await api.call("GET", "/api/v1/runs?project=other"))[0] == 404


async def test_a_body_over_the_limit_is_refused(tmp_path: Path) -> None:
    async with a_master(tmp_path) as api:
        status, refused = await api.call("POST", "/api/v1/runs", data=io.BytesIO(b"x" * (9 << 20)))
        assert (status, refused["code"]) == (413, "too_large")


async def test_a_nearly_full_disk_refuses_new_runs_and_says_so(tmp_path: Path) -> None:
    async with a_master(tmp_path, disk_free_min=1 << 60) as api:
        status, refused = await api.call("POST", "/api/v1/runs", data=HELLO_YAML)
        assert (status, refused["code"]) == (507, "storage")


async def test_the_api_describes_itself(tmp_path: Path) -> None:
    async with a_master(tmp_path) as api:
        _, document = await api.call("GET", "/openapi.json")
        assert all(operation["summary"] for path in document["paths"].values() for operation in path.values())
        _, metrics = await api.call("GET", "/metrics")
        assert "pistage_applied_index" in metrics
        _, cluster = await api.call("GET", "/api/v1/cluster")
        assert cluster["leader"] == cluster["node"] and cluster["cluster_id"]


async def test_agents_are_not_told_by_a_leader_that_may_have_been_deposed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def unconfirmed(replica: Replica) -> None:
        raise PistageError(Code.UNAVAILABLE, "the masters have no majority now")

    monkeypatch.setattr("pistage.master.api.leading._LEADER_WAIT_S", 0.2)
    async with a_master(tmp_path) as api:
        monkeypatch.setattr(Replica, "read", unconfirmed)
        assert (await api.call("GET", "/api/v1/agents"))[0] == 503
        assert (await api.call("GET", "/api/v1/agents?stale=1"))[0] == 200
