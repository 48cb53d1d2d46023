"""States, their transitions, and the values that describe agents and attempts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Annotated, Final

from pydantic import Field

from pistage.core.plan import FailureClass

COUNT_MAX: Final = 1 << 53
INSTANT_MAX: Final = 253_402_300_799_999  # the end of the year 9999, where Python's and RFC 3339's dates end
#: Milliseconds UTC that another process tells.
Instant = Annotated[int, Field(ge=0, le=INSTANT_MAX)]
#: A number that another process tells: exact in JSON and in SQLite, and so are sums of them.
Count = Annotated[int, Field(ge=0, le=COUNT_MAX)]


class State(StrEnum):
    """The state of a run, a task, an attempt or a step."""

    PENDING = "pending"  # waits for what it needs
    QUEUED = "queued"  # could start; waits for a place (a task), or none of its tasks has one yet (a run)
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    LOST = "lost"
    SKIPPED = "skipped"

    @property
    def is_terminal(self) -> bool:
        return self in _TERMINAL


_TERMINAL = frozenset({State.SUCCEEDED, State.FAILED, State.CANCELLED, State.LOST, State.SKIPPED})

#: Every transition there is, for runs and tasks alike; what is absent is an error. `running -> queued` is a retry;
#: `succeeded` and its like never change again.
TRANSITIONS: Mapping[State, frozenset[State]] = {
    State.PENDING: frozenset({State.QUEUED, State.SKIPPED, State.CANCELLED, State.FAILED}),
    State.QUEUED: frozenset({State.RUNNING, State.SUCCEEDED, State.SKIPPED, State.CANCELLED, State.FAILED}),
    State.RUNNING: frozenset({State.QUEUED, State.SUCCEEDED, State.FAILED, State.CANCELLED, State.LOST}),
    State.SUCCEEDED: frozenset(),
    State.FAILED: frozenset(),
    State.CANCELLED: frozenset(),
    State.LOST: frozenset(),
    State.SKIPPED: frozenset(),
}


def check_transition(subject: str, old: State, new: State) -> None:
    """Raise AssertionError, a bug of ours, unless the table allows `old` -> `new`."""
    if new not in TRANSITIONS[old]:
        raise AssertionError(f"{subject}: no transition {old} -> {new}")


class Starter(StrEnum):
    """What makes runs."""

    API = "api"
    RETRY = "retry"
    SCHEDULE = "schedule"
    WEBHOOK = "webhook"
    RUN = "run"  # the end of another


@dataclass(frozen=True, slots=True, kw_only=True)
class Trigger:
    """What started a run: of a schedule its name and the time that the run is for; of a webhook its name; of a retry
    the run before it; of the end of a run that run, with its `name#42`, and at which place of a chain of such it is."""

    kind: Starter = Starter.API
    name: str = ""
    nominal: Instant | None = None
    run_id: str = ""
    depth: Count = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Capacity:
    """What an agent offers to tasks: thousandths of a core, bytes, devices, and places."""

    cpus_milli: Count
    memory_bytes: Count
    gpus: Count = 0
    slots: Count = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentInfo:
    """What an agent says of itself when it registers.

    `incarnation` is made anew at each start of the process, so the same agent without its memory is told apart.
    `runtimes` are of "docker", "sandbox", "host", the preferred one first.
    """

    id: str
    name: str
    incarnation: str
    version: str
    runtimes: tuple[str, ...]
    capacity: Capacity
    labels: Mapping[str, str] = field(default_factory=dict)
    languages: tuple[str, ...] = ()  # of scripts that it can run without an image
    installs: tuple[str, ...] = ()  # of these, the ones whose requirements it can install
    ignores_images: bool = False  # `dev` without an engine: steps run in a sandbox and the run says so


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamEnd:
    """How much was printed to a stream in the end: bytes, the SHA-256 of them all as hex, how many are not kept."""

    length: Count
    sha256: str
    missing: Count = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """How an attempt or a step ended; `failure` is None exactly when the state is succeeded, cancelled or skipped."""

    state: State
    failure: FailureClass | None = None
    exit_code: Annotated[int, Field(ge=-(1 << 31), lt=1 << 32)] | None = None
    reason: str = ""
