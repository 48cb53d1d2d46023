"""An agent that leaves takes no more work, sees its own through for a while, and one attempt can be sent away."""

import asyncio
import signal
import sys
from pathlib import Path

import pytest

from pistage.agent.service import Agent
from pistage.core.commands import Accepted
from pistage.core.model import State
from pistage.core.plan import FailureClass
from pistage.wire import Evict
from tests.agent.conftest import StartAgent
from tests.agent.fake_master import FakeMaster, script, task
from tests.engine import leftovers

WAIT = "echo on; while [ ! -e {go} ]; do sleep 0.02; done; echo off"


async def ended(running: dict[Agent, asyncio.Task[None]], agent: Agent, timeout_s: float = 10.0) -> None:
    async with asyncio.timeout(timeout_s):
        await asyncio.wait([running[agent]])


async def test_it_sees_its_work_through_and_refuses_what_crosses_its_leaving(
    master: FakeMaster, start_agent: StartAgent, running: dict[Agent, asyncio.Task[None]], tmp_path: Path
) -> None:
    agent = await start_agent("host")
    assign = await master.assign(task(script(WAIT.format(go=tmp_path / "go"))))
    await master.until(lambda: b"on" in master.stdout(assign.attempt_id))
    agent.request_leave()
    await master.until(lambda: master.is_left)
    refused = await master.run(task(script("echo never")))
    assert (refused.result.state, refused.result.reason) == (State.LOST, "the agent is stopping")
    assert not any(isinstance(e, Accepted) and e.attempt_id == refused.attempt_id for e in master.events)
    await master.hang_up()
    await master.until(lambda: len(master.hellos) == 2)
    assert [hello.is_leaving for hello in master.hellos] == [False, True]
    assert not running[agent].done()
    (tmp_path / "go").touch()
    assert (await master.finished(assign)).result.state is State.SUCCEEDED
    await ended(running, agent)
    master.check_output(assign.attempt_id)


async def test_what_does_not_end_in_time_and_cannot_go_on_alone_is_said_to_be_lost(
    master: FakeMaster, start_agent: StartAgent, running: dict[Agent, asyncio.Task[None]]
) -> None:
    agent = await start_agent("host", drain_timeout=0.2)
    assign = await master.assign(task(script("trap 'echo bye; exit 0' TERM; echo on; while :; do sleep 0.02; done")))
    await master.until(lambda: b"on" in master.stdout(assign.attempt_id))
    agent.request_leave()
    end = await master.finished(assign)
    assert (end.result.state, end.result.failure) == (State.LOST, FailureClass.LOST)
    assert end.result.reason == "its agent was stopped"
    assert master.stdout(assign.attempt_id) == b"on\nbye\n"
    await ended(running, agent)


@pytest.mark.parametrize("request_again", [Agent.request_leave, Agent.request_stop], ids=["leave", "stop"])
async def test_asked_again_it_stops_at_once(
    master: FakeMaster, start_agent: StartAgent, running: dict[Agent, asyncio.Task[None]], request_again: object
) -> None:
    agent = await start_agent("host", drain_timeout=60.0)
    assign = await master.assign(task(script("echo on; sleep 100")))
    await master.until(lambda: b"on" in master.stdout(assign.attempt_id))
    agent.request_leave()
    await master.until(lambda: master.is_left)
    request_again(agent)  # type: ignore[operator]
    await ended(running, agent, timeout_s=5.0)
    assert master.end_of(assign) is None


async def test_with_nothing_to_do_it_leaves_at_once(
    master: FakeMaster, start_agent: StartAgent, running: dict[Agent, asyncio.Task[None]]
) -> None:
    agent = await start_agent("host")
    agent.request_leave()
    await ended(running, agent, timeout_s=5.0)


async def test_an_evicted_attempt_stops_as_if_cancelled_and_is_lost(
    master: FakeMaster, start_agent: StartAgent
) -> None:
    await start_agent("host")
    assign = await master.assign(task(script("trap 'echo bye; exit 0' TERM; echo on; while :; do sleep 0.02; done")))
    await master.until(lambda: b"on" in master.stdout(assign.attempt_id))
    await master.send(Evict(attempt_id=assign.attempt_id, reason="something more urgent needs its place"))
    end = await master.finished(assign)
    assert (end.result.state, end.result.failure) == (State.LOST, FailureClass.LOST)
    assert end.result.reason == "something more urgent needs its place"
    assert master.stdout(assign.attempt_id) == b"on\nbye\n"
    master.check_output(assign.attempt_id)


@pytest.mark.engine
async def test_an_evicted_container_is_gone_before_it_is_said_to_be_lost(
    master: FakeMaster, start_agent: StartAgent, engine: str
) -> None:
    agent = await start_agent("docker", engine=engine)
    assign = await master.assign(task(script("echo on; sleep 100"), script("true", id="2")))
    await master.until(lambda: b"on" in master.stdout(assign.attempt_id))
    await master.send(Evict(attempt_id=assign.attempt_id, reason="make room"))
    assert (await master.finished(assign)).result.reason == "make room"
    assert await leftovers(engine, agent.agent_id) == {}


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
async def test_serve_leaves_at_sigterm_and_stops_at_sigint(
    master: FakeMaster, tmp_path: Path, number: signal.Signals
) -> None:
    flags = ["--masters", master.url, "--runtime", "host", "--allow-host-runtime", "--ignore-images"]
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "pistage", "serve", "--role", "agent", "--data-dir", str(tmp_path / "agent"), *flags,
        env={"PISTAGE_TOKEN": "a-token-of-the-cluster", "PATH": "/usr/bin:/bin"},
    )  # fmt: skip
    assign = await master.assign(task(script(WAIT.format(go=tmp_path / "go"))))
    await master.until(lambda: b"on" in master.stdout(assign.attempt_id))
    process.send_signal(number)
    if number is signal.SIGTERM:
        await master.until(lambda: master.is_left)
        (tmp_path / "go").touch()
        assert (await master.finished(assign)).result.state is State.SUCCEEDED
    async with asyncio.timeout(15):
        assert await process.wait() == 0
    assert master.is_left == (number is signal.SIGTERM)
