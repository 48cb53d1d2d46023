"""The first words of a session: what can happen between a hello and its welcome, and what must not come of it."""

import asyncio
import contextlib
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from pistage import wire
from pistage.errors import Code, PistageError
from pistage.master import reads
from pistage.master.store import DurableLog
from tests.master.fakes import a_master, an_agent, an_info


async def test_a_cancellation_during_the_welcome_comes_after_the_assignment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load_assignments = reads.assignments
    async with a_master(tmp_path) as api:
        async with an_agent(api) as (agent, _):
            run = await api.submit()
            assign = await agent.receive(wire.Assign)
        sessions = api.master.context.sessions  # type: ignore[attr-defined]

        async def cancel_meanwhile(snapshot: Any, attempt_ids: list[str]) -> Any:
            found = await load_assignments(snapshot, attempt_ids)
            await api.call("POST", f"/api/v1/runs/{run['id']}/cancel")
            async with asyncio.timeout(10):
                while sessions._sessions[agent.id].outgoing.empty():  # noqa: ASYNC110 - a queue is not to be taken from
                    await asyncio.sleep(0)
            return found

        monkeypatch.setattr(reads, "assignments", cancel_meanwhile)
        async with an_agent(api, agent.id) as (again, _):
            words = [wire.unpack_message(await again.socket.receive_bytes(timeout=10)) for _ in range(2)]
            assert words == [assign, wire.Cancel(attempt_id=assign.attempt_id, reason="cancelled by cluster")]


async def test_a_session_whose_welcome_fails_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(snapshot: Any, agent_id: str) -> list[str]:
        raise PistageError(Code.STORAGE, "no space for it")

    monkeypatch.setattr(reads, "live_runs", fail)
    async with a_master(tmp_path) as api, api.session.ws_connect(api.url + "/agent/v1/session") as socket:
        await socket.send_bytes(wire.pack_message(wire.Hello(info=an_info(wire.new_id()))))
        assert isinstance(wire.unpack_message(await socket.receive_bytes(timeout=10)), wire.Goodbye)
        _, agents = await api.call("GET", "/api/v1/agents")
        assert [item["is_connected"] for item in agents["items"]] == [False]


@pytest.mark.slow
async def test_an_agent_that_calls_while_our_disk_is_full_is_not_silent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(store: DurableLog, writes: object) -> None:
        raise PistageError(Code.STORAGE, "the master's disk is full")

    async with a_master(tmp_path, lease=2.0, heartbeat=0.1) as api:
        async with an_agent(api) as (agent, _):
            run = await api.submit()
            assign = await agent.receive(wire.Assign)
            await agent.accept(assign)
        held = (wire.Held(attempt_id=assign.attempt_id, run_id=run["id"], fence=assign.fence),)
        with monkeypatch.context() as full:
            full.setattr(DurableLog, "write", refuse)
            for _ in range(6):
                with contextlib.suppress(aiohttp.WSServerHandshakeError):
                    async with api.session.ws_connect(api.url + "/agent/v1/session") as socket:
                        await socket.send_bytes(wire.pack_message(wire.Hello(info=an_info(agent.id), held=held)))
                        assert isinstance(wire.unpack_message(await socket.receive_bytes(timeout=10)), wire.Goodbye)
                await asyncio.sleep(0.4)  # an agent's pause between two calls
        await asyncio.sleep(1.2)  # in which losses are looked for once at least, and less than a lease
        async with an_agent(api, agent.id, held=held) as (_, welcome):
            assert [verdict.is_kept for verdict in welcome.verdicts] == [True]


async def test_who_sends_text_or_nothing_is_hung_up_on_quietly(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with a_master(tmp_path) as api:
        async with api.session.ws_connect(api.url + "/agent/v1/session") as socket:
            await socket.send_str("hello")
            assert isinstance(wire.unpack_message(await socket.receive_bytes(timeout=10)), wire.Goodbye)
        async with api.session.ws_connect(api.url + "/agent/v1/session"):
            pass
    assert not [record for record in caplog.records if record.levelname == "ERROR"]
