"""Whether two masters have the same state: digests by index, compared whenever both have one for the same index.

Where two differ nobody knows which of them is right, so the majority has it. A follower tells its leader how far it
found the same state and whether it has found another; the leader tells how far a majority has its state. A follower
that differs within that is damaged and stops; a leader that differs from too many for there ever to be such a majority
stops itself. What stays undecided for an election timeout, because a third is away, stops the follower as well: better
no answer than two. So damage takes one node, not the group.
"""

from __future__ import annotations

from collections.abc import Sequence


class Digests:
    """The newest digests of our own state, and one of the leader's that ours has yet to reach.

    Under steady load a follower is behind what a heartbeat shows, and further every time. So it keeps the first that
    it is shown until it gets there, and pays no heed to others meanwhile: each is compared in the time that it takes
    to apply what was already applied elsewhere. `kept` is for the other way round, a leader that applies slowly.
    """

    __slots__ = ("_kept", "_ours", "_shown", "differs_at", "differs_tick", "same_at")

    def __init__(self, kept: int) -> None:
        self.same_at = 0  # the newest index where our state was found to be this leader's
        self.differs_at: int | None = None  # the first where it was found not to be
        self.differs_tick = 0  # and when
        self._kept = kept
        self._ours: dict[int, bytes] = {}
        self._shown: tuple[int, bytes] | None = None

    def restart_at(self, index: int, digest: bytes) -> None:
        """Our state is another one, which came as a snapshot."""
        self._ours = {index: digest}
        self.differs_at = None

    def at(self, index: int) -> bytes:
        """What our state was there; nothing if that is not known (any more)."""
        return self._ours.get(index, b"")

    def applied(self, index: int, digests: Sequence[bytes], tick: int) -> None:
        """Our state went through these, the last of them at `index`."""
        first = index + 1 - len(digests)
        self._ours.update(zip(range(first, index + 1), digests, strict=True))
        self._compare(tick)
        while len(self._ours) > self._kept:
            del self._ours[next(iter(self._ours))]

    def shown(self, index: int, digest: bytes, applied: int, tick: int) -> None:
        """The leader's state at `index`, ours being at `applied`."""
        if digest and (self._shown is None or self._shown[0] <= applied):
            self._shown = index, digest
        self._compare(tick)

    def leader_changed(self) -> None:
        """The next one is yet to be compared with."""
        self.differs_at = self._shown = None
        self.same_at = 0

    def _compare(self, tick: int) -> None:
        if self._shown is None or not (ours := self.at(self._shown[0])):
            return
        (index, theirs), self._shown = self._shown, None
        if ours == theirs:
            self.same_at = max(self.same_at, index)
        elif self.differs_at is None:
            self.differs_at, self.differs_tick = index, tick
