"""Policy: the one place where a container's specification is made, and the check it must pass before it is sent.

What can be asked of the engine is what these dataclasses can say. There is no field for privileges, namespaces of the
host, capabilities, devices but GPUs, security options or sockets, so no input can lead there; `refuse_unless_allowed`
looks at the finished request once more, knowing nothing of how it was made. Containers keep the engine's default
capabilities and `no-new-privileges` is left off: `sudo` and `ping` in an image work as people expect.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pistage.agent.gpus import KFD, Gpu
from pistage.agent.runtimes.base import ExecutionError
from pistage.core import limits
from pistage.core.plan import FailureClass, HealthCheck, Network, Resources, Volume

#: Drivers that keep a network inside the engine; the others reach into the host's own interfaces.
NETWORK_DRIVERS = ("bridge", "overlay")
_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,254}")
_OURS = "pistage-"

_TOP_LEVEL = frozenset(
    {"Image", "Entrypoint", "Cmd", "Env", "WorkingDir", "User", "Labels", "HostConfig", "NetworkingConfig",
     "Healthcheck", "AttachStdin", "AttachStdout", "AttachStderr", "OpenStdin", "Tty"}
)  # fmt: skip
_HOST_CONFIG = frozenset(
    {"NetworkMode", "Mounts", "NanoCpus", "Memory", "MemorySwap", "PidsLimit", "DeviceRequests", "Devices", "LogConfig"}
)
_MOUNT = frozenset({"Type", "Source", "Target", "ReadOnly"})
_RENDER_NODE = re.compile(r"/dev/dri/renderD\d{1,4}")
_GPU_ID = re.compile(r"[0-9]{1,3}|GPU-[0-9a-fA-F-]{8,64}")
_LOG_DRIVERS = frozenset({"local", "json-file"})


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumeMount:
    """A volume of the engine, by its physical name; or, with `is_bind`, a directory that the bind policy vetted."""

    source: str
    target: str
    is_read_only: bool = False
    is_bind: bool = False

    def render(self) -> dict[str, Any]:
        kind = "bind" if self.is_bind else "volume"
        return {"Type": kind, "Source": self.source, "Target": self.target, "ReadOnly": self.is_read_only}


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerSpec:
    """All that can be said of a container. `networks` are physical names with aliases."""

    image: str
    entrypoint: Sequence[str] | None = None
    command: Sequence[str] | None = None
    env: Mapping[str, str] = field(default_factory=dict)
    workdir: str = ""
    user: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    networks: Sequence[tuple[str, Sequence[str]]] = ()
    mounts: Sequence[VolumeMount] = ()
    resources: Resources = field(default_factory=Resources)
    gpus: Sequence[Gpu] = ()
    health: HealthCheck | None = None
    log_driver: str = "local"

    def render(self) -> dict[str, Any]:
        """The body of the engine's create call."""
        body: dict[str, Any] = {
            "Image": self.image,
            "Env": [f"{name}={value}" for name, value in self.env.items()],
            "Labels": dict(self.labels),
            "AttachStdin": False,
            "AttachStdout": True,
            "AttachStderr": True,
            "OpenStdin": False,
            "Tty": False,
            "HostConfig": self._host_config(),
        }
        optional = {"Entrypoint": self.entrypoint, "Cmd": self.command, "WorkingDir": self.workdir, "User": self.user}
        body |= {key: list(value) if isinstance(value, tuple) else value for key, value in optional.items() if value}
        if self.networks:
            name, aliases = self.networks[0]
            body["NetworkingConfig"] = {"EndpointsConfig": {name: {"Aliases": list(aliases)}}}
        if self.health is not None:
            interval = round(self.health.interval_s * 1e9)
            body["Healthcheck"] = {
                "Test": ["CMD-SHELL", self.health.command], "Interval": interval, "Retries": self.health.retries,
            }  # fmt: skip
        return body

    def _host_config(self) -> dict[str, Any]:
        config: dict[str, Any] = {"PidsLimit": limits.PIDS_MAX, "LogConfig": _log_config(self.log_driver)}
        if self.networks:
            config["NetworkMode"] = self.networks[0][0]
        if self.mounts:
            config["Mounts"] = [mount.render() for mount in self.mounts]
        if self.resources.cpus_milli:
            config["NanoCpus"] = self.resources.cpus_milli * 1_000_000
        if self.resources.memory_bytes:
            # The same figure for both: no swap beyond the limit.
            config["Memory"] = config["MemorySwap"] = self.resources.memory_bytes
        if ids := [gpu.id for gpu in self.gpus if gpu.vendor == "nvidia"]:
            config["DeviceRequests"] = [{"DeviceIDs": ids, "Capabilities": [["gpu"]]}]
        if nodes := [gpu.id for gpu in self.gpus if gpu.vendor == "amd"]:
            config["Devices"] = [
                {"PathOnHost": path, "PathInContainer": path, "CgroupPermissions": "rw"} for path in (KFD, *nodes)
            ]
        return config


