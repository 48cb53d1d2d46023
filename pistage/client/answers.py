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
    stdout_bytes: int | None  # as much as it printed
    stderr_bytes: int | None
    stdout_missing: int | None  # how much of that is not kept
    stderr_missing: int | None


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
    started_by: dict[str, Any]  # kind, and what there is of name, nominal, run and title
    state: str
    reason: str
    priority: int
    queue: str
    concurrency: dict[str, Any] | None  # its group, and the limit of that
    retry_of: str | None  # the run that it tries again
    retry_of_number: int | None
    notes: list[str]
    is_pinned: bool  # its output stays, whatever retention says
    output_bytes: int | None  # that its steps left, once it has ended
    output_dropped_at: str | None
    output_dropped_reason: str
    warnings: list[dict[str, Any]]
    created_at: str
    started_at: str | None
    finished_at: str | None
    tasks: list[Task]
    notices: list[dict[str, Any]]  # of its end
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


class Schedule(TypedDict, total=False):
    """A schedule: what it runs and when, its next times, and what became of its last one."""

    name: str
    definition: str | None
    action: str | None
    cron: str
    timezone: str
    is_enabled: bool
    paused_reason: str
    next: list[str]
    last: dict[str, Any] | None
    warnings: list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Triggers:
    """What was set for a definition that asks to be run by itself: its schedules, and what it comes after, if that."""

    schedules: list[Schedule]
    after: dict[str, Any] | None


class Webhook(TypedDict, total=False):
    """A webhook: what it runs, and what it makes of a payload; `secret` only where it was made just now."""

    name: str
    path: str
    action: str | None
    inputs: dict[str, str]
    when: dict[str, list[Any]]
    events: list[str]
    window_s: float
    deliveries: list[dict[str, Any]]  # the latest that made runs
    is_new: bool
    secret: str
    warnings: list[dict[str, Any]]


class Receiver(TypedDict, total=False):
    """Who is told of runs that end; of its URL only the host, of its headers the names."""

    name: str
    url: str
    on: list[str]
    pipelines: list[str] | None  # None: of all
    body: str
    headers: list[str]
    has_secret: bool
    owner: str
    changed_at: str


class Retention(TypedDict, total=False):
    """For how long output of a pipeline is kept, None being no such bound, and how much it has."""

    name: str  # "*" is all pipelines of which nothing else is said
    age_s: float | None
    bytes_max: int | None
    runs_max: int | None
    is_set: bool  # something was said about it
    runs: int  # that have ended and have their output; of "*" those of all pipelines
    output_bytes: int


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
    languages: list[str]  # of scripts that it runs without an image
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
class Source:
    """Where a piece or a line of output comes from: a stream ("stdout", "stderr") of a step, and when."""

    task: str
    attempt: int
    step: str
    stream: str
    at: str

    @property
    def origin(self) -> tuple[str, int, str, str]:
        """What tells its stream from the others of the run."""
        return self.task, self.attempt, self.step, self.stream


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk(Source):
    """Bytes of one stream of one step; `number` orders the chunks of a run, parts of a large one have the same."""

    number: int
    data: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Gap(Source):
    """Bytes that are not there: how many (None where nobody knows), and why, in a word and in a sentence."""

    number: int
    missing: int | None
    reason: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Line(Source):
    """A line of one stream, without its newline.

    A long one comes in parts: all but the last are `is_cut`. What no newline has ended yet `is_open`, and may come
    again with more of it; only the new part of that is told then. `run` and `title` (`name#42`) are there where many
    runs were searched.
    """

    line: int
    text: str
    is_cut: bool = False
    is_open: bool = False
    run: str = ""
    title: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Unread:
    """A run, `name#42`, whose output could not be searched, and why."""

    title: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Searched:
    """The end of a search over many runs: how many were looked at, and the cursor of those that were not."""

    runs: int
    next: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Which output of a run: all of it, or that of a task, a step, an attempt, a stream, a time.

    `since` and `until` are RFC 3339: since <= at < until. With `is_by_time` what several agents sent is told in the
    order of its times, and not as it came; that cannot be followed.
    """

    task: str | None = None
    step: str | None = None
    attempt: str | None = None
    stream: str | None = None
    has_kept: bool = True  # also what tasks printed that were kept from an earlier run
    since: str | None = None
    until: str | None = None
    is_by_time: bool = False

    def parameters(self) -> dict[str, str]:
        """As the query of a request."""
        named = {
            "task": self.task, "step": self.step, "attempt": self.attempt, "stream": self.stream,
            "since": self.since, "until": self.until,
        }  # fmt: skip
        given = {key: value for key, value in named.items() if value is not None}
        given |= {} if self.has_kept else {"kept": "0"}
        return given | ({"order": "time"} if self.is_by_time else {})


@dataclass(frozen=True, slots=True, kw_only=True)
class Pattern:
    """What a line must hold: a text, or with `is_regex` a match of an RE2 expression."""

    text: str
    is_regex: bool = False
    ignores_case: bool = False

    def parameters(self) -> dict[str, str]:
        """As the query of a request."""
        given = {"grep": self.text} | ({"regex": "1"} if self.is_regex else {})
        return given | ({"ignore_case": "1"} if self.ignores_case else {})
