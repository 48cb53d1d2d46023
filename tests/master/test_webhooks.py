"""Webhooks over HTTP: who may call one, what it answers to each that it is sent, and what a payload can change."""

import asyncio
import hashlib
import hmac
import io
import json
import os
import shutil
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest

from pistage import wire
from pistage.core import limits
from pistage.core.plan import environment_of
from tests.master.fakes import Api, a_master, an_agent
from tests.master.test_output_failover import three_masters

README = Path(__file__).parents[2] / "README.md"
SECRET = "sixteen letters!"
BUILD = """
name: Build
image: busybox
inputs:
  ref: {required: true}
  count: {type: integer, default: 1}
  note: {}
run: |
  echo {{ .ref | q }} {{ .count }}
"""
INPUTS = {"ref": "head.ref", "count": "commits[0].count ?? 1", "note": "note ?? null"}
PUSH = {"head": {"ref": "refs/heads/main"}, "commits": [{"count": 3}], "sender": {"login": "x"}}


def signed(body: bytes, secret: str = SECRET) -> dict[str, str]:
    """As GitHub signs."""
    return {"X-Hub-Signature-256": "sha256=" + hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()}


def dated(body: bytes, at_s: int, secret: str = SECRET) -> dict[str, str]:
    """Our way, which says when."""
    digest = hmac.new(secret.encode(), f"{at_s}.".encode() + body, hashlib.sha256).hexdigest()
    return {"X-Pistage-Timestamp": str(at_s), "X-Pistage-Signature-256": "sha256=" + digest}


async def put(api: Api, name: str = "build", **said: Any) -> dict[str, Any]:
    body = {"definition": BUILD, "inputs": INPUTS, "secret": SECRET} | said
    status, made = await api.call("PUT", f"/api/v1/webhooks/{name}", json=body)
    assert status in {200, 201}, made
    return dict(made)


async def send(
    api: Api, payload: Any = PUSH, *, name: str = "build", headers: Mapping[str, str] | None = None, **more: str
) -> tuple[int, Any]:
    """Without the token, as a stranger would."""
    body = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
    given = {"Authorization": "", "Content-Type": "application/json"}
    given |= dict(signed(body) if headers is None else headers) | more
    return await api.call("POST", f"/hooks/{name}", data=body, headers=given)


async def runs(api: Api) -> int:
    return len((await api.call("GET", "/api/v1/runs"))[1]["items"])


async def test_a_signed_delivery_makes_a_run_of_what_the_payload_says(tmp_path: Path) -> None:
    async with a_master(tmp_path) as api:
        await put(api)
        status, made = await send(api)
        assert (status, made["is_new"], made["run"]["name"], made["run"]["number"]) == (201, True, "Build", 1)
        run = await api.run(made["run"]["id"])
        assert run["started_by"] == {"kind": "webhook", "name": "build", "nominal": None, "run": None}
        _, plan = await api.call("GET", f"/api/v1/runs/{run['id']}/plan")
        assert "echo refs/heads/main 3" in json.dumps(plan)


async def test_a_wrong_signature_a_missing_one_and_an_unknown_webhook_tell_a_stranger_nothing(tmp_path: Path) -> None:
    async with a_master(tmp_path) as api:
        await put(api)
        body = json.dumps(PUSH).encode()
        wrong = await send(api, headers=signed(body, "another secret!!"))
        assert (wrong[0], wrong[1]["code"]) == (403, "forbidden")
        for other in (
            await send(api, name="nobody"),
            await send(api, name="nobody", headers=signed(body, "\0" * 32)),  # what stands in where there is none
            await send(api, name="build?project=other"),
            await send(api, headers={"X-Hub-Signature-256": "sha1=00"}),
            await send(api, headers={"X-Hub-Signature-256": "sha256=" + "\u00e9" * 64}),
            await send(api, headers=signed(body[:-1])),
            await send(api, headers=dated(body, 1) | {"X-Pistage-Timestamp": "soon"}),
            await send(api, headers=dated(body, 1) | {"X-Pistage-Timestamp": "2"}),
            await send(api, headers={"X-Pistage-Signature-256": signed(body)["X-Hub-Signature-256"]}),
        ):
            assert other == wrong
        missing = await send(api, headers={})
        assert (missing[0], missing[1]["code"]) == (401, "unauthenticated")
        assert await send(api, name="nobody", headers={}) == missing
        token = {"Authorization": api.session.headers["Authorization"]}
        assert (await send(api, headers=token))[0] == 401  # the token opens the API, not this
        assert await runs(api) == 0


