"""S4: whatever a plan says, what reaches the engine stays within the list."""

import asyncio
import contextlib
import random
import string
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest

from pistage.agent import policy
from pistage.agent.gpus import Gpu, GpuPool
from pistage.agent.policy import ContainerSpec, VolumeMount, refuse_unless_allowed
from pistage.agent.runtimes.base import Command, ExecutionError
from pistage.agent.runtimes.docker import DockerRuntime
from pistage.agent.runtimes.docker_place import DockerPlace
from pistage.agent.runtimes.engine import EngineError
from pistage.config import AgentConfig
from pistage.core.plan import (
    Attachment,
    Context,
    FailureClass,
    HealthCheck,
    Mount,
    Network,
    RegistryAuth,
    Resources,
    Service,
    Step,
    Volume,
)
from pistage.wire import Assign, new_id
from tests.agent.fake_master import task

NASTY = [
    "host", "none", "bridge", "container:abc", "ns:/proc/1/ns/net", "/", "/etc", "/var/run/docker.sock", "..", "../..",
    "/dev/sda", "--privileged", "--pid=host", "a\0b", "x" * 5000, "", " ", "$(id)", "pistage-x-0", "\n", "{{.x}}",
    '{"Privileged":true}', "apparmor=unconfined", "SYS_ADMIN", "0:0", "root", "name:ro", "unix:///var/run/docker.sock",
]  # fmt: skip


def any_text(rng: random.Random) -> str:
    if rng.random() < 0.6:
        return rng.choice(NASTY)
    return "".join(rng.choice(string.printable) for _ in range(rng.randint(0, 20)))


def some(rng: random.Random, make: Callable[[random.Random], Any], most: int = 3) -> tuple[Any, ...]:
    return tuple(make(rng) for _ in range(rng.randint(0, most)))


def any_context(rng: random.Random, networks: list[str], volumes: list[str]) -> Context:
    def mount(rng: random.Random) -> Mount:
        source = rng.choice(volumes) if volumes and rng.random() < 0.6 else any_text(rng)
        target = f"/{any_text(rng)}" if rng.random() < 0.8 else any_text(rng)
        kind: Literal["volume", "bind"] = "bind" if rng.random() < 0.1 else "volume"
        return Mount(kind=kind, source=source, target=target, is_read_only=rng.random() < 0.5)

    joined = tuple(
        Attachment(network=rng.choice(networks), aliases=some(rng, any_text)) for _ in range(rng.randint(0, 2))
    )
    return Context(
        id="c1",
        image=any_text(rng),
        auth=RegistryAuth(username=any_text(rng), password=any_text(rng)) if rng.random() < 0.3 else None,
        resources=Resources(
            cpus_milli=rng.choice([None, -1, 0, 500, 10**9]),
            memory_bytes=rng.choice([None, -1, 0, 10**6, 2**62]),
            gpus=rng.choice([0, 1, -1]),
        ),
        networks=joined if networks else (),
        mounts=some(rng, mount),
    )


def any_assign(rng: random.Random) -> Assign:
    networks = tuple(
        Network(name=any_text(rng), driver=rng.choice(["bridge"] * 6 + ["overlay", "host", any_text(rng)]),
                is_external=rng.random() < 0.2)
        for _ in range(rng.randint(1, 3))
    )  # fmt: skip
    volumes = some(rng, lambda rng: Volume(name=any_text(rng), driver=any_text(rng), is_external=rng.random() < 0.2))
    step = Step(
        id="1", name=any_text(rng), context="c1", script=rng.choice([None, any_text(rng)]),
        entrypoint=rng.choice([None, some(rng, any_text)]), command=rng.choice([None, some(rng, any_text)]),
        env={any_text(rng): any_text(rng)}, workdir=any_text(rng), user=rng.choice([None, any_text(rng)]),
    )  # fmt: skip
    service = Service(
        name=any_text(rng), image=any_text(rng), command=rng.choice([None, some(rng, any_text)]),
        env={any_text(rng): any_text(rng)}, health=HealthCheck(command=any_text(rng)),
    )  # fmt: skip
    context = any_context(rng, [network.name for network in networks], [volume.name for volume in volumes])
    body = replace(
        task(step), name=any_text(rng), contexts=(context,), services=(service,) if rng.random() < 0.3 else ()
    )
    return Assign(
        attempt_id=new_id(), fence=1, run_id=new_id(), run_number=1, run_name=any_text(rng), number=1,
        cluster_id=new_id(), task=body, networks=networks, volumes=volumes,
    )  # fmt: skip


