"""A master's disk: what is durable, and what a crash leaves of what was on its way there."""

from __future__ import annotations

from dataclasses import dataclass

from pistage import raft
from tests.sim.machine import Machine


@dataclass(slots=True)
class Write:
    """A `Persist` and, where it installs a snapshot, the state that lies ready for it."""

    persist: raft.Persist
    staged: Machine | None = None


class Disk:
    """`raft.db` and the state's last checkpoint. A `Persist` is one transaction: all of it or nothing.

    With `flipped_at` a bit of that entry is not what was written; the chain of checksums shows it at the next start.
    """

    __slots__ = ("base", "checkpoint", "entries", "flipped_at", "hard_state")

    def __init__(self, base: raft.Base, checkpoint: Machine) -> None:
        self.hard_state = raft.HardState()
        self.base = base
        self.entries: list[raft.Entry] = []
        self.checkpoint = checkpoint
        self.flipped_at: int | None = None

    @property
    def last_index(self) -> int:
        return self.entries[-1].index if self.entries else self.base.index

    def holds(self, index: int, term: int) -> bool:
        """Whether this entry is durable here, by itself or in the state that the log begins after."""
        at = index - self.base.index
        return at <= 0 or (at <= len(self.entries) and self.entries[at - 1].term == term)

    def write(self, write: Write) -> None:
        persist = write.persist
        if persist.hard_state is not None:
            self.hard_state = persist.hard_state
        if persist.install is not None:
            assert write.staged is not None
            self.base, self.checkpoint = persist.install, write.staged.copy()
            self.entries = []
        if persist.base is not None:
            del self.entries[: persist.base.index - self.base.index]
            self.base = persist.base
        if persist.truncate_from is not None:
            del self.entries[persist.truncate_from - self.base.index - 1 :]
        self.entries.extend(persist.entries)
