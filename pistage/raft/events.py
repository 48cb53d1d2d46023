"""What the driver tells the core. `token` is the driver's name for a request; the answer carries it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from pistage.raft.log import Base
from pistage.raft.messages import Message
from pistage.raft.quorum import Change


@dataclass(frozen=True, slots=True, kw_only=True)
class Tick:
    """One unit of time has passed. After a stall of the loop: one tick, not as many as were missed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recv:
    """A message arrived; it may be late, repeated or out of order, but not altered."""

    message: Message


@dataclass(frozen=True, slots=True, kw_only=True)
class Propose:
    """Append these; answered at once by `Reply` with the index of the first, or a refusal."""

    token: int
    payloads: tuple[bytes, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Read:
    """How far must the state be applied for a read that begins now? Answered by `ReadReady` or a refusal."""

    token: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Durable:
    """This `Persist` and all before it are synced; `term` and `last_index` are the ones it carried."""

    seq: int
    term: int
    last_index: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Applied:
    """The state is at `index`, and was what `digests` say: the last of them at `index`, the one before at `index - 1`.

    They are compared between masters at equal indexes; give one for every entry applied, or none at all.
    """

    index: int
    digests: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Compact:
    """The state is durable through `index` without the log: entries up to there need not be kept."""

    index: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapInstalled:
    """A snapshot was fetched and verified, and lies beside the state; all of this was read from the file itself."""

    base: Base
    digest: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapFailed:
    """The fetch that `InstallSnap` asked for came to nothing; the leader will offer again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Transfer:
    """Hand leadership to `target`; the answer says that it was begun, the roles say how it went."""

    token: int
    target: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Conf:
    """Change the membership by one step; done when the entry in the answer is committed."""

    token: int
    change: Change


class Fault(StrEnum):
    """How a disk fails: `full` may pass, and the same write is tried again; after `failed` nothing it says is true."""

    FULL = "full"
    FAILED = "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskFault:
    """A `Persist` did not go through. `full` ends with the next `Durable`; no write may be left out."""

    fault: Fault


Event = (
    Tick
    | Recv
    | Propose
    | Read
    | Durable
    | Applied
    | Compact
    | SnapInstalled
    | SnapFailed
    | Transfer
    | Conf
    | DiskFault
)
