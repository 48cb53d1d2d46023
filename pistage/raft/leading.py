"""What only a leader knows and does: its followers, its heartbeats, and when it must stop."""

from __future__ import annotations

from typing import TYPE_CHECKING, assert_never

from pistage.raft import membership, reads, replication, snapshots, transfer
from pistage.raft import messages as m
from pistage.raft.actions import RoleName
from pistage.raft.messages import Entry, Kind
from pistage.raft.progress import Feed, Progress
from pistage.raft.quorum import Config

if TYPE_CHECKING:
    from pistage.raft.node import Node


class Leadership:
    """Made when an election is won and thrown away with the role: nothing of it outlives the term."""

    __slots__ = ("first_index", "followers", "reads", "since_tick", "transfer", "uncommitted_bytes")

    def __init__(self, first_index: int, tick: int) -> None:
        self.first_index = first_index  # of this term: the no-op
        self.followers: dict[str, Progress] = {}  # every member but ourselves, voters first, by name
        self.reads = reads.Rounds()
        self.transfer: transfer.Handover | None = None
        self.uncommitted_bytes = 0
        self.since_tick = tick

    def is_near(self, node: Node, peer: str) -> bool:
        """Whether this member has answered in this term and lacks only what takes seconds."""
        progress = self.followers[peer]
        return progress.match > 0 and progress.match + node.settings.promote_lag_max >= node.log.last_index


def begin(node: Node) -> None:
    """Won: say so with an entry of our own term, the only kind that can be committed by counting (§5.4.2, §8)."""
    leadership = Leadership(node.log.last_index + 1, node.now)
    node.role, node.leader, node.leadership = RoleName.LEADER, node.id, leadership
    tail = node.log.entries(node.commit + 1, node.log.last_index)
    leadership.uncommitted_bytes = m.weight_of(entry.payload for entry in tail)
    membership.follow(node, leadership)
    replication.append_own(node, leadership, [Entry(index=leadership.first_index, term=node.term, kind=Kind.NOOP)])
    beat(node, leadership)


def tick(node: Node, leadership: Leadership) -> None:
    """Heartbeats; and a leader that cannot lead steps down by itself."""
    if not node.is_disk_well:
        # Heartbeats go past the disk: without this a leader whose disk hangs would lead for ever, to nowhere.
        node.become_follower(node.term, None)
        return
    is_due = (node.now - leadership.since_tick) % node.settings.election_ticks == 0
    if is_due and not is_followed(node, leadership, node.log.config):
        node.become_follower(node.term, None)  # CheckQuorum (§6.2 of the dissertation)
        return
    transfer.tick(node, leadership)
    if node.now % node.settings.heartbeat_ticks == 0:
        beat(node, leadership)
        transfer.proceed(node, leadership)  # what told the target may be lost


def beat(node: Node, leadership: Leadership) -> None:
    """A heartbeat to every member; it also carries the round of reads that waits for a majority."""
    digest = node.digests.at(node.applied)
    same = {peer: progress.same_at for peer, progress in leadership.followers.items()}
    same_at = node.log.config.agreed(same | {node.id: node.applied})
    for peer, progress in leadership.followers.items():
        node.send(
            m.Heartbeat(
                src=node.id,
                dst=peer,
                term=node.term,
                commit=min(node.commit, progress.match),
                round=leadership.reads.newest,
                applied=node.applied,
                digest=digest,
                same_at=same_at,
            )
        )


def receive(
    node: Node, leadership: Leadership, message: m.AppendResp | m.AppendReject | m.HeartbeatResp | m.ReadIndex
) -> None:
    """An answer of this term; one from outside the membership is of no account."""
    if isinstance(message, m.ReadIndex):
        reads.on_read_index(node, leadership, message)
        return
    progress = leadership.followers.get(message.src)
    if progress is None:
        return
    progress.heard_tick = node.now
    match message:
        case m.AppendResp():
            replication.on_append_resp(node, leadership, progress, message)
        case m.AppendReject():
            replication.on_append_reject(node, progress, message)
        case m.HeartbeatResp():
            _on_heartbeat_resp(node, leadership, progress, message)
        case _:
            assert_never(message)


def _on_heartbeat_resp(node: Node, leadership: Leadership, progress: Progress, message: m.HeartbeatResp) -> None:
    progress.same_at = max(progress.same_at, message.same_at)
    progress.differs = message.differs
    if message.differs:
        _on_difference(node, leadership)
    reads.on_round(node, leadership, progress, message.round)
    progress.is_paused = False
    if progress.feed is Feed.SNAPSHOT:
        snapshots.offer_again(node, progress, message.src)
    elif progress.match < node.log.last_index:
        # What is in flight may be lost: an append, if only an empty one, shows whether it is.
        replication.feed(node, progress, message.src, even_if_empty=True)


def _on_difference(node: Node, leadership: Leadership) -> None:
    """Go on if there may still be a majority that has our state; it tells the one that differs."""
    others = {peer for peer, other in leadership.followers.items() if other.differs}
    rest = {node.id, *leadership.followers} - others
    if node.log.config.is_quorum(others):
        node.halt("the state differs from what most others have: it is damaged", is_state_damaged=True)
    elif not node.log.config.is_quorum(rest):
        node.halt("the state differs from what half of the others have, and there is no telling which one is damaged")


def is_followed(node: Node, leadership: Leadership, config: Config) -> bool:
    """Whether a majority of that membership was heard of in the last election timeout."""
    since = node.now - node.settings.election_ticks
    heard = {peer for peer, progress in leadership.followers.items() if progress.heard_tick > since}
    return config.is_quorum(heard | {node.id})
