"""Who is in the group: one member, one step at a time; chapter 4 of the dissertation."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pistage.raft import events as e
from pistage.raft import leading, replication, transfer
from pistage.raft.actions import Refusal, Reply
from pistage.raft.messages import Entry, Kind
from pistage.raft.progress import Progress
from pistage.raft.quorum import ChangeKind, Config

if TYPE_CHECKING:
    from pistage.raft.leading import Leadership
    from pistage.raft.node import Node


def change(node: Node, event: e.Conf) -> None:
    """Append a new membership; it is in force here at once, and on each member when it arrives there (§4.1)."""
    leadership = node.leadership
    if leadership is None:
        node.refuse(event.token, Refusal.NOT_LEADER)
        return
    after = event.change.of(node.log.config)
    if after is None:
        node.refuse(event.token, Refusal.UNKNOWN)
        return
    if (refusal := _refusal(node, leadership, event, after)) is not None:
        node.refuse(event.token, refusal)
        return
    entry = Entry(index=node.log.last_index + 1, term=node.term, kind=Kind.CONFIG, payload=after.encode())
    node.emit(Reply(token=event.token, index=entry.index, term=entry.term))
    replication.append_own(node, leadership, [entry])


def _refusal(node: Node, leadership: Leadership, event: e.Conf, after: Config) -> Refusal | None:
    # Without a commit of its own term a leader may not know of a newer membership that is committed already
    # (Ongaro, raft-dev, 2015: "bug in single-server membership changes").
    if node.commit < leadership.first_index:
        return Refusal.NOT_READY
    if node.log.config_index > node.commit:
        return Refusal.BUSY
    if leadership.transfer is not None:
        return Refusal.TRANSFERRING
    if event.change.kind is ChangeKind.PROMOTE and not leadership.is_near(node, event.change.node_id):
        return Refusal.BEHIND  # §4.2.1: a voter that is far behind could stop the group from committing
    if not leading.is_followed(node, leadership, after):
        # It would be in force at once, could not be committed, and so could not be taken back: of three, one of them
        # dead, the living one is not to be removed (etcd's strict reconfiguration check).
        return Refusal.NO_MAJORITY
    return None


def follow(node: Node, leadership: Leadership) -> None:
    """Make the followers those of the membership in force; a new one is tried with the newest entry first."""
    known = leadership.followers
    next_index = max(node.log.last_index, node.log.base.index + 1)
    leadership.followers = {
        peer: known.get(peer) or Progress(next_index, node.now) for peer in node.log.config.members if peer != node.id
    }


def on_commit(node: Node) -> None:
    """A leader that is no longer a voter manages the group until that is committed, and not longer (§4.2.2)."""
    if not node.is_voter and node.log.config_index <= node.commit:
        assert node.leadership is not None
        transfer.to_the_furthest(node, node.leadership)
        node.become_follower(node.term, None)
