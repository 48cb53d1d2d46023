"""What the agent offers: the machine's cores, memory and GPUs less a reserve, unless the configuration says else."""

from __future__ import annotations

import os
from pathlib import Path

from pistage.config import AgentConfig
from pistage.core import limits
from pistage.core.model import Capacity

#: Of the machine's memory a tenth, within these bounds, is left to the engine, the agent and the system.
_RESERVE_MIN = 256 * limits.MIB
_RESERVE_MAX = 2 * limits.GIB
_CGROUP_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


def capacity_of(settings: AgentConfig, *, gpus_found: int) -> Capacity:
    """The offer; a figure of the configuration is taken as it is."""
    cores = len(os.sched_getaffinity(0))
    cpus_milli = round(settings.cpus * 1000) if settings.cpus else cores * 1000
    return Capacity(
        cpus_milli=cpus_milli,
        memory_bytes=settings.memory if settings.memory is not None else _memory_to_offer(),
        gpus=settings.gpus if settings.gpus is not None else gpus_found,
        slots=settings.slots or cores * limits.SLOTS_DEFAULT_PER_CPU,
    )


def _memory_to_offer() -> int:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for file in _CGROUP_LIMITS:
        # An agent that is itself in a container sees the machine's memory but may use only this much.
        total = min(total, _limit_in(file) or total)
    reserve = min(max(total // 10, _RESERVE_MIN), _RESERVE_MAX)
    return max(total - reserve, total // 2)


def _limit_in(file: Path) -> int | None:
    try:
        text = file.read_text(encoding="ascii").strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None
