"""A small state machine: registers, each request carried out once, and a digest of all that was applied."""

from __future__ import annotations

from collections.abc import Callable
from hashlib import blake2b
from typing import Protocol, Self

from pistage import raft


class Machine(Protocol):
    """What a host applies entries to. `index`, `term` and `config` are part of the state, as a snapshot needs them."""

    index: int
    term: int
    config: raft.Config
    digest: bytes

    def apply(self, entry: raft.Entry) -> bool:
        """Take the next entry; tells whether its request was carried out now, for the first time."""

    def value(self, key: str) -> str: ...

    def copy(self) -> Self:
        """What a crash, or another master, can be given: later applies do not change it."""


MachineFactory = Callable[[raft.Config], Machine]


class Registers:
    """Payloads are `request key value`."""

    __slots__ = ("config", "digest", "index", "requests", "term", "values")

    def __init__(self, config: raft.Config) -> None:
        self.index = 0
        self.term = 0
        self.config = config
        self.digest = b""
        self.values: dict[str, str] = {}
        self.requests: dict[str, int] = {}

    def apply(self, entry: raft.Entry) -> bool:
        assert entry.index == self.index + 1, f"{entry.index} applied after {self.index}"
        self.index, self.term = entry.index, entry.term
        is_new = False
        if entry.kind is raft.Kind.CONFIG:
            self.config = raft.Config.decode(entry.payload)
        elif entry.kind is raft.Kind.NORMAL:
            request, key, value = entry.payload.decode().split(" ")
            is_new = request not in self.requests
            if is_new:
                self.requests[request] = entry.index
                self.values[key] = value
        self.digest = blake2b(b"%b%d %d %b" % (self.digest, entry.index, is_new, entry.payload), digest_size=8).digest()
        return is_new

    def value(self, key: str) -> str:
        return self.values.get(key, "")

    def copy(self) -> Registers:
        twin = Registers(self.config)
        twin.index, twin.term, twin.digest = self.index, self.term, self.digest
        twin.values, twin.requests = dict(self.values), dict(self.requests)
        return twin