AN_NVIDIA = Gpu(vendor="nvidia", id="GPU-0c1d2e3f", index=0)
AN_AMD = Gpu(vendor="amd", id="/dev/dri/renderD128", index=0)


class RecordingEngine:
    """An engine that keeps what it is asked, and has every image."""

    def __init__(self) -> None:
        self.created: list[dict[str, Any]] = []
        self.asked: list[tuple[str, Any]] = []
        self.socket_path = "/run/docker.sock"
        self.is_away = False

    async def create(self, name: str, body: dict[str, Any]) -> str:
        self.created.append(body)
        raise EngineError(400, "only recorded")

    async def image(self, name: str) -> dict[str, Any]:
        return {"Config": {"User": ""}}

    async def listed(self, kind: str, labels: list[str]) -> list[dict[str, Any]]:
        return []

    async def json(self, method: str, path: str, **fields: Any) -> None:
        self.asked.append((path, fields.get("body")))


class NoNotes:
    is_inherited = False
    is_of_this_boot = True

    def read(self, key: str) -> None:
        return None

    def notes(self, prefix: str) -> list[tuple[str, Any]]:
        return []

    def write(self, key: str, note: Any) -> None:
        return

    async def flush(self) -> None:
        return


def check_harmless(body: dict[str, Any], run_id: str) -> None:
    """Written without the policy's own lists: what the engine does with each key of its API."""
    host = body["HostConfig"]
    forbidden = {
        "Privileged", "CapAdd", "DeviceCgroupRules", "SecurityOpt", "PidMode", "IpcMode", "UTSMode",
        "UsernsMode", "CgroupnsMode", "Cgroup", "CgroupParent", "Binds", "VolumesFrom", "Sysctls", "Runtime",
        "Isolation", "PublishAllPorts", "PortBindings", "ExtraHosts", "RestartPolicy", "AutoRemove", "Tmpfs",
        "OomKillDisable", "OomScoreAdj", "GroupAdd", "Links", "ReadonlyPaths", "MaskedPaths", "ContainerIDFile",
        "VolumeDriver", "Ulimits", "StorageOpt", "Dns", "DnsOptions", "DnsSearch",
    }  # fmt: skip
    assert not forbidden & set(host), body
    mode = host.get("NetworkMode", "default")
    assert mode != "host" and ":" not in mode and "/" not in mode
    assert all(
        name != "host" and ":" not in name for name in body.get("NetworkingConfig", {}).get("EndpointsConfig", {})
    )
    for mount in host.get("Mounts", []):
        assert mount["Type"] == "volume", "there is no bind policy here, so nothing can be bound"
        assert "/" not in mount["Source"] and set(mount) <= {"Type", "Source", "Target", "ReadOnly"}
        assert not mount["Source"].startswith("pistage-") or mount["Source"].startswith(f"pistage-{run_id}-")
    for request in host.get("DeviceRequests", []):
        assert request == {"DeviceIDs": ["GPU-0c1d2e3f"], "Capabilities": [["gpu"]]}
    for device in host.get("Devices", []):
        assert device["PathOnHost"] in {"/dev/kfd", "/dev/dri/renderD128"}
        assert device["PathInContainer"] == device["PathOnHost"] and device["CgroupPermissions"] == "rw"
    assert host["LogConfig"]["Type"] in {"local", "json-file"}
    assert "Volumes" not in body and "ExposedPorts" not in body and body["Tty"] is False
    assert all(label.startswith("pistage.") for label in body["Labels"])


