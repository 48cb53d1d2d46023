"""GPUs: which there are on this machine, and who has which of them now. No two contexts ever have the same one."""

from __future__ import annotations

import asyncio
import re
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Vendor = Literal["nvidia", "amd"]
_UUID = re.compile(r"^GPU UUID:\s*(GPU-[0-9a-fA-F-]{8,64})\s*$", re.MULTILINE)
_RENDER_NODE = re.compile(r"^drm_render_minor\s+([1-9]\d*)\s*$", re.MULTILINE)
KFD = "/dev/kfd"


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One device. `id` is how its vendor's tools call it: a UUID or an index (nvidia), the render node's path (amd)."""

    vendor: Vendor
    id: str
    index: int


def found_below(root: Path = Path("/")) -> tuple[Gpu, ...]:
    """The GPUs whose drivers are loaded, by what those say of them; of one vendor, NVIDIA first."""
    return _of_nvidia(root) or _of_amd(root)


def _of_nvidia(root: Path) -> tuple[Gpu, ...]:
    # By bus address, which is also the order of the driver's own indexes.
    cards = sorted((root / "proc/driver/nvidia/gpus").glob("*/information"))
    uuids = [_UUID.search(_text(card)) for card in cards]
    if cards:
        return tuple(
            Gpu(vendor="nvidia", id=uuid[1] if uuid else str(index), index=index) for index, uuid in enumerate(uuids)
        )
    # A container has the devices and perhaps not that directory.
    nodes = sorted(int(node.name[6:]) for node in (root / "dev").glob("nvidia*") if node.name[6:].isdigit())
    return tuple(Gpu(vendor="nvidia", id=str(index), index=index) for index in nodes)


def _of_amd(root: Path) -> tuple[Gpu, ...]:
    if not (root / KFD[1:]).exists():
        return ()  # without it there is a display, but nothing that computes
    texts = [_text(node) for node in (root / "sys/class/kfd/kfd/topology/nodes").glob("*/properties")]
    minors = sorted(int(match[1]) for text in texts if (match := _RENDER_NODE.search(text)))  # a CPU has minor 0
    if not texts:
        minors = sorted(int(node.name[7:]) for node in (root / "dev/dri").glob("renderD*") if node.name[7:].isdigit())
    return tuple(Gpu(vendor="amd", id=f"/dev/dri/renderD{minor}", index=i) for i, minor in enumerate(minors))


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def offered(found: Sequence[Gpu], wanted: int | None) -> tuple[Gpu, ...]:
    """As many as the configuration says, those that were found first; one that nobody found is taken for NVIDIA's."""
    if wanted is None:
        return tuple(found)
    unseen = (Gpu(vendor="nvidia", id=str(index), index=index) for index in range(len(found), wanted))
    return (*found[:wanted], *unseen)


def environment_of(gpus: Sequence[Gpu], has_any: Vendor | None) -> Mapping[str, str]:
    """What tells a plain process which GPUs are its own, on a machine that has some; none of them unless it asked."""
    match has_any:
        case "nvidia":
            ids = ",".join(gpu.id for gpu in gpus)
            return {"CUDA_VISIBLE_DEVICES": ids, "NVIDIA_VISIBLE_DEVICES": ids or "void"}
        case "amd":
            indexes = ",".join(str(gpu.index) for gpu in gpus)
            return {"ROCR_VISIBLE_DEVICES": indexes, "HIP_VISIBLE_DEVICES": ",".join(map(str, range(len(gpus))))}
        case None:
            return {}


class GpuPool:
    """Hands out devices by holder. Who finds too few free waits its turn: an attempt that is over may still let go."""

    def __init__(self, gpus: Sequence[Gpu] = ()) -> None:
        self._gpus = {gpu.id: gpu for gpu in gpus}
        self._holders: dict[str, tuple[str, ...]] = {}
        self._waiting: deque[_Turn] = deque()

    @property
    def vendor(self) -> Vendor | None:
        """Whose they are; None where there are none."""
        return next((gpu.vendor for gpu in self._gpus.values()), None)

    def __len__(self) -> int:
        return len(self._gpus)

    @property
    def free(self) -> tuple[Gpu, ...]:
        """Those that nobody has."""
        held = {gpu_id for ids in self._holders.values() for gpu_id in ids}
        return tuple(gpu for gpu_id, gpu in self._gpus.items() if gpu_id not in held)

    def claim(self, holder: str, ids: Sequence[str]) -> None:
        """An agent before this one gave these to `holder`."""
        self._holders[holder] = tuple(ids)

    def holders(self, prefix: str) -> list[str]:
        """Every holder whose name begins with `prefix`."""
        return [holder for holder in self._holders if holder.startswith(prefix)]

    def held_by(self, holder: str) -> tuple[Gpu, ...] | None:
        """What `holder` has, or None. A device that is not there any more is left out."""
        ids = self._holders.get(holder)
        return None if ids is None else tuple(self._gpus[gpu_id] for gpu_id in ids if gpu_id in self._gpus)

    async def take(self, holder: str, count: int) -> tuple[Gpu, ...]:
        """`count` devices that nobody else has, once there are; the caller sets the deadline.

        ValueError if there never will be so many.
        """
        if count > len(self._gpus):
            raise ValueError(f"{count} GPUs are asked for, and this agent has {len(self._gpus)}")
        turn = _Turn(holder, count, asyncio.get_running_loop().create_future())
        self._waiting.append(turn)
        self._serve()
        try:
            await turn.is_due
        except asyncio.CancelledError:
            if turn in self._waiting:
                self._waiting.remove(turn)
            self.give_back(holder)
            raise
        return self.held_by(holder) or ()

    def give_back(self, holder: str) -> None:
        """`holder` uses its devices no more."""
        self._holders.pop(holder, None)
        self._serve()

    def _serve(self) -> None:
        """In turn: many small requests do not keep a large one waiting for ever."""
        while self._waiting:
            turn, free = self._waiting[0], self.free
            is_given_up = turn.is_due.done()  # in this very turn of the loop, so it still stands in the line
            if not is_given_up and len(free) < turn.count:
                return
            self._waiting.popleft()
            if is_given_up:
                continue
            self._holders[turn.holder] = tuple(gpu.id for gpu in free[: turn.count])
            turn.is_due.set_result(None)


@dataclass(frozen=True, slots=True)
class _Turn:
    holder: str
    count: int
    is_due: asyncio.Future[None]