async def test_who_may_call_a_webhook_may_call_nothing_else(tmp_path: Path) -> None:
    async with a_master(tmp_path) as api:
        await put(api)
        body = json.dumps(PUSH).encode()
        headers = signed(body) | {"Authorization": ""}
        for method, path in (
            ("POST", "/api/v1/runs"), ("GET", "/hooks/build"), ("POST", "/hooks"), ("POST", "/hooks/build/x"),
            ("POST", "/hooks/..%2Fapi%2Fv1%2Fruns/x"), ("POST", "/hooks/../api/v1/runs"), ("GET", "/api/v1/webhooks"),
        ):  # fmt: skip
            assert (await api.call(method, path, data=body, headers=headers))[0] == 401, path


async def test_a_delivery_that_comes_again_is_answered_with_the_run_that_it_made(tmp_path: Path) -> None:
    async with a_master(tmp_path) as api:
        await put(api)
        named = {"X-GitHub-Delivery": "d-1"}
        first = await send(api, **named)
        for again in (
            await send(api, **named),
            await send(api, **{"X-GitHub-Delivery": "d-2"}),  # its name is not signed: anybody could give it another
            await send(api),
            await send(api, PUSH | {"more": 1}, **named),
        ):
            assert again == (200, first[1] | {"is_new": False})
        assert (await send(api, PUSH | {"more": 2}, **{"X-GitHub-Delivery": "d-3"}))[0] == 201
        assert await runs(api) == 2
        shown = (await api.call("GET", "/api/v1/webhooks/build"))[1]
        assert [one["run"]["number"] for one in shown["deliveries"]] == [2, 1]


async def test_a_delivery_that_comes_many_times_at_once_makes_one_run(tmp_path: Path) -> None:
    async with a_master(tmp_path) as api:
        await put(api)
        answers = await asyncio.gather(*(send(api) for _ in range(20)))
        assert sorted(status for status, _ in answers) == [200] * 19 + [201]
        assert len({made["run"]["id"] for _, made in answers}) == 1
        assert await runs(api) == 1


async def test_a_repeat_is_answered_although_the_webhook_would_now_refuse_it(tmp_path: Path) -> None:
    async with a_master(tmp_path) as api:
        await put(api)
        first = await send(api)
        await put(api, when={"head.ref": "another"})
        assert await send(api) == (200, first[1] | {"is_new": False})


async def test_a_dated_delivery_is_taken_within_its_window_and_once(tmp_path: Path) -> None:
    async with a_master(tmp_path) as api:
        await put(api, window_s=60)
        body, now = json.dumps(PUSH).encode(), int(time.time())
        first = await send(api, headers=dated(body, now))
        assert first[0] == 201
        assert (await send(api, headers=dated(body, now)))[0] == 200
        assert (await send(api, headers=dated(body, now - 30)))[0] == 201  # said again later: another one
        for at_s in (now - 90, now + 90):
            status, problem = await send(api, headers=dated(body, at_s))
            assert (status, "more than 60 s off" in problem["detail"]) == (403, True)
        undated = {"X-Hub-Signature-256": dated(body, now)["X-Pistage-Signature-256"]}
        assert (await send(api, f"{now}.".encode() + body, headers=undated))[0] == 422  # for GitHub's, no object
        assert await runs(api) == 2


async def test_a_body_of_10_mb_is_refused_and_one_without_end_is_cut_off(tmp_path: Path) -> None:
    async with a_master(tmp_path) as api:
        await put(api)
        status, problem = await api.call(
            "POST", "/hooks/build", data=io.BytesIO(b"x" * 10_000_000), headers=signed(b"") | {"Authorization": ""}
        )
        assert (status, problem["code"], "1 MiB" in problem["detail"]) == (413, "too_large", True)
        host, port = api.url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"POST /hooks/build HTTP/1.1\r\nHost: x\r\nX-Hub-Signature-256: sha256=00\r\n")
        writer.write(b"Content-Length: 10000000\r\n\r\n")  # and nothing of it: the answer does not wait
        async with asyncio.timeout(10):
            assert b"413" in await reader.readline()
        writer.close()


async def test_an_unsigned_body_is_refused_before_it_is_read(tmp_path: Path) -> None:
    async with a_master(tmp_path) as api:
        host, port = api.url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"POST /hooks/build HTTP/1.1\r\nHost: x\r\nContent-Length: 9000\r\n\r\n")
        async with asyncio.timeout(5):
            assert b"401" in await reader.readline()
        writer.close()


