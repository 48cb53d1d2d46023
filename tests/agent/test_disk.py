"""A disk that is slow, full or broken under the journal: what cannot be recorded is lost, and nothing else is."""

import asyncio
import errno
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from pistage import wire
from pistage.agent import admission
from pistage.agent.journal import Journal
from pistage.agent.service import Agent
from pistage.core.commands import Accepted, StepStarted
from pistage.core.model import State
from pistage.core.plan import Block, FailureClass, OnPartition
from tests.agent.conftest import StartAgent, StopAgent
from tests.agent.fake_master import FakeMaster, an_assign, script, task
from tests.waiting import until

FULL = "the agent's journal cannot be written: No space left on device"
BROKEN = "the agent's journal cannot be written: Input/output error"
WAIT = "echo on; while [ ! -e {go} ]; do sleep 0.02; done"


@dataclass
class Disk:
    """The disk under the journals of this process."""

    is_full: bool = False
    is_broken: bool = False
    flushes: int = 0
    moves: threading.Event = field(default_factory=threading.Event)
    _write: Callable[[int, bytes], int] = os.write
    _fdatasync: Callable[[int], None] = os.fdatasync

    def write(self, descriptor: int, text: bytes) -> int:
        if self.is_full and Path(f"/proc/self/fd/{descriptor}").readlink().suffix in {".journal", ".draft"}:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return self._write(descriptor, text)

    def fdatasync(self, descriptor: int) -> None:
        self.flushes += 1
        self.moves.wait(60)
        if self.is_broken:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        self._fdatasync(descriptor)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[Disk]:
    disk = Disk()
    disk.moves.set()
    monkeypatch.setattr(os, "write", disk.write)
    monkeypatch.setattr(os, "fdatasync", disk.fdatasync)
    monkeypatch.setattr(admission, "_RETRY_S", 0.05)
    yield disk
    disk.moves.set()


async def arrived(agent: Agent, count: int = 1) -> None:
    await until(lambda: len(agent._arrivals) == count)


# --- full, or broken -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("trouble", ["is_full", "is_broken"])
async def test_what_cannot_be_recorded_is_refused_and_work_is_taken_again_when_it_can(
    master: FakeMaster, start_agent: StartAgent, disk: Disk, trouble: str
) -> None:
    await start_agent("host")
    setattr(disk, trouble, True)
    assign = await master.assign(task(script("echo hi")))
    end = await master.finished(assign)
    assert (end.result.state, end.result.failure) == (State.LOST, FailureClass.LOST)
    assert end.result.reason == (FULL if trouble == "is_full" else BROKEN)
    await master.until(lambda: master.is_left)
    assert (await master.run(task(script("echo crossed it")))).result.state is State.LOST
    assert not any(isinstance(event, Accepted) for event in master.events)
    assert len(master.hellos) == 1
    await master.send(assign)  # late: its end may be committed
    setattr(disk, trouble, False)
    await master.until(lambda: len(master.hellos) == 2)
    assert not master.hellos[1].is_leaving and master.hellos[1].held == ()
    await master.send(assign)
    assert (await master.run(task(script("echo hi")))).result.state is State.SUCCEEDED
    assert not any(isinstance(e, Accepted) and e.attempt_id == assign.attempt_id for e in master.events)


