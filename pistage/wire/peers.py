"""What masters say to each other: the hello of a link, then consensus messages, each one msgpack list.

A message is `[kind, src, dst, term, ...its other fields in order]`, an entry `[index, term, kind, payload]`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from operator import attrgetter
from typing import Any, Final, get_args

from pistage.core import codec
from pistage.errors import Code, PistageError
from pistage.raft.messages import Append, Entry, Kind, Message
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
            values[_ENTRIES_AT] = tuple(
                Entry(index=index, term=term, kind=Kind(kind), payload=payload)
                for index, term, kind, payload in values[_ENTRIES_AT]
            )
        message: Message = _KINDS[code](**dict(zip(_NAMES_OF[code], values, strict=True)))
    except (TypeError, ValueError, IndexError):
        raise PistageError(Code.INVALID, "not a message of the masters' protocol") from None
    return message