@pytest.mark.slow
async def test_bodies_that_come_slowly_hold_few_places_and_not_for_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "WEBHOOKS_AT_ONCE", 2)
    async with a_master(tmp_path) as api:
        await put(api)
        monkeypatch.setattr(limits, "WEBHOOK_BODY_S", 0.5)
        host, port = api.url.removeprefix("http://").split(":")
        slow = []
        for _ in range(2):
            reader, writer = await asyncio.open_connection(host, int(port))
            head = "POST /hooks/build HTTP/1.1\r\nHost: x\r\nX-Hub-Signature-256: sha256=00\r\nContent-Length: 9000\r\n"
            writer.write(head.encode() + b"Expect: 100-continue\r\n\r\n")
            assert b"100" in await reader.readline()
            slow.append((reader, writer))
        async with asyncio.timeout(20):
            status, problem = await send(api)
            assert (status, problem["code"]) == (503, "unavailable")
            for reader, writer in slow:
                await reader.read()  # cut off
                writer.close()
            assert (await send(api))[0] == 201


@pytest.mark.parametrize("body", [b"", b"[1]", b"{", b'{"a": NaN}', b"[" * 100_000, b"payload={}", b"\xff"])
async def test_what_is_no_json_object_is_refused(tmp_path: Path, body: bytes) -> None:
    async with a_master(tmp_path) as api:
        await put(api)
        status, problem = await send(api, body)
        assert (status, problem["detail"]) == (422, "the body is no JSON object")


async def test_a_form_with_a_payload_is_taken_as_github_sends_it(tmp_path: Path) -> None:
    async with a_master(tmp_path) as api:
        await put(api)
        form = {"Content-Type": "application/x-www-form-urlencoded"}
        body = urlencode({"payload": json.dumps(PUSH)}).encode()
        assert (await send(api, body, **form))[0] == 201
        for other in (b"x&" + body, b"payload=%ff", b"payload=1", b"payload", b"\xff", b"&" * 1000, b"{&payload={}"):
            assert (await send(api, other, **form))[0] == 422, other
        assert (await send(api, json.dumps(PUSH | {"n": 2}).encode(), **form))[0] == 201  # as curl -d has it


