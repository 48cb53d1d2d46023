"""What masters say to each other: the hello of a link, then consensus messages, each one msgpack list.

A message is `[kind, src, dst, term, ...its other fields in order]`, an entry `[index, term, kind, payload]`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from operator import attrgetter
from typing import Any, Final, get_args, get_origin, get_type_hints

from pistage.core import codec
from pistage.errors import Code, PistageError
from pistage.raft.messages import Append, Entry, Kind, Message
from pistage.raft.quorum import Config
from pistage.wire.packing import pack_value, unpack_value

PEER_PROTOCOL: Final = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerHello:
    """Who opens a link, or who is asked: `group_id` is "" for a master that belongs to no group yet.

    `founders` are the node ids and URLs that the group began with, for a founder that has not heard of it; `members`
    those of now, by who has a leader, for one that was taken out.
    """

    protocol: int = PEER_PROTOCOL
    node_id: str
    group_id: str = ""
    url: str
    version: str
    command_version: int
    founders: dict[str, str]
    members: tuple[str, ...] = ()
    peers: tuple[str, ...] = ()  # the URLs it was configured with: founders must agree on them


def pack_hello(hello: PeerHello) -> bytes:
    """The first message of a link."""
    return pack_value(codec.to_plain(PeerHello, hello))


def unpack_hello(raw: bytes) -> PeerHello:
    """The hello in `raw`; PistageError `invalid` if it is none."""
    hello: PeerHello = codec.from_plain(PeerHello, unpack_value(raw))
    return hello


#: A kind of message is known by its place here: what is new goes to the end.
_KINDS: Final[tuple[type[Any], ...]] = get_args(Message)
_CODE: Final[Mapping[type[Any], int]] = {kind: n for n, kind in enumerate(_KINDS)}
_NAMES_OF: Final = [tuple(field.name for field in fields(kind)) for kind in _KINDS]
_VALUES_OF: Final = [attrgetter(*names) for names in _NAMES_OF]
#: What may stand in each place: past the door, the core takes it for granted.
_TYPES_OF: Final = [
    tuple(get_origin(hint) or hint for hint in (get_type_hints(kind)[name] for name in names))
    for kind, names in zip(_KINDS, _NAMES_OF, strict=True)
]
_NUMBER_MAX: Final = 1 << 63  # what SQLite holds
_APPEND: Final = _CODE[Append]
_ENTRIES_AT: Final = _NAMES_OF[_APPEND].index("entries")


def pack_peer_message(message: Message) -> bytes:
    """One WebSocket message of a link."""
    code = _CODE[type(message)]
    values = list(_VALUES_OF[code](message))
    if isinstance(message, Append):
        values[_ENTRIES_AT] = [(entry.index, entry.term, entry.kind, entry.payload) for entry in message.entries]
    return pack_value([code, *values])


def unpack_peer_message(raw: bytes) -> Message:
    """The message in `raw`; PistageError `invalid` if it is none of ours."""
    try:
        code, *values = unpack_value(raw)
        if code == _APPEND:
            values[_ENTRIES_AT] = tuple(_entry_in(*parts) for parts in values[_ENTRIES_AT])
        _refuse_unfit(values, _TYPES_OF[code])
        message: Message = _KINDS[code](**dict(zip(_NAMES_OF[code], values, strict=True)))
        if isinstance(message, Append):
            _refuse_gaps(message)
    except (TypeError, ValueError, LookupError):
        raise PistageError(Code.INVALID, "not a message of the masters' protocol") from None
    return message


def _entry_in(index: Any, term: Any, kind: Any, payload: Any) -> Entry:
    _refuse_unfit((index, term, payload), (int, int, bytes))
    entry = Entry(index=index, term=term, kind=Kind(kind), payload=payload)
    if entry.kind is Kind.CONFIG:
        Config.decode(payload)
    return entry


def _refuse_unfit(values: Sequence[Any], types: Sequence[type[Any]]) -> None:
    for value, kind in zip(values, types, strict=True):
        if type(value) is not kind or (kind is int and not 0 <= value < _NUMBER_MAX):
            raise ValueError("not what stands in that place")


def _refuse_gaps(message: Append) -> None:
    index, term = message.prev_index, message.prev_term
    for entry in message.entries:
        if entry.index != index + 1 or not term <= entry.term <= message.term:
            raise ValueError("entries that are not one after the other")
        index, term = entry.index, entry.term
