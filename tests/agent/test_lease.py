"""The lease: what an agent does with its work when no master answers it, however time passed."""

import asyncio
import fcntl
import json
import os
import signal
from pathlib import Path

import pytest

from pistage.agent.lease import Expiry, Lease
from pistage.agent.service import Agent
from pistage.core import limits
from pistage.core.commands import StepStarted
from pistage.core.model import State
from pistage.core.plan import FailureClass, OnPartition
from tests.agent.agent_process import agent_process
from tests.agent.conftest import StartAgent, nothing_left
from tests.agent.fake_master import FakeMaster, script, task
from tests.engine import leftovers
from tests.waiting import until


class Clock:
    def __init__(self, at: float = 1000.0) -> None:
        self.at = at

    def __call__(self) -> float:
        return self.at


def a_lease(directory: Path, clock: Clock, ends: list[Expiry], *, boot: str = "this boot") -> Lease:
    return Lease(directory / "lease", ends.append, now=clock, boot=lambda: boot)


def test_it_runs_from_when_the_answered_heartbeat_was_sent(tmp_path: Path) -> None:
    clock, ends = Clock(), []
    lease = a_lease(tmp_path, clock, ends)
    lease.check()
    lease.renew(1000.0, length_s=20.0)
    clock.at = 1019.0
    lease.renew(1005.0)
    clock.at = 1024.9
    lease.check()
    assert ends == []
    clock.at = 1025.5
    lease.check()
    assert ends == [Expiry(unheard_s=20.5, grace_s=2.0)]


def test_an_answer_that_comes_after_its_end_is_too_late(tmp_path: Path) -> None:
    clock, ends = Clock(), []
    lease = a_lease(tmp_path, clock, ends)
    lease.renew(1000.0, length_s=20.0)
    clock.at = 1100.0  # the machine slept; then its heart beat, and was answered
    lease.renew(1099.0)
    assert [end.unheard_s for end in ends] == [100.0]
    assert ends[0].grace_s < 0
    lease.check()
    assert len(ends) == 1


def test_an_old_answer_does_not_shorten_it(tmp_path: Path) -> None:
    clock, ends = Clock(1010.0), []
    lease = a_lease(tmp_path, clock, ends)
    lease.renew(1010.0, length_s=20.0)
    lease.renew(1002.0)
    clock.at = 1025.0
    lease.check()
    assert ends == []


def test_it_outlives_the_agent_but_not_the_machines_start(tmp_path: Path) -> None:
    clock, ends = Clock(), []
    a_lease(tmp_path, clock, ends).renew(1000.0, length_s=20.0)
    clock.at = 1021.0
    for boot, count in (("another boot", 0), ("", 0), ("this boot", 1)):
        lease = a_lease(tmp_path, clock, ends, boot=boot)
        lease.resume()
        lease.check()
        assert len(ends) == count


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"boot_id": "this boot", "from_s": "x", "length_s": 1}'])
def test_a_file_that_holds_none_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "lease").write_text(text)
    lease = a_lease(tmp_path, Clock(), [])
    lease.resume()
    assert not lease.is_known


def test_it_is_written_once_a_second_at_most(tmp_path: Path) -> None:
    clock = Clock()
    lease = a_lease(tmp_path, clock, [])
    written = []
    for tenths in range(30):
        clock.at = 1000.0 + tenths / 10
        lease.renew(clock.at, length_s=20.0)
        written.append(json.loads((tmp_path / "lease").read_text())["from_s"])
    assert sorted(set(written)) == [1000.0, 1001.0, 1002.0]


# --- agents ----------------------------------------------------------------------------------------------------

BEATING = "trap '' TERM; echo >> {beat}; echo on; while :; do echo >> {beat}; sleep 0.02; done"


async def until_still(beat: Path, timeout_s: float) -> None:
    """Until nothing writes to `beat` any more: for a second, for a busy machine may keep a writer from it for less."""
    async with asyncio.timeout(timeout_s):
        sizes = [-1]
        while len(sizes) < 5 or len(set(sizes[-5:])) > 1:
            sizes.append(beat.stat().st_size)
            await asyncio.sleep(0.25)


