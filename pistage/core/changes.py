"""Changes: what applying a command means to the scheduler, as values by which the leader's view follows the state."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pistage.core.model import AgentInfo

#: A task: the id of its run, and its position in it.
TaskId = tuple[str, int]
Placing = Literal["spread", "pack"]


@dataclass(frozen=True, slots=True, kw_only=True)
class WaitingTask:
    """A queued task. Times are milliseconds UTC.

    `created_at` is its run's, and its place in the line: what has begun goes before what has not. `ready_at` is when
    it may be placed, `expires_at` when it has waited too long. `demand` is the JSON of its Demand. `group` is the
    concurrency group of its run, and `group_limit` how many of that may run. `tried_on` are agents that it has failed
    on.
    """

    run_id: str
    position: int
    name: str
    queue: str
    owner: str
    priority: int
    created_at: int
    ready_at: int
    demand: str
    expires_at: int | None = None
    gang: str | None = None
    group: str | None = None
    group_limit: int = 0
    tried_on: frozenset[str] = frozenset()

    @property
    def id(self) -> TaskId:
        return self.run_id, self.position


@dataclass(frozen=True, slots=True)
class TaskQueued:
    """A task waits for a place, or waits in another way than before."""

    task: WaitingTask


@dataclass(frozen=True, slots=True)
class TaskUnqueued:
    """A task waits no longer: it was cancelled, skipped or gave up."""

    run_id: str
    position: int


@dataclass(frozen=True, slots=True)
class RunReprioritised:
    """The priority of a run, and of all its tasks that wait."""

    run_id: str
    priority: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptBegun:
    """A task has a place: this is reserved there until the attempt ends."""

    attempt_id: str
    agent_id: str
    run_id: str
    position: int
    owner: str
    gang: str | None
    cpus_milli: int
    memory_bytes: int
    gpus: int


@dataclass(frozen=True, slots=True)
class AttemptEnded:
    """What was reserved for it is free again."""

    attempt_id: str


@dataclass(frozen=True, slots=True)
class RunBegun:
    """The run holds a place in its queue and its group, until its end."""

    run_id: str
    queue: str
    group: str | None


@dataclass(frozen=True, slots=True)
class RunEnded:
    """The run holds no place in its queue and its group any more."""

    run_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentChanged:
    """An agent as it is now. `reason` says why it is lost or drains."""

    info: AgentInfo
    epoch: int
    is_up: bool
    is_draining: bool
    drain_until: int | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class AgentRemoved:
    """Nobody expects this agent any more."""

    agent_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueSettings:
    """How a queue is served: its head start over others, how many of its runs run at one time, where its tasks go."""

    name: str
    priority: int = 0
    limit: int | None = None
    placing: Placing = "spread"


@dataclass(frozen=True, slots=True)
class QueueChanged:
    """A queue is served so from now on."""

    queue: QueueSettings


Change = (
    TaskQueued
    | TaskUnqueued
    | RunReprioritised
    | AttemptBegun
    | AttemptEnded
    | RunBegun
    | RunEnded
    | AgentChanged
    | AgentRemoved
    | QueueChanged
)
