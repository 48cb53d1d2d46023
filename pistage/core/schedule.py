"""Placement: `decide(view, now)` says which waiting task goes to which agent, and why the others wait."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from pistage.core.model import AgentInfo
from pistage.core.plan import Constraint, Resources


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """What is left of an agent: thousandths of a core, bytes, GPUs, places."""

    cpus_milli: int
    memory_bytes: int
    gpus: int
    slots: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """An agent as the scheduler sees it."""

    info: AgentInfo
    epoch: int
    is_draining: bool
    is_connected: bool
    free: Room


@dataclass(frozen=True, slots=True, kw_only=True)
class WaitingTask:
    """A queued task. `tried_on` are agents it has failed on; `bound_to` is the agent that its gang has chosen."""

    run_id: str
    name: str
    gang: str | None
    priority: int
    queued_at: int
    ready_at: int
    needs_images: bool
    needs_containers: bool
    resources: Resources
    constraints: tuple[Constraint, ...] = ()
    tried_on: frozenset[str] = frozenset()
    bound_to: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """All that a decision is made from."""

    agents: tuple[Candidate, ...]
    waiting: tuple[WaitingTask, ...]

    @property
    def free_slots(self) -> int:
        """Places of all the agents that take work."""
        takers = (one for one in self.agents if one.is_connected and not one.is_draining)
        return sum(max(0, one.free.slots) for one in takers)


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Assign this task to this agent, in this epoch."""

    run_id: str
    task: str
    agent_id: str
    agent_epoch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What to assign now, why each other task waits (by run and task), and when to look again, if only time helps.

    `hopeless` are those that no agent here could take even with nothing else to do: they wait for another agent.
    """

    placements: tuple[Placement, ...] = ()
    reasons: Mapping[tuple[str, str], str] = field(default_factory=dict)
    hopeless: frozenset[tuple[str, str]] = frozenset()
    wake_at: int | None = None

    def joined(self, other: Decision) -> Decision:
        """This decision, and another one on tasks further down the line."""
        return Decision(
            placements=self.placements + other.placements,
            reasons={**self.reasons, **other.reasons},
            hopeless=self.hopeless | other.hopeless,
            wake_at=min((at for at in (self.wake_at, other.wake_at) if at is not None), default=None),
        )


def decide(view: View, now: int) -> Decision:
    """Place what can be placed at `now` (milliseconds UTC): by priority, then first come first served.

    An agent that a task has failed on is taken only where no other will do; among the rest, the emptiest.
    """
    agents = {candidate.info.id: candidate for candidate in view.agents}
    idle = [_idle(candidate) for candidate in view.agents]
    gangs: dict[tuple[str, str], str] = {}
    placements: list[Placement] = []
    reasons: dict[tuple[str, str], str] = {}
    hopeless: set[tuple[str, str]] = set()
    wake_at: int | None = None
    for task in sorted(view.waiting, key=lambda task: (-task.priority, task.queued_at, task.run_id, task.name)):
        key = (task.run_id, task.name)
        if task.ready_at > now:
            wake_at = task.ready_at if wake_at is None else min(wake_at, task.ready_at)
            reasons[key] = "waits before its next try"
            continue
        bound_to = task.bound_to or (gangs.get((task.run_id, task.gang)) if task.gang else None)
        chosen, reason = _choose(task, bound_to, list(agents.values()))
        if chosen is None:
            reasons[key] = reason
            if all(obstacle_to(task, None, agent) is not None for agent in idle):
                hopeless.add(key)
            continue
        agents[chosen.info.id] = replace(chosen, free=_less(chosen.free, task.resources))
        if task.gang:
            gangs[task.run_id, task.gang] = chosen.info.id
        placements.append(
            Placement(run_id=task.run_id, task=task.name, agent_id=chosen.info.id, agent_epoch=chosen.epoch)
        )
    return Decision(placements=tuple(placements), reasons=reasons, hopeless=frozenset(hopeless), wake_at=wake_at)


def _choose(task: WaitingTask, bound_to: str | None, agents: list[Candidate]) -> tuple[Candidate | None, str]:
    obstacles = {candidate.info.id: obstacle_to(task, bound_to, candidate) for candidate in agents}
    fit = [candidate for candidate in agents if obstacles[candidate.info.id] is None]
    if not fit:
        said = sorted({f"{candidate.info.name}: {obstacles[candidate.info.id]}" for candidate in agents})
        return None, "; ".join(said[:5]) if said else "no agent has registered"
    emptiest_first = sorted(
        fit, key=lambda one: (one.info.id in task.tried_on, -one.free.slots, -one.free.memory_bytes, one.info.id)
    )
    return emptiest_first[0], ""


def obstacle_to(  # noqa: PLR0911 - one line an obstacle
    task: WaitingTask, bound_to: str | None, candidate: Candidate
) -> str | None:
    """What keeps `task`, whose gang is bound to an agent or to none, from this one, in words; None if nothing does."""
    info, free, want = candidate.info, candidate.free, task.resources
    if not candidate.is_connected:
        return "not connected"
    if candidate.is_draining:
        return "draining"
    if bound_to is not None and bound_to != info.id:
        return "another agent has this run's networks and volumes"
    if task.needs_images and "docker" not in info.runtimes and not info.ignores_images:
        return "has no engine to run images with"
    if task.needs_containers and "docker" not in info.runtimes:
        return "has no engine for networks, volumes and services"
    for constraint in task.constraints:
        if not is_met(constraint, info.labels):
            return f"label {described(constraint)} is missing"
    return _shortage(want, free)


def _shortage(want: Resources, free: Room) -> str | None:
    if (want.cpus_milli or 0) > free.cpus_milli:
        return f"{free.cpus_milli / 1000:.1f} of {(want.cpus_milli or 0) / 1000:.1f} CPUs free"
    if (want.memory_bytes or 0) > free.memory_bytes:
        return f"{free.memory_bytes / 1024**3:.1f} of {(want.memory_bytes or 0) / 1024**3:.1f} GiB free"
    if want.gpus > free.gpus:
        return f"{free.gpus} of {want.gpus} GPUs free"
    if free.slots < 1:
        return f"{free.slots} of 1 places free"
    return None


def _idle(candidate: Candidate) -> Candidate:
    """The agent as it would be connected, undrained and with nothing to do."""
    whole = candidate.info.capacity
    room = Room(cpus_milli=whole.cpus_milli, memory_bytes=whole.memory_bytes, gpus=whole.gpus, slots=whole.slots)
    return replace(candidate, is_connected=True, is_draining=False, free=room)


def is_met(constraint: Constraint, labels: Mapping[str, str]) -> bool:
    """Whether an agent with `labels` meets the demand."""
    match constraint.operator:
        case "in":
            return labels.get(constraint.key) in constraint.values
        case "not_in":
            return labels.get(constraint.key) not in constraint.values
        case "present":
            return constraint.key in labels
        case "absent":
            return constraint.key not in labels


def described(constraint: Constraint) -> str:
    """The demand as one writes it in a definition."""
    match constraint.operator:
        case "in" if len(constraint.values) == 1:
            return f"{constraint.key}={constraint.values[0]}"
        case "in":
            return f"{constraint.key} in [{', '.join(constraint.values)}]"
        case "not_in":
            return f"{constraint.key} not in [{', '.join(constraint.values)}]"
        case "present":
            return constraint.key
        case "absent":
            return f"!{constraint.key}"


def _less(room: Room, resources: Resources) -> Room:
    return Room(
        cpus_milli=room.cpus_milli - (resources.cpus_milli or 0),
        memory_bytes=room.memory_bytes - (resources.memory_bytes or 0),
        gpus=room.gpus - resources.gpus,
        slots=room.slots - 1,
    )
