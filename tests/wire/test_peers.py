"""What masters say to each other: it arrives as it was sent, and nothing else gets past the door."""

from typing import Any

import pytest

from pistage import raft, wire
from pistage.errors import PistageError

ENTRIES = (
    raft.Entry(index=8, term=2, payload=b"x"),
    raft.Entry(index=9, term=3, kind=raft.Kind.NOOP),
    raft.Entry(index=10, term=3, kind=raft.Kind.CONFIG, payload=raft.Config(voters=("a", "b")).encode()),
)
APPEND = raft.Append(src="a", dst="b", term=3, prev_index=7, prev_term=2, entries=ENTRIES, commit=7)
PLAIN: list[Any] = wire.unpack_value(wire.pack_peer_message(APPEND))


@pytest.mark.parametrize("kind", raft.MESSAGE_KINDS)
def test_a_message_of_every_kind_arrives_as_it_was_sent(kind: type[Any]) -> None:
    made = {"int": 1, "str": "a", "bool": True, "bytes": b"d", "tuple[Entry, ...]": ()}
    types = {name: one for base in reversed(kind.__mro__) for name, one in getattr(base, "__annotations__", {}).items()}
    message = kind(**{name: made[one] for name, one in types.items()})
    assert wire.unpack_peer_message(wire.pack_peer_message(message)) == message


def test_entries_arrive_as_they_were_sent() -> None:
    assert wire.unpack_peer_message(wire.pack_peer_message(APPEND)) == APPEND


@pytest.mark.parametrize(
    "garbage",
    [
        None, [], {}, 7, [99], ["x"], [0], [0, "a", "b", "3", 1, 1], [0, "a", "b", None, 1, 1], [0, "a", "b", -1, 1, 1],
        [0, "a", "b", 1 << 63, 1, 1], [0, "a", "b", True, 1, 1], [0, b"a", "b", 3, 1, 1], [0, "a", "b", 3, 1, 1, 1],
        [3, "a", "b", 3, 1], [3, "a", "b", 3, "yes"],
    ],
)  # fmt: skip
def test_what_is_no_message_is_refused(garbage: object) -> None:
    with pytest.raises(PistageError, match="not a message"):
        wire.unpack_peer_message(wire.pack_value(garbage))


@pytest.mark.parametrize(
    "entries",
    [
        [[9, 2, "normal", b""]],  # a gap
        [[8, 1, "normal", b""]],  # its term falls
        [[8, 4, "normal", b""]],  # a term that its leader has not reached
        [[8, 3, "normal", b""], [8, 3, "normal", b""]],
        [[8, 3, "normal", "text"]],
        [[8, 3, "odd", b""]],
        [[8, 3, "config", b"{}"]],
        [[8, 3, "config", b"["]],
        [[8, 3]],
        [8],
        8,
    ],
)
def test_entries_that_no_log_could_hold_are_refused(entries: object) -> None:
    plain = [entries if one == PLAIN[6] else one for one in PLAIN]
    assert plain != PLAIN
    with pytest.raises(PistageError, match="not a message"):
        wire.unpack_peer_message(wire.pack_value(plain))