async def test_one_attempt_that_cannot_be_recorded_any_more_does_not_take_the_others_with_it(
    master: FakeMaster, start_agent: StartAgent, running: dict[Agent, asyncio.Task[None]], disk: Disk, tmp_path: Path
) -> None:
    agent = await start_agent("host")
    long = script("echo $$ >{}; exec sleep 100".format(tmp_path / "pid"), id="2", context="c2")
    both = Block(kind="parallel", children=(script(WAIT.format(go=tmp_path / "first")), long))
    first = await master.assign(task(both))
    second = await master.assign(task(script(WAIT.format(go=tmp_path / "second"))))
    for assign, count in ((first, 2), (second, 1)):
        own = [assign.attempt_id] * count
        await master.until(
            lambda own=own: (
                [e.attempt_id for e in master.events if isinstance(e, StepStarted) and e.attempt_id in own] == own
            )
        )
    await until((tmp_path / "pid").exists)
    disk.is_full = True
    (tmp_path / "first").touch()
    end = await master.finished(first)
    assert (end.result.state, end.result.reason) == (State.LOST, FULL)
    assert not Path("/proc", (tmp_path / "pid").read_text().strip()).exists()  # another attempt may begin at once
    disk.is_full = False
    (tmp_path / "second").touch()
    assert (await master.finished(second)).result.state is State.SUCCEEDED
    await until(lambda: not agent._entries)
    assert not running[agent].done()


@pytest.mark.engine
async def test_a_container_is_removed_although_its_end_cannot_be_flushed(
    master: FakeMaster, docker_agent: Agent, disk: Disk
) -> None:
    assign = await master.assign(task(script("echo on; sleep 1")))
    await master.until(lambda: b"on" in master.stdout(assign.attempt_id))
    disk.is_broken = True
    assert (await master.finished(assign)).result.state is State.SUCCEEDED
    await until(lambda: not docker_agent._entries)


# --- slow ----------------------------------------------------------------------------------------------------


async def test_assignments_that_come_together_share_a_flush(
    master: FakeMaster, start_agent: StartAgent, disk: Disk
) -> None:
    agent = await start_agent("host")
    disk.moves.clear()
    before = disk.flushes
    assigns = [await master.assign(task(script("true"))) for _ in range(20)]
    await arrived(agent, 20)
    disk.moves.set()
    for assign in assigns:
        assert (await master.finished(assign)).result.state is State.SUCCEEDED
    assert disk.flushes - before <= 3