async def test_the_delivery_that_the_readme_sends_makes_a_run(tmp_path: Path) -> None:
    if shutil.which("curl") is None or shutil.which("openssl") is None:
        pytest.skip("no curl or no openssl here")
    [block] = [block for block in README.read_text().split("```\n") if "openssl dgst" in block]
    deploy = "name: Deploy\nimage: busybox\ninputs: {tag: {required: true}, by: {}}\nrun: echo\n"
    inputs = {"tag": "release.tag_name", "by": 'sender.login ?? "nobody"'}
    async with a_master(tmp_path) as api, an_agent(api) as (agent, _):
        await put(api, "release", definition=deploy, inputs=inputs, events=["release"], when={"action": "published"})
        block = block.replace("http://127.0.0.1:8470", api.url)
        curl = await asyncio.create_subprocess_exec(
            "sh", "-ec", block, env=os.environ | {"secret": SECRET}, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        answer = json.loads((await curl.communicate())[0])
        assert (answer["is_new"], answer["run"]["name"]) == (True, "Deploy")
        (step,) = list((await agent.receive(wire.Assign)).task.steps())
        assert environment_of(step) == {"PISTAGE_PARAM_TAG": "v1.2", "PISTAGE_PARAM_BY": "ada"}


async def test_every_field_that_is_not_in_the_payload_is_named_at_once(tmp_path: Path) -> None:
    async with a_master(tmp_path) as api:
        await put(api, inputs={"ref": "head.name", "count": "commits[7].count", "note": "sender"})
        status, problem = await send(api)
        assert status == 422
        assert {one["path"]: one["code"] for one in problem["findings"]} == {
            "inputs.ref": "missing-in-payload", "inputs.count": "missing-in-payload", "inputs.note": "no-value",
        }  # fmt: skip
        told = " ".join(one["message"] for one in problem["findings"])
        assert "the payload has no head.name, which the input 'ref' is made of" in told
        assert await runs(api) == 0


async def test_every_input_of_a_wrong_type_is_named_at_once_and_a_later_delivery_is_taken(tmp_path: Path) -> None:
    async with a_master(tmp_path) as api:
        await put(api)
        wrong = {"head": {"ref": ["a"]}, "commits": [{"count": "many"}]}
        status, problem = await send(api, wrong)
        assert status == 422
        assert [one["path"] for one in problem["findings"]] == ["with.ref", "with.count"]
        assert "must be an integer, not the text 'many'" in problem["findings"][1]["message"]
        await put(api, inputs={"ref": "commits[0].count"})
        assert (await send(api, wrong))[0] == 201  # what made no run is not remembered


async def test_a_webhook_passes_over_what_it_does_not_wait_for(tmp_path: Path) -> None:
    async with a_master(tmp_path) as api:
        await put(api, when={"head.ref": ["refs/heads/main", "refs/heads/next"]}, events=["push"])
        push = {"X-GitHub-Event": "push"}
        assert (await send(api, **push))[0] == 201
        status, answer = await send(api, PUSH | {"head": {"ref": "\ud800"}}, **push)
        assert (status, answer["skipped"]) == (202, "head.ref is the text '?', which this webhook does not wait for")
        status, answer = await send(api, PUSH | {"more": 1}, **{"X-GitHub-Event": "issues"})
        assert (status, answer["skipped"]) == (202, "the event 'issues' is none of push")
        assert (await send(api, PUSH | {"more": 2}))[1]["skipped"] == "no event is none of push"
        assert await send(api, PUSH | {"more": 3}, **{"X-GitHub-Event": "ping"}) == (200, {"pong": True})
        assert await runs(api) == 1


EVIL = [
    "{{ 7 * 7 }}", "{{ .ref }}", "{% raw %}", "{{ cycler.__init__.__globals__ }}", "$(touch /tmp/x)", "`id`",
    "; rm -rf /", "' || true #", '"; exit 1; "', "a\nb", "| tee x", "&& false", "\\", "${PATH}", "%s %n",
    "../../etc/passwd", "-rf", "\x1b[2J",
]  # fmt: skip


@pytest.mark.parametrize("evil", EVIL)
async def test_a_payload_changes_nothing_but_the_values_that_it_maps_to(tmp_path: Path, evil: str) -> None:
    everywhere = {
        "head": {"ref": evil, evil: evil}, "commits": [{"count": 3, evil: evil}, evil], "note": evil, evil: evil,
        "name": evil, "run": evil, "image": evil, "with": {"ref": evil, "count": evil}, "secret": evil,
    }  # fmt: skip
    async with a_master(tmp_path) as api, an_agent(api) as (agent, _):
        await put(api)
        headers = signed(json.dumps(everywhere).encode()) | {"Content-Type": "application/json"}
        status, made = await send(api, everywhere, headers=headers)
        assert status == 201, made
        assign = await agent.receive(wire.Assign)
        (step,) = list(assign.task.steps())
        given = environment_of(step)
        assert given == {"PISTAGE_PARAM_REF": evil, "PISTAGE_PARAM_COUNT": "3", "PISTAGE_PARAM_NOTE": evil}
        assert step.script is not None
        quoted = "'" + evil.replace("'", "'\"'\"'") + "'"
        assert step.script.rstrip() in {f"echo {quoted} 3", f"echo {evil} 3"}  # what needs no quotes has none
        assert (assign.task.name, [one.image for one in assign.task.contexts]) == ("main", ["busybox"])
        process = await asyncio.create_subprocess_exec(
            "/bin/sh", "-e", "-c", step.script, stdout=asyncio.subprocess.PIPE, env={}, cwd=tmp_path
        )
        printed, _ = await process.communicate()
        if "\\" not in evil:  # which a shell's own echo may read
            assert (process.returncode, printed.decode()) == (0, f"{evil} 3\n")


async def test_a_secret_is_shown_once_and_never_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with a_master(tmp_path) as api:
        body = {"definition": BUILD, "inputs": INPUTS}
        status, made = await api.call("PUT", "/api/v1/webhooks/build", json=body)
        assert (status, len(made["secret"]) >= 32) == (201, True)
        status, again = await api.call("PUT", "/api/v1/webhooks/build", json=body)
        assert (status, "secret" in again) == (200, False)
        payload = json.dumps(PUSH).encode()
        assert (await send(api, headers=signed(payload, made["secret"])))[0] == 201  # it kept its own
        shown = [
            await api.call("GET", path)
            for path in ("/api/v1/webhooks", "/api/v1/webhooks/build", "/api/v1/runs", "/metrics", "/api/v1/cluster")
        ]
        assert made["secret"] not in json.dumps(shown) + caplog.text
        await put(api, secret="a secret of another kind")
        assert (await send(api, headers=signed(payload, made["secret"])))[0] == 403
        status, problem = await api.call("PUT", "/api/v1/webhooks/build", json=body | {"secret": "too short"})
        assert (status, "too short" in json.dumps(problem)) == (422, False)


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"inputs": {"ref": "head..ref"}}, "the expression 'head..ref' has '.ref' where a name is expected"),
        ({"inputs": {"nothing": "a"}}, "there is no input 'nothing'"),
        ({"inputs": {"count": "a"}}, "the input 'ref' is not given"),
        ({"with": {"count": "many"}}, "the input 'count' is both in 'inputs' and in 'with'"),
        ({"inputs": {"ref": "a"}, "with": {"count": "many"}}, "must be an integer, not the text 'many'"),
        ({"when": {"a b": "c"}}, "where a dot, or a number in brackets is expected"),
        ({"when": {"a": {"b": "c"}}}, "is a text, a number, a boolean or null"),
        ({"window_s": 1}, "window_s must be 60 to 604800 s, not 1"),
        ({"events": [""]}, "'events' is at most 100 names"),
        ({"definition": "name: x"}, "run"),
        ({"definition": "name: x\nimage: a\nrun: echo {{ .what }}\n", "inputs": {}}, "nothing gives the parameter"),
        ({"definition": "name: x\nrun: echo\n", "inputs": {}}, "has no image"),
        ({"action": "nobody"}, "expected one of action and definition"),
        ({"definition": None, "action": "nobody"}, "no action 'nobody'"),
        ({"more": 1}, "more"),
    ],
)
async def test_a_webhook_that_could_never_run_is_refused_when_it_is_set(
    tmp_path: Path, said: dict[str, Any], message: str
) -> None:
    async with a_master(tmp_path) as api:
        body = {"definition": BUILD, "inputs": INPUTS, "secret": SECRET} | said
        status, problem = await api.call("PUT", "/api/v1/webhooks/build", json=body)
        assert status in {404, 422}
        assert message in json.dumps(problem, ensure_ascii=False)
        assert (await api.call("GET", "/api/v1/webhooks"))[1]["items"] == []


