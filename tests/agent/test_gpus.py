"""GPUs: found by what their drivers say, each given to one context at a time, also across a restart of the agent."""

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pistage.agent.gpus import Gpu, GpuPool, environment_of, found_below, offered
from pistage.agent.journal import Journal
from pistage.agent.policy import ContainerSpec, refuse_unless_allowed
from pistage.agent.runtimes import devices
from pistage.agent.runtimes.base import ExecutionError
from pistage.agent.runtimes.docker import DockerRuntime
from pistage.config import AgentConfig
from pistage.core.model import State
from pistage.core.plan import Block, Context, Resources, Task
from pistage.wire import Cancel, new_id
from tests.agent.conftest import StartAgent, StopAgent
from tests.agent.fake_master import FakeMaster, an_assign, script, task
from tests.agent.test_policy import NoNotes
from tests.waiting import until


def a_root(directory: Path, files: Mapping[str, str]) -> Path:
    for name, text in files.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text(text)
    return directory


INFORMATION = "Model: \t\t NVIDIA A10\nGPU UUID: \t GPU-{0}{0}{0}{0}{0}{0}{0}{0}-aaaa\nDevice Minor: \t {0}\n"


@pytest.mark.parametrize(
    ("files", "found"),
    [
        ({}, []),
        (
            {
                "proc/driver/nvidia/gpus/0000:81:00.0/information": INFORMATION.format(1),
                "proc/driver/nvidia/gpus/0000:01:00.0/information": INFORMATION.format(0),
                "dev/nvidia0": "", "dev/nvidia1": "", "dev/nvidiactl": "",
            },
            [("nvidia", "GPU-00000000-aaaa"), ("nvidia", "GPU-11111111-aaaa")],
        ),
        ({"proc/driver/nvidia/gpus/0000:01:00.0/information": "GPU UUID: GPU-???\n"}, [("nvidia", "0")]),
        ({"dev/nvidia0": "", "dev/nvidia10": "", "dev/nvidia2": "", "dev/nvidia-uvm": "", "dev/nvidiactl": ""},
         [("nvidia", "0"), ("nvidia", "2"), ("nvidia", "10")]),
        (
            {
                "dev/kfd": "", "dev/dri/renderD128": "", "dev/dri/renderD129": "",
                "sys/class/kfd/kfd/topology/nodes/0/properties": "cpu_cores_count 16\ndrm_render_minor 0\n",
                "sys/class/kfd/kfd/topology/nodes/1/properties": "simd_count 240\ndrm_render_minor 129\n",
            },
            [("amd", "/dev/dri/renderD129")],
        ),
        ({"dev/kfd": "", "dev/dri/renderD128": "", "dev/dri/card0": ""}, [("amd", "/dev/dri/renderD128")]),
        ({"dev/dri/renderD128": ""}, []),
    ],
    ids=["none", "nvidia", "no uuid", "devices only", "amd", "no topology", "a display"],
)  # fmt: skip
def test_they_are_found_by_what_their_driver_says(
    tmp_path: Path, files: Mapping[str, str], found: list[tuple[str, str]]
) -> None:
    assert [(gpu.vendor, gpu.id) for gpu in found_below(a_root(tmp_path, files))] == found


def cards(count: int) -> list[Gpu]:
    return [Gpu(vendor="nvidia", id=str(index), index=index) for index in range(count)]


def test_the_configuration_says_how_many_are_offered() -> None:
    assert offered(cards(2), None) == tuple(cards(2))
    assert offered(cards(2), 1) == tuple(cards(1))
    assert offered(cards(1), 3) == tuple(cards(3))
    assert offered(cards(1), 0) == ()


def test_a_plain_process_is_told_which_are_its_own() -> None:
    assert environment_of(cards(2), "nvidia") == {"CUDA_VISIBLE_DEVICES": "0,1", "NVIDIA_VISIBLE_DEVICES": "0,1"}
    assert environment_of((), "nvidia") == {"CUDA_VISIBLE_DEVICES": "", "NVIDIA_VISIBLE_DEVICES": "void"}
    amd = [Gpu(vendor="amd", id="/dev/dri/renderD130", index=2)]
    assert environment_of(amd, "amd") == {"ROCR_VISIBLE_DEVICES": "2", "HIP_VISIBLE_DEVICES": "0"}
    assert environment_of((), None) == {}


