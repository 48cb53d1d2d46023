"""One member of the group: what it knows, and where each event goes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, assert_never

from pistage.raft import actions as a
from pistage.raft import election, leading, membership, reads, replication, snapshots, transfer
from pistage.raft import events as e
from pistage.raft import messages as m
from pistage.raft.actions import HardState, Refusal, RoleName
from pistage.raft.digests import Digests
from pistage.raft.log import Base, Log
from pistage.raft.messages import Entry
from pistage.raft.settings import Settings
from pistage.raft.writes import Writes

if TYPE_CHECKING:
    from random import Random

    from pistage.raft.leading import Leadership


class Node:
    """`step(event)` is the only way in; what it returns is to be carried out in order before anything else happens.

    Made at the start of a process from what the disk holds: `hard_state`, the `base` where the log begins, the
    `entries` after it, and `applied`, the index that the state has reached, with the `digest` it has there. A node that
    founds a group has a base of index 0 whose config names all founders, the same on each; one that joins has an empty
    config.
    `rng` spreads the elections and numbers forwarded reads: seed it differently on every node and at every start.
    """

    def __init__(
        self,
        *,
        node_id: str,
        rng: Random,
        hard_state: HardState | None = None,
        base: Base | None = None,
        entries: Sequence[Entry] = (),
        applied: int = 0,
        digest: bytes = b"",
        settings: Settings | None = None,
    ) -> None:
        self.id = node_id
        self.rng = rng
        self.settings = settings or Settings()
        self.log = Log(base or Base(), entries)
        if not self.log.base.index <= applied <= self.log.last_index:
            span = f"{self.log.base.index}..{self.log.last_index}"
            raise ValueError(f"the state is at {applied}, the log covers {span}: they are not of one node")
        self.term = (hard_state or HardState()).term
        self.vote = (hard_state or HardState()).vote
        self.role = RoleName.FOLLOWER
        self.leader: str | None = None
        #: Never read from disk: what is applied was committed, the rest is learnt from a leader.
        self.commit = applied
        self.applied = applied
        self.applying = applied  # handed to the driver through here
        self.digests = Digests(self.settings.digests_kept)
        self.digests.restart_at(applied, digest)
        self.writes = Writes(self.log.last_index)
        self.now = 0  # ticks since the start
        self.heard_tick = -self.settings.election_ticks  # when a leader was last heard
        self.election_tick = 0
        self.votes: set[str] = set()
        self.campaign_seq = 0  # the write that holds our own vote
        self.is_transfer_campaign = False
        self.leadership: Leadership | None = None  # what only a leader knows
        self.forwarded = reads.Forwarded()
        self.fetching: str | None = None  # from whom a snapshot was asked for
        self._fatal: a.Fatal | None = None
        self._writes_out: list[a.Action] = []
        self._out: list[a.Action] = []
        self._promises: list[m.Message] = []
        self._written = HardState(term=self.term, vote=self.vote)
        self._truncate_from: int | None = None
        self._new_entries: list[Entry] = []
        self._told = a.Role(role=self.role, term=self.term, leader=self.leader)
        election.restart_timer(self)

    def step(self, event: e.Event) -> list[a.Action]:  # noqa: PLR0912 - one arm an event
        """Take one event. After a `Fatal` the node answers nothing any more."""
        if self._fatal is not None:
            return []
        match event:  # the frequent ones first
            case e.Tick():
                self._tick()
            case e.Recv(message=message):
                self._receive(message)
            case e.Propose():
                replication.propose(self, event)
            case e.Read(token=token):
                reads.ask(self, token)
            case e.Durable():
                self._durable(event)
            case e.Applied():
                self._applied(event)
            case e.Compact(index=index):
                snapshots.compact(self, index)
            case e.SnapInstalled():
                snapshots.installed(self, event)
            case e.SnapFailed():
                self.fetching = None
            case e.Transfer():
                transfer.begin(self, event)
            case e.Conf():
                membership.change(self, event)
            case e.DiskFault(fault=fault):
                self._disk_fault(fault)
            case _:
                assert_never(event)
        return self._finish()

    @property
    def is_voter(self) -> bool:
        return self.id in self.log.config.voters

    @property
    def is_disk_well(self) -> bool:
        """Whether this node can keep the promises that an election or leadership asks of it."""
        return not self.writes.is_disk_full and not self.writes.is_stalled(self.now, self.settings.election_ticks)

    # --- what the sections share ---------------------------------------------------------------------------

    def send(self, message: m.Message) -> None:
        """At once: it promises nothing that a crash could take back."""
        self._out.append(a.Send(message=message))

    def promise(self, message: m.Message) -> None:
        """After everything that was written so far, this step's writes among it, is durable."""
        self._promises.append(message)

    def emit(self, action: a.Action) -> None:
        """Ask the driver for something else."""
        self._out.append(action)

    def refuse(self, token: int, refusal: Refusal) -> None:
        """Answer a request that is not taken."""
        self._out.append(a.Reply(token=token, refusal=refusal, leader=self.leader))

    def append(self, entries: Sequence[Entry]) -> None:
        """Put entries at the end of the log and, with this step's write, on the disk."""
        self.log.append(entries)
        self._new_entries.extend(entries)

    def truncate_from(self, index: int) -> None:
        """Take back entries that another leader has replaced (§5.3); never a committed one."""
        self.log.truncate_from(index)
        self.writes.truncate_from(index)
        self._truncate_from = index

    def write(self, *, install: Base | None = None, base: Base | None = None) -> int:
        """Close this step's write: one `Persist` with all that has changed. Returns its number."""
        hard_state = HardState(term=self.term, vote=self.vote)
        changed = hard_state if hard_state != self._written else None
        seq = self.writes.issue(self.log.last_index, self.now)
        write = a.Persist(
            seq=seq,
            term=self.term,
            last_index=self.log.last_index,
            hard_state=changed,
            install=install,
            base=base,
            truncate_from=self._truncate_from,
            entries=tuple(self._new_entries),
        )
        self._writes_out.append(write)
        self._written = hard_state
        self._truncate_from = None
        self._new_entries.clear()
        return seq

    def commit_to(self, index: int) -> None:
        """Everything through `index` is committed."""
        if index > self.log.last_index:
            self.halt(f"committed through {index}, but this log ends at {self.log.last_index}: its disk lost entries")
        elif index > self.commit:
            self.commit = index

    def become_follower(self, term: int, leader: str | None) -> None:
        """Fall back, or come to a newer term; what was begun as a leader is given up (§5.1)."""
        if term > self.term:
            self.term, self.vote = term, None
        leadership, self.leadership = self.leadership, None
        leader_before, self.leader = self.leader, leader
        self.role = RoleName.FOLLOWER
        if leadership is not None:
            reads.give_up(self, leadership.reads)
        if leader_before != leader:
            reads.leader_changed(self)
            self.digests.leader_changed()
            self.fetching = None  # what that leader has committed may not be what the next one counts on
        election.restart_timer(self)

    def halt(self, reason: str, *, is_state_damaged: bool = False) -> None:
        """Stop for good; nothing else of this step leaves."""
        self._fatal = self._fatal or a.Fatal(reason=reason, is_state_damaged=is_state_damaged)

    # --- events that are no section's own --------------------------------------------------------------------

    def _tick(self) -> None:
        self.now += 1
        reads.expire(self)
        if self.leadership is not None:
            leading.tick(self, self.leadership)
        else:
            election.tick(self)

    def _durable(self, event: e.Durable) -> None:
        # Of an older term: the entries it speaks of may have been replaced since (§10.2.1 of the dissertation).
        is_of_this_term = event.term == self.term
        self.writes.settle(event.seq, is_of_this_term=is_of_this_term)
        if self.role is RoleName.CANDIDATE and event.seq >= self.campaign_seq:
            election.count(self, self.id)
        if self.leadership is not None and is_of_this_term:
            replication.advance_commit(self, self.leadership)

    def _applied(self, event: e.Applied) -> None:
        self.applied = max(self.applied, event.index)
        self.digests.applied(event.index, event.digests, self.now)

    def _disk_fault(self, fault: e.Fault) -> None:
        match fault:
            case e.Fault.FAILED:
                # The kernel may have dropped what it could not write: the log in memory and the disk differ.
                self.halt("the disk failed: what it holds is unknown")
            case e.Fault.FULL:
                self.writes.is_disk_full = True
                if self.leadership is not None:
                    self.become_follower(self.term, None)
            case _:
                assert_never(fault)

    # --- messages ----------------------------------------------------------------------------------------------

    def _receive(self, message: m.Message) -> None:
        match message:
            # Questions of candidates may come from a newer term and yet change nothing: election.py decides.
            case m.PreVote():
                election.on_pre_vote(self, message)
            case m.Vote():
                election.on_vote(self, message)
            case _ if message.term < self.term:
                self._answer_deposed(message)
            case _:
                if message.term > self.term:
                    self.become_follower(message.term, None)
                self._receive_in_term(message)

    def _answer_deposed(self, message: m.Message) -> None:
        """Tell a leader of an older term that there is a newer one; whatever else is old is no news to anybody."""
        if isinstance(message, m.Append | m.Heartbeat | m.SnapOffer | m.TimeoutNow):
            self.send(m.AppendReject(src=self.id, dst=message.src, term=self.term, prev_index=0, **replication.NO_HINT))

    def _receive_in_term(self, message: m.Message) -> None:
        match message:
            case m.PreVoteResp():
                election.on_pre_vote_resp(self, message)
            case m.VoteResp():
                election.on_vote_resp(self, message)
            case m.ReadIndexResp():
                reads.on_read_index_resp(self, message)
            case m.Append() | m.Heartbeat() | m.SnapOffer() | m.TimeoutNow():
                self._receive_from_leader(message)
            case m.AppendResp() | m.AppendReject() | m.HeartbeatResp() | m.ReadIndex():
                if self.leadership is not None:
                    leading.receive(self, self.leadership, message)
            case m.PreVote() | m.Vote():
                raise AssertionError("questions of candidates are answered before the term is looked at")
            case _:
                assert_never(message)

    def _receive_from_leader(self, message: m.Append | m.Heartbeat | m.SnapOffer | m.TimeoutNow) -> None:
        if self.leadership is not None or self.leader not in (None, message.src):
            self.halt(f"two leaders in term {self.term}: {self.leader} and {message.src}")
            return
        if self.leader is None or self.role is not RoleName.FOLLOWER:
            self.become_follower(self.term, message.src)
        self.heard_tick = self.now
        election.restart_timer(self)
        match message:
            case m.Append():
                replication.on_append(self, message)
            case m.Heartbeat():
                replication.on_heartbeat(self, message)
            case m.SnapOffer():
                snapshots.on_offer(self, message)
            case m.TimeoutNow():
                transfer.on_timeout_now(self)
            case _:
                assert_never(message)

    # --- what leaves ---------------------------------------------------------------------------------------------

    def _finish(self) -> list[a.Action]:
        """The write first, then what promises it, then what the state may take, then who leads."""
        if self._fatal is not None:
            return [self._fatal]
        if self._new_entries or self._truncate_from is not None or self._has_new_hard_state:
            self.write()
        if self._promises:
            after = self.writes.newest_in_flight
            self._out.extend(a.Send(message=message, after_seq=after) for message in self._promises)
            self._promises.clear()
        ready = min(self.commit, self.writes.stable_index)
        if ready > self.applying:
            # Only what is durable here: a state that is ahead of its own log could not be explained after a crash.
            self._out.append(a.Apply(entries=self.log.entries(self.applying + 1, ready)))
            self.applying = ready
        told = self._told
        if told.role is not self.role or told.term != self.term or told.leader != self.leader:
            self._told = a.Role(role=self.role, term=self.term, leader=self.leader)
            self._out.append(self._told)
        out, self._out = self._writes_out + self._out, []
        self._writes_out.clear()
        return out

    @property
    def _has_new_hard_state(self) -> bool:
        return self._written.term != self.term or self._written.vote != self.vote
