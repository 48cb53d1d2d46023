"""Agents as the scheduler sees them: what is free on each, what is reserved, and how good a place each would be."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from pistage.core.changes import AgentChanged, Placing, TaskId
from pistage.core.demand import Demand, gib
from pistage.core.model import AgentInfo
from pistage.core.plan import Resources

#: How good a place is, the lowest first.
Score = tuple[int, float, str]


@dataclass(slots=True, kw_only=True)
class Held:
    """What an attempt reserves, and for whom."""

    agent_id: str
    owner: str
    task: TaskId
    cpus_milli: int
    memory_bytes: int
    gpus: int


def held_by(demand: Demand, agent_id: str, owner: str, task: TaskId) -> Held:
    """What a task with that demand will reserve."""
    want = demand.resources
    return Held(
        agent_id=agent_id, owner=owner, task=task,
        cpus_milli=want.cpus_milli or 0, memory_bytes=want.memory_bytes or 0, gpus=want.gpus,
    )  # fmt: skip


@dataclass(slots=True)
class Amounts:
    """Thousandths of a core, bytes, GPUs and places: sums of reservations, or of what agents offer."""

    cpus_milli: int = 0
    memory_bytes: int = 0
    gpus: int = 0
    slots: int = 0

    def add(self, held: Held) -> None:
        self.cpus_milli += held.cpus_milli
        self.memory_bytes += held.memory_bytes
        self.gpus += held.gpus
        self.slots += 1

    def take(self, held: Held) -> None:
        self.cpus_milli -= held.cpus_milli
        self.memory_bytes -= held.memory_bytes
        self.gpus -= held.gpus
        self.slots -= 1

    def share_of(self, whole: Amounts) -> float:
        """The dominant share: of what there is most used of (Ghodsi et al., "Dominant Resource Fairness", 2011)."""
        return max(
            self.cpus_milli / max(whole.cpus_milli, 1),
            self.memory_bytes / max(whole.memory_bytes, 1),
            self.gpus / max(whole.gpus, 1),
            self.slots / max(whole.slots, 1),
        )


@dataclass(slots=True)
class Agent:
    """An agent: what it is, whether it takes work, and what is reserved on it."""

    info: AgentInfo
    epoch: int
    is_up: bool = True
    is_draining: bool = False
    is_present: bool = False  # it has a session with the leader and takes work
    reason: str = ""
    used: Amounts = field(default_factory=Amounts)
    kept_for: TaskId | None = None  # a task that has waited too long for room: nothing else is placed here

    @property
    def takes_work(self) -> bool:
        return self.is_up and self.is_present and not self.is_draining

    def change(self, change: AgentChanged) -> None:
        self.info, self.epoch = change.info, change.epoch
        self.is_up, self.is_draining, self.reason = change.is_up, change.is_draining, change.reason

    def has_room(self, want: Resources) -> bool:
        """Whether that can be reserved now."""
        whole, used = self.info.capacity, self.used
        return (
            used.slots < whole.slots
            and used.cpus_milli + (want.cpus_milli or 0) <= whole.cpus_milli
            and used.memory_bytes + (want.memory_bytes or 0) <= whole.memory_bytes
            and used.gpus + want.gpus <= whole.gpus
        )

    def score(self, want: Resources, placing: Placing) -> Score:
        """GPUs are kept for those who ask for them; then the emptiest first (spread), or the fullest (pack)."""
        whole, used = self.info.capacity, self.used
        fill = max(
            used.slots / max(whole.slots, 1),
            used.cpus_milli / max(whole.cpus_milli, 1),
            used.memory_bytes / max(whole.memory_bytes, 1),
        )
        return (int(whole.gpus > 0 and not want.gpus), fill if placing == "spread" else -fill, self.info.id)

    def obstacles(self, want: Resources, task: TaskId | None) -> Iterator[str]:
        """What keeps that from this agent now, each in words."""
        whole, used = self.info.capacity, self.used
        if not self.is_up:
            yield f"lost: {self.reason}" if self.reason else "lost"
            return
        if self.is_draining:
            yield "draining"
        elif not self.is_present:
            yield "not connected"
        if self.kept_for is not None and self.kept_for != task:
            yield "kept free for a task that has waited longer"
        if used.slots >= whole.slots:
            yield f"0 of {whole.slots} places free"
        if want.cpus_milli and used.cpus_milli + want.cpus_milli > whole.cpus_milli:
            yield f"{(whole.cpus_milli - used.cpus_milli) / 1000:.1f} of {want.cpus_milli / 1000:.1f} CPUs free"
        if want.memory_bytes and used.memory_bytes + want.memory_bytes > whole.memory_bytes:
            yield f"{gib(whole.memory_bytes - used.memory_bytes)} of {gib(want.memory_bytes)} GiB free"
        if used.gpus + want.gpus > whole.gpus:
            yield f"{whole.gpus - used.gpus} of {want.gpus} GPUs free"
