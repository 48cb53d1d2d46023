"""Elections: §5.2 and §5.4.1 of the paper; PreVote and leases are §9.6 and §6.4.1 (and 4.2.3) of the dissertation."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pistage.raft import leading
from pistage.raft import messages as m
from pistage.raft.actions import RoleName

if TYPE_CHECKING:
    from pistage.raft.node import Node


def restart_timer(node: Node) -> None:
    """Wait anew; a different time each time, so that votes are not split for ever (§5.2)."""
    least = node.settings.election_ticks
    node.election_tick = node.now + least + int(node.rng.random() * least)


def tick(node: Node) -> None:
    """No leader for too long: ask whether a campaign would be welcome."""
    if node.now >= node.election_tick:
        restart_timer(node)
        if may_campaign(node):
            _pre_campaign(node)


def may_campaign(node: Node) -> bool:
    """Voters only, and none that could not write its own vote.

    One whose removal is not committed still campaigns: nobody else may have a log that is long enough (§4.2.2). It
    counts the votes of the others only.
    """
    log = node.log
    is_voter = node.is_voter or (log.config_index > node.commit and node.id in log.config_before.voters)
    return is_voter and node.is_disk_well


def _pre_campaign(node: Node) -> None:
    """Ask before the term moves: who cannot win must not depose a leader by trying (§9.6)."""
    node.become_follower(node.term, None)
    node.role = RoleName.PRE_CANDIDATE
    node.votes = {node.id}
    if node.log.config.is_quorum(node.votes):
        campaign(node)
        return
    last_index, last_term = node.log.last_index, node.log.last_term
    for peer in _other_voters(node):
        node.send(m.PreVote(src=node.id, dst=peer, term=node.term, last_index=last_index, last_term=last_term))


def campaign(node: Node, *, is_transfer: bool = False) -> None:
    """A new term and a vote for ourselves; both must be durable before anybody, we too, counts on them (§5.2)."""
    node.become_follower(node.term + 1, None)
    node.role = RoleName.CANDIDATE
    node.vote = node.id
    node.votes = set()
    node.campaign_seq = node.write()
    last_index, last_term = node.log.last_index, node.log.last_term
    for peer in _other_voters(node):
        node.promise(
            m.Vote(
                src=node.id,
                dst=peer,
                term=node.term,
                last_index=last_index,
                last_term=last_term,
                is_transfer=is_transfer,
            )
        )


def count(node: Node, voter: str) -> None:
    """One more for us; a majority of the voters makes a leader. By name: a repeated answer is one vote."""
    node.votes.add(voter)
    if node.log.config.is_quorum(node.votes):
        leading.begin(node)


def on_pre_vote(node: Node, message: m.PreVote) -> None:
    """Would we vote for it? Nothing is promised, so nothing is written; nor does an answer put off our own election."""
    if message.term > node.term and not _hears_a_leader(node):
        node.become_follower(message.term, None)
    is_granted = (
        message.term + 1 > node.term
        and not _hears_a_leader(node)
        and node.is_disk_well  # our vote would be no answer: it could not be written
        and node.log.is_not_newer_than(message.last_index, message.last_term)
    )
    for_term = message.term + 1
    node.send(m.PreVoteResp(src=node.id, dst=message.src, term=node.term, for_term=for_term, is_granted=is_granted))


def on_pre_vote_resp(node: Node, message: m.PreVoteResp) -> None:
    """Enough who would vote for us: campaign."""
    if node.role is RoleName.PRE_CANDIDATE and message.is_granted and message.for_term == node.term + 1:
        node.votes.add(message.src)
        if node.log.config.is_quorum(node.votes):
            campaign(node)


def on_vote(node: Node, message: m.Vote) -> None:
    """One vote a term, first come, and only for a log that lacks nothing committed (§5.2, §5.4.1)."""
    # Who hears a leader does not know the term of who does not, unless the leader itself sent it (§4.2.3).
    if message.term > node.term and (message.is_transfer or not _hears_a_leader(node)):
        node.become_follower(message.term, None)
    is_granted = (
        message.term == node.term
        and node.vote in (None, message.src)
        and node.log.is_not_newer_than(message.last_index, message.last_term)
    )
    answer = m.VoteResp(src=node.id, dst=message.src, term=node.term, is_granted=is_granted)
    if not is_granted:
        node.send(answer)
        return
    node.vote = message.src
    restart_timer(node)
    node.promise(answer)


def on_vote_resp(node: Node, message: m.VoteResp) -> None:
    """A vote of this term, or a refusal, which says nothing that the majority would not say."""
    if node.role is RoleName.CANDIDATE and message.is_granted:
        count(node, message.src)


def _hears_a_leader(node: Node) -> bool:
    """A leader that answers to a majority leads, or led less than an election timeout ago (§6.4.1)."""
    if node.leadership is not None:
        return True
    return node.leader is not None and node.now - node.heard_tick < node.settings.election_ticks


def _other_voters(node: Node) -> list[str]:
    return [voter for voter in node.log.config.voters if voter != node.id]
