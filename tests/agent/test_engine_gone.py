"""The engine is killed under a running step: its own engine, so that nobody else's goes with it."""

import asyncio
import hashlib
import os
import signal
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from pistage.agent.runtimes import docker_own
from pistage.agent.runtimes.docker import DockerRuntime
from pistage.core.commands import StepStarted
from pistage.core.model import State
from pistage.core.plan import FailureClass
from pistage.wire import GapReason
from tests.agent.agent_process import agent_process
from tests.agent.conftest import StartAgent, nothing_left
from tests.agent.fake_master import FakeMaster, script, task
from tests.e2e.test_engine_killed import OwnEngine

ENGINE = Path(__file__).parent.parent.parent / "scripts" / "engine"

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.root, pytest.mark.timeout(180)]


@pytest.fixture
def own_engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    if os.geteuid() != 0:
        pytest.skip("only root can start an engine")
    directory = tmp_path_factory.mktemp("e")
    subprocess.run([ENGINE, "start", directory], check=True, capture_output=True)
    try:
        subprocess.run([ENGINE, "images", directory, "busybox:latest"], check=True, capture_output=True)
        yield directory
    finally:
        subprocess.run([ENGINE, "stop", directory], check=True, capture_output=True)
        subprocess.run([ENGINE, "remove", directory], check=True, capture_output=True)


async def engine_script(verb: str, directory: Path) -> None:
    process = await asyncio.create_subprocess_exec(ENGINE, verb, directory, stdout=asyncio.subprocess.DEVNULL)
    assert await process.wait() == 0


def kill_engine(directory: Path) -> None:
    os.kill(int((directory / "pid").read_text()), signal.SIGKILL)


@pytest.mark.parametrize("is_shared", [False, True], ids=["own process", "exec"])
async def test_an_engine_that_is_killed_and_comes_back(
    master: FakeMaster, start_agent: StartAgent, own_engine: Path, is_shared: bool
) -> None:
    agent = await start_agent("docker", engine=f"unix://{own_engine}/docker.sock")
    steps = [script("echo on; sleep 100"), *([script("true", id="2")] if is_shared else [])]
    assign = await master.assign(task(*steps))
    await master.until(lambda: b"on" in master.stdout(assign.attempt_id))
    kill_engine(own_engine)
    await engine_script("start", own_engine)
    end = await master.finished(assign)
    assert (end.result.state, end.result.failure) == (State.LOST, FailureClass.LOST), end.result.reason
    after = await master.run(task(script("echo after")))
    assert after.result.state is State.SUCCEEDED, after.result.reason
    await nothing_left(f"unix://{own_engine}/docker.sock", agent.agent_id)


