"""Batches over HTTP: many runs in one submission, all or none, and what is said of one that is wrong."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from pistage.client import Client
from pistage.core import limits
from pistage.core.definition import make_plan
from pistage.errors import PistageError
from pistage.master.api.batches import parse_batch, plan_batch
from tests.master.fakes import HELLO_YAML, TOKEN, Api, a_master

ECHO_YAML = "name: Echo\nimage: busybox\nrun: echo {{ .x }}\n"


async def post(api: Api, body: object, **headers: str) -> tuple[int, Any]:
    return await api.call("POST", "/api/v1/runs/batch", data=json.dumps(body).encode(), headers=headers)


def with_each(*values: object, **fields: object) -> dict[str, object]:
    return {"definition": ECHO_YAML, "runs": [{"with": {"x": value}} for value in values]} | fields


def planned(*values: object, text: str = ECHO_YAML) -> Any:
    body = json.dumps(with_each(*values)).encode()
    return plan_batch(text, parse_batch(body).runs, lambda name: None)


async def test_a_batch_makes_a_run_of_each_in_its_order(tmp_path: Path) -> None:
    async with a_master(tmp_path) as api:
        await api.submit(ECHO_YAML.replace("{{ .x }}", "first"))
        status, made = await post(api, with_each("a", "b", "a"))
        assert (status, [item["number"] for item in made["items"]]) == (201, [2, 3, 4])
        _, listed = await api.call("GET", "/api/v1/runs")
        assert [run["id"] for run in listed["items"]][:3] == [item["id"] for item in made["items"]][::-1]
        assert listed["applied_index"] >= made["applied_index"] > 0
        scripts = []
        for item in made["items"]:
            _, shown = await api.call("GET", f"/api/v1/runs/{item['id']}/plan")
            scripts.append(shown["plan"]["tasks"][0]["body"]["children"][0]["script"])
        assert scripts == ["echo a", "echo b", "echo a"]


async def test_a_batch_of_an_action_through_the_client(tmp_path: Path) -> None:
    async with a_master(tmp_path) as api, Client([api.url], TOKEN) as client:
        await client.put_action("Hello", HELLO_YAML)
        made = await client.submit_runs({"action": "Hello", "runs": [{}] * 100}, request_key="k")
        assert [item["number"] for item in made["items"]] == list(range(1, 101))
        again = await client.submit_runs({"action": "Hello", "runs": [{}] * 100}, request_key="k")
        assert again["items"] == made["items"]


async def test_the_same_key_makes_one_batch(tmp_path: Path) -> None:
    async with a_master(tmp_path) as api:
        key = {"Idempotency-Key": "k"}
        (_, first), (_, second) = await asyncio.gather(*(post(api, with_each("a", "b"), **key) for _ in range(2)))
        assert first["items"] == second["items"]
        status, third = await post(api, with_each("a", "b"), **key)
        assert (status, third["items"]) == (200, first["items"])
        assert (await post(api, with_each("a"), **key))[0] == 409
        assert (await api.call("POST", "/api/v1/runs", data=ECHO_YAML, headers=key))[0] in {409, 422}
        assert len((await api.call("GET", "/api/v1/runs"))[1]["items"]) == 2


async def test_the_key_of_a_batch_is_not_taken_for_a_single_run_of_the_same_body(tmp_path: Path) -> None:
    async with a_master(tmp_path) as api:
        key, body = {"Idempotency-Key": "k"}, json.dumps(with_each("a")).encode()
        assert (await api.call("POST", "/api/v1/runs/batch", data=body, headers=key))[0] == 201
        status, refused = await api.call("POST", "/api/v1/runs", data=body, headers=key)
        assert (status, refused["code"]) == (422, "invalid")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("", "the body: "),
        ("{", "the body: "),
        ("[]", "the body: "),
        ('{"action": "a"}', "runs: "),
        ('{"action": "a", "runs": []}', "runs: "),
        ('{"action": "a", "runs": [{}], "with": {}}', "with: "),
        ('{"runs": [{}]}', "expected one of action and definition"),
        ('{"action": "a", "runs": [{}, {"with": 5}]}', "runs[1].with: "),
        ('{"action": "a", "runs": [{}, {}, {"wiht": {}}]}', "runs[2].wiht: "),
        ('{"action": "a", "runs": [{"start_node": "\\ud800"}]}', "the body: "),
        (json.dumps({"action": "a", "runs": [{}] * 1_001}), "runs: "),
        (json.dumps({"action": "No Such", "runs": [{}]}), "no action 'No Such'"),
        (json.dumps(with_each("a", "b", 10**70)), "runs[2].with.x: it is a number of more than 63 digits"),
        (json.dumps({"definition": ECHO_YAML, "runs": [{"with": {"x": 1}}, {}]}), "runs[1].with: "),
        (json.dumps(with_each("a") | {"runs": [{"with": {"x": 1}, "start_node": "z"}]}), "runs[0].start_node: "),
        (json.dumps(with_each("a", definition="name: [")), "runs[0]: "),
    ],
)
async def test_a_wrong_batch_is_refused_whole_and_says_where(tmp_path: Path, body: str, message: str) -> None:
    async with a_master(tmp_path) as api:
        status, refused = await api.call("POST", "/api/v1/runs/batch", data=body)
        assert status in {404, 422}
        assert refused["detail"].startswith(message)
        assert (await api.call("GET", "/api/v1/runs"))[1]["items"] == []


async def test_the_findings_say_of_which_run_they_are(tmp_path: Path) -> None:
    async with a_master(tmp_path) as api:
        _, refused = await post(api, {"definition": ECHO_YAML, "runs": [{"with": {"x": 1}}, {}]})
        assert (refused["run"], refused["findings"][0]["line"]) == (1, 3)


async def test_what_a_run_of_a_batch_is_given_wrongly_is_told_with_its_number(tmp_path: Path) -> None:
    text = "name: N\nimage: busybox\ninputs: {x: {type: integer}}\nrun: echo {{ .x }}\n"
    async with a_master(tmp_path) as api:
        _, refused = await post(api, with_each("1", "one", definition=text))
        assert refused["detail"] == (
            "runs[1].with: line 3, column 10, with.x: the input 'x' must be an integer, not the text 'one'"
        )
        assert refused["run"] == 1
        assert (await post(api, with_each("1", 1, 2, definition=text)))[0] == 201
        action = "name: U\nuses: {main: [{dep: N, with: {x: one}}]}\n"
        await api.call("PUT", "/api/v1/actions/N", data=text)
        _, nested = await post(api, {"definition": action, "runs": [{}]})
        assert nested["detail"].startswith("runs[0]: line 2, column 34, uses.main[0].with.x: ")


def test_equal_parameters_are_planned_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[object] = []

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls.append(kwargs["parameters"])
        return make_plan(*args, **kwargs)

    monkeypatch.setattr("pistage.master.api.batches.make_plan", counted)
    batch = planned("a", "b", "a", "a")
    assert (batch.plan_of, len(batch.plans), len(calls)) == ((0, 1, 0, 0), 2, 2)


@pytest.mark.parametrize(
    ("limit", "least", "message"),
    [
        ("ENTRY_BYTES_MAX", 1 << 20, "MiB of different plans"),
        ("BATCH_ROWS_BYTES_MAX", 1 << 20, "MiB of plans and documents"),
        ("BATCH_TEXT_BYTES_MAX", 0, "MiB of document, planned for each of them"),
        ("BATCH_TASKS_MAX", 1, "more than 1 tasks together"),
    ],
)
def test_a_batch_over_a_limit_is_refused_before_it_is_proposed(
    monkeypatch: pytest.MonkeyPatch, limit: str, least: int, message: str
) -> None:
    monkeypatch.setattr(limits, limit, least)
    with pytest.raises(PistageError, match=message) as refused:
        planned(*(f"{n}{'x' * 100_000}" for n in range(12)))
    assert refused.value.http_status == 413
