"""What an agent and its master say to each other.

A message is a frozen dataclass with a `kind`. On the session's socket each WebSocket message is one msgpack list:
`[kind, fields]`, but a `LogFrame` is `["log", attempt, step, stream, offset, at, codec, data]`, so that its bytes are
copied once. `PROTOCOL` is raised when a meaning changes; both ends refuse what they do not speak.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any, Final, Literal

from pydantic import Field

from pistage.core import codec, limits
from pistage.core.commands import AttemptEvent
from pistage.core.model import INSTANT_MAX, AgentInfo, Instant
from pistage.core.plan import Network, Task, Volume
from pistage.errors import Code, PistageError
from pistage.wire.codecs import Codec, compress, decompress
from pistage.wire.packing import pack_value, pack_with_bytes, unpack_value

PROTOCOL: Final = 2


# --- agent -> master -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """An attempt that the agent has in its journal and whose end has not been acknowledged yet."""

    attempt_id: str
    run_id: str
    fence: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Hello:
    """The agent's first message: who it is and what it still holds."""

    kind: Literal["hello"] = "hello"
    protocol: int = PROTOCOL
    info: AgentInfo
    held: tuple[Held, ...] = ()
    is_leaving: bool = False  # it sees its work through and takes no more


@dataclass(frozen=True, slots=True, kw_only=True)
class Heartbeat:
    """Sent every `heartbeat_s` of the Welcome; the lease runs from when the agent sent the one that was answered."""

    kind: Literal["heartbeat"] = "heartbeat"
    number: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Leaving:
    """From here on the agent takes no new work: it stops once what it has is done, or its time for that is over."""

    kind: Literal["leaving"] = "leaving"


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """Events in order; `number` rises by one with each report of a session and comes back in `Reported`."""

    kind: Literal["report"] = "report"
    number: int
    events: Annotated[tuple[AttemptEvent, ...], Field(max_length=limits.REPORT_BATCH_MAX)]


@dataclass(frozen=True, slots=True, kw_only=True)
class LogFrame:
    """Bytes of one stream (1 stdout, 2 stderr) of one step, starting at byte `offset` of that stream.

    `at` is when the agent read them, milliseconds UTC. At most `limits.FRAME_BYTES_MAX` bytes; on the way they may be
    compressed, by a codec of the Welcome.
    """

    attempt_id: str
    step: str
    stream: int
    offset: int
    at: int
    data: bytes


class GapReason(StrEnum):
    """Why output is not there."""

    LIMIT = "limit"  # more was printed than is kept
    ENGINE = "engine"  # the engine was away while the command ran
    LOST = "lost"  # the masters that had it are gone


@dataclass(frozen=True, slots=True, kw_only=True)
class LogGap:
    """`length` bytes of a stream from byte `offset` on will not come; 0 where the agent cannot tell how many.

    It takes its place in the stream as a frame does: what follows begins at `offset + length`.
    """

    kind: Literal["log_gap"] = "log_gap"
    attempt_id: str
    step: str
    stream: int
    offset: int
    length: int
    at: int
    reason: GapReason

    @property
    def data(self) -> bytes:
        """What it carries, as a frame does."""
        return b""


# --- master -> agent -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What to do with a held attempt: go on, or stop it and remove what it made."""

    attempt_id: str
    is_kept: bool
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Welcome:
    """The master's answer to Hello. `live_runs` are the runs whose networks and volumes this agent must keep."""

    kind: Literal["welcome"] = "welcome"
    protocol: int = PROTOCOL
    cluster_id: str
    epoch: int
    heartbeat_s: float
    lease_s: float
    codecs: tuple[int, ...] = (0,)  # that a LogFrame's bytes may have, see `wire.codecs`
    verdicts: tuple[Verdict, ...] = ()
    live_runs: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class HeartbeatAck:
    """The master is in contact with a quorum and heard heartbeat `number`."""

    kind: Literal["heartbeat_ack"] = "heartbeat_ack"
    number: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Assign:
    """Execute `task` as attempt `attempt_id`. A repeat for an attempt the agent has is answered with its events."""

    kind: Literal["assign"] = "assign"
    attempt_id: str
    fence: int
    run_id: str
    run_number: int
    run_name: str
    number: int  # the attempt's number in its task, from 1
    cluster_id: str
    task: Task
    networks: tuple[Network, ...] = ()
    volumes: tuple[Volume, ...] = ()
    scheduled_at: Instant | None = None  # the time of its schedule that the run is for, milliseconds UTC
    masks: tuple[str, ...] = ()  # what must not be seen in the output, in any of its usual spellings