@pytest.mark.slow
async def test_without_a_master_work_is_stopped_when_the_lease_ends_and_said_to_be_lost(
    master: FakeMaster, start_agent: StartAgent, tmp_path: Path
) -> None:
    master.lease_s = 1.0
    await start_agent("host", stop_grace=60.0)
    beat = tmp_path / "beat"
    stubborn = await master.assign(task(script(BEATING.format(beat=beat))))
    lasting = await master.assign(
        task(script("while [ ! -e go ]; do sleep 0.02; done; echo went on"), on_partition=OnPartition.CONTINUE)
    )
    await master.until(lambda: b"on" in master.stdout(stubborn.attempt_id) and master.heard_of(lasting))
    port = int(master.url.rpartition(":")[2])
    await master.stop()
    await until_still(beat, timeout_s=10.0)
    assert list((tmp_path / "agent" / "workspaces").glob(f"{lasting.attempt_id}/c1"))
    (tmp_path / "agent" / "workspaces" / lasting.attempt_id / "c1" / "workspace" / "go").touch()
    await master.start(port)
    end = await master.finished(stubborn)
    assert (end.result.state, end.result.failure) == (State.LOST, FailureClass.LOST)
    assert "no master was heard of for 1 s, so the agent stopped it" in end.result.reason
    assert (await master.finished(lasting)).result.state is State.SUCCEEDED
    master.check_output(stubborn.attempt_id)


