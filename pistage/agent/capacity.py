"""What the agent offers, and what it says of its machine, unless the configuration says else.

Files are looked for below a root, so that a test can have a machine of its own making.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from pistage.agent.gpus import Gpu
from pistage.config import AgentConfig
from pistage.core import limits
from pistage.core.model import Capacity

#: Of the machine's memory a tenth, within these bounds, is left to the engine, the agent and the system.
_RESERVE_MIN = 256 * limits.MIB
_RESERVE_MAX = 2 * limits.GIB
_CPUS_MILLI_MIN = 100  # an agent with less could as well not be there
_CGROUPS = Path("sys/fs/cgroup")
#: As the makers of images and other orchestrators call them.
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm", "i686": "386"}


def capacity_of(settings: AgentConfig, *, gpus: int, root: Path = Path("/")) -> Capacity:
    """The offer; a figure of the configuration is taken as it is."""
    cpus_milli = round(settings.cpus * 1000) if settings.cpus else _cpus_to_offer(settings.reserve_cpus, root)
    return Capacity(
        cpus_milli=cpus_milli,
        memory_bytes=settings.memory if settings.memory is not None else _memory_to_offer(root),
        gpus=gpus,
        slots=settings.slots or -(-cpus_milli // 1000) * limits.SLOTS_DEFAULT_PER_CPU,
    )


def labels_of(settings: AgentConfig, gpus: Sequence[Gpu]) -> Mapping[str, str]:
    """What tasks may ask of the machine; what the configuration says goes first."""
    machine = platform.machine()
    known = {
        "os": platform.system().lower(),
        "arch": _ARCHITECTURES.get(machine, machine),
        "host": platform.node(),
    }
    if gpus:
        known |= {"gpu": "true", "gpu_vendor": gpus[0].vendor}
    return {key: value for key, value in known.items() if value} | settings.labels


def _cpus_to_offer(reserve: float, root: Path) -> int:
    cores = len(os.sched_getaffinity(0))
    # An agent that is itself in a container sees the machine's cores but may use only so much of them.
    usable = min([cores * 1000, *_quotas(root)])
    return max(usable - round(reserve * 1000), _CPUS_MILLI_MIN)


def _quotas(root: Path) -> Iterator[int]:
    """Each limit on the CPU that holds here, in thousandths of a core, rounded down."""
    for group in _groups(root, ""):
        match _words_in(group / "cpu.max"):
            case [quota, period] if quota.isdigit() and period.isdigit() and int(period):
                yield int(quota) * 1000 // int(period)
    for group in (*_groups(root, "cpu"), *_groups(root, "cpu,cpuacct")):
        match _words_in(group / "cpu.cfs_quota_us"), _words_in(group / "cpu.cfs_period_us"):
            case [quota], [period] if quota.isdigit() and period.isdigit() and int(period):  # -1: no limit
                yield int(quota) * 1000 // int(period)


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """This process's control group and those above it; of version 2 for "". In a container, its own is the top."""
    top = root / _CGROUPS / controller
    yield top
    for line in _text_in(root / "proc/self/cgroup").splitlines():
        _, _, rest = line.partition(":")
        names, _, path = rest.partition(":")
        if names == controller and ".." not in Path(path).parts:
            group = top / path.lstrip("/")
            while group != top and group.is_relative_to(top):
                yield group
                group = group.parent


def _memory_to_offer(root: Path) -> int:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for file in ("memory.max", "memory/memory.limit_in_bytes"):
        match _words_in(root / _CGROUPS / file):
            case [limit] if limit.isdigit():
                total = min(total, int(limit))
    reserve = min(max(total // 10, _RESERVE_MIN), _RESERVE_MAX)
    return max(total - reserve, total // 2)


def _words_in(file: Path) -> list[str]:
    return _text_in(file).split()


def _text_in(file: Path) -> str:
    try:
        return file.read_text(encoding="ascii")
    except (OSError, ValueError):
        return ""
