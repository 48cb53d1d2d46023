"""Sessions and dispatch: what an agent is told, what is taken from it, and what a restart on either side changes."""

import asyncio
import contextlib
import time
from pathlib import Path

import pytest

from pistage import wire
from pistage.core import commands as c
from pistage.core.model import Result, State
from pistage.master.members import Members
from pistage.owning import running
from tests.master.fakes import HELLO_YAML, a_master, an_agent
from tests.master.test_losses import until_lost


async def test_a_run_is_assigned_reported_and_ended(tmp_path: Path) -> None:
    async with a_master(tmp_path) as api, an_agent(api) as (agent, welcome):
        assert welcome.epoch == 1 and welcome.live_runs == ()
        run = await api.submit()
        assign = await agent.receive(wire.Assign)
        assert (assign.run_id, assign.run_number, assign.number) == (run["id"], 1, 1)
        await agent.accept(assign)
        assert (await api.run(run["id"]))["state"] == "running"
        assert (await agent.print(assign, b"hello\n")).length == 6
        assert (await agent.finish(assign, length=6)).refused == ()
        assert (await agent.receive(wire.Release)).run_id == run["id"]
        ended = await api.ended(run["id"])
        assert ended["state"] == "succeeded"
        assert ended["tasks"][0]["attempts"][0]["steps"][0]["stdout_bytes"] == 6
        assert await api.call("GET", f"/api/v1/runs/{run['id']}/logs") == (200, "hello\n")


async def test_a_run_submitted_while_no_agent_is_there_starts_when_one_comes(tmp_path: Path) -> None:
    async with a_master(tmp_path) as api:
        run = await api.submit()
        async with an_agent(api) as (agent, _):
            assert (await agent.receive(wire.Assign)).run_id == run["id"]


async def test_tasks_that_nobody_can_take_do_not_hold_up_those_behind_them(tmp_path: Path) -> None:
    async with a_master(tmp_path) as api, an_agent(api) as (agent, _):
        hopeless = [await api.submit(HELLO_YAML + "agent: gpu=true\n") for _ in range(5)]
        run = await api.submit()
        assert (await agent.receive(wire.Assign)).run_id == run["id"]
        for one in hopeless:
            assert (await api.run(one["id"]))["tasks"][0]["waiting"] == "fake: label gpu=true is missing"


async def test_heartbeats_are_answered(tmp_path: Path) -> None:
    async with a_master(tmp_path) as api, an_agent(api) as (agent, _):
        await agent.send(wire.Heartbeat(number=3))
        assert (await agent.receive(wire.HeartbeatAck)).number == 3


async def test_an_agent_that_comes_back_is_told_to_keep_what_is_still_its_own(tmp_path: Path) -> None:
    async with a_master(tmp_path) as api:
        async with an_agent(api) as (agent, _):
            run = await api.submit()
            assign = await agent.receive(wire.Assign)
            await agent.accept(assign)
        held = (
            wire.Held(attempt_id=assign.attempt_id, run_id=run["id"], fence=assign.fence),
            wire.Held(attempt_id=wire.new_id(), run_id=run["id"], fence=1),
        )
        async with an_agent(api, agent.id, incarnation="i2", held=held) as (again, welcome):
            assert [verdict.is_kept for verdict in welcome.verdicts] == [True, False]
            assert (welcome.epoch, welcome.live_runs) == (2, (run["id"],))
            await again.finish(assign)
            assert (await api.ended(run["id"]))["state"] == "succeeded"


async def test_an_assignment_that_never_arrived_is_sent_again(tmp_path: Path) -> None:
    async with a_master(tmp_path) as api:
        async with an_agent(api) as (agent, _):
            await api.submit()
            first = await agent.receive(wire.Assign)
        async with an_agent(api, agent.id) as (again, _):
            assert await again.receive(wire.Assign) == first


@pytest.mark.slow
async def test_an_accepted_attempt_that_its_agent_forgot_is_lost_and_tried_again(tmp_path: Path) -> None:
    async with a_master(tmp_path) as api:
        async with an_agent(api) as (agent, _):
            run = await api.submit(HELLO_YAML + "priority: 1\n")
            first = await agent.receive(wire.Assign)
            await agent.accept(first)
        async with an_agent(api, agent.id, incarnation="i2") as (again, _):
            second = await again.receive(wire.Assign)
            assert second.attempt_id != first.attempt_id and second.fence > first.fence
            assert (await again.finish(first)).refused == (first.attempt_id,)
            await again.finish(second)
            ended = await api.ended(run["id"])
            assert [attempt["state"] for attempt in ended["tasks"][0]["attempts"]] == ["lost", "succeeded"]