@pytest.mark.parametrize("block", range(20))
async def test_no_plan_reaches_the_host(block: int, tmp_path: Path) -> None:
    runtime = DockerRuntime(AgentConfig(data_dir=tmp_path), lambda: "01hzzzzzzzzzzzzzzzzzzzzzzz")
    engine = RecordingEngine()
    runtime.engine = runtime.images._engine = runtime.objects._engine = engine  # type: ignore[assignment]
    created = 0
    async with asyncio.TaskGroup() as chores:
        runtime._chores = chores
        for seed in range(block * 150, block * 150 + 150):
            rng = random.Random(seed)
            assign = any_assign(rng)
            (step,) = assign.task.steps()
            command = Command(
                key="1", script=step.script, entrypoint=step.entrypoint, command=step.command, env=step.env,
                workdir=step.workdir, user=step.user,
            )  # fmt: skip
            pool = GpuPool([AN_NVIDIA, AN_AMD][seed % 2 :][:1])
            place = DockerPlace(runtime, assign, NoNotes(), pool)  # type: ignore[arg-type]
            engine.created.clear()
            for act in (place.prepare, lambda: place.start(assign.task.contexts[0], command)):  # noqa: B023
                with contextlib.suppress(ExecutionError):
                    await act()
            for body in engine.created:
                check_harmless(body, assign.run_id)
            for path, body in engine.asked:
                assert path in {"networks/create", "volumes/create"}
                assert body.get("Driver") != "macvlan" if path == "networks/create" else True
                assert body["Name"].startswith("pistage-") and "DriverOpts" not in body and "Options" not in body
            engine.asked.clear()
            created += len(engine.created)
    assert created > 10, "the property is about requests that are made"


ALLOWED: dict[str, Any] = ContainerSpec(image="busybox", networks=[("n", ())]).render()


@pytest.mark.parametrize(
    "change",
    [
        {"Privileged": True}, {"PidMode": "host"}, {"IpcMode": "host"}, {"UTSMode": "host"}, {"UsernsMode": "host"},
        {"CapAdd": ["SYS_ADMIN"]}, {"Devices": [{"PathOnHost": "/dev/sda"}]},
        {"SecurityOpt": ["apparmor=unconfined"]},
        {"Binds": ["/:/host"]}, {"VolumesFrom": ["other"]}, {"CgroupParent": "/"}, {"Sysctls": {"kernel.x": "1"}},
        {"NetworkMode": "host"}, {"NetworkMode": "container:x"},
        {"Mounts": [{"Type": "bind", "Source": "/", "Target": "/h"}]},
        {"Mounts": [{"Type": "volume", "Source": "/etc", "Target": "/h"}]},
        {"Mounts": [{"Type": "volume", "Source": "v", "Target": "relative"}]},
        {"Mounts": [{"Type": "npipe", "Source": "v", "Target": "/h"}]},
        {"Mounts": [{"Type": "volume", "Source": "v", "Target": "/h", "VolumeOptions": {"DriverConfig": {}}}]},
        {"DeviceRequests": [{"DeviceIDs": ["0"], "Capabilities": [["utility"]]}]},
        {"DeviceRequests": [{"Count": -1, "Capabilities": [["gpu"]]}]},
        {"DeviceRequests": [{"DeviceIDs": ["all"], "Capabilities": [["gpu"]]}]},
        {"Devices": [{"PathOnHost": "/dev/dri/renderD128", "PathInContainer": "/dev/sda"}]},
        {"Devices": [{"PathOnHost": "/dev/dri/../sda", "PathInContainer": "/dev/dri/../sda"}]},
        {"LogConfig": {"Type": "syslog", "Config": {"syslog-address": "tcp://x"}}},
        {"RestartPolicy": {"Name": "always"}},
    ],
    ids=str,
)  # fmt: skip
def test_the_last_check_knows_nothing_of_how_a_request_was_made(change: dict[str, Any]) -> None:
    refuse_unless_allowed(ALLOWED)
    with pytest.raises(ExecutionError) as caught:
        refuse_unless_allowed(ALLOWED | {"HostConfig": ALLOWED["HostConfig"] | change})
    assert caught.value.failure is FailureClass.REFUSED


def test_a_key_beside_the_host_config_is_checked_too() -> None:
    with pytest.raises(ExecutionError, match="ExposedPorts"):
        refuse_unless_allowed(ALLOWED | {"ExposedPorts": {"80/tcp": {}}})


def test_a_bind_is_allowed_only_where_it_was_vetted() -> None:
    body = ContainerSpec(image="x", mounts=[VolumeMount(source="/data", target="/d", is_bind=True)]).render()
    refuse_unless_allowed(body, vetted_binds=("/data",))
    with pytest.raises(ExecutionError):
        refuse_unless_allowed(body)


def test_physical_names_are_the_runs_own() -> None:
    assert policy.physical_network(Network(name="../x"), "run", 2) == "pistage-run-2"
    assert policy.physical_volume(Volume(name="$(x)"), "run", 0) == "pistage-run-0"
    assert policy.physical_volume(Volume(name="cache", is_external=True), "run", 0) == "cache"
