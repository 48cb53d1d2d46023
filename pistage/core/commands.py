"""Everything that can change the cluster, typed; a command is the only thing that enters the replicated log.

The proposer fixes ids, chance and time (`at`, milliseconds UTC): applying a command is a function of the state alone.
A command is never changed in meaning once released; a new meaning is a new kind.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Final, Literal

from pydantic import AfterValidator, Discriminator

from pistage.core.changes import QueueSettings
from pistage.core.commands_of_notices import NoticeCommand
from pistage.core.commands_of_output import (
    ArchiveOutput,
    DeleteRetention,
    DropOutput,
    ForgetArchive,
    PinRun,
    PutRetention,
)
from pistage.core.commands_of_schedules import ScheduleCommand
from pistage.core.commands_of_triggers import TriggerCommand
from pistage.core.model import AgentInfo, Instant, Result, State, StreamEnd
from pistage.core.plan import Plan

#: The newest version of this file's commands. A leader proposes nothing that is newer than the cluster's version,
#: which is raised once every master knows it: a master that meets a command it does not know has to stop.
VERSION: Final = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundCluster:
    """The first entry: gives the cluster its id. Applied again with another id, it is rejected."""

    kind: Literal["found_cluster"] = "found_cluster"
    at: int
    cluster_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RegisterMaster:
    """Where a master is reached, and the newest version of the commands that it knows. It need not be a member yet."""

    kind: Literal["register_master"] = "register_master"
    at: int
    node_id: str
    url: str
    version: str  # of its program, for people
    command_version: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RaiseVersion:
    """From here on commands up to this version may come. The version never falls."""

    kind: Literal["raise_version"] = "raise_version"
    at: int
    command_version: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PutAction:
    """Register `text` under `name`: a new version, unless it is the newest one already."""

    kind: Literal["put_action"] = "put_action"
    at: int
    project: str
    owner: str
    name: str
    text: str
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DeleteAction:
    """Forget every version of `name`; runs that exist keep their plans."""

    kind: Literal["delete_action"] = "delete_action"
    at: int
    project: str
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SubmitRun:
    """Make a run. The same `request_key` and `request_sha256` again give the same answer; another body is refused.

    `request_key` is the client's Idempotency-Key, or None for a submission that may be made twice.
    """

    kind: Literal["submit_run"] = "submit_run"
    at: int
    run_id: str
    project: str
    owner: str
    plan: Plan
    source: str  # the document as it was submitted
    request_key: str | None = None
    request_sha256: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class NewRun:
    """A run of a batch: its id, and which of the batch's plans it executes."""

    run_id: str
    plan: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SubmitRuns:
    """Make many runs of one document at once, in this order, all or none.

    Runs with the same parameters share a plan, so that the log holds it once and no master prepares it twice. The
    request is remembered as a `SubmitRun`'s is, under one key for all.
    """

    kind: Literal["submit_runs"] = "submit_runs"
    at: int
    project: str
    owner: str
    plans: tuple[Plan, ...]
    runs: tuple[NewRun, ...]
    source: str  # the document as it was submitted
    request_key: str | None = None
    request_sha256: str = ""

    def __post_init__(self) -> None:
        # Whoever proposes must not be able to: it would stop every master that applies it.
        if not all(0 <= run.plan < len(self.plans) for run in self.runs):
            raise ValueError("a run of the batch has no plan")


@dataclass(frozen=True, slots=True, kw_only=True)
class CancelRun:
    """Cancel what has not ended; tasks that run stay `running` until their agent proves them gone."""

    kind: Literal["cancel_run"] = "cancel_run"
    at: int
    run_id: str
    owner: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CancelTask:
    """Cancel one task of a run; what needs it is skipped."""

    kind: Literal["cancel_task"] = "cancel_task"
    at: int
    run_id: str
    task: str
    owner: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryRun:
    """Make a run of the plan of one that has ended. Tasks in `kept` are not run again: they stand as they ended there.

    Refused unless each of `kept` has succeeded there. The request is remembered as a `SubmitRun`'s is.
    """

    kind: Literal["retry_run"] = "retry_run"
    at: int
    run_id: str
    retry_of: str
    owner: str
    kept: tuple[str, ...] = ()
    request_key: str | None = None
    request_sha256: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class SetRunPriority:
    """Give a run that has not ended another priority; it counts for its tasks that have no place yet."""

    kind: Literal["set_run_priority"] = "set_run_priority"
    at: int
    run_id: str
    priority: int
    owner: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpireTask:
    """A task has waited longer for a place than it may: it fails. Refused if it does not wait, or may yet."""

    kind: Literal["expire_task"] = "expire_task"
    at: int
    run_id: str
    position: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PutQueue:
    """How a queue is served from now on. `limit` is how many of its runs may run at one time, None any number."""

    kind: Literal["put_queue"] = "put_queue"
    at: int
    queue: QueueSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class DeleteQueue:
    """Serve a queue as any that nothing was said about."""

    kind: Literal["delete_queue"] = "delete_queue"
    at: int
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RegisterAgent:
    """An agent came. A new incarnation gets a higher epoch; the answer carries it."""

    kind: Literal["register_agent"] = "register_agent"
    at: int
    info: AgentInfo


