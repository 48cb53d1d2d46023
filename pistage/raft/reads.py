"""Reads without a write: ReadIndex, §6.4 of the dissertation.

A read is served from a state that holds every write answered before the read began. The leader notes its commit index,
then makes sure, by a round of heartbeats that begins after the read did, that nobody else leads.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pistage.raft import leading
from pistage.raft import messages as m
from pistage.raft.actions import ReadReady, Refusal

if TYPE_CHECKING:
    from pistage.raft.leading import Leadership
    from pistage.raft.node import Node
    from pistage.raft.progress import Progress


@dataclass(frozen=True, slots=True)
class _Reader:
    node_id: str | None  # None: here
    token: int


class Rounds:
    """A leader's reads. One round is under way at most; who comes meanwhile goes with the next."""

    __slots__ = ("confirming", "index", "newest", "waiting")

    def __init__(self) -> None:
        self.newest = 0  # counts up with each round: an answer to an older one proves nothing (etcd #20418)
        self.index = 0
        self.confirming: list[_Reader] = []
        self.waiting: list[_Reader] = []


class Forwarded:
    """A follower's reads that the leader was asked about, by ticket, oldest first."""

    __slots__ = ("_due", "tokens")

    def __init__(self) -> None:
        self.tokens: dict[int, int] = {}
        self._due: deque[tuple[int, int]] = deque()

    def add(self, ticket: int, token: int, due_tick: int) -> None:
        """Wait for the answer to `ticket` until then."""
        self.tokens[ticket] = token
        self._due.append((due_tick, ticket))

    def expired(self, tick: int) -> list[int]:
        """The tokens whose time has come, no longer waited for."""
        found = []
        while self._due and self._due[0][0] <= tick:
            _, ticket = self._due.popleft()
            if ticket in self.tokens:
                found.append(self.tokens.pop(ticket))
        return found

    def clear(self) -> list[int]:
        """All tokens, no longer waited for."""
        found = list(self.tokens.values())
        self.tokens.clear()
        self._due.clear()
        return found


def ask(node: Node, token: int) -> None:
    """A read begins here."""
    if node.leadership is not None:
        _enter(node, node.leadership, _Reader(None, token))
    elif node.leader is None:
        node.refuse(token, Refusal.NOT_LEADER)
    elif len(node.forwarded.tokens) >= node.settings.reads_waiting_max:
        node.refuse(token, Refusal.OVERLOADED)
    else:
        ticket = node.rng.getrandbits(63)  # a number that no earlier life of this node has used
        node.forwarded.add(ticket, token, node.now + node.settings.election_ticks)
        node.send(m.ReadIndex(src=node.id, dst=node.leader, term=node.term, ticket=ticket))


def on_read_index(node: Node, leadership: Leadership, message: m.ReadIndex) -> None:
    """A follower asks for one of its readers."""
    _enter(node, leadership, _Reader(message.src, message.ticket))


def on_read_index_resp(node: Node, message: m.ReadIndexResp) -> None:
    """The leader's answer; to a ticket that we no longer know it is none."""
    token = node.forwarded.tokens.pop(message.ticket, None)
    if token is not None:
        node.emit(ReadReady(token=token, index=message.index))


def on_commit(node: Node, leadership: Leadership) -> None:
    """The first commit of the term is what readers wait for who came before it."""
    if leadership.reads.waiting and not leadership.reads.confirming:
        _begin_round(node, leadership)


def on_round(node: Node, leadership: Leadership, progress: Progress, number: int) -> None:
    """A member answered round `number`: it still followed us after that round began."""
    progress.round = max(progress.round, number)
    if leadership.reads.confirming:
        _end_round(node, leadership)


def leader_changed(node: Node) -> None:
    """Who was asked leads no longer."""
    for token in node.forwarded.clear():
        node.refuse(token, Refusal.NOT_LEADER)


def expire(node: Node) -> None:
    """An answer that has not come by now was lost."""
    for token in node.forwarded.expired(node.now):
        node.refuse(token, Refusal.TIMED_OUT)


def give_up(node: Node, rounds: Rounds) -> None:
    """We lead no longer; readers of other nodes will see that themselves."""
    for reader in (*rounds.confirming, *rounds.waiting):
        if reader.node_id is None:
            node.refuse(reader.token, Refusal.NOT_LEADER)


def _enter(node: Node, leadership: Leadership, reader: _Reader) -> None:
    if len(leadership.reads.waiting) >= node.settings.reads_waiting_max:
        if reader.node_id is None:
            node.refuse(reader.token, Refusal.OVERLOADED)
        return
    leadership.reads.waiting.append(reader)
    # Until an entry of this term is committed a leader does not know what is (§6.4, first step).
    if not leadership.reads.confirming and node.commit >= leadership.first_index:
        _begin_round(node, leadership)


def _begin_round(node: Node, leadership: Leadership) -> None:
    rounds = leadership.reads
    rounds.newest += 1
    rounds.index = node.commit
    rounds.confirming, rounds.waiting = rounds.waiting, []
    leading.beat(node, leadership)
    _end_round(node, leadership)


def _end_round(node: Node, leadership: Leadership) -> None:
    rounds = leadership.reads
    answered = {peer for peer, progress in leadership.followers.items() if progress.round >= rounds.newest}
    if not node.log.config.is_quorum(answered | {node.id}):
        return
    confirmed, rounds.confirming = rounds.confirming, []
    for reader in confirmed:
        if reader.node_id is None:
            node.emit(ReadReady(token=reader.token, index=rounds.index))
        else:
            node.send(
                m.ReadIndexResp(
                    src=node.id, dst=reader.node_id, term=node.term, ticket=reader.token, index=rounds.index
                )
            )
    if rounds.waiting:
        _begin_round(node, leadership)
