"""Retries: what is asked to be done again, and which tasks of the run that ended stand meanwhile."""

from __future__ import annotations

from pydantic import Field

from pistage.core import limits
from pistage.core.keeping import kept_after_failure, kept_before
from pistage.core.model import State
from pistage.errors import Code, PistageError
from pistage.master import reads
from pistage.master.api import bodies
from pistage.master.state import Snapshot

_EXPECTED = '{"failed": true}, {"from": task}, or nothing for the whole run'


class _Retry(bodies.Body):
    """What is to be done again: the whole run, what failed, or all from a task on."""

    failed: bool = False
    start: str | None = Field(None, alias="from", max_length=limits.NAME_CHARS_MAX)


def parse_retry(body: bytes) -> _Retry:
    """What was sent; PistageError `invalid` says what was expected."""
    asked = bodies.parse(body, _Retry, expected=_EXPECTED)
    if asked.failed and asked.start is not None:
        raise PistageError(
            Code.INVALID, "expected one of failed and from", hint="with from, what failed is tried again as well"
        )
    return asked


async def kept_in(snapshot: Snapshot, run_id: str, asked: _Retry) -> tuple[str, ...]:
    """The tasks of the run that stand; PistageError where it has not ended, or where nothing is to be done again."""
    ended = await reads.run_to_retry(snapshot, run_id)
    if not State(ended.state).is_terminal:
        raise PistageError(
            Code.CONFLICT,
            f"{ended.title} is {ended.state}: only a run that has ended is retried",
            hint=f"wait for it, or cancel it first: pistage cancel '{ended.title}'",
        )
    if asked.start is not None:
        return kept_before(ended.tasks, asked.start)
    return kept_after_failure(ended.tasks) if asked.failed else ()
