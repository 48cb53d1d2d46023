"""What is not there of output: how much, why, and the sentence that says so to people."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from pistage.master.records import Record
from pistage.wire import GapReason

RETENTION: Final = "retention"  # beside the reasons that a record can have


@dataclass(frozen=True, slots=True)
class Missing:
    """`count` bytes, None where nobody knows how many; `text` is a sentence without its full stop."""

    count: int | None
    reason: str
    text: str


def missing_of(record: Record) -> Missing | None:
    """What the record of a gap says; None for one of output."""
    reason, count = record.gap, record.length or None
    if reason is None:
        return None
    if reason is GapReason.LIMIT and count is None:
        return Missing(None, reason, "the step or its run has printed as much as is kept: what follows is left out")
    if reason is GapReason.ENGINE:
        return Missing(count, reason, "the engine was away while the command ran: what was printed then may be missing")
    return lost(count or 0) if reason is GapReason.LOST else Missing(count, reason, f"{count:,} bytes were left out")


def lost(count: int) -> Missing:
    """Bytes that masters had acknowledged, and that are gone with them."""
    return Missing(count, GapReason.LOST, f"{count:,} bytes are lost: the masters that had them are gone")


def dropped(run: str, at: str, reason: str) -> Missing:
    """The output of a run, `name#42`, that was dropped."""
    return Missing(None, RETENTION, f"what {run} printed was dropped at {at}: {reason}")