@pytest.mark.slow
async def test_what_a_command_printed_that_ended_before_the_lease_did_is_all_kept(
    master: FakeMaster, start_agent: StartAgent, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def roomy(flags: int) -> tuple[int, int]:
        ends = small(flags)
        fcntl.fcntl(ends[1], fcntl.F_SETPIPE_SZ, limits.MIB)
        return ends

    small = os.pipe2
    monkeypatch.setattr("pistage.agent.runtimes.process.os.pipe2", roomy)
    master.lease_s = 5.0
    agent = await start_agent("host")
    agent._outbox._bytes_max = 64 * limits.KIB
    go = tmp_path / "go"
    text = f"echo on; until [ -e {go} ]; do sleep 0.05; done; head -c 900000 /dev/zero | tr '\\0' x"
    assign = await master.assign(task(script(text)))
    await master.until(lambda: b"on" in master.stdout(assign.attempt_id))
    port = int(master.url.rpartition(":")[2])
    await master.stop()
    go.touch()
    runner = agent._runners[assign.attempt_id]
    await until(lambda: runner._place._children[0]._process.returncode == 0)  # type: ignore[attr-defined]
    assert not runner.is_fenced, "it was to end by itself"
    kill, killed = runner._place.kill, list[str]()

    async def told() -> None:
        await kill()
        killed.append("all of it")

    monkeypatch.setattr(runner._place, "kill", told)
    await until(lambda: bool(killed))
    await master.start(port)
    await master.finished(assign)
    step = master.steps_of(assign.attempt_id)["1"]
    assert step.stdout is not None and (step.stdout.length, step.stdout.missing) == (900_003, 0)
    assert len(master.stdout(assign.attempt_id)) == 900_003


@pytest.mark.slow
async def test_a_master_that_answers_all_but_heartbeats_has_no_quorum(
    master: FakeMaster, start_agent: StartAgent
) -> None:
    master.lease_s = 1.0
    await start_agent("host")
    assign = await master.assign(task(script("echo on; sleep 100")))
    await master.until(lambda: b"on" in master.stdout(assign.attempt_id))
    master.has_no_quorum = True
    assert (await master.finished(assign, timeout_s=10)).result.state is State.LOST
    assert len(master.hellos) == 1
    later = await master.assign(task(script("echo never")))
    assert (await master.finished(later, timeout_s=10)).result.state is State.LOST
    assert master.stdout(later.attempt_id) == b""


@pytest.mark.slow
async def test_what_ended_by_itself_before_is_reported_as_it_ended(
    master: FakeMaster, start_agent: StartAgent, tmp_path: Path
) -> None:
    master.lease_s = 1.0
    agent = await start_agent("host")
    go = tmp_path / "go"
    assign = await master.assign(task(script(f"echo on; while [ ! -e {go} ]; do sleep 0.02; done; echo off; exit 7")))
    await master.until(lambda: b"on" in master.stdout(assign.attempt_id))
    port = int(master.url.rpartition(":")[2])
    await master.stop()
    go.touch()
    await until(lambda: agent._runners[assign.attempt_id].is_fenced, 10)
    await master.start(port)
    end = await master.finished(assign)
    assert (end.result.state, end.result.exit_code) == (State.FAILED, 7)
    assert master.stdout(assign.attempt_id) == b"on\noff\n"


@pytest.mark.slow
async def test_an_agent_that_stood_still_for_a_lease_ends_its_work_before_it_is_answered_again(
    master: FakeMaster, tmp_path: Path
) -> None:
    master.lease_s = 1.0
    settings: dict[str, object] = {
        "data_dir": tmp_path / "agent", "masters": [master.url], "runtime": "host", "ignore_images": True,
        "allow_host_runtime": True,
    }  # fmt: skip
    with agent_process(settings) as process:
        process.start()
        assign = await master.assign(task(script("echo on; sleep 100")))
        await master.until(lambda: b"on" in master.stdout(assign.attempt_id))
        assert process._process is not None
        os.kill(process._process.pid, signal.SIGSTOP)
        await asyncio.sleep(1.6)  # the standstill itself
        os.kill(process._process.pid, signal.SIGCONT)
        end = await master.finished(assign, timeout_s=10)
        assert end.result.state is State.LOST
        assert "no master was heard of" in end.result.reason
        # It is itself again: what comes now is done.
        assert (await master.run(task(script("true")))).result.state is State.SUCCEEDED


@pytest.mark.slow
@pytest.mark.engine
@pytest.mark.parametrize("is_shared", [False, True], ids=["own process", "exec"])
async def test_an_agent_killed_and_started_without_a_master_ends_adopted_containers_in_time(
    master: FakeMaster, tmp_path: Path, engine: str, is_shared: bool
) -> None:
    master.lease_s = 6.0
    settings = {"data_dir": tmp_path, "masters": [master.url], "engine": engine}
    with agent_process(settings) as process:
        process.start()
        text = "trap '' TERM; echo on; while :; do sleep 0.1; done"
        assign = await master.assign(task(script(text), *([script("true", id="2")] if is_shared else [])))
        await master.until(lambda: b"on" in master.stdout(assign.attempt_id))
        agent_id = master.hellos[0].info.id
        port = int(master.url.rpartition(":")[2])
        await master.stop()
        process.kill()
        process.start()
        async with asyncio.timeout(master.lease_s * 1.25 + 3):
            while await leftovers(engine, agent_id):  # noqa: ASYNC110 - the engine is asked
                await asyncio.sleep(0.1)
        await master.start(port)
        end = await master.finished(assign)
        assert (end.result.state, end.result.failure) == (State.LOST, FailureClass.LOST)
        master.check_output(assign.attempt_id)


@pytest.mark.engine
async def test_a_container_is_gone_an_eighth_after_the_lease(
    master: FakeMaster, start_agent: StartAgent, engine: str
) -> None:
    master.lease_s = 4.0
    agent: Agent = await start_agent("docker", engine=engine, stop_grace=60.0)
    text = "trap '' TERM; echo on; while :; do sleep 0.1; done"
    assigns = [await master.assign(task(script(text), script("true", id="2"))) for _ in range(2)]
    await master.until(lambda: sum(isinstance(event, StepStarted) for event in master.events) == 2)
    await master.hang_up()
    port = int(master.url.rpartition(":")[2])
    await master.stop()
    async with asyncio.timeout(master.lease_s * 1.25 + 2):
        while await leftovers(engine, agent.agent_id):  # noqa: ASYNC110 - the engine is asked
            await asyncio.sleep(0.1)
    await master.start(port)
    for assign in assigns:
        assert (await master.finished(assign)).result.state is State.LOST
    await nothing_left(engine, agent.agent_id)
