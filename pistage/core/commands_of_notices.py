"""Commands of notices: who is told of runs that end, and what became of each try to tell them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from pistage.core.model import Instant
from pistage.core.notices import Receiver, Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class PutReceiver:
    """Tell `receiver` of runs that end from now on; one of that name is replaced, also for notices on their way."""

    kind: Literal["put_receiver"] = "put_receiver"
    at: int
    project: str
    owner: str
    name: str
    receiver: Receiver


@dataclass(frozen=True, slots=True, kw_only=True)
class DeleteReceiver:
    """Tell it no more, also not of what has ended already."""

    kind: Literal["delete_receiver"] = "delete_receiver"
    at: int
    project: str
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordTry:
    """What became of a try to deliver a notice: its `number`, from 1, and when the next is due if it goes on.

    Refused unless it is the next one of a notice that waits: then another leader was faster.
    """

    kind: Literal["record_try"] = "record_try"
    at: int
    run_id: str
    position: int
    number: int
    verdict: Verdict
    due_at: Instant | None = None
    status: Annotated[int, Field(ge=0, le=999)] | None = None  # of the answer, if there was one
    reason: str = ""

    def __post_init__(self) -> None:
        # Whoever proposes must not be able to: it would never be tried again, nor end.
        if (self.due_at is not None) != (self.verdict is Verdict.WAITING):
            raise ValueError("a notice that waits is due at some time, and no other is")


NoticeCommand = PutReceiver | DeleteReceiver | RecordTry
