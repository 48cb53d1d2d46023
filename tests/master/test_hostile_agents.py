"""An agent that says what no agent of ours says: its session ends, the master and the other agents go on."""

from dataclasses import replace
from pathlib import Path

import pytest

from pistage import wire
from pistage.core import commands as c
from pistage.core import limits
from pistage.core.model import Result, State, StreamEnd
from pistage.core.plan import FailureClass
from tests.master.fakes import a_master, an_agent, an_info

RESULTS = (
    Result(state=State.RUNNING),
    Result(state=State.PENDING),
    Result(state=State.QUEUED),
    Result(state=State.SKIPPED),
    Result(state=State.SUCCEEDED, failure=FailureClass.LOST),
    Result(state=State.FAILED, exit_code=1 << 63),
)


def poison_of(assign: wire.Assign) -> list[wire.ToMaster]:
    key = {"attempt_id": assign.attempt_id, "fence": assign.fence}
    done = Result(state=State.SUCCEEDED, exit_code=0)
    long = StreamEnd(length=1 << 63, sha256="")
    events: list[c.AttemptEvent] = [
        c.Accepted(**key, at=1 << 63),
        c.Accepted(**key, at=1 << 58),
        c.StepStarted(**key, at=-1, step="1"),
        c.StepFinished(**key, at=1, step="1", result=done, stdout=long),
        c.StepFinished(**key, at=1, step="1", result=Result(state=State.RUNNING)),
        *(c.Finished(**key, at=1, result=result) for result in RESULTS),
    ]
    too_many = [c.StepStarted(**key, at=1, step=str(n)) for n in range(limits.REPORT_BATCH_MAX + 1)]
    frame = wire.LogFrame(attempt_id=assign.attempt_id, step="1", stream=1, offset=0, at=1, data=b"x")
    frames = [
        replace(frame, at=-1), replace(frame, at=(1 << 64) - 1), replace(frame, offset=-1),
        replace(frame, step="99999999999"), replace(frame, step="01"), replace(frame, step="../1"),
        replace(frame, data=bytes(limits.FRAME_BYTES_MAX + 1)), replace(frame, step="1" * 5_000),
        replace(frame, stream=True), replace(frame, stream=1.0), replace(frame, at=True),  # type: ignore[arg-type]
    ]  # fmt: skip
    return [
        *(wire.Report(number=1, events=(event,)) for event in events),
        wire.Report(number=1, events=tuple(too_many)),
        *frames,
    ]


async def test_what_the_state_cannot_hold_ends_the_session_and_never_enters_the_log(tmp_path: Path) -> None:
    async with a_master(tmp_path) as api:
        async with an_agent(api) as (agent, _):
            run = await api.submit()
            assign = await agent.receive(wire.Assign)
            await agent.accept(assign)
            await agent.print(assign, b"hello\n")
        held = (wire.Held(attempt_id=assign.attempt_id, run_id=run["id"], fence=assign.fence),)
        for poison in poison_of(assign):
            async with an_agent(api, agent.id, held=held) as (again, _):
                await again.send(poison)
                closed = await again.socket.receive(timeout=10)
                assert closed.type.name in {"CLOSE", "CLOSED", "CLOSING"}, (poison, closed)
            assert (await api.run(run["id"]))["state"] == "running", poison
    async with a_master(tmp_path) as api:
        headers = {"Accept": "application/x-ndjson"}
        status, text = await api.call("GET", f"/api/v1/runs/{run['id']}/logs", headers=headers)
        assert status == 200 and '"text": "hello\\n"' in text


@pytest.mark.parametrize("room", [{"cpus_milli": 1 << 63}, {"memory_bytes": -1}, {"slots": 1 << 54}])
async def test_an_agent_of_impossible_size_is_not_registered(tmp_path: Path, room: dict[str, int]) -> None:
    info = an_info(wire.new_id())
    async with a_master(tmp_path) as api:
        async with api.session.ws_connect(api.url + "/agent/v1/session") as socket:
            await socket.send_bytes(
                wire.pack_message(wire.Hello(info=replace(info, capacity=replace(info.capacity, **room))))
            )
            assert isinstance(wire.unpack_message(await socket.receive_bytes(timeout=10)), wire.Goodbye)
        assert (await api.call("GET", "/api/v1/agents"))[1]["items"] == []
