"""Notices through a master: a receiver on this machine is told of each end, signed, tried again, and given up."""

import asyncio
import json
import logging
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from pistage import wire
from pistage.cli import embedded
from pistage.cli.home import Home
from pistage.core import limits
from tests.master.fake_receiver import FakeReceiver, a_receiver
from tests.master.fakes import HELLO_YAML, Api, FakeAgent, a_master, an_agent
from tests.master.test_output_failover import three_masters

LOOPBACK = {"notice_allow": ("127.0.0.0/8",)}
SECRET = "a secret of tests"


async def a_run(api: Api, agent: FakeAgent, text: str = HELLO_YAML, *, exit_code: int = 0) -> dict[str, Any]:
    """A run of one task that ends so."""
    run = await api.submit(text)
    assign = await agent.receive(wire.Assign)
    await agent.accept(assign)
    await agent.finish(assign, exit_code=exit_code)
    return await api.ended(run["id"])


async def put(api: Api, receiver: FakeReceiver, name: str = "ops", **given: Any) -> dict[str, Any]:
    body = {"url": receiver.url + "/hooks/token-of-the-url"} | given
    status, said = await api.call("PUT", f"/api/v1/notices/{name}", json=body)
    assert status == 200, said
    return dict(said)


async def notices(api: Api, run: dict[str, Any]) -> list[dict[str, Any]]:
    status, listed = await api.call("GET", f"/api/v1/runs/{run['id']}/notices")
    assert status == 200
    return list(listed["items"])


async def settled(api: Api, run: dict[str, Any], *, tries: int | None = None) -> list[dict[str, Any]]:
    """The notices of a run once none waits, or the first was tried so often; nobody else is told of that."""
    async with asyncio.timeout(20):
        while True:
            found = await notices(api, run)
            if all(one["state"] != "waiting" for one in found) or (tries and found[0]["tries"] >= tries):
                return found
            await asyncio.sleep(0.01)


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tries follow each other without a wait."""
    monkeypatch.setattr("pistage.master.notices.wait_ms", lambda tries, share, asked_ms: 1)


async def test_the_end_of_a_run_is_told_once_signed_and_with_all_that_there_is_to_tell(tmp_path: Path) -> None:
    async with a_receiver() as receiver, a_master(tmp_path, **LOOPBACK) as api, an_agent(api) as (agent, _):
        await put(api, receiver, secret=SECRET, headers={"Authorization": "Bearer of-tests"}, on=["failed"])
        await a_run(api, agent)  # succeeds, of which nobody asked to be told
        run = await a_run(api, agent, exit_code=3)
        (told,) = await settled(api, run)
        assert (told["receiver"], told["state"], told["tries"], told["status"]) == ("ops", "delivered", 1, 204)
        (got,) = receiver.got
        assert got.is_signed_with(SECRET) and not got.is_signed_with(SECRET + "!")
        assert got.headers["X-Pistage-Delivery"] == told["delivery"] == f"{run['id']}-1"
        assert got.headers["X-Pistage-Event"] == "run.ended"
        assert got.headers["Authorization"] == "Bearer of-tests"
        assert got.headers["Content-Type"] == "application/json"
        body = json.loads(got.body)
        keys = ("id", "name", "number", "state", "reason", "created_at", "started_at", "finished_at")
        assert {key: body["run"][key] for key in keys} == {key: run[key] for key in keys}
        assert [(task["name"], task["state"]) for task in body["tasks"]] == [("main", "failed")]
        assert (await api.run(run["id"]))["notices"] == [told]


async def test_a_definition_names_a_receiver_or_a_url_and_makes_the_body_of_it(tmp_path: Path) -> None:
    text = f"""{HELLO_YAML}
notify:
  - to: ops
    on: succeeded
    body: '{{"text": {{{{ (run.name ~ " " ~ run.state) | tojson }}}}}}'
  - url: URL/inline
    on: always
    body: "{{% if run.state == 'failed' %}}bad{{% else %}}good{{% endif %}}: {{{{ tasks[0].name }}}}"
  - nobody