def _log_config(driver: str) -> dict[str, Any]:
    # The engine's log is the spool that a restarted agent reads. `local` stores bytes as they are where json-file
    # replaces what is not UTF-8; one file without a bound, because the engine drops output silently when it rotates.
    if driver == "local":
        return {"Type": "local", "Config": {"max-size": "1048576g", "max-file": "1", "compress": "false"}}
    return {"Type": driver, "Config": {}}


def refuse_unless_allowed(body: Mapping[str, Any], *, vetted_binds: Sequence[str] = ()) -> None:
    """ExecutionError `refused` unless the finished request holds nothing but what is on the list."""
    host = body.get("HostConfig", {})
    stray = [key for key in body if key not in _TOP_LEVEL] + [key for key in host if key not in _HOST_CONFIG]
    if stray:
        raise _refused(f"a container may not be given {', '.join(sorted(stray))}")
    names = [host["NetworkMode"]] if "NetworkMode" in host else []
    names += list(body.get("NetworkingConfig", {}).get("EndpointsConfig", {}))
    for name in names:
        _check_network_name(name)
    for mount in host.get("Mounts", ()):
        _check_mount(mount, vetted_binds)
    for request in host.get("DeviceRequests", ()):
        is_gpu = set(request) == {"DeviceIDs", "Capabilities"} and request["Capabilities"] == [["gpu"]]
        if not is_gpu or not all(_GPU_ID.fullmatch(gpu_id) for gpu_id in request["DeviceIDs"]):
            raise _refused("devices other than GPUs cannot be asked for")
    for device in host.get("Devices", ()):
        path = str(device.get("PathOnHost"))
        if path != device.get("PathInContainer") or not (path == KFD or _RENDER_NODE.fullmatch(path)):
            raise _refused("devices other than GPUs cannot be asked for")
    if host.get("LogConfig", {}).get("Type", "local") not in _LOG_DRIVERS:
        raise _refused("the engine's log must stay with the engine")


def _check_network_name(name: str) -> None:
    if name in {"host", "none"} or not _NAME.fullmatch(name):
        raise _refused(f"the network {name!r} is not one that a task may join")


def _check_mount(mount: Mapping[str, Any], vetted_binds: Sequence[str]) -> None:
    if set(mount) - _MOUNT:
        raise _refused("a mount has options that no task may set")
    if not str(mount["Target"]).startswith("/"):
        raise _refused(f"a mount needs an absolute path in the container, not {mount['Target']!r}")
    match mount["Type"]:
        case "volume" if _NAME.fullmatch(mount["Source"]):
            return
        case "bind" if mount["Source"] in vetted_binds:
            return
    raise _refused(f"{mount['Source']!r} cannot be mounted")


def physical_network(network: Network, run_id: str, index: int) -> str:
    """The engine's name of a plan's network; ExecutionError `refused` for one that no task may use."""
    if network.is_external:
        if network.name.startswith(_OURS):
            raise _refused(f"the network {network.name} belongs to another run")
        _check_network_name(network.name)
        return network.name
    if network.driver not in NETWORK_DRIVERS:
        raise _refused(f"network driver {network.driver!r} is not allowed, only {' and '.join(NETWORK_DRIVERS)}")
    return f"{_OURS}{run_id}-{index}"


def physical_volume(volume: Volume, run_id: str, index: int) -> str:
    """The engine's name of a plan's volume; ExecutionError `refused` for one that no task may use."""
    if volume.is_external:
        if volume.name.startswith(_OURS):
            raise _refused(f"the volume {volume.name} belongs to another run")
        if not _NAME.fullmatch(volume.name):
            raise _refused(f"{volume.name!r} is not the name of a volume")
        return volume.name
    return f"{_OURS}{run_id}-{index}"


def _refused(reason: str) -> ExecutionError:
    return ExecutionError(FailureClass.REFUSED, reason)
