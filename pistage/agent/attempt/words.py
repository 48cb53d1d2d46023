"""The sentences in which an attempt says how something ended, and the environment that its steps are given."""

from __future__ import annotations

import signal
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime

from pistage.agent.masking import Masks
from pistage.agent.runtimes.base import Exit
from pistage.core import limits
from pistage.core.model import Result, State
from pistage.core.plan import Context, FailureClass, Step, When, environment_of
from pistage.wire import Assign

_RESERVED = "PISTAGE_"


def result_of(ended: Exit, context: Context) -> Result:
    """How a step whose last command ended so has ended."""
    if ended.code == 0:
        return Result(state=State.SUCCEEDED, exit_code=0)
    if ended.is_oom:
        limit = context.resources.memory_bytes
        amount = f" of {limit / limits.MIB:g} MiB" if limit else ""
        reason = f"killed for using more memory than its limit{amount}"
        return Result(state=State.FAILED, failure=FailureClass.OOM, exit_code=ended.code, reason=reason)
    reason = f"the command ended with exit code {ended.code}"
    if (name := _signal_name(ended.code)) is not None:
        reason = f"the command was killed by signal {ended.code - 128} ({name})"
    return Result(state=State.FAILED, failure=FailureClass.FAILURE, exit_code=ended.code, reason=reason)


def _signal_name(code: int) -> str | None:
    try:
        return signal.Signals(code - 128).name
    except ValueError:
        return None


def failed(failure: FailureClass, reason: str, exit_code: int | None = None) -> Result:
    """A step or an attempt that failed for `reason`."""
    state = State.LOST if failure is FailureClass.LOST else State.FAILED
    return Result(state=state, failure=failure, exit_code=exit_code, reason=reason[: limits.REASON_CHARS_MAX])


def skipped(reason: str) -> Result:
    """A step that did not run."""
    return Result(state=State.SKIPPED, reason=reason[: limits.REASON_CHARS_MAX])


def unmet(when: When, *, has_failed: bool) -> str | None:
    """Why a step that runs `when` does not run, or None if it does."""
    match when:
        case When.SUCCESS if has_failed:
            return "an earlier step failed"
        case When.FAILURE if not has_failed:
            return "no earlier step failed"
        case _:
            return None


def masked(result: Result, masks: Masks) -> Result:
    """The same without secrets: an engine quotes the command that it could not start, and services their output."""
    if not masks or not result.reason:
        return result
    is_cut = len(result.reason) >= limits.REASON_CHARS_MAX
    return replace(result, reason=masks.in_text(result.reason, is_cut=is_cut))


def seconds(amount: float) -> str:
    """ "30 s" for people."""
    return f"{amount:g} s"


def environment(assign: Assign, step: Step, agent: str) -> Mapping[str, str]:
    """A step's environment beside what its image sets; nothing of the document's own can be called PISTAGE_*."""
    own = {name: value for name, value in step.env.items() if not name.startswith(_RESERVED)}
    known = {
        "PISTAGE_RUN_ID": assign.run_id,
        "PISTAGE_RUN_NUMBER": str(assign.run_number),
        "PISTAGE_RUN_NAME": assign.run_name,
        "PISTAGE_TASK": assign.task.name,
        "PISTAGE_STEP": step.name,
        "PISTAGE_ATTEMPT": str(assign.number),
        "PISTAGE_FENCE": str(assign.fence),
        "PISTAGE_AGENT": agent,
    }
    if assign.scheduled_at is not None:
        moment = datetime.fromtimestamp(assign.scheduled_at / 1000, UTC)
        known["PISTAGE_SCHEDULED_AT"] = moment.isoformat(timespec="seconds").replace("+00:00", "Z")
    return environment_of(replace(step, env=own)) | known