@dataclass(frozen=True, slots=True, kw_only=True)
class LoseAgent:
    """The agent's lease ran out: its live attempts end as lost, and their tasks retry as their policy says."""

    kind: Literal["lose_agent"] = "lose_agent"
    at: int
    agent_id: str
    epoch: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PauseLosses:
    """So many agents fell silent at once that the masters are the likelier cause: none is declared lost until then."""

    kind: Literal["pause_losses"] = "pause_losses"
    at: int
    until: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SetAgentDrain:
    """Give a drained agent no new work (`is_draining`), or let it take work again.

    What it runs goes on; from `until` on it is stopped and tried elsewhere. None: it may take its time.
    """

    kind: Literal["set_agent_drain"] = "set_agent_drain"
    at: int
    agent_id: str
    is_draining: bool
    until: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoveAgent:
    """Forget an agent. Refused while it has work, unless that is to be given up (`is_forced`): it ends as lost."""

    kind: Literal["remove_agent"] = "remove_agent"
    at: int
    agent_id: str
    is_forced: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """A queued task, the attempt that it gets, and where."""

    attempt_id: str
    run_id: str
    position: int
    agent_id: str
    agent_epoch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AssignTasks:
    """Place queued tasks. The entry's log index is the fence of each attempt.

    Each is taken or refused by itself, refused if anything it relied on has changed; the answer says which and why.
    """

    kind: Literal["assign_tasks"] = "assign_tasks"
    at: int
    assignments: tuple[Assignment, ...]


def _ended(result: Result) -> Result:
    if not result.state.is_terminal:
        raise ValueError(f"nothing ends {result.state}")
    if result.state is State.SUCCEEDED and result.failure is not None:
        raise ValueError("a success has no class of failure")
    return result


def _attempt_ended(result: Result) -> Result:
    if result.state is State.SKIPPED:
        raise ValueError("an attempt that was assigned is not skipped")
    return result


# An entry of the log that the state machine cannot carry out would stop the master at every start (S8): what an
# agent says is therefore checked where it comes in, before it is proposed.
Ended = Annotated[Result, AfterValidator(_ended)]
AttemptEnded = Annotated[Ended, AfterValidator(_attempt_ended)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Accepted:
    """The agent has journalled the assignment and will see it through."""

    kind: Literal["accepted"] = "accepted"
    at: Instant
    attempt_id: str
    fence: int
    runtime: str = ""
    notes: tuple[str, ...] = ()  # what a person must know: "images were not used", …


@dataclass(frozen=True, slots=True, kw_only=True)
class StepStarted:
    """A step's command runs. `container` is the engine's id of it, or "" where there is none."""

    kind: Literal["step_started"] = "step_started"
    at: Instant
    attempt_id: str
    fence: int
    step: str
    container: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepFinished:
    """A step ended, or was skipped; `stdout` and `stderr` say how much output there is to be had."""

    kind: Literal["step_finished"] = "step_finished"
    at: Instant
    attempt_id: str
    fence: int
    step: str
    result: Ended
    stdout: StreamEnd | None = None
    stderr: StreamEnd | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """The attempt ended and its processes are proven gone."""

    kind: Literal["finished"] = "finished"
    at: Instant
    attempt_id: str
    fence: int
    result: AttemptEnded


AttemptEvent = Annotated[Accepted | StepStarted | StepFinished | Finished, Discriminator("kind")]


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordEvents:
    """What agents reported, in order. Each event is taken or refused by itself; the answer has a verdict for each."""

    kind: Literal["record_events"] = "record_events"
    at: int
    events: tuple[AttemptEvent, ...]


Command = Annotated[
    FoundCluster
    | RegisterMaster
    | RaiseVersion
    | PutAction
    | DeleteAction
    | SubmitRun
    | SubmitRuns
    | RetryRun
    | CancelRun
    | CancelTask
    | SetRunPriority
    | ExpireTask
    | PutQueue
    | DeleteQueue
    | PinRun
    | PutRetention
    | DeleteRetention
    | DropOutput
    | ArchiveOutput
    | ForgetArchive
    | ScheduleCommand
    | TriggerCommand
    | NoticeCommand
    | RegisterAgent
    | LoseAgent
    | PauseLosses
    | SetAgentDrain
    | RemoveAgent
    | AssignTasks
    | RecordEvents,
    Discriminator("kind"),
]

#: Since which version a kind of command exists; those that are not named, since the first.
_SINCE: Final[dict[type, int]] = {}


def version_of(command: Command) -> int:
    """Which version of this file a master must know to carry the command out."""
    return _SINCE.get(type(command), 1)
