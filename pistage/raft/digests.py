"""Whether two masters have the same state: digests by index, compared whenever both have one for the same index."""

from __future__ import annotations

from collections.abc import Sequence


class Digests:
    """The newest digests of our own state, and one of the leader's that ours has yet to reach.

    Under steady load a follower is behind what a heartbeat shows, and further every time. So it keeps the first that
    it is shown until it gets there, and pays no heed to others meanwhile: each is compared in the time that it takes
    to apply what was already applied elsewhere. `kept` is for the other way round, a leader that applies slowly.
    """

    __slots__ = ("_kept", "_ours", "_shown")

    def __init__(self, kept: int) -> None:
        self._kept = kept
        self._ours: dict[int, bytes] = {}
        self._shown: tuple[int, bytes] | None = None

    def at(self, index: int) -> bytes:
        """What our state was there; nothing if that is not known (any more)."""
        return self._ours.get(index, b"")

    def applied(self, index: int, digests: Sequence[bytes]) -> int | None:
        """Our state went through these, the last of them at `index`. The index at which it differs, if one is found."""
        first = index + 1 - len(digests)
        self._ours.update(zip(range(first, index + 1), digests, strict=True))
        differs_at = self._compare()
        while len(self._ours) > self._kept:
            del self._ours[next(iter(self._ours))]
        return differs_at

    def shown(self, index: int, digest: bytes, applied: int) -> int | None:
        """The leader's state at `index`, ours being at `applied`. The index at which ours differs, if one is found."""
        if digest and (self._shown is None or self._shown[0] <= applied):
            self._shown = index, digest
        return self._compare()

    def _compare(self) -> int | None:
        if self._shown is None or not (ours := self.at(self._shown[0])):
            return None
        (index, theirs), self._shown = self._shown, None
        return index if ours != theirs else None