async def test_nobody_gets_what_another_has_and_turns_are_kept() -> None:
    pool = GpuPool(cards(2))
    first = await pool.take("a/c1", 1)
    got: list[str] = []

    async def take(holder: str, count: int) -> None:
        taken = await pool.take(holder, count)
        assert not {gpu.id for gpu in taken} & {gpu.id for gpu in first if pool.held_by("a/c1")}
        got.append(holder)

    async with asyncio.TaskGroup() as group:
        group.create_task(take("b/c1", 2))
        await asyncio.sleep(0)
        group.create_task(take("c/c1", 1))  # fits, but is not next
        quitter = group.create_task(take("d/c1", 1))
        await asyncio.sleep(0)
        assert got == [] and [gpu.id for gpu in pool.free] == ["1"]
        quitter.cancel()
        pool.give_back("a/c1")
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert got == ["b/c1"] and pool.free == ()
        pool.give_back("b/c1")
    assert got == ["b/c1", "c/c1"]
    with pytest.raises(ValueError, match="3 GPUs are asked for, and this agent has 2"):
        await pool.take("e/c1", 3)


async def test_who_gives_up_in_the_turn_in_which_devices_come_free_leaves_them_to_the_next() -> None:
    pool = GpuPool(cards(1))
    await pool.take("a/c1", 1)
    async with asyncio.TaskGroup() as group:
        quitter = group.create_task(pool.take("b/c1", 1))
        patient = group.create_task(pool.take("c/c1", 1))
        await asyncio.sleep(0)
        quitter.cancel()
        pool.give_back("a/c1")
    assert patient.done() and pool.held_by("c/c1") and pool.held_by("b/c1") is None


def test_a_container_is_given_those_devices_and_no_others() -> None:
    host = ContainerSpec(image="x", gpus=cards(2)[1:]).render()["HostConfig"]
    assert host["DeviceRequests"] == [{"DeviceIDs": ["1"], "Capabilities": [["gpu"]]}]
    body = ContainerSpec(image="x", gpus=[Gpu(vendor="amd", id="/dev/dri/renderD129", index=1)]).render()
    assert [one["PathOnHost"] for one in body["HostConfig"]["Devices"]] == ["/dev/kfd", "/dev/dri/renderD129"]
    refuse_unless_allowed(body)
    body["HostConfig"]["Devices"][0] |= {"PathOnHost": "/dev/mem", "PathInContainer": "/dev/mem"}
    with pytest.raises(ExecutionError):
        refuse_unless_allowed(body)


def wants_gpus(base: Task, count: int = 1) -> Task:
    contexts = tuple(replace(context, resources=Resources(gpus=count)) for context in base.contexts)
    return replace(base, contexts=contexts, resources=Resources(gpus=count))