@pytest.mark.slow
async def test_a_silent_agent_is_lost_after_its_lease(tmp_path: Path) -> None:
    async with a_master(tmp_path, lease=0.5, heartbeat=0.1) as api:
        async with an_agent(api) as (agent, _):
            await api.submit()
            await agent.receive(wire.Assign)
        async with an_agent(api) as (other, _), running(other.beat(0.1)):
            assign = await other.receive(wire.Assign)
            assert assign.number == 2
        _, agents = await api.call("GET", "/api/v1/agents")
        assert {item["id"]: item["state"] for item in agents["items"]}[agent.id] == "lost"


@pytest.mark.slow
async def test_a_silent_agent_is_lost_however_busy_the_master_is(tmp_path: Path) -> None:
    async with a_master(tmp_path, lease=0.5, heartbeat=0.1) as api, an_agent(api) as (agent, _):

        async def change_something() -> None:
            while True:
                await api.call("PUT", "/api/v1/actions/Hello", data=HELLO_YAML)

        async with running(change_something()):
            assert (await agent.socket.receive(timeout=10)).type.name in {"CLOSE", "CLOSED", "CLOSING"}
            await until_lost(api, 1)


@pytest.mark.slow
async def test_an_agent_declared_lost_is_hung_up_on_so_that_it_comes_back(tmp_path: Path) -> None:
    async with a_master(tmp_path, lease=0.5, heartbeat=0.1) as api:
        async with an_agent(api) as (agent, _):
            assert (await agent.socket.receive(timeout=10)).type.name in {"CLOSE", "CLOSED", "CLOSING"}
        async with an_agent(api, agent.id) as (again, welcome):
            assert welcome.epoch == 2
            run = await api.submit()
            assert (await again.receive(wire.Assign)).run_id == run["id"]


@pytest.mark.slow
async def test_a_master_that_stood_still_gives_every_agent_a_lease_anew(tmp_path: Path) -> None:
    async with a_master(tmp_path, lease=2.0, heartbeat=0.1) as api:
        async with an_agent(api) as (agent, _):
            run = await api.submit()
            assign = await agent.receive(wire.Assign)
            await agent.accept(assign)
        time.sleep(2.5)  # noqa: ASYNC251 - the standstill itself, longer than the lease
        await asyncio.sleep(0.5)  # what a loss would need to be declared; there is nothing to wait for
        held = (wire.Held(attempt_id=assign.attempt_id, run_id=run["id"], fence=assign.fence),)
        async with an_agent(api, agent.id, held=held) as (_, welcome):
            assert [verdict.is_kept for verdict in welcome.verdicts] == [True]


async def test_cancel_reaches_the_agent_and_the_run_ends_when_the_agent_says_so(tmp_path: Path) -> None:
    async with a_master(tmp_path) as api, an_agent(api) as (agent, _):
        run = await api.submit()
        assign = await agent.receive(wire.Assign)
        await agent.accept(assign)
        status, cancelled = await api.call("POST", f"/api/v1/runs/{run['id']}/cancel?reason=enough")
        assert (status, cancelled["state"], cancelled["is_cancelling"]) == (202, "running", True)
        assert await agent.receive(wire.Cancel) == wire.Cancel(attempt_id=assign.attempt_id, reason="enough")
        result = Result(state=State.CANCELLED, reason="enough")
        await agent.report(
            c.Finished(at=wire.now_ms(), attempt_id=assign.attempt_id, fence=assign.fence, result=result)
        )
        ended = await api.ended(run["id"])
        assert (ended["state"], ended["reason"]) == ("cancelled", "enough")


async def test_a_cancel_that_was_missed_is_sent_when_the_agent_comes_back(tmp_path: Path) -> None:
    async with a_master(tmp_path) as api:
        async with an_agent(api) as (agent, _):
            run = await api.submit()
            assign = await agent.receive(wire.Assign)
            await agent.accept(assign)
        await api.call("POST", f"/api/v1/runs/{run['id']}/cancel")
        held = (wire.Held(attempt_id=assign.attempt_id, run_id=run["id"], fence=assign.fence),)
        async with an_agent(api, agent.id, held=held) as (again, _):
            assert (await again.receive(wire.Cancel)).attempt_id == assign.attempt_id


async def test_an_agent_cannot_speak_of_anothers_attempt(tmp_path: Path) -> None:
    async with a_master(tmp_path) as api, an_agent(api) as (agent, _):
        run = await api.submit()
        assign = await agent.receive(wire.Assign)
        await agent.accept(assign)
        async with an_agent(api) as (thief, _):
            assert (await thief.finish(assign)).refused == (assign.attempt_id,)
            frame = wire.LogFrame(attempt_id=assign.attempt_id, step="1", stream=1, offset=0, at=1, data=b"forged")
            await thief.send(frame)
            refused = await thief.receive(wire.LogRefused)
            assert refused.is_final
        assert (await api.run(run["id"]))["state"] == "running"
        assert await api.call("GET", f"/api/v1/runs/{run['id']}/logs") == (200, "")


