"""The log, from a leader to its followers, and what of it is committed: §5.3, §5.4 and figure 2 of the paper."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypedDict

from pistage.raft import events as e
from pistage.raft import membership, reads, snapshots, transfer
from pistage.raft import messages as m
from pistage.raft.actions import Refusal, Reply
from pistage.raft.messages import Entry, Kind
from pistage.raft.progress import Feed, Progress

if TYPE_CHECKING:
    from pistage.raft.leading import Leadership
    from pistage.raft.node import Node


class _Hint(TypedDict):
    hint_index: int
    hint_term: int


NO_HINT: Final[_Hint] = {"hint_index": 0, "hint_term": 0}


# --- the leader's side ---------------------------------------------------------------------------------------


def propose(node: Node, event: e.Propose) -> None:
    """Append what clients want; many at once cost one write and one message a follower."""
    if not event.payloads:
        raise ValueError("a proposal of nothing")
    leadership = node.leadership
    size = m.weight_of(event.payloads)
    if leadership is None:
        node.refuse(event.token, Refusal.NOT_LEADER)
    elif leadership.transfer is not None:
        node.refuse(event.token, Refusal.TRANSFERRING)
    elif leadership.uncommitted_bytes and leadership.uncommitted_bytes + size > node.settings.uncommitted_bytes_max:
        node.refuse(event.token, Refusal.OVERLOADED)
    else:
        first = node.log.last_index + 1
        entries = [Entry(index=first + n, term=node.term, payload=text) for n, text in enumerate(event.payloads)]
        node.emit(Reply(token=event.token, index=first, term=node.term))
        append_own(node, leadership, entries)


def append_own(node: Node, leadership: Leadership, entries: list[Entry]) -> None:
    """Into our own log, and to the followers beside our own write (§10.2.1 of the dissertation)."""
    leadership.uncommitted_bytes += m.weight_of(entry.payload for entry in entries)
    node.append(entries)
    if entries[-1].kind is Kind.CONFIG:
        membership.follow(node, leadership)
    feed_all(node, leadership)


def feed_all(node: Node, leadership: Leadership, *, even_if_empty: bool = False) -> None:
    """Send every member what it lacks, as far as there is room."""
    for peer, progress in leadership.followers.items():
        feed(node, progress, peer, even_if_empty=even_if_empty)


def feed(node: Node, progress: Progress, peer: str, *, even_if_empty: bool = False) -> None:
    """Send a member what it lacks; `even_if_empty` sends an append without entries when that is nothing."""
    settings, log = node.settings, node.log
    if progress.feed is not Feed.SNAPSHOT and progress.next <= log.base.index:
        snapshots.offer(node, progress, peer)
    room = settings.appends_in_flight_max, settings.in_flight_bytes_max
    while progress.has_room(*room) and progress.next <= log.last_index:
        last = min(log.last_index, progress.next + settings.append_entries_max - 1)
        entries = log.entries(progress.next, last, settings.append_bytes_max)
        _send_append(node, progress, peer, entries)
        progress.sent(entries[-1].index, sum(len(entry.payload) for entry in entries))
        even_if_empty = False
    if even_if_empty and progress.feed is not Feed.SNAPSHOT:
        _send_append(node, progress, peer, ())


def _send_append(node: Node, progress: Progress, peer: str, entries: tuple[Entry, ...]) -> None:
    prev_index = progress.next - 1
    node.send(
        m.Append(
            src=node.id,
            dst=peer,
            term=node.term,
            prev_index=prev_index,
            prev_term=node.log.term_at(prev_index),
            entries=entries,
            commit=node.commit,
        )
    )


def on_append_resp(node: Node, leadership: Leadership, progress: Progress, message: m.AppendResp) -> None:
    """It holds our log through `match_index`, durably."""
    if message.match_index > node.log.last_index:
        return  # a snapshot of a later leader's: nothing of ours
    progress.acknowledged(message.match_index, node.log.base.index + 1)
    if not advance_commit(node, leadership):
        feed(node, progress, message.src)
    transfer.proceed(node, leadership)


def on_append_reject(node: Node, progress: Progress, message: m.AppendReject) -> None:
    """The logs do not meet there. Skip what its hint rules out: one answer a term, not one an entry (§5.3)."""
    is_current = message.prev_index == progress.next - 1 if progress.feed is Feed.PROBE else True
    if not is_current or message.prev_index <= progress.match or progress.feed is Feed.SNAPSHOT:
        return
    meets = node.log.newest_at_most(message.hint_term, min(message.hint_index, message.prev_index - 1))
    progress.probe_from(min(meets + 1, message.hint_index + 1))
    feed(node, progress, message.src, even_if_empty=True)


def advance_commit(node: Node, leadership: Leadership) -> bool:
    """What a majority holds durably is committed, if it is of this term (§5.3, §5.4.2); tells whether it moved."""
    match = {peer: progress.match for peer, progress in leadership.followers.items()}
    match[node.id] = node.writes.stable_index  # a leader counts itself no sooner than anybody else
    agreed = node.log.config.agreed(match)
    # §5.4.2: only entries of the current term commit by counting; figure 8 shows what happens otherwise.
    if agreed <= node.commit or node.log.term_of(agreed) != node.term:
        return False
    committed = node.log.entries(node.commit + 1, agreed)
    leadership.uncommitted_bytes -= m.weight_of(entry.payload for entry in committed)
    node.commit_to(agreed)
    reads.on_commit(node, leadership)
    feed_all(node, leadership, even_if_empty=True)
    membership.on_commit(node)
    return True


# --- the follower's side ---------------------------------------------------------------------------------------


def on_append(node: Node, message: m.Append) -> None:
    """Take what follows; an older message may tell of less than we have, and takes nothing away (figure 2)."""
    prev_index, prev_term, entries = message.prev_index, message.prev_term, message.entries
    last_new = prev_index + len(entries)
    if prev_index < node.commit:
        # What is committed is the same everywhere; it may be compacted here, and is not to be looked for.
        entries = entries[node.commit - prev_index :]
        prev_index, prev_term = node.commit, node.log.term_at(node.commit)
        last_new = max(last_new, prev_index)
    if not node.log.has(prev_index, prev_term):
        _reject(node, message)
        return
    new = _without_known(node, entries)
    if new and new[0].index <= node.log.last_index:
        node.truncate_from(new[0].index)
    if new:
        node.append(new)
    # No further than what this message vouches for: beyond it may lie another leader's entries.
    node.commit_to(max(node.commit, min(message.commit, last_new)))
    node.promise(m.AppendResp(src=node.id, dst=message.src, term=node.term, match_index=last_new))


def _without_known(node: Node, entries: tuple[Entry, ...]) -> tuple[Entry, ...]:
    """The entries from the first on that is not in our log."""
    for n, entry in enumerate(entries):
        if not node.log.has(entry.index, entry.term):
            return entries[n:]
    return ()


def _reject(node: Node, message: m.Append) -> None:
    meets = node.log.newest_at_most(message.prev_term, min(message.prev_index - 1, node.log.last_index))
    node.send(
        m.AppendReject(
            src=node.id,
            dst=message.src,
            term=node.term,
            prev_index=message.prev_index,
            hint_index=meets,
            hint_term=node.log.term_at(meets),
        )
    )


def on_heartbeat(node: Node, message: m.Heartbeat) -> None:
    """The leader is well, and so is what we share with it."""
    node.digests.shown(message.applied, message.digest, node.applied, node.now)
    if node.digests.differs_at is not None:
        _on_difference(node, node.digests.differs_at, message.same_at)
    node.commit_to(max(node.commit, message.commit))
    node.send(
        m.HeartbeatResp(
            src=node.id,
            dst=message.src,
            term=node.term,
            round=message.round,
            applied=node.applied,
            is_disk_well=node.is_disk_well,
            same_at=node.digests.same_at,
            differs=node.digests.differs_at is not None,
        )
    )


def _on_difference(node: Node, index: int, same_at: int) -> None:
    """Our state at `index` is not this leader's, and a majority has the leader's at `same_at`."""
    if same_at >= index:
        node.halt(f"the state at {index} differs from what most others have: it is damaged", is_state_damaged=True)
    elif node.now - node.digests.differs_tick >= node.settings.election_ticks:
        # By the clock of heartbeats: a leader that stopped because of others does not take us with it.
        node.halt(f"the state at {index} differs from the leader's, and too few are here to tell which one is damaged")
