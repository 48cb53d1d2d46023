"""Handing leadership over: §3.10 of the dissertation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pistage.raft import election
from pistage.raft import events as e
from pistage.raft import messages as m
from pistage.raft.actions import Refusal, Reply

if TYPE_CHECKING:
    from pistage.raft.leading import Leadership
    from pistage.raft.node import Node


@dataclass(frozen=True, slots=True)
class Handover:
    """Who is to lead, and until when we wait for it; meanwhile nothing new is proposed."""

    target: str
    due_tick: int


def begin(node: Node, event: e.Transfer) -> None:
    """Stop taking proposals and let the target catch up; it then wins because it is asked first."""
    leadership = node.leadership
    if leadership is None:
        node.refuse(event.token, Refusal.NOT_LEADER)
    elif leadership.transfer is not None:
        node.refuse(event.token, Refusal.TRANSFERRING)
    elif event.target not in node.log.config.voters or event.target == node.id:
        node.refuse(event.token, Refusal.UNKNOWN)
    elif not _could_lead_soon(node, leadership, event.target):
        node.refuse(event.token, Refusal.BEHIND)  # nothing would be proposed until it had caught up, or was given up
    else:
        node.emit(Reply(token=event.token, index=node.log.last_index, term=node.term))
        leadership.transfer = Handover(event.target, node.now + node.settings.election_ticks)
        proceed(node, leadership)


def _could_lead_soon(node: Node, leadership: Leadership, target: str) -> bool:
    is_heard = leadership.followers[target].heard_tick > node.now - node.settings.election_ticks
    return is_heard and leadership.is_near(node, target)


def to_the_furthest(node: Node, leadership: Leadership) -> None:
    """We may lead no longer: rather than let everybody wait for a timeout, tell the voter that has most."""
    reached = [(leadership.followers[voter].match, voter) for voter in node.log.config.voters]
    _, target = max(reached)
    node.send(m.TimeoutNow(src=node.id, dst=target, term=node.term))


def proceed(node: Node, leadership: Leadership) -> None:
    """Once the target has everything, tell it not to wait."""
    handover = leadership.transfer
    if handover is None:
        return
    progress = leadership.followers.get(handover.target)
    if progress is not None and progress.match == node.log.last_index:
        node.send(m.TimeoutNow(src=node.id, dst=handover.target, term=node.term))


def tick(node: Node, leadership: Leadership) -> None:
    """A target that has not taken over in an election timeout will not: go on leading."""
    if leadership.transfer is not None and node.now >= leadership.transfer.due_tick:
        leadership.transfer = None


def on_timeout_now(node: Node) -> None:
    """The leader hands over: campaign at once, without asking first."""
    if election.may_campaign(node):
        election.campaign(node, is_transfer=True)
