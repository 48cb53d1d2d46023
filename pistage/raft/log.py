"""The log as the core sees it: the entries that are not yet compacted, and the memberships in them."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from operator import attrgetter

from pistage.raft.messages import Entry, Kind
from pistage.raft.quorum import EMPTY, Config

_term = attrgetter("term")


@dataclass(frozen=True, slots=True, kw_only=True)
class Base:
    """A place of the log that is covered by a state: its index and term, and the membership as of there (§7)."""

    index: int = 0
    term: int = 0
    config: Config = EMPTY


class Log:
    """Entries from `base.index + 1` through `last_index`, without a gap and with terms that never fall."""

    __slots__ = ("_configs", "_entries", "base")

    def __init__(self, base: Base, entries: Iterable[Entry] = ()) -> None:
        self.base = base
        self._entries: list[Entry] = []
        self._configs = [(base.index, base.config)]
        self.append(tuple(entries))

    @property
    def last_index(self) -> int:
        return self.base.index + len(self._entries)

    @property
    def last_term(self) -> int:
        return self._entries[-1].term if self._entries else self.base.term

    @property
    def config(self) -> Config:
        """The membership in force: the newest in the log, committed or not (§4.1 of the dissertation)."""
        return self._configs[-1][1]

    @property
    def config_index(self) -> int:
        """Where the membership in force was appended."""
        return self._configs[-1][0]

    @property
    def config_before(self) -> Config:
        """The membership that would be in force again if the newest one were truncated."""
        return self._configs[-2 if len(self._configs) > 1 else -1][1]

    def term_of(self, index: int) -> int | None:
        """The term of the entry at `index`; None where the log does not reach, before or after."""
        at = index - self.base.index
        if 0 < at <= len(self._entries):
            return self._entries[at - 1].term
        return self.base.term if at == 0 else None

    def term_at(self, index: int) -> int:
        """`term_of` an index that must be in the log."""
        term = self.term_of(index)
        if term is None:
            raise ValueError(f"{index} is not in {self.base.index}..{self.last_index}")
        return term

    def has(self, index: int, term: int) -> bool:
        """Whether this very entry is in the log, or is where it begins."""
        return self.term_of(index) == term

    def is_not_newer_than(self, last_index: int, last_term: int) -> bool:
        """Whether a log that ends so is as up to date as this one, or more (§5.4.1)."""
        return (last_term, last_index) >= (self.last_term, self.last_index)

    def entries(self, first: int, last: int, bytes_max: int | None = None) -> tuple[Entry, ...]:
        """The entries `first..last`, as many as fit in `bytes_max` and at least one."""
        found = tuple(self._entries[first - self.base.index - 1 : last - self.base.index])
        if bytes_max is None:
            return found
        size = 0
        for n, entry in enumerate(found):
            size += len(entry.payload)
            if size > bytes_max and n > 0:
                return found[:n]
        return found

    def newest_at_most(self, term: int, up_to: int) -> int:
        """The last index, not above `up_to`, whose term is not above `term`; where the log begins if none is."""
        within = min(max(up_to - self.base.index, 0), len(self._entries))
        return self.base.index + bisect_right(self._entries, term, 0, within, key=_term)

    def append(self, entries: Sequence[Entry]) -> None:
        """Add entries to the end; a membership among them is in force at once."""
        for entry in entries:
            if entry.index != self.last_index + 1 or entry.term < self.last_term:
                raise ValueError(f"{entry.index}/{entry.term} does not follow {self.last_index}/{self.last_term}")
            self._entries.append(entry)
            if entry.kind is Kind.CONFIG:
                self._configs.append((entry.index, Config.decode(entry.payload)))

    def truncate_from(self, index: int) -> None:
        """Forget `index` and all after it; a membership that goes gives its place back to the one before."""
        if index <= self.base.index:
            raise ValueError(f"{index} is covered by the state: the log begins after {self.base.index}")
        del self._entries[index - self.base.index - 1 :]
        while self._configs[-1][0] >= index:
            self._configs.pop()

    def compact(self, index: int) -> Base:
        """Forget the entries through `index`, which must be in the log; returns where it begins now."""
        term = self.term_at(index)
        del self._entries[: index - self.base.index]
        while len(self._configs) > 1 and self._configs[1][0] <= index:
            del self._configs[0]
        self.base = Base(index=index, term=term, config=self._configs[0][1])
        return self.base

    def restart_at(self, base: Base) -> None:
        """Forget everything: the state is now what `base` covers."""
        self.base = base
        self._entries.clear()
        self._configs = [(base.index, base.config)]
