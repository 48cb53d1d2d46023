"""Who waits for an answer of the group: proposals by their place in the log, reads by how far the state must be."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

from pistage import raft
from pistage.core.machine import Outcome
from pistage.errors import Code, PistageError

_WAITERS_MIN: Final = 64


@dataclass(slots=True)
class Proposal:
    """One command on its way; `answer` is done when it is applied, or known to be lost."""

    payload: bytes
    answer: asyncio.Future[Outcome]


@dataclass(slots=True)
class _Placed:
    term: int
    proposal: Proposal


@dataclass(order=True, slots=True)
class _Waiter:
    index: int
    number: int
    future: asyncio.Future[None] = field(compare=False)


class Pending:
    """Owned by one loop."""

    def __init__(self) -> None:
        self._tokens = 0
        self._asked: dict[int, Callable[[raft.Reply], None]] = {}
        self._reading: dict[int, asyncio.Future[int]] = {}
        self._placed: dict[int, _Placed] = {}
        self._waiters: list[_Waiter] = []
        self._waiters_max = _WAITERS_MIN  # then it is seen to who of them still waits
        self._numbers = 0

    def ask(self, answered: Callable[[raft.Reply], None]) -> int:
        """A token for a request to the core; `answered` is called with the reply."""
        self._tokens += 1
        self._asked[self._tokens] = answered
        return self._tokens

    def ask_to_read(self) -> tuple[int, asyncio.Future[int]]:
        """A token for a read, and the index that it may be served at."""
        future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        token = self.ask(lambda reply: _refuse(future, reply))
        self._reading[token] = future
        return token, future

    def on_reply(self, reply: raft.Reply) -> None:
        """The core took a request, or refused it."""
        self._reading.pop(reply.token, None)
        if answered := self._asked.pop(reply.token, None):
            answered(reply)

    def on_read_ready(self, ready: raft.ReadReady) -> None:
        """The core allows a read."""
        self._asked.pop(ready.token, None)
        future = self._reading.pop(ready.token, None)
        if future is not None and not future.done():
            future.set_result(ready.index)

    def place(self, proposals: Sequence[Proposal], reply: raft.Reply) -> None:
        """These stand in the log one after the other from (`reply.index`, `reply.term`) on, or were refused."""
        if reply.refusal is not None:
            refusal = refusal_of(reply)
            for proposal in proposals:
                _fail(proposal.answer, refusal)
            return
        for n, proposal in enumerate(proposals):
            if before := self._placed.pop(reply.index + n, None):
                _fail(before.proposal.answer, _lost())  # another term's leader, and now this one, have that place
            self._placed[reply.index + n] = _Placed(reply.term, proposal)

    def settle(self, entries: Sequence[raft.Entry], outcomes: Iterable[Outcome]) -> None:
        """These were applied: answer their proposers, and all who waited for the state to get there."""
        for entry, outcome in zip(entries, outcomes, strict=True):
            placed = self._placed.pop(entry.index, None)
            if placed is None:
                continue
            if placed.term != entry.term:
                _fail(placed.proposal.answer, _lost())
            elif not placed.proposal.answer.done():
                placed.proposal.answer.set_result(outcome)
        self._wake_through(entries[-1].index)

    def installed(self, index: int) -> None:
        """The state is at `index`, but not by entries that were applied here: what they did to whom is not known."""
        self._wake_through(index)
        for passed in [at for at in self._placed if at <= index]:
            _fail(self._placed.pop(passed).proposal.answer, outcome_unknown())

    def _wake_through(self, index: int) -> None:
        while self._waiters and self._waiters[0].index <= index:
            waiter = heapq.heappop(self._waiters)
            if not waiter.future.done():
                waiter.future.set_result(None)

    def doubt(self, term: int) -> None:
        """Who led in `term` leads no longer: what it placed and is not applied yet may be done, or be done yet."""
        for index in [index for index, placed in self._placed.items() if placed.term <= term]:
            _fail(self._placed.pop(index).proposal.answer, outcome_unknown())

    def until(self, index: int) -> asyncio.Future[None]:
        """Done once the state is at `index`."""
        self._numbers += 1
        waiter = _Waiter(index, self._numbers, asyncio.get_running_loop().create_future())
        if len(self._waiters) >= self._waiters_max:  # many may have gone, who asked for what is far off
            self._waiters = [one for one in self._waiters if not one.future.done()]
            heapq.heapify(self._waiters)
            self._waiters_max = max(_WAITERS_MIN, 2 * len(self._waiters))
        heapq.heappush(self._waiters, waiter)
        return waiter.future

    def give_up(self, refusal: PistageError) -> None:
        """Nothing more will be answered here."""
        for placed in self._placed.values():
            _fail(placed.proposal.answer, refusal)
        for future in self._reading.values():
            _fail(future, refusal)
        for waiter in self._waiters:
            _fail(waiter.future, refusal)
        self._placed.clear()
        self._reading.clear()
        self._waiters.clear()


_WORDS: Final[dict[raft.Refusal, tuple[Code, str, str]]] = {
    raft.Refusal.NOT_LEADER: (Code.UNAVAILABLE, "this master does not lead now", "try again in a moment"),
    raft.Refusal.TRANSFERRING: (Code.UNAVAILABLE, "another master takes over now", "try again in a moment"),
    raft.Refusal.OVERLOADED: (Code.UNAVAILABLE, "too many changes wait for a majority", "try again in a second"),
    raft.Refusal.NOT_READY: (Code.UNAVAILABLE, "the new leader has no majority yet", "try again in a moment"),
    raft.Refusal.TIMED_OUT: (Code.UNAVAILABLE, "the leader did not answer in time", "try again in a moment"),
    raft.Refusal.BUSY: (Code.CONFLICT, "another change of the masters is under way", "try again"),
    raft.Refusal.BEHIND: (Code.CONFLICT, "that master has to catch up first", "try again"),
    raft.Refusal.NO_MAJORITY: (
        Code.CONFLICT,
        "without that master too few of the others would be left to decide anything",
        "bring the others back first, or add one",
    ),
    raft.Refusal.UNKNOWN: (
        Code.NOT_FOUND,
        "no such master, or that cannot be done to it",
        "see pistage cluster status",
    ),
}


def refusal_of(reply: raft.Reply) -> PistageError:
    """What the core said, for whoever asked; nothing has been done."""
    assert reply.refusal is not None, "the request was taken"
    code, message, hint = _WORDS[reply.refusal]
    return PistageError(code, message, hint=hint)


def outcome_unknown() -> PistageError:
    """A proposal whose leader is gone may have been done, or be done yet."""
    return PistageError(
        Code.UNAVAILABLE,
        "the masters changed their leader before it was known whether this was done",
        hint="ask again: the same Idempotency-Key makes nothing twice",
    )


def _lost() -> PistageError:
    return PistageError(Code.UNAVAILABLE, "the masters changed their leader; this was not done", hint="try again")


def _refuse(future: asyncio.Future[int], reply: raft.Reply) -> None:
    _fail(future, refusal_of(reply))


def _fail(future: asyncio.Future[Outcome] | asyncio.Future[int] | asyncio.Future[None], error: PistageError) -> None:
    if not future.done():
        future.set_exception(error)
        future.exception()  # who asked may be gone; that is no news to anybody