async def test_what_a_context_has_is_journalled_and_its_own_after_a_restart(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    entry = await journal.begin(an_assign(wants_gpus(task(script("true")))))
    (context,) = entry.assign.task.contexts
    pool = GpuPool(cards(2))
    await pool.take("another/c1", 1)
    own = devices.AttemptGpus(pool, entry.attempt_id, entry)
    assert [gpu.id for gpu in await own.of(context)] == ["1"]
    assert await own.of(context) == await own.of(context)
    journal.close()
    journal = Journal(tmp_path)
    (again,) = journal.load()
    pool = GpuPool(cards(2))
    devices.claim(pool, again.attempt_id, again, {"c1"})
    assert [gpu.id for gpu in pool.free] == ["0"]
    assert [gpu.id for gpu in await devices.AttemptGpus(pool, again.attempt_id, again).of(context)] == ["1"]
    pool = GpuPool(cards(2))
    devices.claim(pool, again.attempt_id, again, set())  # its steps have all ended
    assert len(pool.free) == 2
    journal.close()


async def test_two_containers_at_once_get_different_devices_whatever_the_job_says(tmp_path: Path) -> None:
    greedy = {"NVIDIA_VISIBLE_DEVICES": "all", "AMD_VISIBLE_DEVICES": "all", "A": "b"}
    made: list[dict[str, Any]] = []

    class Recorder:
        socket_path = "/run/docker.sock"

        async def create(self, name: str, body: dict[str, Any]) -> str:
            made.append(body)
            return name

    runtime = DockerRuntime(AgentConfig(data_dir=tmp_path), new_id)
    runtime.engine = Recorder()  # type: ignore[assignment]
    pool, journal = GpuPool(cards(2)), Journal(tmp_path)
    async with asyncio.TaskGroup() as chores:
        runtime._chores = chores
        for body in (wants_gpus(task(script("true"))), wants_gpus(task(script("true"))), task(script("true"))):
            entry = await journal.begin(an_assign(body))
            place = runtime.place(entry.assign, entry, pool)
            await place._create_step(body.contexts[0], ContainerSpec(image="x", env=greedy))  # type: ignore[attr-defined]
        await place._create_service("s1", ContainerSpec(image="x", env=greedy))  # type: ignore[attr-defined]
    journal.close()
    asked = [body["HostConfig"].get("DeviceRequests") for body in made]
    assert [one and one[0]["DeviceIDs"] for one in asked] == [["0"], ["1"], None, None]
    ours = [f"NVIDIA_VISIBLE_DEVICES={name}" for name in ("0", "1", "void", "void")]
    assert [body["Env"] for body in made] == [["A=b", one] for one in ours]


async def test_steps_at_once_have_different_devices_and_the_next_ones_have_them_again(
    master: FakeMaster, start_agent: StartAgent
) -> None:
    await start_agent("host", gpus=2)
    info = master.hellos[-1].info
    assert (info.capacity.gpus, info.labels["gpu"], info.labels["gpu_vendor"]) == (2, "true", "nvidia")
    see = 'echo "$CUDA_VISIBLE_DEVICES"'
    together = Block(kind="parallel", children=(script(see), script(see, id="2", context="c2")))
    base = task(together, script(see, id="3", context="c3"), script(see, id="4", context="c4"))
    contexts = tuple(
        Context(id=context.id, image="x", resources=Resources(gpus={"c3": 2, "c4": 0}.get(context.id, 1)))
        for context in base.contexts
    )
    end = await master.run(replace(base, contexts=contexts))
    assert end.result.state is State.SUCCEEDED, end.result.reason
    seen = [master.stdout(end.attempt_id, step) for step in "1234"]
    assert sorted(seen[:2]) == [b"0\n", b"1\n"]
    assert seen[2:] == [b"0,1\n", b"\n"]


async def test_more_than_there_are_is_refused(master: FakeMaster, start_agent: StartAgent) -> None:
    await start_agent("host", gpus=1)
    end = await master.run(wants_gpus(task(script("true")), 2))
    assert "2 GPUs are asked for, and this agent has 1" in end.result.reason


async def test_devices_are_free_again_when_their_attempt_was_stopped(
    master: FakeMaster, start_agent: StartAgent, stop_agent: StopAgent
) -> None:
    agent = await start_agent("host", gpus=1)
    first = await master.assign(wants_gpus(task(script("echo on; sleep 100"))))
    await master.until(lambda: b"on" in master.stdout(first.attempt_id))
    second = await master.assign(wants_gpus(task(script('echo "$CUDA_VISIBLE_DEVICES"'))))
    await master.until(lambda: master.heard_of(second))
    assert agent._gpus.free == ()
    master.refused.add(first.attempt_id)
    await master.hang_up()
    master.unwanted.add(first.attempt_id)
    end = await master.finished(second)
    assert master.stdout(end.attempt_id) == b"0\n"


async def test_steps_that_wait_at_once_share_what_their_context_gets() -> None:
    pool = GpuPool(cards(2))
    await pool.take("before", 2)
    mine = devices.AttemptGpus(pool, "a", NoNotes())  # type: ignore[arg-type]
    context = Context(id="c1", image="x", resources=Resources(gpus=1))
    async with asyncio.timeout(5), asyncio.TaskGroup() as group:
        first, second, third = [group.create_task(mine.of(context)) for _ in range(3)]
        await asyncio.sleep(0)
        pool.give_back("before")
        third.cancel()
    assert first.result() == second.result() == pool.held_by("a/c1")
    assert len(pool.free) == 1


@pytest.mark.slow
async def test_what_is_cancelled_while_it_waits_for_a_device_is_not_begun(
    master: FakeMaster, start_agent: StartAgent, tmp_path: Path
) -> None:
    agent = await start_agent("host", gpus=1)
    first = await master.assign(wants_gpus(task(script("echo on; while [ ! -e go ]; do sleep 0.02; done"))))
    await master.until(lambda: b"on" in master.stdout(first.attempt_id))
    second = await master.assign(wants_gpus(task(script(f"touch {tmp_path}/begun; sleep 100"))))
    await until(lambda: bool(agent._gpus._waiting), 10)
    await master.send(Cancel(attempt_id=second.attempt_id, reason="by somebody"))
    await until(lambda: agent._runners[second.attempt_id]._brake.stop is not None)
    (tmp_path / "agent" / "workspaces" / first.attempt_id / "c1" / "workspace" / "go").touch()
    assert (await master.finished(first)).result.state is State.SUCCEEDED
    assert (await master.finished(second)).result.state is State.CANCELLED
    assert not (tmp_path / "begun").exists()
