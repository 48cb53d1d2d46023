"""The agent is killed in the middle, as by a power cut, and started again on its directory."""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from pistage.agent.runtimes.engine import Engine
from pistage.core.commands import StepStarted
from pistage.core.languages import Installer
from pistage.core.model import State
from pistage.core.plan import Block, FailureClass, Program, Step
from pistage.wire import Assign, Cancel
from tests.agent.agent_process import AgentProcess, agent_process
from tests.agent.conftest import nothing_left
from tests.agent.fake_master import FakeMaster, program, script, task
from tests.e2e.processes import until
from tests.e2e.script_packages import write_both
from tests.engine import remove_packages

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

#: Bytes of all kinds at about 1 MB/s, and at the end what their SHA-256 is; on stderr numbered lines.
NOISY = """
i=0; while [ $i -lt 12 ]; do
  head -c 200000 /dev/urandom | tee -a /tmp/copy; echo "line $i" >&2; i=$((i+1)); sleep 0.2
done; head -c 40000 /dev/zero | tr '\\0' x | tee -a /tmp/copy; echo | tee -a /tmp/copy; echo end | tee -a /tmp/copy
sha256sum < /tmp/copy >&2
"""


def check_noise(master: FakeMaster, attempt_id: str, step: str = "1") -> None:
    *lines, digest = master.stderr(attempt_id, step).splitlines()
    assert lines == [b"line %d" % number for number in range(12)]
    assert digest.split()[0].decode() == hashlib.sha256(master.stdout(attempt_id, step)).hexdigest()
    master.check_output(attempt_id)


@pytest.fixture
async def docker(master: FakeMaster, tmp_path: Path, engine: str) -> AsyncIterator[AgentProcess]:
    settings = {"data_dir": tmp_path, "masters": [master.url], "engine": engine, "stop_grace": 1.0}
    with agent_process(settings) as process:
        process.start()
        yield process
        await nothing_left(engine, master.hellos[-1].info.id)


async def kill_and_start(master: FakeMaster, process: AgentProcess) -> None:
    process.kill()
    sessions = len(master.hellos)
    process.start()
    await master.until(lambda: len(master.hellos) > sessions and bool(master.sockets))


def started(master: FakeMaster, assign: Assign, step: str = "1") -> list[StepStarted]:
    own = [e for e in master.events if isinstance(e, StepStarted) and e.attempt_id == assign.attempt_id]
    return [event for event in own if event.step == step]


@pytest.mark.engine
@pytest.mark.parametrize("made", [script, program])
@pytest.mark.parametrize("is_shared", [False, True], ids=["own process", "exec"])
async def test_a_running_container_is_found_again_and_not_a_byte_is_missing(
    master: FakeMaster, docker: AgentProcess, is_shared: bool, made: Callable[[str], Step]
) -> None:
    steps = [made(NOISY), *([script("echo after", id="2")] if is_shared else [])]
    assign = await master.assign(task(*steps))
    await master.until(lambda: b"line 3" in master.stderr(assign.attempt_id))
    await kill_and_start(master, docker)
    assert [held.attempt_id for held in master.hellos[-1].held] == [assign.attempt_id]
    end = await master.finished(assign)
    assert end.result.state is State.SUCCEEDED, end.result.reason
    assert len({event.container for event in started(master, assign)}) == 1
    check_noise(master, assign.attempt_id)


@pytest.mark.engine
@pytest.mark.parametrize("is_shared", [False, True], ids=["own process", "exec"])
async def test_a_container_that_ended_meanwhile_is_read_to_its_end(
    master: FakeMaster, docker: AgentProcess, engine: str, is_shared: bool
) -> None:
    text = "echo begin; sleep 1; head -c 300000 /dev/urandom | tee /tmp/c; sha256sum </tmp/c >&2; exit 3"
    assign = await master.assign(task(script(text), *([script("true", id="2")] if is_shared else [])))
    await master.until(lambda: b"begin" in master.stdout(assign.attempt_id) and bool(started(master, assign)))
    docker.kill()
    if not is_shared:
        client = Engine(engine)
        await client.connect()
        await client.wait(started(master, assign)[0].container)
        await client.close()
    else:
        await asyncio.sleep(2)  # nothing outside of the container can tell that an exec has ended
    sessions = len(master.hellos)
    docker.start()
    await master.until(lambda: len(master.hellos) > sessions)
    end = await master.finished(assign)
    assert end.result.exit_code == 3
    output = master.stdout(assign.attempt_id).removeprefix(b"begin\n")
    assert master.stderr(assign.attempt_id).split()[0].decode() == hashlib.sha256(output).hexdigest()
    master.check_output(assign.attempt_id)


