"""The sandbox: what it keeps in, and what it cleans up, made either way."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from pistage.agent.runtimes import sandbox as sandbox_module
from pistage.agent.runtimes.namespaces import Wrapper, bubblewrapped, unshared
from pistage.agent.runtimes.sandbox import complaint_about, find_wrapper
from pistage.agent.service import Agent
from pistage.core.model import State
from pistage.core.plan import FailureClass, Mount, Resources, Service, Volume
from pistage.errors import PistageError
from pistage.wire import Cancel, Release, new_id
from tests.agent.conftest import StartAgent
from tests.agent.fake_master import FakeMaster, script, task
from tests.agent.test_docker import with_contexts
from tests.waiting import until


@pytest.fixture(params=[bubblewrapped, unshared], ids=["bubblewrap", "unshare"])
async def wrapper(request: pytest.FixtureRequest, tmp_path: Path) -> Wrapper:
    chosen: Wrapper = request.param
    if (complaint := await complaint_about(chosen, tmp_path / "probing")) is not None:
        pytest.skip(complaint)
    return chosen


@pytest.fixture
async def agent(wrapper: Wrapper, start_agent: StartAgent, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Agent]:
    async def found(root: Path) -> Wrapper:
        return wrapper

    monkeypatch.setattr(sandbox_module, "find_wrapper", found)
    yield await start_agent("sandbox")


@pytest.mark.usefixtures("agent")
@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("touch /usr/x || touch /etc/x || touch /x", b""),
        ("ls /root /home /var /sys 2>/dev/null", b""),
        ("cat /etc/shadow", b""),
        ("echo core > /proc/sys/kernel/core_pattern", b""),
        ("cat /proc/1/environ | tr '\\0' '\\n' | grep SECRET", b""),
        ("awk 'NR > 2 && !/lo:/' /proc/net/dev | grep .", b""),
        ("grep -v 0000000000000000 /proc/self/status | grep Cap", b""),
        ("kill -9 $PPID $(($$ + 100000)) 2>/dev/null; ls /proc | grep -c '^[0-9]*$' | grep -v '^[1-9]$'", b""),
    ],
    ids=["write", "look", "shadow", "kernel", "agent's environment", "network", "capabilities", "processes"],
)
async def test_it_does_not_reach(master: FakeMaster, monkeypatch: pytest.MonkeyPatch, text: str, said: bytes) -> None:
    monkeypatch.setenv("SECRET", "of the agent")
    end = await master.run(task(script(text)))
    assert end.result.state is State.FAILED
    assert master.stdout(end.attempt_id) == said


@pytest.mark.usefixtures("agent")
async def test_the_machines_programs_are_there(master: FakeMaster) -> None:
    end = await master.run(task(script("ls /usr/bin/env; test -c /dev/null; echo > /dev/null; echo $HOME; pwd")))
    assert master.stdout(end.attempt_id) == b"/usr/bin/env\n/workspace\n/workspace\n"


@pytest.mark.usefixtures("agent")
async def test_a_volume_is_a_directory_of_the_run(master: FakeMaster, tmp_path: Path) -> None:
    mount = Mount(kind="volume", source="data", target="/data/here")
    run = {"run_id": new_id(), "volumes": (Volume(name="data"),)}
    first = with_contexts(task(script("echo kept > /data/here/file")), mounts=(mount,))
    assert (await master.run(first, **run)).result.state is State.SUCCEEDED
    read = Mount(kind="volume", source="data", target="/d", is_read_only=True)
    end = await master.run(with_contexts(task(script("cat /d/file; ! touch /d/x")), mounts=(read,)), **run)
    assert end.result.state is State.SUCCEEDED, master.stderr(end.attempt_id)
    assert master.stdout(end.attempt_id) == b"kept\n"
    volumes = tmp_path / "agent" / "workspaces" / "volumes"
    assert [directory.name for directory in volumes.iterdir()] == [run["run_id"]]
    await master.send(Release(run_id=str(run["run_id"])))
    await until(lambda: not list(volumes.iterdir()))


VOLUME = {"volumes": (Volume(name="data"),)}
WRITES = with_contexts(
    task(script("echo on; while :; do echo >> /data/file; sleep 0.02; done")),
    mounts=(Mount(kind="volume", source="data", target="/data"),),
)


@pytest.mark.usefixtures("agent")
async def test_a_volume_goes_with_the_last_attempt_of_a_run_that_is_over(master: FakeMaster, tmp_path: Path) -> None:
    assign = await master.assign(WRITES, **VOLUME)
    await master.until(lambda: b"on" in master.stdout(assign.attempt_id))
    volume = tmp_path / "agent" / "workspaces" / "volumes" / assign.run_id
    await master.send(Release(run_id=assign.run_id))
    await master.run(task(script("true")))
    assert (volume / "0" / "file").exists()
    await master.send(Cancel(attempt_id=assign.attempt_id, reason="it is over"))
    await until(lambda: not volume.exists())


@pytest.mark.usefixtures("agent")
async def test_a_volume_goes_also_where_its_run_ended_while_no_master_was_there(
    master: FakeMaster, tmp_path: Path
) -> None:
    assign = await master.assign(WRITES, **VOLUME)
    await master.until(lambda: b"on" in master.stdout(assign.attempt_id))
    master.unwanted.add(assign.attempt_id)
    master.live_runs.clear()
    await master.hang_up()
    await until(lambda: not (tmp_path / "agent" / "workspaces" / "volumes" / assign.run_id).exists())


@pytest.mark.usefixtures("agent")
async def test_a_fault_of_ours_in_a_removal_ends_nothing_else(
    master: FakeMaster, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def faulty(*_: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(sandbox_module.SandboxRuntime, "release", faulty)
    end = await master.run(task(script("true")))
    await master.send(Release(run_id=end.attempt_id))
    await until(lambda: "leaves something behind" in caplog.text)
    assert (await master.run(task(script("true")))).result.state is State.SUCCEEDED


@pytest.mark.usefixtures("agent")
async def test_nothing_is_left_whatever_modes_and_names_it_had(master: FakeMaster, tmp_path: Path) -> None:
    text = (
        "mkdir -p a/b 'odd\nname'; echo x > a/b/file; ln -s /etc link; mkfifo pipe; ln -s .. up; chmod 000 a/b; "
        "chmod 500 a; chmod 000 'odd\nname'; touch -- -rf"
    )
    end = await master.run(task(script(text)))
    assert end.result.state is State.SUCCEEDED, master.stderr(end.attempt_id)
    await master.run(task(script("true")))  # the removal of the first is over before this one is acknowledged
    left = [path.name for path in (tmp_path / "agent" / "workspaces").iterdir() if path.name == end.attempt_id]
    assert left == []


@pytest.mark.parametrize(
    ("changes", "context", "word"),
    [
        ({"services": (Service(name="db", image="x"),)}, {}, "services need containers"),
        ({}, {"resources": Resources(gpus=1)}, "GPUs"),
        ({}, {"mounts": (Mount(kind="bind", source="/etc", target="/e"),)}, "not mounted into a sandbox"),
    ],
)
async def test_what_it_does_not_have_is_refused_by_name(
    master: FakeMaster, start_agent: StartAgent, changes: dict[str, object], context: dict[str, object], word: str
) -> None:
    await start_agent("sandbox")
    end = await master.run(with_contexts(task(script("true"), **changes), **context))
    assert end.result.failure is FailureClass.REFUSED
    assert word in end.result.reason


async def test_an_image_is_refused_unless_images_are_ignored(master: FakeMaster, start_agent: StartAgent) -> None:
    await start_agent("sandbox", ignore_images=False)
    end = await master.run(task(script("true")))
    assert end.result.failure is FailureClass.REFUSED
    assert "cannot run busybox" in end.result.reason


async def test_ignored_images_are_said_loudly(master: FakeMaster, start_agent: StartAgent) -> None:
    await start_agent("sandbox")
    await master.run(task(script("true")))
    assert "images are ignored" in master.events[0].notes[0]  # type: ignore[union-attr]


async def test_where_no_sandbox_can_be_made_it_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    with pytest.raises(PistageError, match="bwrap is not installed; unshare is not installed"):
        await find_wrapper(tmp_path)
