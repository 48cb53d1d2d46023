"""POST /api/v1/scripts: a request becomes a definition, which is planned and run as any other."""

import io
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from pistage.core import limits
from tests.master.fakes import Api, a_master

RUBY = {"ruby": {"image": "ruby:3", "endings": [".rb"]}, "python": {"image": "mine:1"}}


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[Api]:
    async with a_master(tmp_path, languages=RUBY) as master:
        yield master


async def step_of(api: Api, **keys: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """The run's plan and its one step."""
    status, run = await api.call("POST", "/api/v1/scripts", json=keys)
    assert status == 201, run
    _, plan = await api.call("GET", f"/api/v1/runs/{run['id']}/plan")
    (step,) = plan["plan"]["tasks"][0]["body"]["children"]
    return plan["plan"], step


async def test_a_script_is_a_run_of_the_definition_that_it_is(api: Api) -> None:
    plan, step = await step_of(
        api, script="print(1)", file="a.py", args=["{{ .x }}", 2], env={"A": "{{ .y }}", "B": 3}, timeout="5m",
        resources={"memory": "1Gi"}, agent=["ssd"], priority=7,
    )  # fmt: skip
    task = plan["tasks"][0]
    assert (plan["name"], plan["priority"], task["timeout_s"], task["retry"]["limits"]["failure"]) == (
        "a.py",
        7,
        300,
        0,
    )
    assert task["contexts"][0]["image"] == "mine:1"
    assert task["resources"]["memory_bytes"] == limits.GIB
    assert step["program"]["args"] == ["{{ .x }}", "2"]
    assert step["env"] == {"A": "{{ .y }}", "B": "3"}


async def test_languages_are_those_of_the_configuration(api: Api) -> None:
    plan, step = await step_of(api, script="puts 1", file="a.rb")
    assert (plan["tasks"][0]["contexts"][0]["image"], step["program"]["command"]) == ("ruby:3", ["ruby"])


async def test_a_definition_with_a_script_and_a_batch_of_it_have_them_too(api: Api) -> None:
    text = "name: a\nscript: puts 1\nlanguage: ruby\n"
    run = await api.submit(text)
    assert run["warnings"] == []
    status, lint = await api.call("POST", "/api/v1/lint", data=text.encode())
    assert (status, lint["findings"]) == (200, [])
    status, batch = await api.call("POST", "/api/v1/runs/batch", json={"definition": text, "runs": [{}, {}]})
    assert (status, batch["warnings"]) == (201, [])


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ("", "script: Field required"),
        ("[]", "the body: "),
        ("{", "the body: "),
        ('{"script": 5}', "script: "),
        ('{"script": "x", "run": "y"}', "run: Extra inputs"),
        ('{"script": "x", "uses": {}}', "uses: Extra inputs"),
        ('{"script": "x", "language": "sh", "args": "a"}', "args: "),
        ('{"script": "\\u0000", "language": "sh"}', "U+0000"),
        ('{"script": "x", "language": "sh", "env": {"PISTAGE_X": "1"}}', "reserved"),
        ('{"script": "x", "language": "sh", "env": {"A": {}}}', "single value"),
        ('{"script": "x"}', "which language"),
        ('{"script": "x", "language": "sh", "timeout": "{{ .x }}"}', "x"),
        ('{"script": "x", "language": "python", "requirements": ["--index-url=http://evil"]}', "not a package"),
        ('{"script": "x", "language": "sh", "name": "a\\nb"}', "name"),
    ],
)
async def test_a_wrong_request_says_what_is_wrong(api: Api, body: str, told: str) -> None:
    status, answer = await api.call("POST", "/api/v1/scripts", data=body.encode())
    assert (status, answer["code"]) == (422, "invalid"), answer
    assert told in answer["detail"], answer


async def test_half_a_surrogate_pair_is_refused(api: Api) -> None:
    for body in (b'{"script": "\\ud800", "language": "sh"}', b'{"script": "x", "language": "sh", "args": ["\\ud800"]}'):
        status, answer = await api.call("POST", "/api/v1/scripts", data=body)
        assert (status, answer["code"]) == (422, "invalid"), answer


async def test_the_same_key_is_the_same_run_but_not_of_another_route(api: Api) -> None:
    body = json.dumps({"name": "a", "script": "x", "language": "sh"}).encode()
    headers = {"Idempotency-Key": "k"}
    first = await api.call("POST", "/api/v1/scripts", data=body, headers=headers)
    again = await api.call("POST", "/api/v1/scripts", data=body, headers=headers)
    assert (first[0], again[0], first[1]["id"]) == (201, 200, again[1]["id"])
    status, _ = await api.call("POST", "/api/v1/runs", data=body, headers=headers)
    assert status == 409


async def test_more_than_a_megabyte_of_code_is_refused_and_a_megabyte_is_not(api: Api) -> None:
    code = "#" * limits.SCRIPT_BYTES_MAX
    body = json.dumps({"script": code, "language": "sh", "stdin": code}).encode()
    status, _ = await api.call("POST", "/api/v1/scripts", data=io.BytesIO(body))
    assert status == 201
    body = json.dumps({"script": code + "#", "language": "sh"}).encode()
    status, answer = await api.call("POST", "/api/v1/scripts", data=io.BytesIO(body))
    assert (status, answer["code"]) == (422, "invalid")


async def test_what_is_found_is_told_by_key_for_the_document_was_made_here(api: Api) -> None:
    body = {"script": "x", "language": "python", "requirements": ["-r x"], "args": [[]], "env": {"1": ""}}
    _, answer = await api.call("POST", "/api/v1/scripts", json=body)
    assert answer["detail"].startswith("env.1: ")
    assert answer["detail"].endswith("(and 2 more)")
    places = [(one["path"], one["line"], one["column"]) for one in answer["findings"]]
    assert sorted(places) == [("args[0]", None, None), ("env.1", None, None), ("requirements[0]", None, None)]
    _, run = await api.call("POST", "/api/v1/scripts", json={"script": "x", "language": "cobol"})
    assert [(one["path"], one["line"]) for one in run["warnings"]] == [("language", None)]
