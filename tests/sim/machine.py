"""A small state machine: registers, each request carried out once, and a digest of all that was applied.

A payload is one of these, in words: `REQUEST KEY VALUE AT`, a write, with `2 ` before it if only masters of version 2
know it; `~ MASTER VERSION`, what a master knows; `^ VERSION`: from here on commands up to that version may come.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from hashlib import blake2b
from typing import Protocol, Self

from pistage import raft

KNOWS, RAISE = "~", "^"
_NEW = b"2 "


def version_of(entry: raft.Entry) -> int:
    """What a master must know to apply this."""
    return 2 if entry.payload.startswith(_NEW) else 1


def words_of(payload: bytes) -> list[str]:
    """Without the mark of its version."""
    return payload.removeprefix(_NEW).decode().split(" ")


def write_of(request: str, key: str, value: str, at: int, version: int = 1) -> bytes:
    """The payload of a write."""
    return (_NEW if version == 2 else b"") + f"{request} {key} {value} {at}".encode()


class Machine(Protocol):
    """What a host applies entries to. `index`, `term` and `config` are part of the state, as a snapshot needs them."""

    index: int
    term: int
    config: raft.Config
    digest: bytes
    at: int  # the newest time in any command
    version: int  # of the commands that may come
    is_rotten: bool  # the simulator has damaged it, and nobody was told

    @property
    def known(self) -> Mapping[str, int]:
        """The version that each master has said it knows."""

    def apply(self, entry: raft.Entry) -> bool:
        """Take the next entry; tells whether its request was carried out now, for the first time."""

    def value(self, key: str) -> str: ...

    def rot(self) -> None:
        """From here on the state is not what the log says."""

    def copy(self) -> Self:
        """What a crash, or another master, can be given: later applies do not change it."""


MachineFactory = Callable[[raft.Config], Machine]


class Registers:
    """Keys and their values."""

    __slots__ = ("at", "config", "digest", "index", "is_rotten", "known", "requests", "term", "values", "version")

    def __init__(self, config: raft.Config) -> None:
        self.index = self.term = self.at = 0
        self.version = 1
        self.is_rotten = False
        self.config = config
        self.digest = b""
        self.known: dict[str, int] = {}
        self.values: dict[str, str] = {}
        self.requests: dict[str, int] = {}

    def apply(self, entry: raft.Entry) -> bool:
        assert entry.index == self.index + 1, f"{entry.index} applied after {self.index}"
        self.index, self.term = entry.index, entry.term
        is_new = False
        if entry.kind is raft.Kind.CONFIG:
            self.config = raft.Config.decode(entry.payload)
            self.known = {name: version for name, version in self.known.items() if name in self.config.members}
        elif entry.kind is raft.Kind.NORMAL:
            is_new = self._write(words_of(entry.payload))
        self.digest = blake2b(b"%b%d %d %b" % (self.digest, entry.index, is_new, entry.payload), digest_size=8).digest()
        return is_new

    def _write(self, words: list[str]) -> bool:
        if words[0] == KNOWS:
            self.known[words[1]] = int(words[2])
        elif words[0] == RAISE:
            self.version = max(self.version, int(words[1]))
        else:
            request, key, value, at = words
            self.at = max(self.at, int(at))
            if request not in self.requests:
                self.requests[request] = self.index
                self.values[key] = value
                return True
        return False

    def value(self, key: str) -> str:
        return self.values.get(key, "")

    def rot(self) -> None:
        self.is_rotten, self.digest = True, b"rotten"

    def copy(self) -> Registers:
        twin = Registers(self.config)
        for name in ("index", "term", "at", "version", "is_rotten", "digest"):
            setattr(twin, name, getattr(self, name))
        twin.known, twin.values, twin.requests = dict(self.known), dict(self.values), dict(self.requests)
        return twin
