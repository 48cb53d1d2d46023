"""The session: found again, redirected, refused, silent."""

import asyncio
import logging
import socket
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from pistage.agent import session as session_module
from pistage.agent.service import Agent
from pistage.config import AgentConfig
from pistage.core.model import State
from pistage.errors import PistageError
from tests.agent.conftest import StartAgent, StopAgent
from tests.agent.fake_master import TOKEN, FakeMaster, fake_master, script, task


async def test_the_first_word_says_who_it_is_and_what_it_offers(master: FakeMaster, start_agent: StartAgent) -> None:
    agent = await start_agent(name="a-name", labels={"gpu": "true"}, cpus=1.5, memory="512Mi", slots=3, gpus=2)
    (hello,) = master.hellos
    assert (hello.info.id, hello.info.name, hello.info.runtimes) == (agent.agent_id, "a-name", ("sandbox",))
    assert dict(hello.info.labels)["gpu"] == "true"
    capacity = hello.info.capacity
    assert (capacity.cpus_milli, capacity.memory_bytes, capacity.slots, capacity.gpus) == (1500, 512 * 1024**2, 3, 2)
    assert hello.info.ignores_images is True
    assert hello.held == ()


async def test_what_is_offered_unless_said_is_the_machine_less_a_reserve(
    master: FakeMaster, start_agent: StartAgent
) -> None:
    await start_agent()
    capacity = master.hellos[0].info.capacity
    assert capacity.cpus_milli >= 1000 and capacity.cpus_milli % 1000 == 0
    assert capacity.slots == capacity.cpus_milli // 1000 * 4
    assert capacity.memory_bytes > 128 * 1024**2


async def test_an_agent_keeps_its_id_and_begins_a_new_incarnation(
    master: FakeMaster, start_agent: StartAgent, stop_agent: StopAgent
) -> None:
    await stop_agent(await start_agent())
    await start_agent()
    first, second = (hello.info for hello in master.hellos)
    assert first.id == second.id
    assert first.incarnation != second.incarnation


async def test_two_agents_never_share_a_directory(start_agent: StartAgent) -> None:
    agent = await start_agent()
    with pytest.raises(PistageError, match="another agent is using"):
        await Agent(agent._settings, token=TOKEN).run()


async def test_a_master_that_goes_is_found_again_with_the_attempts_that_went_on(
    master: FakeMaster, start_agent: StartAgent
) -> None:
    await start_agent()
    assign = await master.assign(task(script("while [ ! -e /tmp/go ]; do sleep 0.05; done"), script("true", id="2")))
    await master.until(lambda: len(master.events) >= 2)
    await master.hang_up()
    await master.until(lambda: len(master.hellos) == 2)
    assert [held.attempt_id for held in master.hellos[1].held] == [assign.attempt_id]
    assert master.hellos[0].info.incarnation == master.hellos[1].info.incarnation
    assert master.end_of(assign) is None


async def test_a_release_that_was_missed_is_made_up_for_at_the_next_session(
    master: FakeMaster, start_agent: StartAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = await start_agent()
    released: list[str] = []

    async def release(run_id: str) -> None:
        released.append(run_id)

    monkeypatch.setattr(agent._runtime, "release", release)
    over = await master.assign(task(script("true")))
    await master.finished(over)
    going = await master.assign(task(script("while [ ! -e /tmp/go ]; do sleep 0.05; done")))
    await master.until(lambda: master.heard_of(going))
    master.live_runs = [going.run_id]
    await master.hang_up()
    await master.until(lambda: bool(released))
    assert released == [over.run_id]


async def test_masters_are_tried_in_turn(master: FakeMaster, start_agent: StartAgent) -> None:
    await start_agent(masters=("http://127.0.0.1:9", master.url))
    assert (await master.run(task(script("true")))).result.state is State.SUCCEEDED


async def test_a_redirect_is_followed_with_the_credentials(master: FakeMaster, start_agent: StartAgent) -> None:
    async with fake_master() as follower:
        follower.redirect_to = master.url
        await start_agent(masters=(follower.url,))
    assert (await master.run(task(script("true")))).result.state is State.SUCCEEDED


async def test_who_leads_by_the_word_of_another_master_is_asked_at_once(
    master: FakeMaster, start_agent: StartAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_module, "_BACKOFF_MIN_S", 60.0)
    monkeypatch.setattr(session_module, "_BACKOFF_MAX_S", 60.0)
    async with fake_master() as follower:
        follower.redirect_to = master.url
        async with asyncio.timeout(10):
            await start_agent(masters=(follower.url,))


@pytest.fixture
def silent_url() -> Iterator[str]:
    """Of a machine that answers no packet: a listener whose queue is full drops those of whoever comes."""
    with ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(3):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(listener.getsockname())
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


@pytest.mark.slow
async def test_masters_that_are_silent_hold_the_way_to_another_up_for_less_than_a_lease(
    master: FakeMaster, start_agent: StartAgent, silent_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Two of five on the far side of a partition, one of them named by a follower that has not noticed yet.
    monkeypatch.setattr(session_module, "_CONNECT_TIMEOUT_S", session_module._CONNECT_TIMEOUT_S / 10)
    async with fake_master() as follower:
        follower.redirect_to = silent_url
        async with asyncio.timeout(4):
            await start_agent(masters=(follower.url, silent_url, master.url))


@pytest.mark.slow
async def test_waits_grow_only_once_every_master_was_asked(
    master: FakeMaster, start_agent: StartAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    # In a failover most masters refuse: with a wait twice as long after each, 11 of them would take over a minute.
    monkeypatch.setattr(session_module, "_BACKOFF_MAX_S", 60.0)
    async with asyncio.timeout(10):
        await start_agent(masters=(*["http://127.0.0.1:9"] * 11, master.url))


@pytest.mark.slow
async def test_a_token_that_is_not_accepted_is_said_once_and_clearly(
    master: FakeMaster, tmp_path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(session_module, "_DENIED_RETRY_S", 0.02)
    settings = AgentConfig(data_dir=tmp_path, masters=(master.url,), runtime="sandbox")
    agent = Agent(settings, token="wrong")
    with caplog.at_level(logging.WARNING, logger="pistage.agent"):
        async with asyncio.TaskGroup() as group:
            group.create_task(agent.run())
            await asyncio.sleep(0.5)  # nothing comes of it: there is nothing to wait for
            agent.request_stop()
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 1
    assert "the token is not accepted: set token_file to the cluster's token" in said[0]
    assert "wrong" not in said[0]


@pytest.mark.slow
async def test_a_master_that_says_nothing_for_a_lease_is_left(master: FakeMaster, start_agent: StartAgent) -> None:
    master.lease_s = 0.3
    master.is_deaf = True
    await start_agent()
    await master.until(lambda: len(master.hellos) >= 2, timeout_s=10)


async def test_events_that_nobody_answered_come_again(master: FakeMaster, start_agent: StartAgent) -> None:
    await start_agent()
    master.is_deaf = True
    assign = await master.assign(task(script("echo out")))
    await asyncio.sleep(0.3)
    master.is_deaf = False
    await master.hang_up()
    end = await master.finished(assign)
    assert end.result.state is State.SUCCEEDED
    assert [event.kind for event in master.events] == ["accepted", "step_started", "step_finished", "finished"]
    master.check_output(assign.attempt_id)
