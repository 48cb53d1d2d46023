"""Plan: a definition with every reference resolved, every parameter rendered, every default filled, frozen.

A plan is a graph of tasks. A task is placed whole on one agent; its body is a tree of steps: sequences, and
parallel blocks where a `dep` expands to several groups. Every step names the context (the container) it runs in.
Durations are seconds, memory is bytes, CPU is thousandths of a core.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Discriminator

from pistage.core import limits
from pistage.core.languages import Installer
from pistage.core.notices import Notify, shown_url


class When(StrEnum):
    """In which state of what came before a step or a task runs."""

    SUCCESS = "success"
    FAILURE = "failure"
    ALWAYS = "always"


class FailureClass(StrEnum):
    """Why an attempt did not succeed, as far as a retry cares."""

    FAILURE = "failure"  # a command ended with a code other than 0
    OOM = "oom"  # the kernel killed it for its memory limit
    TIMEOUT = "timeout"  # it ran longer than it may; never retried by itself
    PULL = "pull"  # its image could not be had
    LOST = "lost"  # the agent, the engine or the container went away
    REFUSED = "refused"  # the agent's policy forbids it; never retried


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameter:
    """A parameter as a step sees it, and where its value came from ("given to the run", "with beside dep", …)."""

    name: str
    value: str
    origin: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Resources:
    """What is reserved on the agent, and the limit of the container; None is "no limit asked"."""

    cpus_milli: int | None = None
    memory_bytes: int | None = None
    gpus: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Backoff:
    """Wait before try n (from 0): min(initial * factor**n, max) seconds, times 1 ± jitter."""

    initial_s: float = 1.0
    factor: float = 2.0
    max_s: float = 60.0
    jitter: float = 0.1


class OnPartition(StrEnum):
    """What an agent that has lost every master does with what it runs, once its lease is over."""

    KILL = "kill"  # stop it, so that it is gone before it is begun elsewhere
    CONTINUE = "continue"  # let it run on; it may then run twice at one time, and one result counts


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryGrowth:
    """After an attempt that was killed for its memory, the next gets `factor` times as much, up to `most` bytes."""

    factor: float
    most: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Retry:
    """How many more attempts a task gets for each class of failure; a class not listed gets none."""

    limits: Mapping[FailureClass, int] = field(
        default_factory=lambda: {
            FailureClass.FAILURE: limits.RETRY_FAILURE_DEFAULT,
            FailureClass.OOM: limits.RETRY_FAILURE_DEFAULT,
            FailureClass.LOST: limits.RETRY_INFRASTRUCTURE_DEFAULT,
            FailureClass.PULL: limits.RETRY_INFRASTRUCTURE_DEFAULT,
        }
    )
    backoff: Backoff = Backoff()
    memory: MemoryGrowth | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Constraint:
    """A demand on an agent's labels: `gpu=true` (in), `zone in [a, b]` (in), `!spot` (absent), `ssd` (present)."""

    key: str
    operator: Literal["in", "not_in", "present", "absent"]
    values: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class RegistryAuth:
    """Credentials for a pull. Never logged, never shown: `redacted` makes the copy that may be."""

    username: str = field(default="", repr=False)
    password: str = field(default="", repr=False)
    server_address: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Attachment:
    """A context's place in a network of the plan, under these extra names."""

    network: str
    aliases: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Mount:
    """A volume of the plan (`volume`, its plan name) or a directory of the agent's host (`bind`) at `target`."""

    kind: Literal["volume", "bind"]
    source: str
    target: str
    is_read_only: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthCheck:
    """A shell command that succeeds once a service is ready."""

    command: str
    interval_s: float = 1.0
    retries: int = 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """A sidecar of a task: started before its first step, reachable under `name`, removed after the last."""

    name: str
    image: str
    command: tuple[str, ...] | None = None
    env: Mapping[str, str] = field(default_factory=dict)
    auth: RegistryAuth | None = None
    health: HealthCheck | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """A container to be made for one or more steps. `id` is unique in its task: "c1", "c2", …

    With `language`, nobody named the image: it is that language's, "" where none is known (see `Task.needs_image`).
    """

    id: str
    image: str
    language: str | None = None
    auth: RegistryAuth | None = None
    resources: Resources = Resources()
    networks: tuple[Attachment, ...] = ()
    mounts: tuple[Mount, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """What the key `script:` of a document brings: a text for an interpreter. No shell and no template ever sees it.

    `command` runs a file in the context's image; an agent without images has words of its own for the `language`.
    """

    language: str
    text: str
    ending: str = ""  # of the name of the file that the text becomes: ".py"
    command: tuple[str, ...] = ()
    args: tuple[str, ...] = ()
    stdin: str = ""  # what it reads, in base64
    requirements: tuple[str, ...] = ()
    installer: Installer | None = None  # of the requirements


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One command. Exactly one of `script` (what a document calls `run:`, for /bin/sh -e), `program` (what it calls
    `script:`) and `command`-with-`entrypoint` says what runs.

    With `script` and `program` None the context's image runs with `entrypoint` and `command`, each None for its own.
    `id` is unique in the task and ours: "1", "2", … in the order of the document. The PISTAGE_ family
    of the environment is made by `environment_of`, never by the document.
    """

    kind: Literal["step"] = "step"
    id: str
    name: str
    context: str
    script: str | None = None
    program: Program | None = None
    entrypoint: tuple[str, ...] | None = None
    command: tuple[str, ...] | None = None
    env: Mapping[str, str] = field(default_factory=dict)
    parameters: tuple[Parameter, ...] = ()
    workdir: str = "/workspace"
    user: str | None = None
    timeout_s: float | None = None
    when: When = When.SUCCESS
    skip_reason: str | None = None  # a `when` condition that was false: the step is skipped with this reason
    is_async: bool = False
    retries: int = 0  # `on: retry`, in place
    reentry: tuple[str, ...] = ()  # `on: reentry`, scripts run in the same container before each of them
    failed: tuple[str, ...] = ()  # `on: failed`, scripts run once after the last failure
    action: str | None = None  # the action this step came from, for people


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """Steps in order (`sequence`) or branches at once (`parallel`); an async block lets what follows it start."""

    kind: Literal["sequence", "parallel"]
    name: str = ""
    children: tuple[Node, ...]
    when: When = When.SUCCESS
    is_async: bool = False


Node = Annotated[Step | Block, Discriminator("kind")]


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What is placed on one agent. `needs` are names of tasks; `gang` is shared by tasks that must share an agent."""

    name: str
    body: Block
    contexts: tuple[Context, ...]
    needs: tuple[str, ...] = ()
    when: When = When.SUCCESS
    skip_reason: str | None = None
    services: tuple[Service, ...] = ()
    constraints: tuple[Constraint, ...] = ()
    resources: Resources = Resources()  # the reservation: the most that its contexts hold at one time
    retry: Retry = Retry()
    timeout_s: float = limits.TASK_TIMEOUT_DEFAULT_S
    queue_timeout_s: float | None = None  # how long it may wait for a place, each time it is queued
    on_partition: OnPartition = OnPartition.KILL
    gang: str | None = None

    def steps(self) -> Iterator[Step]:
        """Every step, in the order of the document."""
        return _steps_below(self.body)

    def context_of(self, step: Step) -> Context:
        """The context that `step` runs in."""
        return next(context for context in self.contexts if context.id == step.context)

    def needs_image(self, context: Context) -> bool:
        """Whether what runs in the context needs its image: not if that is a language's, and scripts all that runs."""
        is_by_language = context.language is not None
        return bool(context.image) and not (
            is_by_language and all(step.program is not None for step in self.steps() if step.context == context.id)
        )

    def credentials(self) -> tuple[str, ...]:
        """What its document has that nobody may see: the passwords of registries."""
        auths = (*(context.auth for context in self.contexts), *(service.auth for service in self.services))
        return tuple(dict.fromkeys(auth.password for auth in auths if auth is not None and auth.password))

    def is_shared(self, context: Context) -> bool:
        """Whether the container outlives a command: more than one command runs in it, one after another or at once."""
        steps = [step for step in self.steps() if step.context == context.id]
        return len(steps) > 1 or any(step.retries or step.reentry or step.failed for step in steps)


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """A network of the run, made under a physical name of the run's own; `is_external` uses `name` as it is."""

    name: str
    driver: str = "bridge"
    is_external: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Volume:
    """A volume of the run, made under a physical name of the run's own; `is_external` uses `name` as it is."""

    name: str
    driver: str = "local"
    is_external: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Pin:
    """An action that the plan was made from, by the SHA-256 of its text."""

    name: str
    version: int  # 0 for a predefined action
    sha256: str
    is_predefined: bool = False


class Overflow(StrEnum):
    """What becomes of a run that is submitted when its group is full."""

    QUEUE = "queue"  # it waits
    CANCEL_OLD = "cancel-old"  # the oldest of the group are cancelled until there is room
    REFUSE = "refuse"  # it is not taken


@dataclass(frozen=True, slots=True, kw_only=True)
class Concurrency:
    """At most `limit` runs of the group run at one time; a group is a name within a project."""

    group: str
    limit: int = 1
    overflow: Overflow = Overflow.QUEUE


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a run executes. Two plans with the same content have the same JSON and the same hash."""

    name: str
    dialect: Literal["pistages", "pipeline"]
    tasks: tuple[Task, ...]
    networks: tuple[Network, ...] = ()
    volumes: tuple[Volume, ...] = ()
    pins: tuple[Pin, ...] = ()
    start_node: str | None = None
    priority: int = 0
    queue: str = "default"
    concurrency: Concurrency | None = None
    notify: tuple[Notify, ...] = ()  # who is told of its end

    def task_of(self, name: str) -> Task:
        """The task called `name`; KeyError if there is none."""
        for task in self.tasks:
            if task.name == name:
                return task
        raise KeyError(name)


def _steps_below(node: Block) -> Iterator[Step]:
    for child in node.children:
        match child:
            case Step():
                yield child
            case Block():
                yield from _steps_below(child)


def redacted(plan: Plan) -> Plan:
    """The plan as people may see it: registry credentials replaced by stars, of URLs only where they lead to."""
    notify = tuple(replace(one, url=shown_url(one.url)) if one.url else one for one in plan.notify)
    return replace(plan, tasks=tuple(_redacted_task(task) for task in plan.tasks), notify=notify)


def _redacted_task(task: Task) -> Task:
    contexts = tuple(replace(context, auth=_redacted_auth(context.auth)) for context in task.contexts)
    services = tuple(replace(service, auth=_redacted_auth(service.auth)) for service in task.services)
    return replace(task, contexts=contexts, services=services)


def _redacted_auth(auth: RegistryAuth | None) -> RegistryAuth | None:
    return auth and RegistryAuth(username="***", password="***", server_address=auth.server_address)


def with_more_memory(task: Task, largest: int) -> Task | None:
    """The task as it is tried again after it ran out of memory; None if it is to have no more than it had.

    `largest` is the most that any agent offers: with more than that it would wait for ever.
    """
    growth, had = task.retry.memory, task.resources.memory_bytes
    if growth is None or not had:
        return None
    wanted = min(round(had * growth.factor), largest if growth.most is None else growth.most)
    if wanted <= had:
        return None
    contexts = tuple(
        replace(context, resources=_scaled(context.resources, wanted / had)) for context in task.contexts
    )  # fmt: skip
    return replace(task, contexts=contexts, resources=replace(task.resources, memory_bytes=wanted))


def _scaled(resources: Resources, factor: float) -> Resources:
    had = resources.memory_bytes
    return resources if had is None else replace(resources, memory_bytes=round(had * factor))


def environment_of(step: Step) -> dict[str, str]:
    """The step's environment: its `env`, and PISTAGE_PARAM_<NAME> for each of its parameters."""
    parameters = {f"PISTAGE_PARAM_{_environment_name(p.name)}": p.value for p in step.parameters}
    return dict(step.env) | parameters


def _environment_name(name: str) -> str:
    return "".join(char if char.isascii() and char.isalnum() else "_" for char in name).upper()