@pytest.mark.slow
async def test_heartbeats_are_answered_while_the_disk_takes_longer_than_a_lease(
    master: FakeMaster, start_agent: StartAgent, disk: Disk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    master.lease_s = 1.0
    agent = await start_agent("host")
    going = await master.assign(task(script(WAIT.format(go=tmp_path / "go"))))
    await master.until(lambda: master.heard_of(going))
    disk.moves.clear()
    coming = await master.assign(task(script("true")))
    await arrived(agent)
    answered: list[float] = []
    monkeypatch.setattr(agent, "answered", lambda at, before=agent.answered: (answered.append(at), before(at)))
    await until(lambda: len(answered) >= 4)  # one each half of a lease
    disk.moves.set()
    (tmp_path / "go").touch()
    for assign in (going, coming):
        assert (await master.finished(assign)).result.state is State.SUCCEEDED
    assert len(master.hellos) == 1


@pytest.mark.parametrize("kind", [wire.Cancel, wire.Evict])
async def test_what_is_said_of_an_assignment_on_its_way_to_the_disk_is_heeded(
    master: FakeMaster, start_agent: StartAgent, disk: Disk, tmp_path: Path, kind: type[wire.Cancel] | type[wire.Evict]
) -> None:
    agent = await start_agent("host")
    disk.moves.clear()
    assign = await master.assign(task(script(f"touch {tmp_path / 'ran'}")))
    await master.send(assign)
    await master.send(kind(attempt_id=assign.attempt_id, reason="not wanted"))
    await arrived(agent)
    await until(lambda: all(arrival.stop is not None for arrival in agent._arrivals))
    disk.moves.set()
    end = await master.finished(assign)
    assert end.result.state is (State.CANCELLED if kind is wire.Cancel else State.LOST)
    assert end.result.reason == "not wanted"
    assert not (tmp_path / "ran").exists()


@pytest.mark.slow
@pytest.mark.parametrize("on_partition", OnPartition)
async def test_a_lease_that_ends_meanwhile_ends_what_is_on_its_way(
    master: FakeMaster, start_agent: StartAgent, disk: Disk, tmp_path: Path, on_partition: OnPartition
) -> None:
    master.lease_s = 0.5
    agent = await start_agent("host")
    disk.moves.clear()
    assign = await master.assign(task(script(f"touch {tmp_path / 'ran'}"), on_partition=on_partition))
    await arrived(agent)
    master.has_no_quorum = True
    ended = asyncio.Event()
    fence = agent._lease._on_end  # type: ignore[union-attr]
    agent._lease._on_end = lambda expiry: (fence(expiry), ended.set())  # type: ignore[union-attr]
    async with asyncio.timeout(20):
        await ended.wait()
    master.has_no_quorum = False
    disk.moves.set()
    end = await master.finished(assign)
    assert (tmp_path / "ran").exists() == (on_partition is OnPartition.CONTINUE)
    if on_partition is OnPartition.KILL:
        assert end.result.state is State.LOST and "no master was heard of" in end.result.reason


async def test_what_is_on_its_way_is_held_and_is_not_begun_if_nobody_wants_it(
    master: FakeMaster, start_agent: StartAgent, disk: Disk, tmp_path: Path
) -> None:
    agent = await start_agent("host")
    disk.moves.clear()
    wanted = await master.assign(task(script("true")))
    unwanted = await master.assign(task(script(f"touch {tmp_path / 'ran'}")))
    await arrived(agent, 2)
    master.unwanted.add(unwanted.attempt_id)
    await master.hang_up()
    await master.until(lambda: len(master.hellos) == 2)
    assert [held.attempt_id for held in master.hellos[1].held] == [wanted.attempt_id, unwanted.attempt_id]
    await until(lambda: any(arrival.is_abandoned for arrival in agent._arrivals))
    disk.moves.set()
    assert (await master.finished(wanted)).result.state is State.SUCCEEDED
    await until(lambda: not agent._entries and not agent._arrivals)
    assert not (tmp_path / "ran").exists() and not master.heard_of(unwanted)


async def test_an_agent_that_leaves_sees_through_what_is_on_its_way(
    master: FakeMaster, start_agent: StartAgent, disk: Disk, running: dict[Agent, asyncio.Task[None]]
) -> None:
    agent = await start_agent("host")
    disk.moves.clear()
    assign = await master.assign(task(script("true")))
    await arrived(agent)
    agent.request_leave()
    await master.until(lambda: master.is_left)
    assert not running[agent].done()
    disk.moves.set()
    assert (await master.finished(assign)).result.state is State.SUCCEEDED
    async with asyncio.timeout(10):
        await asyncio.wait([running[agent]])


# --- repeats -------------------------------------------------------------------------------------------------


async def test_an_assignment_that_is_repeated_after_its_end_is_not_executed_again(
    master: FakeMaster, start_agent: StartAgent, tmp_path: Path
) -> None:
    agent = await start_agent("host")
    assign = await master.assign(task(script(f"echo ran >>{tmp_path / 'ran'}")))
    await master.finished(assign)
    await until(lambda: not agent._entries)
    assert not agent._runtime._premises.places  # type: ignore[attr-defined]
    await master.send(assign)
    assert (await master.run(task(script("true")))).result.state is State.SUCCEEDED
    assert (tmp_path / "ran").read_text() == "ran\n"
    assert [e.kind for e in master.events if e.attempt_id == assign.attempt_id].count("accepted") == 1


async def test_what_was_recorded_and_never_begun_is_given_up_without_a_word(
    master: FakeMaster, start_agent: StartAgent, stop_agent: StopAgent, tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    (tmp_path / "agent").mkdir()
    journal = Journal(tmp_path / "agent" / "journal")
    assign = an_assign(task(script("true")), cluster_id=master.cluster_id)
    await journal.begin(assign)
    journal.close()
    master.unwanted.add(assign.attempt_id)
    agent = await start_agent("host")
    await until(lambda: agent._session.is_connected and not agent._entries)
    assert not master.heard_of(assign)
    assert "error inside the agent" not in caplog.text