async def test_an_engine_that_does_not_come_back(
    master: FakeMaster, start_agent: StartAgent, own_engine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(docker_own, "ENGINE_RETURN_S", 2.0)
    await start_agent("docker", engine=f"unix://{own_engine}/docker.sock")
    assign = await master.assign(task(script("echo on; sleep 100")))
    await master.until(lambda: master.heard(StepStarted))
    kill_engine(own_engine)
    end = await master.finished(assign)
    assert end.result.state is State.LOST
    assert "the engine went away and did not come back within 2 s" in end.result.reason
    await engine_script("start", own_engine)


async def test_a_task_that_comes_while_the_engine_is_away_waits_for_it(
    master: FakeMaster, start_agent: StartAgent, own_engine: Path
) -> None:
    agent = await start_agent("docker", engine=f"unix://{own_engine}/docker.sock")
    assert (await master.run(task(script("true")))).result.state is State.SUCCEEDED
    kill_engine(own_engine)
    assert isinstance(agent._runtime, DockerRuntime)
    engine = agent._runtime.engine
    await master.until(lambda: engine.is_away)
    assign = await master.assign(task(script("echo on")))
    await master.until(lambda: master.heard_of(assign))
    await engine_script("start", own_engine)
    end = await master.finished(assign)
    assert end.result.state is State.SUCCEEDED, end.result.reason
    assert master.stdout(assign.attempt_id) == b"on\n"


async def test_an_agent_without_an_engine_waits_for_it_and_says_what_is_missing(
    master: FakeMaster, start_agent: StartAgent, own_engine: Path, caplog: pytest.LogCaptureFixture
) -> None:
    await engine_script("stop", own_engine)

    async def start_later() -> None:
        async with asyncio.timeout(30):
            while "no engine answers" not in caplog.text:  # noqa: ASYNC110 - it is only logged
                await asyncio.sleep(0.05)
        await engine_script("start", own_engine)

    async with asyncio.TaskGroup() as group:
        group.create_task(start_later())
        await start_agent("docker", engine=f"unix://{own_engine}/docker.sock")
    said = [record.getMessage() for record in caplog.records if "no engine answers" in record.getMessage()]
    assert len(said) == 1 and "install Docker" in said[0]


# --- containers that run on ----------------------------------------------------------------------------------

#: Words without a newline stand in no log before it comes; lines at full speed are in every buffer on the way.
LOOP = "i=0; while [ $i -lt 100 ]; do i=$((i+1)); {}; echo tick $i >&2; sleep 0.1; done"
SLOW = LOOP.format("printf 'word %d, ' $i")
FAST = LOOP.format("seq $((i*5000)) $((i*5000+4999))")
PRINTED = {
    SLOW: "".join(f"word {number}, " for number in range(1, 101)).encode(),
    FAST: "".join(f"{number}\n" for number in range(5_000, 505_000)).encode(),
}
TICKS = b"".join(b"tick %d\n" % number for number in range(1, 101))


@pytest.fixture
async def live_engine(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[OwnEngine]:
    if os.geteuid() != 0:
        pytest.skip("only root can start an engine")
    engine = OwnEngine(tmp_path_factory.mktemp("e"), "--live-restore")
    try:
        await engine.start()
        yield engine
    finally:
        await engine.remove()


def check_gaps(master: FakeMaster, attempt_id: str, printed: bytes, absences: int) -> None:
    """Between gaps everything is as it was printed, in its order; at a gap at most what was on its way is missing."""
    (event,) = master.steps_of(attempt_id).values()
    for number, truth, end in ((1, printed, event.stdout), (2, TICKS, event.stderr)):
        stream = master.store.streams[attempt_id, "1", number]
        assert {(reason, length) for reason, _, length in stream.gaps} == {(GapReason.ENGINE, 0)}
        assert len(stream.gaps) == absences or len({at for _, at, _ in stream.gaps}) == len(stream.gaps) < absences
        pieces, at = [data for _, data in stream.pieces()], 0
        for data in pieces:
            found = truth.find(data, at)
            assert at <= found < at + 200_000, (found, at, data[:80])
            at = found + len(data)
        assert truth.startswith(pieces[0]) and at == len(truth)
        assert end is not None
        assert (end.length, end.sha256) == (stream.end, hashlib.sha256(stream.kept).hexdigest())


@pytest.mark.parametrize("text", [SLOW, FAST], ids=["slow", "fast"])
async def test_output_around_an_absence_is_exact_and_the_absence_is_a_gap(
    master: FakeMaster, start_agent: StartAgent, live_engine: OwnEngine, text: str
) -> None:
    agent = await start_agent("docker", engine=f"unix://{live_engine.socket}")
    assign = await master.assign(task(script(text)))
    for absences in (1, 2):
        before = len(master.stderr(assign.attempt_id))
        await master.until(lambda before=before: len(master.stderr(assign.attempt_id)) > before + 50)
        live_engine.kill()
        await live_engine.again()
        await master.until(lambda absences=absences: len(master.gaps(assign.attempt_id, stream=2)) >= absences)
    end = await master.finished(assign)
    assert end.result.state is State.SUCCEEDED, end.result.reason
    check_gaps(master, assign.attempt_id, PRINTED[text], 2)
    await nothing_left(f"unix://{live_engine.socket}", agent.agent_id)


@pytest.mark.parametrize("text", [SLOW, FAST], ids=["slow", "fast"])
async def test_an_agent_that_comes_after_the_absence_knows_of_it(
    master: FakeMaster, live_engine: OwnEngine, tmp_path: Path, text: str
) -> None:
    address = f"unix://{live_engine.socket}"
    settings = {"data_dir": tmp_path, "masters": [master.url], "engine": address, "stop_grace": 1.0}
    with agent_process(settings) as process:
        process.start()
        assign = await master.assign(task(script(text)))
        await master.until(lambda: len(master.stderr(assign.attempt_id)) > 50)
        live_engine.kill()
        journal = tmp_path / "journal"
        async with asyncio.timeout(10):
            while not any(b"absences:" in file.read_bytes() for file in journal.iterdir()):  # noqa: ASYNC110
                await asyncio.sleep(0.02)  # another process writes it
        process.kill()
        await live_engine.again()
        process.start()
        end = await master.finished(assign)
        assert end.result.state is State.SUCCEEDED, end.result.reason
        check_gaps(master, assign.attempt_id, PRINTED[text], 1)
        await nothing_left(address, master.hellos[-1].info.id)


@pytest.mark.parametrize("user", [None, "1000"])
async def test_a_step_in_a_shared_container_prints_on_after_an_absence_and_all_of_it_is_kept(
    master: FakeMaster, start_agent: StartAgent, live_engine: OwnEngine, user: str | None
) -> None:
    agent = await start_agent("docker", engine=f"unix://{live_engine.socket}")
    assign = await master.assign(task(script(FAST, user=user), script("true", id="2")))
    for _ in range(2):
        before = len(master.stderr(assign.attempt_id))
        await master.until(lambda before=before: len(master.stderr(assign.attempt_id)) > before + 50)
        live_engine.kill()
        await live_engine.again()
    end = await master.finished(assign)
    assert end.result.state is State.SUCCEEDED, end.result.reason
    assert master.stdout(assign.attempt_id) == PRINTED[FAST]
    assert master.stderr(assign.attempt_id) == TICKS
    assert not master.gaps(assign.attempt_id)
    await nothing_left(f"unix://{live_engine.socket}", agent.agent_id)


async def test_the_shell_around_a_command_that_is_killed_says_nothing_in_its_output(
    master: FakeMaster, start_agent: StartAgent, live_engine: OwnEngine
) -> None:
    await start_agent("docker", engine=f"unix://{live_engine.socket}")
    end = await master.run(task(script("echo mine >&2; kill -9 $$"), script("true", id="2")))
    assert end.result.exit_code == 137
    assert master.stderr(end.attempt_id) == b"mine\n"