async def test_a_webhook_of_an_action_runs_the_newest_and_is_gone_once_removed(tmp_path: Path) -> None:
    async with a_master(tmp_path) as api:
        await api.call("PUT", "/api/v1/actions/Build", data=BUILD.encode())
        await put(api, definition=None, action="Build")
        await api.call("PUT", "/api/v1/actions/Build", data=BUILD.replace("echo", "printf").encode())
        _, made = await send(api)
        _, plan = await api.call("GET", f"/api/v1/runs/{made['run']['id']}/plan")
        assert "printf refs/heads/main" in json.dumps(plan)
        assert (await api.call("DELETE", "/api/v1/webhooks/build"))[0] == 204
        assert (await api.call("DELETE", "/api/v1/webhooks/build"))[0] == 404
        assert (await api.call("GET", "/api/v1/webhooks/build"))[0] == 404
        assert (await send(api))[0] == 403
        assert (await api.run(made["run"]["id"]))["started_by"]["name"] == "build"


@pytest.mark.slow
async def test_a_delivery_to_any_of_three_masters_makes_one_run_also_under_the_next_leader(tmp_path: Path) -> None:
    async with three_masters(tmp_path) as masters:
        leader = await masters.leader()
        await put(leader)
        apis = [Api(masters.session, url) for url in masters.urls]
        answers = await asyncio.gather(*(send(api, **{"X-GitHub-Delivery": "d"}) for api in apis for _ in range(3)))
        assert sorted(status for status, _ in answers) == [200] * 8 + [201]
        (run,) = {made["run"]["id"] for _, made in answers}
        body = json.dumps(PUSH).encode()
        for api in apis:
            assert (await send(api, headers=signed(body, "another secret!!")))[0] == 403
            large = await api.call("POST", "/hooks/build", data=io.BytesIO(b"x" * 2_000_000), headers=signed(b""))
            assert large[0] == 413
        await masters.stop(leader.url)
        await masters.leader(other_than=leader.url)
        for url in masters.up:
            status, made = await send(Api(masters.session, url))
            assert (status, made["run"]["id"]) == (200, run)
        assert (await send(Api(masters.session, next(iter(masters.up))), PUSH | {"more": 1}))[0] == 201
