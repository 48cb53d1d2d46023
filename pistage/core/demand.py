"""Demand: what a task asks of an agent, and what in an agent does not answer to it.

A demand is written down once for all tasks alike: its JSON is the key by which the scheduler tells alike from unlike.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from pistage.core import codec
from pistage.core.limits import GIB
from pistage.core.model import AgentInfo, Capacity
from pistage.core.plan import Constraint, Plan, Resources, Task


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """What is reserved for the task, and what its agent must be.

    `whole` is what the agent must have in all: for a task of a gang, the most that any of the gang asks, because they
    will all come to the same agent. `constraints` are of the whole gang, too.
    """

    resources: Resources
    whole: Resources
    needs_images: bool = False
    needs_containers: bool = False
    languages: tuple[str, ...] = ()  # of its scripts: who runs them without an image has interpreters for them all
    installs: tuple[str, ...] = ()  # of these, the ones whose scripts have requirements
    lacks_image: bool = False  # for the language of a script none is known
    constraints: tuple[Constraint, ...] = ()


def demands_of(plan: Plan) -> list[str]:
    """The demand of each task of the plan, in their order, as JSON."""
    gangs: dict[str, list[Task]] = {}
    for task in plan.tasks:
        if task.gang is not None:
            gangs.setdefault(task.gang, []).append(task)
    return [written(_demand(task, [task] if task.gang is None else gangs[task.gang])) for task in plan.tasks]


def written(demand: Demand) -> str:
    """As JSON: equal demands give equal texts."""
    return codec.to_json(Demand, demand)


def read(text: str) -> Demand:
    """What `written` wrote; PistageError `internal` if it cannot be read any more."""
    demand: Demand = codec.from_json(Demand, text)
    return demand


def with_memory(demand: Demand, memory_bytes: int) -> Demand:
    """The same demand for another amount of memory."""
    return replace(
        demand,
        resources=replace(demand.resources, memory_bytes=memory_bytes),
        whole=replace(demand.whole, memory_bytes=max(memory_bytes, demand.whole.memory_bytes or 0)),
    )


def _demand(task: Task, gang: Iterable[Task]) -> Demand:
    members = list(gang)
    programs = [step.program for one in members for step in one.steps() if step.program is not None]
    return Demand(
        resources=task.resources,
        whole=Resources(
            cpus_milli=max(one.resources.cpus_milli or 0 for one in members),
            memory_bytes=max(one.resources.memory_bytes or 0 for one in members),
            gpus=max(one.resources.gpus for one in members),
        ),
        needs_images=any(one.needs_image(context) for one in members for context in one.contexts),
        languages=tuple(sorted({program.language for program in programs})),
        installs=tuple(sorted({program.language for program in programs if program.requirements})),
        lacks_image=any(context.language and not context.image for one in members for context in one.contexts),
        needs_containers=any(
            one.services or any(context.networks for context in one.contexts) for one in members
        ),
        constraints=tuple(dict.fromkeys(constraint for one in members for constraint in one.constraints)),
    )  # fmt: skip


def misfits(demand: Demand, info: AgentInfo) -> Iterator[str]:
    """What keeps the demand from this agent for good, whatever else it does, each in words."""
    yield from mismatches(demand, info)
    want, whole = demand.whole, info.capacity
    if (want.cpus_milli or 0) > whole.cpus_milli:
        yield f"has {whole.cpus_milli / 1000:g} CPUs, {(want.cpus_milli or 0) / 1000:g} are asked for"
    if (want.memory_bytes or 0) > whole.memory_bytes:
        yield f"has {gib(whole.memory_bytes)} GiB of memory, {gib(want.memory_bytes or 0)} are asked for"
    if want.gpus > whole.gpus:
        yield f"has {whole.gpus or 'no'} GPU{'s' * (whole.gpus != 1)}, {want.gpus} asked for"
    if whole.slots < 1:
        yield "offers no places"


def mismatches(demand: Demand, info: AgentInfo) -> Iterator[str]:
    """The same, but for the agent's size."""
    has_engine = "docker" in info.runtimes
    if demand.needs_images and not has_engine and not info.ignores_images:
        yield "has no engine to run images with"
    if demand.languages and not has_engine:
        yield from (f"has no interpreter for {name}" for name in demand.languages if name not in info.languages)
        yield from (
            f"cannot install what a script in {name} requires" for name in demand.installs if name not in info.installs
        )
    if demand.lacks_image and has_engine:
        yield "runs images, and the masters know none for the language of a script"
    if demand.needs_containers and not has_engine:
        yield "has no engine for networks, volumes and services"
    for constraint in demand.constraints:
        if not is_met(constraint, info.labels):
            yield f"label {described(constraint)} is missing"


def is_large_enough(demand: Demand, whole: Capacity) -> bool:
    """Whether the agent's size is what the demand asks for."""
    want = demand.whole
    return (
        (want.cpus_milli or 0) <= whole.cpus_milli
        and (want.memory_bytes or 0) <= whole.memory_bytes
        and want.gpus <= whole.gpus
        and whole.slots >= 1
    )


def gib(size: int) -> str:
    """Bytes in GiB, for people; small amounts keep a digit that is not zero."""
    return f"{size / GIB:.1f}" if size >= GIB // 10 or not size else f"{size / GIB:.3f}"


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