@pytest.mark.engine
async def test_steps_that_ended_are_not_run_again_and_those_to_come_are(
    master: FakeMaster, docker: AgentProcess
) -> None:
    steps = [
        script("echo one >> log"),
        Block(kind="parallel", children=(script("sleep 2; echo two >> log", id="2"), script("sleep 2", id="3"))),
        script("cat log", id="4"),
    ]
    assign = await master.assign(task(*steps))
    await master.until(lambda: bool(started(master, assign, "2") and started(master, assign, "3")))
    await kill_and_start(master, docker)
    end = await master.finished(assign)
    assert end.result.state is State.SUCCEEDED, end.result.reason
    assert master.stdout(assign.attempt_id, "4") == b"one\ntwo\n"


@pytest.mark.engine
async def test_killed_again_and_again_it_still_runs_each_step_once(master: FakeMaster, docker: AgentProcess) -> None:
    steps = [script("echo x >> log; sleep 0.3", id=str(number)) for number in range(1, 9)]
    assign = await master.assign(task(*steps, script("wc -l < log", id="9")))
    for number in (1, 3, 5, 7):
        await master.until(lambda number=number: bool(started(master, assign, str(number))))
        await kill_and_start(master, docker)
    end = await master.finished(assign)
    assert end.result.state is State.SUCCEEDED, end.result.reason
    assert master.stdout(assign.attempt_id, "9").strip() == b"8"


@pytest.mark.engine
async def test_an_attempt_the_masters_gave_up_meanwhile_is_removed_in_silence(
    master: FakeMaster, docker: AgentProcess
) -> None:
    assign = await master.assign(task(script("echo on; sleep 100")))
    await master.until(lambda: b"on" in master.stdout(assign.attempt_id))
    docker.kill()
    master.unwanted.add(assign.attempt_id)
    master.live_runs.clear()
    events, sessions = len(master.events), len(master.hellos)
    docker.start()
    await master.until(lambda: len(master.hellos) > sessions)
    await nothing_left(docker._settings["engine"], master.hellos[-1].info.id)  # type: ignore[arg-type]
    assert len(master.events) == events


@pytest.mark.engine
async def test_a_cancel_after_the_restart_reaches_what_was_started_before(
    master: FakeMaster, docker: AgentProcess
) -> None:
    text = "trap 'echo bye; exit 0' TERM; echo on; while :; do sleep 0.1; done"
    assign = await master.assign(task(script(text), script("true", id="2")))
    await master.until(lambda: b"on" in master.stdout(assign.attempt_id))
    await kill_and_start(master, docker)
    await master.send(Cancel(attempt_id=assign.attempt_id, reason="enough"))
    end = await master.finished(assign)
    assert end.result.state is State.CANCELLED
    assert master.stdout(assign.attempt_id) == b"on\nbye\n"


@pytest.mark.engine
async def test_a_deadline_counts_the_time_without_an_agent(master: FakeMaster, docker: AgentProcess) -> None:
    assign = await master.assign(task(script("echo on; sleep 100", timeout_s=2.0)))
    await master.until(lambda: b"on" in master.stdout(assign.attempt_id))
    await kill_and_start(master, docker)
    end = await master.finished(assign, timeout_s=10)
    assert end.result.failure is FailureClass.TIMEOUT


@pytest.mark.engine
async def test_a_clean_stop_leaves_containers_to_the_next_start(master: FakeMaster, docker: AgentProcess) -> None:
    assign = await master.assign(task(script(NOISY)))
    await master.until(lambda: b"line 2" in master.stderr(assign.attempt_id))
    docker.stop()
    docker.start()
    end = await master.finished(assign)
    assert end.result.state is State.SUCCEEDED
    check_noise(master, assign.attempt_id)