async def test_to_an_attempt_that_has_ended_nothing_is_added(tmp_path: Path) -> None:
    async with a_master(tmp_path) as api, an_agent(api) as (agent, _):
        run = await api.submit()
        assign = await agent.receive(wire.Assign)
        await agent.accept(assign)
        await agent.print(assign, b"all of it\n")
        await agent.finish(assign, length=10)
        async with an_agent(api, agent.id) as (again, _):
            for one in (agent, again):
                frame = wire.LogFrame(
                    attempt_id=assign.attempt_id, step="1", stream=1, offset=10, at=1, data=b"and more"
                )
                with contextlib.suppress(ConnectionError):  # the older session is over
                    await one.send(frame)
            assert (await again.receive(wire.LogRefused)).is_final
            assert (await again.finish(assign, length=10)).refused == ()  # said again, it is no news
        assert await api.call("GET", f"/api/v1/runs/{run['id']}/logs") == (200, "all of it\n")


async def test_a_new_session_of_an_agent_replaces_its_old_one(tmp_path: Path) -> None:
    async with a_master(tmp_path) as api, an_agent(api) as (old, _), an_agent(api, old.id) as (new, _):
        closed = await old.socket.receive(timeout=10)
        assert closed.type.name in {"CLOSE", "CLOSED", "CLOSING"}
        run = await api.submit()
        assert (await new.receive(wire.Assign)).run_id == run["id"]


async def test_everything_goes_on_after_the_master_was_restarted(tmp_path: Path) -> None:
    async with a_master(tmp_path) as api, an_agent(api) as (agent, _):
        run = await api.submit()
        waiting = await api.submit("name: Later\nimage: busybox\nrun: 'true'\nagent: gpu=true\n")
        assign = await agent.receive(wire.Assign)
        await agent.accept(assign)
        await agent.print(assign, b"one\n")
    async with a_master(tmp_path) as api:
        held = (wire.Held(attempt_id=assign.attempt_id, run_id=run["id"], fence=assign.fence),)
        async with an_agent(api, agent.id, held=held) as (again, welcome):
            assert [verdict.is_kept for verdict in welcome.verdicts] == [True]
            assert (await again.print(assign, b"", 0)).length == 4
            await again.print(assign, b"two\n", 4)
            await again.finish(assign, length=8)
            assert (await api.ended(run["id"]))["state"] == "succeeded"
            assert await api.call("GET", f"/api/v1/runs/{run['id']}/logs") == (200, "one\ntwo\n")
            still = await api.run(waiting["id"])
            assert (still["state"], still["tasks"][0]["waiting"]) == ("queued", "fake: label gpu=true is missing")


@pytest.mark.parametrize("raw", [b"", b"\xc1", wire.pack_value([1]), wire.pack_value(["hello", {}])])
async def test_what_is_no_hello_is_answered_with_a_reason(tmp_path: Path, raw: bytes) -> None:
    async with a_master(tmp_path) as api, api.session.ws_connect(api.url + "/agent/v1/session") as socket:
        await socket.send_bytes(raw)
        goodbye = wire.unpack_message(await socket.receive_bytes(timeout=10))
        assert isinstance(goodbye, wire.Goodbye) and goodbye.reason


async def test_what_is_cancelled_before_the_new_leader_decides_anything_is_told_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with a_master(tmp_path) as api, an_agent(api, "a" * 26) as (agent, _):
        run = await api.submit()
        assign = await agent.receive(wire.Assign)
        await agent.accept(assign)
    may_decide, found, calls = asyncio.Event(), Members.found, []

    async def late(members: Members) -> None:
        calls.append(members)
        if len(calls) == 2:  # the first comes before anybody can ask for anything
            await may_decide.wait()
        await found(members)

    monkeypatch.setattr(Members, "found", late)
    held = (wire.Held(attempt_id=assign.attempt_id, run_id=run["id"], fence=assign.fence),)
    async with a_master(tmp_path) as api, an_agent(api, "a" * 26, held=held) as (agent, welcome):
        assert welcome.verdicts[0].is_kept and len(calls) == 2
        assert (await api.call("POST", f"/api/v1/runs/{run['id']}/cancel"))[0] == 202
        may_decide.set()
        assert (await agent.receive(wire.Cancel)).attempt_id == assign.attempt_id
