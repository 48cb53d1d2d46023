"""When the log no longer reaches back far enough: compaction and snapshots, §7 of the paper.

The core settles who needs one and what it replaces; how the bytes travel is the driver's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pistage.raft import events as e
from pistage.raft import messages as m
from pistage.raft.actions import InstallSnap
from pistage.raft.progress import Progress

if TYPE_CHECKING:
    from pistage.raft.node import Node


def compact(node: Node, index: int) -> None:
    """Drop the log's beginning, here and on the disk; never what is not applied yet."""
    index = min(index, node.applied)
    if index > node.log.base.index:
        node.write(base=node.log.compact(index))


def offer(node: Node, progress: Progress, peer: str) -> None:
    """What this member lacks is gone from our log: only a snapshot helps."""
    progress.wait_for_snapshot(node.now)
    node.send(m.SnapOffer(src=node.id, dst=peer, term=node.term, index=node.log.base.index))


def offer_again(node: Node, progress: Progress, peer: str) -> None:
    """Offers and answers can be lost, and a fetch can fail; the member knows best what it is about."""
    if node.now - progress.offered_tick >= node.settings.election_ticks:
        offer(node, progress, peer)


def on_offer(node: Node, message: m.SnapOffer) -> None:
    """Fetch it, unless we are past it, or fetch one already.

    An offer that is newer because the leader has compacted again is no reason to begin anew: under load a fetch would
    never end. If the log that follows what we fetch is gone by then, there will be another offer.
    """
    if node.commit >= message.index:
        node.promise(m.AppendResp(src=node.id, dst=message.src, term=node.term, match_index=node.commit))
    elif node.fetching is None:
        node.fetching = message.src
        node.emit(InstallSnap(source=message.src, index=message.index))


def installed(node: Node, event: e.SnapInstalled) -> None:
    """A verified snapshot is at hand; take it if it is news. One write changes log and state together.

    Only from who leads still: the acknowledgement below tells the leader of this term that we share its log through
    there, and a state fetched from another may hold what only a later term has committed.
    """
    if node.fetching is None:
        return
    leader, node.fetching = node.fetching, None
    base = event.base
    if base.index <= node.commit:
        return
    if node.log.has(base.index, base.term):
        node.commit_to(base.index)  # we have the entries: applying them is cheaper than starting over
    else:
        node.log.restart_at(base)
        node.writes.truncate_from(base.index + 1)
        node.commit = node.applied = node.applying = base.index
        node.write(install=base)
        node.digests.restart_at(base.index, event.digest)
    node.promise(m.AppendResp(src=node.id, dst=leader, term=node.term, match_index=base.index))