@dataclass(frozen=True, slots=True, kw_only=True)
class Cancel:
    """Stop the attempt: stop signal, grace, kill. A `Finished` follows once its processes are proven gone."""

    kind: Literal["cancel"] = "cancel"
    attempt_id: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Evict:
    """Stop the attempt as `Cancel` does, but as lost: it is tried again elsewhere."""

    kind: Literal["evict"] = "evict"
    attempt_id: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Reported:
    """The events of report `number` are committed. `refused` attempts have a stale fence: stop and remove them."""

    kind: Literal["reported"] = "reported"
    number: int
    refused: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class LogAck:
    """The master holds this stream durably up to byte `length`, but for the `missing` bytes of its gaps.

    `is_gap` says the last frame began beyond what the master has: send again from `length`. `is_full` says that more is
    not kept but its end: a LogGap of reason `limit`, and at most `limits.LOG_TAIL_BYTES_MAX` behind it.
    """

    kind: Literal["log_ack"] = "log_ack"
    attempt_id: str
    step: str
    stream: int
    length: int
    missing: int = 0
    is_gap: bool = False
    is_full: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class LogRefused:
    """The master cannot keep this stream now (its disk is full, say); the agent waits and tries again.

    With `is_final` it never will (the attempt is not the agent's): the agent ends the step with this reason.
    """

    kind: Literal["log_refused"] = "log_refused"
    attempt_id: str
    step: str
    stream: int
    reason: str
    is_final: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """The run ended: its networks, volumes and other objects may go."""

    kind: Literal["release"] = "release"
    run_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Goodbye:
    """The sender ends the session on purpose and says why; the agent tries `leader` next, where one is named."""

    kind: Literal["goodbye"] = "goodbye"
    reason: str
    leader: str = ""  # the URL of the master to go on with


ToMaster = Hello | Heartbeat | Leaving | Report | LogFrame | LogGap | Goodbye
ToAgent = Welcome | HeartbeatAck | Assign | Cancel | Evict | Reported | LogAck | LogRefused | Release | Goodbye

_MESSAGES: Mapping[str, type[Any]] = {
    "hello": Hello,
    "heartbeat": Heartbeat,
    "leaving": Leaving,
    "report": Report,
    "log_gap": LogGap,
    "welcome": Welcome,
    "heartbeat_ack": HeartbeatAck,
    "assign": Assign,
    "cancel": Cancel,
    "evict": Evict,
    "reported": Reported,
    "log_ack": LogAck,
    "log_refused": LogRefused,
    "release": Release,
    "goodbye": Goodbye,
}


def pack_message(message: ToMaster | ToAgent, log_codec: Codec = Codec.RAW) -> bytes:
    """One WebSocket message; `log_codec` is for the bytes of a LogFrame."""
    if isinstance(message, LogFrame):
        header = ("log", message.attempt_id, message.step, message.stream, message.offset, message.at, int(log_codec))
        return pack_with_bytes(header, compress(log_codec, message.data))
    return pack_value([message.kind, codec.to_plain(type(message), message)])


def unpack_message(raw: bytes) -> ToMaster | ToAgent:
    """The message in `raw`; PistageError `invalid` if it is none of ours."""
    match unpack_value(raw):
        case ["log", str(attempt), str(step), 1 | 2 as stream, int(offset), int(at), int(packed_by), bytes(packed)]:
            data = decompress(packed_by, packed, limits.FRAME_BYTES_MAX)
            return _checked(LogFrame(attempt_id=attempt, step=step, stream=stream, offset=offset, at=at, data=data))
        case [str(kind), dict(fields)] if kind in _MESSAGES:
            message: ToMaster | ToAgent = codec.from_plain(_MESSAGES[kind], fields)
            return _checked(message) if isinstance(message, LogGap) else message
        case _:
            raise PistageError(Code.INVALID, "not a message of the session protocol")


def _checked(message: LogFrame | LogGap) -> LogFrame | LogGap:
    # What the index of the output and the readers' dates can hold; our agents send nothing else. In Python true is a 1.
    step, numbers = message.step, (message.stream, message.offset, message.at)
    is_step = step.isascii() and step.isdigit() and step[0] != "0" and len(step) <= len(str(limits.PLAN_STEPS_MAX))
    is_step = is_step and int(step) <= limits.PLAN_STEPS_MAX
    is_placed = 0 <= message.offset < 1 << 53 and 0 <= message.at <= INSTANT_MAX and message.stream in {1, 2}
    is_placed = is_placed and all(type(number) is int for number in numbers)
    if isinstance(message, LogGap):
        is_placed = is_placed and 0 <= message.length < 1 << 53
    if not (is_step and is_placed):
        raise PistageError(Code.INVALID, "not a frame of output: its step, stream, offset or time is out of range")
    return message
