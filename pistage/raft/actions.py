"""What the core asks of the driver, to be carried out in the order given."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from pistage.raft.log import Base
from pistage.raft.messages import Entry, Message


@dataclass(frozen=True, slots=True, kw_only=True)
class HardState:
    """What a node must never forget (figure 2): the term it is in, and whom it voted for there."""

    term: int = 0
    vote: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Persist:
    """Write all of this in one transaction, after every earlier one, sync, then say `Durable(seq, term, last_index)`.

    In this order: `install` empties the log and makes its snapshot the state; `base` drops the entries it covers;
    `truncate_from` drops that entry and all after it; `entries` follow. Several may share a transaction and a sync.
    """

    seq: int
    term: int
    last_index: int  # of the log once this is done
    hard_state: HardState | None = None
    install: Base | None = None
    base: Base | None = None
    truncate_from: int | None = None
    entries: tuple[Entry, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Send:
    """Send once `Persist(after_seq)` is durable; at once if None. May be lost; must not be altered."""

    message: Message
    after_seq: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Apply:
    """These are committed and durable here: apply them in order, all kinds, then say `Applied`."""

    entries: tuple[Entry, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadReady:
    """The read `token` may be served from a state at `index` or later, and from no older one."""

    token: int
    index: int


class Refusal(StrEnum):
    """Why a request was not taken. Nothing has been done; trying again may help unless it says otherwise."""

    NOT_LEADER = "not_leader"
    OVERLOADED = "overloaded"  # too much is uncommitted, or too many reads wait
    TRANSFERRING = "transferring"  # another will be leader in a moment
    NOT_READY = "not_ready"  # nothing of this term is committed yet
    BUSY = "busy"  # another change of the membership is not committed yet
    BEHIND = "behind"  # a learner must catch up before it is promoted
    NO_MAJORITY = "no_majority"  # of those who would decide from then on, too few have been heard of lately
    UNKNOWN = "unknown"  # no such member, or the step makes no sense for it; trying again does not help
    TIMED_OUT = "timed_out"  # the leader did not answer a forwarded read


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """The answer to a request. Taken: the first entry is at (`index`, `term`), and is done when that is applied.

    If another term's entry is applied at `index`, the request is lost and was not done.
    """

    token: int
    index: int = 0
    term: int = 0
    refusal: Refusal | None = None
    leader: str | None = None  # who to ask instead, as far as is known


@dataclass(frozen=True, slots=True, kw_only=True)
class InstallSnap:
    """Fetch a snapshot at `index` or later from `source`; then `SnapInstalled` or `SnapFailed`.

    It takes the place of an earlier one that has not ended: there is another leader.
    """

    source: str
    index: int


class RoleName(StrEnum):
    """What a node is in its term. A learner is a follower that is not a voter."""

    FOLLOWER = "follower"
    PRE_CANDIDATE = "pre_candidate"
    CANDIDATE = "candidate"
    LEADER = "leader"


@dataclass(frozen=True, slots=True, kw_only=True)
class Role:
    """Role, term or known leader changed."""

    role: RoleName
    term: int
    leader: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Fatal:
    """Going on could break a promise: stop the process, and say why. The core is deaf from here on."""

    reason: str
    is_state_damaged: bool = False  # it is this node's state that is wrong: not to be started on again


Action = Persist | Send | Apply | ReadReady | Reply | InstallSnap | Role | Fatal