"""
    async with a_receiver() as receiver, a_master(tmp_path, **LOOPBACK) as api, an_agent(api) as (agent, _):
        await put(api, receiver, pipelines=[])
        await a_run(api, agent)
        good = await a_run(api, agent, text.replace("URL", receiver.url))
        assert [(one["receiver"], one["state"]) for one in await settled(api, good)] == [
            ("ops", "delivered"), (None, "delivered"),
        ]  # fmt: skip
        assert {got.body for got in receiver.got} == {b'{"text": "Hello succeeded"}', b"good: main"}
        receiver.got.clear()
        bad = await a_run(api, agent, text.replace("URL", receiver.url), exit_code=1)
        inline, nobody = await settled(api, bad)
        assert (inline["url"], [got.body for got in receiver.got]) == (f"{receiver.url}/…", [b"bad: main"])
        assert receiver.got[0].headers["Content-Type"] == "text/plain; charset=utf-8"
        assert "X-Pistage-Signature-256" not in receiver.got[0].headers
        assert (nobody["state"], nobody["reason"]) == ("given_up", "there is no receiver 'nobody'")
        status, plan = await api.call("GET", f"/api/v1/runs/{bad['id']}/plan")
        submitted = await api.submit(text.replace("URL", receiver.url))
        (warning,) = submitted["warnings"]
        assert (warning["code"], warning["message"]) == (
            "no-receiver",
            "there is no receiver 'nobody' to be told of the end",
        )
        assert status == 200 and "/inline" not in repr(plan) and f"{receiver.url}/…" in repr(plan)


@pytest.mark.usefixtures("at_once")
async def test_what_fails_is_tried_again_under_the_same_delivery_id_until_it_is_taken(tmp_path: Path) -> None:
    statuses = [500, 503, 429, 408]
    async with (
        a_receiver(statuses=statuses) as receiver,
        a_master(tmp_path, **LOOPBACK) as api,
        an_agent(api) as agents,
    ):
        await put(api, receiver, secret=SECRET)
        run = await a_run(api, agents[0], exit_code=1)
        (told,) = await settled(api, run)
        assert (told["state"], told["tries"], told["status"], told["reason"]) == ("delivered", 5, 204, "")
        assert len({got.headers["X-Pistage-Delivery"] for got in receiver.got}) == 1
        assert len({got.body for got in receiver.got}) == 1
        assert all(got.is_signed_with(SECRET) for got in receiver.got)


@pytest.mark.parametrize("status", [302, 400, 404, 410])
@pytest.mark.usefixtures("at_once")
async def test_an_answer_that_will_not_change_gives_up_at_once(tmp_path: Path, status: int) -> None:
    # Were the redirect followed, there would be no answer for a long time.
    headers = {"Location": "http://169.254.169.254/latest/meta-data/"}
    async with (
        a_receiver(statuses=[status], headers=headers) as receiver,
        a_master(tmp_path, **LOOPBACK) as api,
        an_agent(api) as (agent, _),
    ):
        await put(api, receiver)
        (told,) = await settled(api, await a_run(api, agent, exit_code=1))
        assert (told["state"], told["tries"], told["status"]) == ("given_up", 1, status)
        assert told["reason"].startswith(f"it answered {status}") and "169.254" not in told["reason"]
        assert len(receiver.got) == 1


@pytest.mark.usefixtures("at_once")
async def test_after_ten_tries_it_is_given_up_and_says_why(tmp_path: Path) -> None:
    async with (
        a_receiver(statuses=[500] * 50) as receiver,
        a_master(tmp_path, **LOOPBACK) as api,
        an_agent(api) as (agent, _),
    ):
        await put(api, receiver)
        (told,) = await settled(api, await a_run(api, agent, exit_code=1))
        assert (told["state"], told["tries"]) == ("given_up", limits.NOTICE_TRIES_MAX)
        assert told["reason"] == f"it answered 500; it was tried {limits.NOTICE_TRIES_MAX} times"
        assert len(receiver.got) == limits.NOTICE_TRIES_MAX


async def test_a_receiver_that_hangs_is_hung_up_on_and_holds_up_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "NOTICE_TOTAL_S", 0.2)
    never = asyncio.Event()

    async def hang(request: web.Request) -> web.StreamResponse:
        await never.wait()
        return web.Response()

    async with (
        a_receiver(answer=hang) as hanging,
        a_receiver() as receiver,
        a_master(tmp_path, **LOOPBACK) as api,
        an_agent(api) as (agent, _),
    ):
        await put(api, hanging, "a hanging one")
        await put(api, receiver)
        run = await a_run(api, agent, exit_code=1)
        await receiver.until(lambda got: got)
        held = (await settled(api, run, tries=1))[0]
        assert (held["receiver"], held["state"]) == ("a hanging one", "waiting")
        assert held["reason"].startswith("no answer within") and held["due_at"] > held["created_at"]


async def test_of_a_huge_answer_no_more_is_read_than_is_allowed(tmp_path: Path) -> None:
    written = 0

    async def flood(request: web.Request) -> web.StreamResponse:
        nonlocal written
        response = web.StreamResponse()
        await response.prepare(request)
        for _ in range(1000):
            await response.write(bytes(1 << 20))
            written += 1 << 20
        return response

    async with a_receiver(answer=flood) as receiver, a_master(tmp_path, **LOOPBACK) as api, an_agent(api) as (agent, _):
        await put(api, receiver)
        (told,) = await settled(api, await a_run(api, agent, exit_code=1))
        assert (told["state"], told["status"]) == ("delivered", 200)
        assert written < 64 << 20  # what the kernel holds between the two


async def test_no_address_of_this_machine_or_its_network_is_reached_unless_it_is_allowed(tmp_path: Path) -> None:
    async with a_receiver() as receiver, a_master(tmp_path) as api, an_agent(api) as (agent, _):
        for url in (receiver.url, "http://169.254.169.254/", "http://[::1]/", "http://10.0.0.1/", "http://0.0.0.0/"):
            status, refused = await api.call("PUT", "/api/v1/notices/ops", json={"url": url})
            assert status == 422 and "notice_allow" in refused["detail"], url
            assert refused["detail"].startswith("url: its host is "), url
        port = receiver.url.rpartition(":")[2]
        text = f"{HELLO_YAML}\nnotify: ['{receiver.url}', 'http://localhost:{port}/', 'http://[::ffff:127.0.0.1]:{port}/']\n"
        told = await settled(api, await a_run(api, agent, text, exit_code=1))
        assert [(one["state"], one["tries"]) for one in told] == [("given_up", 1)] * 3
        assert all("a loopback address, which is refused" in one["reason"] for one in told)
        assert receiver.got == []


async def test_what_lets_one_in_is_neither_shown_nor_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    async with (
        a_receiver(statuses=[404]) as receiver,
        a_master(tmp_path, **LOOPBACK) as api,
        an_agent(api) as (agent, _),
    ):
        said = await put(api, receiver, secret=SECRET, headers={"X-Key": "key-of-tests"})
        assert (said["url"], said["headers"], said["has_secret"]) == (f"{receiver.url}/…", ["X-Key"], True)
        run = await a_run(api, agent, exit_code=1)
        await settled(api, run)
        shown = [await api.call("GET", path) for path in ("/api/v1/notices", f"/api/v1/runs/{run['id']}")]
        shown += [await api.call("GET", f"/api/v1/runs/{run['id']}/{what}") for what in ("notices", "plan", "events")]
        for hidden in (SECRET, "key-of-tests", "token-of-the-url"):
            assert hidden not in repr(shown)
            assert hidden not in caplog.text


async def test_a_receiver_is_tried_by_hand_replaced_and_removed(tmp_path: Path) -> None:
    async with a_receiver(statuses=[204, 500]) as receiver, a_master(tmp_path, **LOOPBACK) as api:
        await put(api, receiver, secret=SECRET, body="{{ event }} of {{ run.name }}")
        said = [(await api.call("POST", "/api/v1/notices/ops/test"))[1] for _ in range(2)]
        assert said == [
            {"is_delivered": True, "status": 204, "reason": ""},
            {"is_delivered": False, "status": 500, "reason": "it answered 500"},
        ]
        assert [got.body for got in receiver.got] == [b"test of test of ops"] * 2
        assert receiver.got[0].is_signed_with(SECRET)
        assert (await put(api, receiver))["has_secret"] is False
        assert (await api.call("DELETE", "/api/v1/notices/ops"))[0] == 204
        assert (await api.call("POST", "/api/v1/notices/ops/test"))[0] == 404
        assert (await api.call("DELETE", "/api/v1/notices/ops"))[0] == 404


async def test_everything_that_is_wrong_with_a_receiver_is_told_at_once(tmp_path: Path) -> None:
    async with a_master(tmp_path) as api:
        asked = {
            "url": "http://u:p@example.org/", "body": "{{ nope }}", "headers": {"Host": "a"}, "secret": "short",
            "pipelines": [" x"],
        }  # fmt: skip
        status, refused = await api.call("PUT", "/api/v1/notices/ops", json=asked)
        assert status == 422
        for word in ("url:", "body:", "headers:", "secret:", "pipelines:"):
            assert word in refused["detail"]
        for wrong in ({}, {"url": "https://example.org", "on": []}, {"url": "https://example.org", "on": ["never"]}):
            assert (await api.call("PUT", "/api/v1/notices/ops", json=wrong))[0] == 422
        assert (await api.call("PUT", "/api/v1/notices/a%3A%2F%2Fb", json={"url": "https://example.org"}))[0] == 422


@pytest.mark.usefixtures("at_once")
async def test_who_is_removed_is_told_nothing_more_of_what_was_on_its_way(tmp_path: Path) -> None:
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def slow(request: web.Request) -> web.StreamResponse:
        begun.set()
        await go_on.wait()
        return web.Response(status=500)

    async with a_receiver(answer=slow) as receiver, a_master(tmp_path, **LOOPBACK) as api, an_agent(api) as (agent, _):
        await put(api, receiver)
        run = await a_run(api, agent, exit_code=1)
        await begun.wait()
        assert (await api.call("DELETE", "/api/v1/notices/ops"))[0] == 204
        go_on.set()
        (told,) = await settled(api, run)
        assert (told["state"], told["reason"]) == ("given_up", "its receiver was removed")
        await put(api, receiver)  # one of the same name is another one
        other = await a_run(api, agent, exit_code=1)
        await settled(api, other, tries=1)
        deliveries = [got.headers["X-Pistage-Delivery"] for got in receiver.got]
        assert deliveries[0] == f"{run['id']}-1" and set(deliveries[1:]) == {f"{other['id']}-1"}


@pytest.mark.slow
async def test_a_leader_that_goes_between_the_end_of_a_run_and_its_notice_leaves_it_to_the_next(tmp_path: Path) -> None:
    go_on = asyncio.Event()

    async def slow(request: web.Request) -> web.StreamResponse:
        await go_on.wait()
        return web.Response(status=204)

    async with a_receiver(answer=slow) as receiver, three_masters(tmp_path, **LOOPBACK) as masters:
        first = await masters.leader()
        await put(first, receiver, secret=SECRET)
        async with an_agent(first) as (agent, _):
            run = await a_run(first, agent, exit_code=1)
        await receiver.until(lambda got: got)  # it is on its way, and nothing of that is recorded
        await masters.stop(first.url)
        second = await masters.leader(other_than=first.url)
        go_on.set()
        (told,) = await settled(second, run)
        assert (told["state"], told["tries"]) == ("delivered", 1)
        assert [got.headers["X-Pistage-Delivery"] for got in receiver.got] == [told["delivery"]] * 2
        assert len({got.body for got in receiver.got}) == 1 and all(got.is_signed_with(SECRET) for got in receiver.got)


async def test_a_master_that_is_started_again_goes_on_with_the_tries_that_were_recorded(
    tmp_path: Path, at_once: None
) -> None:
    go_on = asyncio.Event()

    async def third(request: web.Request) -> web.StreamResponse:
        if len(receiver.got) == 3:
            go_on.set()
            await asyncio.Event().wait()
        return web.Response(status=500 if len(receiver.got) < 3 else 204)

    async with a_receiver(answer=third) as receiver:
        async with a_master(tmp_path, **LOOPBACK) as api, an_agent(api) as (agent, _):
            await put(api, receiver)
            run = await a_run(api, agent, exit_code=1)
            await go_on.wait()
        async with a_master(tmp_path, **LOOPBACK) as api:
            (told,) = await settled(api, run)
            assert (told["state"], told["tries"], len(receiver.got)) == ("delivered", 3, 4)
            assert {got.headers["X-Pistage-Delivery"] for got in receiver.got} == {told["delivery"]}


async def test_a_test_by_hand_is_not_waited_for_for_long_and_there_are_not_many_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pistage.master.notices._TEST_S", 0.2)

    async def hang(request: web.Request) -> web.StreamResponse:
        await asyncio.Event().wait()
        return web.Response()

    async with a_receiver(answer=hang) as receiver, a_master(tmp_path, **LOOPBACK) as api:
        await put(api, receiver)
        count = limits.NOTICES_TO_ONE_AT_ONCE
        answers = await asyncio.gather(*(api.call("POST", "/api/v1/notices/ops/test") for _ in range(count + 1)))
        assert sorted(status for status, _ in answers) == [200] * count + [503]
        assert all(said["reason"] == "no answer within 0.2 s" for status, said in answers if status == 200)


@pytest.mark.slow
async def test_a_cluster_of_one_command_tells_before_it_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PISTAGE_NOTICE_ALLOW", "127.0.0.0/8")
    home = Home(tmp_path)
    async with a_receiver(statuses=[204, 500]) as receiver:
        for number in (1, 2):  # the second is refused, and not waited for
            async with (
                embedded.cluster(home, choice=None) as cluster,
                aiohttp.ClientSession(headers={"Authorization": f"Bearer {cluster.token}"}) as session,
            ):
                api = Api(session, cluster.url)
                run = await api.submit(f"{HELLO_YAML}\nnotify: {{url: '{receiver.url}', on: cancelled}}\n")
                await api.call("POST", f"/api/v1/runs/{run['id']}/cancel")
            assert len(receiver.got) == number
        deliveries = [got.headers["X-Pistage-Delivery"] for got in receiver.got]
        async with embedded.cluster(home, choice=None):
            await receiver.until(lambda got: len(got) == 3)
        assert receiver.got[2].headers["X-Pistage-Delivery"] == deliveries[1] != deliveries[0]
