"""What masters say to each other, and the entries they agree on.

Every message names its sender, its receiver and the sender's term; there is no other way to learn of a newer term.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, get_args

_ENTRY_BYTES: Final = 128


class Kind(StrEnum):
    """What an entry is to the core; only a `config` is read here, the rest is opaque."""

    NORMAL = "normal"
    NOOP = "noop"  # the first entry of each term (§8: a leader must commit one to know what is committed)
    CONFIG = "config"  # a new membership, in force from the moment it is appended (§4.1 of the dissertation)


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One place of the log. Two entries with the same index and term are the same entry (§5.3)."""

    index: int
    term: int
    kind: Kind = Kind.NORMAL
    payload: bytes = b""


def weight_of(payloads: Iterable[bytes]) -> int:
    """About how many bytes entries with these payloads take in memory; an empty one is not free."""
    return sum(len(payload) + _ENTRY_BYTES for payload in payloads)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Message:
    src: str
    dst: str
    term: int  # the sender's, when it was sent


@dataclass(frozen=True, slots=True, kw_only=True)
class PreVote(_Message):
    """Would you vote for me in term + 1? Asking changes nobody's term (§9.6 of the dissertation)."""

    last_index: int
    last_term: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PreVoteResp(_Message):
    """`for_term` is the term that was asked for, so that an answer to an older question is known as such."""

    for_term: int
    is_granted: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Vote(_Message):
    """Vote for me in this term (§5.2). `is_transfer` says that the leader asked for it: its lease is no obstacle."""

    last_index: int
    last_term: int
    is_transfer: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class VoteResp(_Message):
    """A grant is a promise: it leaves only after the vote is durable."""

    is_granted: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Append(_Message):
    """Entries that follow (`prev_index`, `prev_term`); none of them is a probe, or news of `commit` (§5.3)."""

    prev_index: int
    prev_term: int
    entries: tuple[Entry, ...]
    commit: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AppendResp(_Message):
    """`match_index`: I hold the leader's log through here, durably. A promise, like a vote."""

    match_index: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AppendReject(_Message):
    """I do not hold (`prev_index`, its term). No entry of mine at or below `hint_index` has a term above `hint_term`.

    Sent also with a newer term to a leader that was deposed without noticing.
    """

    prev_index: int
    hint_index: int
    hint_term: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Heartbeat(_Message):
    """The leader is here. `round` is the newest round of reads; `digest` is of the leader's state at `applied`."""

    commit: int  # never beyond what the receiver has acknowledged
    round: int
    applied: int = 0
    digest: bytes = b""
    same_at: int = 0  # the newest index at which a majority was found to have this leader's state


@dataclass(frozen=True, slots=True, kw_only=True)
class HeartbeatResp(_Message):
    """Sent past the disk's queue: it says that the sender is in this term, not that its disk works."""

    round: int
    applied: int
    is_disk_well: bool
    same_at: int = 0  # the newest index at which the sender's state was found to be this leader's
    differs: bool = False  # and whether it was ever found not to be


@dataclass(frozen=True, slots=True, kw_only=True)
class TimeoutNow(_Message):
    """Campaign at once; I hand over (§3.10 of the dissertation)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadIndex(_Message):
    """A follower asks how far it must have applied before it may answer a read. `ticket` is never used twice."""

    ticket: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadIndexResp(_Message):
    """The answer to `ticket`: apply through `index`, then read."""

    ticket: int
    index: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapOffer(_Message):
    """My log begins after `index` and you are behind that: fetch a snapshot at `index` or later (§7)."""

    index: int


Message = (
    PreVote
    | PreVoteResp
    | Vote
    | VoteResp
    | Append
    | AppendResp
    | AppendReject
    | Heartbeat
    | HeartbeatResp
    | TimeoutNow
    | ReadIndex
    | ReadIndexResp
    | SnapOffer
)

#: Every kind, for who carries them: a codec may use the place in it. New ones come last, none is ever taken away.
MESSAGE_KINDS: Final[tuple[type[Message], ...]] = get_args(Message)
