"""The shapes of what a master answers. Times are RFC 3339 text; keys a newer master adds are kept, not refused."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypedDict


class Step(TypedDict, total=False):
    """A step of an attempt."""

    id: str
    name: str
    image: str
    action: str | None
    state: str
    failure: str | None
    exit_code: int | None
    reason: str
    container: str
    started_at: str | None
    finished_at: str | None
    stdout_bytes: int | None
    stderr_bytes: int | None


class Attempt(TypedDict, total=False):
    """One try of a task on one agent."""

    id: str
    number: int
    agent_id: str
    agent_name: str
    runtime: str
    state: str
    failure: str | None
    exit_code: int | None
    reason: str
    fence: int
    assigned_at: str | None
    started_at: str | None
    finished_at: str | None
    steps: list[Step]


class Task(TypedDict, total=False):
    """A task of a run."""

    name: str
    state: str
    reason: str
    kept_from: str | None  # the run that it was kept from, whose attempts are shown
    cancel_reason: str | None
    queue_timeout_s: float | None
    on_partition: str
    waiting: str  # why a queued task waits
    is_placeable: bool  # whether an agent there is could ever take it
    needs: list[str]
    attempts: list[Attempt]


class Run(TypedDict, total=False):
    """A run; in lists it comes without `tasks`."""

    id: str
    number: int
    name: str
    project: str
    owner: str
    state: str
    reason: str
    priority: int
    queue: str
    concurrency: dict[str, Any] | None  # its group, and the limit of that
    retry_of: str | None  # the run that it tries again
    retry_of_number: int | None
    notes: list[str]
    warnings: list[dict[str, Any]]
    created_at: str
    started_at: str | None
    finished_at: str | None
    tasks: list[Task]
    applied_index: int


class Why(Run, total=False):
    """A run whose `tasks` say why they are where they are; `more` have not been told."""

    more: int


class Queue(TypedDict, total=False):
    """A queue: how it is served, and how many of its runs run and wait."""

    name: str
    priority: int
    limit: int | None
    placing: str
    is_set: bool  # something was said about it
    running: int
    waiting: int


class Agent(TypedDict, total=False):
    """An agent as the cluster knows it."""

    id: str
    name: str
    state: str
    reason: str
    is_connected: bool
    is_draining: bool
    drain_until: str | None  # when what it runs is to be stopped
    epoch: int
    version: str
    runtimes: list[str]
    labels: dict[str, str]
    capacity: dict[str, Any]
    used: dict[str, Any]
    last_seen: str | None


class Page(TypedDict, total=False):
    """One page of a list; `next` is the cursor of the one after it, or null."""

    items: list[Any]
    next: str | None
    applied_index: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One thing that happened to a run. `id` is where a broken stream goes on from."""

    id: str
    kind: str
    fields: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """Bytes of one stream ("stdout", "stderr") of one step; `number` orders the chunks of a run."""

    number: int
    task: str
    attempt: int
    step: str
    stream: str
    at: str
    data: bytes

    @property
    def origin(self) -> tuple[str, int, str, str]:
        """What tells its stream from the others of the run."""
        return self.task, self.attempt, self.step, self.stream


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Which output of a run: all of it, or that of a task, a step, an attempt, a stream."""

    task: str | None = None
    step: str | None = None
    attempt: str | None = None
    stream: str | None = None
    has_kept: bool = True  # also what tasks printed that were kept from an earlier run

    def parameters(self) -> dict[str, str]:
        """As the query of a request."""
        named = {"task": self.task, "step": self.step, "attempt": self.attempt, "stream": self.stream}
        given = {key: value for key, value in named.items() if value is not None}
        return given if self.has_kept else given | {"kept": "0"}