@pytest.mark.parametrize("runtime", ["sandbox", "host"])
async def test_processes_that_ended_with_the_agent_are_said_to_be_lost(
    master: FakeMaster, tmp_path: Path, runtime: str
) -> None:
    settings: dict[str, object] = {
        "data_dir": tmp_path / "agent", "masters": [master.url], "runtime": runtime, "ignore_images": True,
        "allow_host_runtime": True,
    }  # fmt: skip
    beat = tmp_path / "beat"
    beat.touch()
    text = f"echo on; while :; do date +%s%N > {beat if runtime == 'host' else 'beat'}; sleep 0.05; done"
    with agent_process(settings) as process:
        process.start()
        assign = await master.assign(task(script(text)))
        await master.until(lambda: b"on" in master.stdout(assign.attempt_id))
        await kill_and_start(master, process)
        end = await master.finished(assign)
        assert (end.result.state, end.result.failure) == (State.LOST, FailureClass.LOST)
        assert "the agent was restarted" in end.result.reason
        last = beat.read_bytes()
        await asyncio.sleep(0.3)  # long enough for a process that still lives to show it
        assert beat.read_bytes() == last
    assert list((tmp_path / "agent" / "workspaces").iterdir()) == []


@pytest.mark.engine
@pytest.mark.parametrize("is_shared", [False, True], ids=["own process", "exec"])
async def test_killed_at_any_moment_of_the_start_it_runs_once(
    master: FakeMaster, docker: AgentProcess, is_shared: bool
) -> None:
    await master.until(lambda: bool(master.sockets))
    for number in range(8):
        assign = await master.assign(task(script("echo once"), *([script("true", id="2")] if is_shared else [])))
        await asyncio.sleep(number * 0.04)  # the moment is what is tested
        master.live_runs = [assign.run_id]
        journalled = master.heard_of(assign)
        await kill_and_start(master, docker)
        if not journalled and not any(held.attempt_id == assign.attempt_id for held in master.hellos[-1].held):
            await master.send(assign)
        end = await master.finished(assign)
        assert end.result.state is State.SUCCEEDED, end.result.reason
        assert master.stdout(assign.attempt_id) == b"once\n"
        master.check_output(assign.attempt_id)


async def installers(client: Engine, assign: Assign) -> list[str]:
    """The containers of an attempt that run."""
    found = await client.listed("containers", [f"pistage.attempt={assign.attempt_id}"])
    return [container["Id"] for container in found if container["State"] == "running"]


@pytest.mark.engine
async def test_requirements_that_were_being_installed_are_installed_anew(
    master: FakeMaster, tmp_path: Path, engine: str
) -> None:
    wheels = write_both(tmp_path / "wheels")
    settings = {
        "data_dir": tmp_path / "agent", "masters": [master.url], "engine": engine, "stop_grace": 1.0,
        "languages": {"python": {"packages": str(wheels)}},
    }  # fmt: skip
    # The first time it leaves half of something behind and hangs.
    slow = "import os, sys, time\nif sys.argv[1] == '-m' and not os.path.exists('/pistage/index/again'):\n"
    slow += "    open('/pistage/packages/greeting.py', 'w').write('half')\n    time.sleep(600)\n"
    slow += "os.execv('/usr/bin/python3', ['python3', *sys.argv[1:]])"
    made = Program(
        language="python", text="import greeting; print(greeting.greet('x'))", ending=".py",
        command=("python3", "-c", slow), requirements=("greeting==1.0.0",), installer=Installer.PIP,
    )  # fmt: skip
    one = task(Step(id="1", name="1", context="c1", program=made), image="python:3.12-slim")
    client = Engine(engine)
    await client.connect()
    with agent_process(settings) as process:
        process.start()
        assign = await master.assign(one)
        await master.until(lambda: master.heard_of(assign))
        await until(lambda: installers(client, assign))
        process.kill()
        (wheels / "again").touch()
        process.start()
        end = await master.finished(assign)
        assert end.result.state is State.SUCCEEDED, end.result.reason
        assert master.stdout(end.attempt_id) == b"hello x from 1.0.0\n"
        await nothing_left(engine, master.hellos[-1].info.id)
    await client.close()
    await remove_packages(engine, master.hellos[-1].info.id)
