"""The master's end of leases: whose heartbeats are answered, and who is given work."""

import asyncio
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from pistage import raft, wire
from pistage.core.commands import FoundCluster
from pistage.master.heartbeats import Heartbeats
from pistage.master.replica import Replica
from pistage.owning import running
from tests.master.fakes import a_master, a_replica, an_agent, an_info
from tests.master.test_group import a_group, eventually


@pytest.mark.slow
async def test_a_leader_that_is_followed_answers_all_who_wait_with_few_rounds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = 0
    confirm = Replica.confirm_leading

    async def counted(replica: Replica) -> None:
        nonlocal reads
        reads += 1
        await confirm(replica)

    monkeypatch.setattr(Replica, "confirm_leading", counted)
    async with a_group(tmp_path) as group:
        heartbeats = Heartbeats(await group.leader())
        answered: list[int] = []
        async with running(heartbeats.serve()):
            for number in range(1000):
                heartbeats.heard(f"agent {number}", number, answered.append)
                if number % 100 == 0:
                    await asyncio.sleep(0)
            await eventually(lambda: len(answered) == 1000)
        assert 0 < reads <= 5


@pytest.mark.slow
async def test_a_leader_cut_off_from_its_followers_answers_nothing(tmp_path: Path) -> None:
    async with a_group(tmp_path) as group:
        old = await group.leader()
        heartbeats = Heartbeats(old)
        answered: list[int] = []
        async with running(heartbeats.serve()):
            heartbeats.heard("an agent", 1, answered.append)
            await eventually(lambda: answered == [1])
            group.links.away.add(old.node_id)
            assert old.is_leading
            heartbeats.heard("an agent", 2, answered.append)
            await group.leader(but=old.node_id)
            heartbeats.heard("an agent", 3, answered.append)
            await eventually(lambda: not old.is_leading)
            group.links.away.clear()
            await group.settle()
            heartbeats.heard("an agent", 4, answered.append)
            await old.read()  # which it can, of the new leader
            assert answered == [1]


async def test_a_master_that_is_alone_answers_at_once(tmp_path: Path) -> None:
    async with a_replica(tmp_path) as replica:
        heartbeats = Heartbeats(replica)
        async with running(heartbeats.serve()):
            for number in range(50):
                answer: asyncio.Future[int] = asyncio.get_running_loop().create_future()
                heartbeats.heard("an agent", number, answer.set_result)
                async with asyncio.timeout(1):
                    assert await answer == number


async def test_an_agent_that_leaves_takes_no_work_and_keeps_its_session(tmp_path: Path) -> None:
    async with a_master(tmp_path) as api, an_agent(api) as (agent, _):
        sessions = api.master.context.sessions  # type: ignore[attr-defined]
        changes: list[bool] = []
        sessions.on_change(lambda: changes.append(sessions.takes_work(agent.id)))
        assert sessions.takes_work(agent.id) and not sessions.takes_work(wire.new_id())
        await agent.send(wire.Leaving())
        await agent.send(wire.Heartbeat(number=1))
        await agent.receive(wire.HeartbeatAck)
        assert changes == [False]
        assert sessions.is_connected(agent.id) and not sessions.takes_work(agent.id)


async def test_an_agent_that_comes_back_leaving_still_takes_no_work(tmp_path: Path) -> None:
    async with a_master(tmp_path) as api, api.session.ws_connect(api.url + "/agent/v1/session") as socket:
        agent_id = wire.new_id()
        await socket.send_bytes(wire.pack_message(wire.Hello(info=an_info(agent_id), is_leaving=True)))
        assert isinstance(wire.unpack_message(await socket.receive_bytes(timeout=10)), wire.Welcome)
        sessions = api.master.context.sessions  # type: ignore[attr-defined]
        assert sessions.is_connected(agent_id) and not sessions.takes_work(agent_id)


async def test_a_heartbeat_is_answered_however_far_the_state_is_behind(tmp_path: Path) -> None:
    async with a_replica(tmp_path) as replica:
        state = replica._driver.state
        apply, may_apply = state.apply, threading.Event()

        def apply_later(entries: Sequence[raft.Entry]) -> Any:
            may_apply.wait(20)
            return apply(entries)

        state.apply = apply_later  # type: ignore[method-assign]
        async with asyncio.TaskGroup() as group:
            proposed = group.create_task(replica.propose(FoundCluster(at=1, cluster_id="c")))
            async with asyncio.timeout(5):
                while replica.node.commit == replica.applied_index:  # noqa: ASYNC110 - the core has no event
                    await asyncio.sleep(0.01)
                await replica.confirm_leading()
            assert not proposed.done()
            may_apply.set()
