"""Losses: on the leader, agents that have fallen silent, and work that an agent is to give back."""

from __future__ import annotations

import asyncio
import logging

from pistage import wire
from pistage.core.commands import LoseAgent, PauseLosses
from pistage.errors import Code, PistageError
from pistage.master import reads
from pistage.master.replica import Replica
from pistage.master.sessions import Sessions

log = logging.getLogger(__name__)

_LOOK_EVERY_S = 1.0
_ACCEPT_MS = 60_000  # an agent that answers heartbeats, and whose disk hangs, does not keep what it cannot begin
_MARGIN_S = 1.0
#: So many agents, and this part of all, silent at one time: likelier the masters are cut off than the agents dead.
_MANY = 3
_MANY_OF_ALL = 0.1
_PAUSES_APART = 3  # times the patience: a second pause soon after would only put off what is so


def patience_s(lease_s: float) -> float:
    """How long an agent may be silent before it is declared lost.

    By then one that lives has stopped what it ran: its clock may run a tenth slower than ours, and it has a quarter of
    the lease to kill (see `pistage.agent.lease`).
    """
    return 1.1 * 1.25 * lease_s + _MARGIN_S


class Losses:
    """Runs `serve` for as long as this master leads."""

    def __init__(self, replica: Replica, sessions: Sessions, *, lease_s: float) -> None:
        self._replica = replica
        self._sessions = sessions
        self._patience_s = patience_s(lease_s)

    async def serve(self) -> None:
        """Look once a second, until cancelled."""
        while True:
            await asyncio.sleep(_LOOK_EVERY_S)
            try:
                await self._look()
            except PistageError as refusal:  # the state moved on, or we do not lead any more
                log.info("losses: %s", refusal)

    async def _look(self) -> None:
        async with self._replica.reader.snapshot() as snapshot:
            up = await reads.agents_up(snapshot)
            paused_until = await reads.losses_paused_until(snapshot)
            overdue = await reads.attempts_to_evict(snapshot, self._replica.now_ms(), _ACCEPT_MS)
        for attempt_id, agent_id, is_unaccepted in overdue:
            reason = "its agent did not take it up in time" if is_unaccepted else "its agent was drained"
            self._sessions.send(agent_id, wire.Evict(attempt_id=attempt_id, reason=reason))
        silent = [agent for agent in up if self._sessions.silent_s(agent.agent_id) > self._patience_s]
        now = self._replica.now_ms()
        if not silent or now < paused_until:
            return
        was_paused = now < paused_until + _PAUSES_APART * self._patience_s * 1000
        if len(silent) >= _MANY and len(silent) > _MANY_OF_ALL * len(up) and not was_paused:
            await self._suspect_ourselves(len(silent), len(up))
            return
        for agent in silent:
            await self._declare_lost(agent)

    async def _suspect_ourselves(self, silent: int, up: int) -> None:
        """Give it time, and let another master look, if there is one."""
        reason = f"{silent} of {up} agents are silent at one time: it may be this master that is cut off"
        log.warning("%s; no agent is declared lost for %.0f s", reason, self._patience_s)
        until = self._replica.now_ms() + round(self._patience_s * 1000)
        await self._replica.propose(PauseLosses(at=wire.now_ms(), until=until, reason=reason))
        await self._replica.hand_over()

    async def _declare_lost(self, agent: reads.AgentUp) -> None:
        silent_s = self._sessions.silent_s(agent.agent_id)
        if silent_s <= self._patience_s:  # it was heard while others were declared lost
            return
        log.warning("agent=%s silent for %.0f s: lost", agent.name, silent_s)
        reason = f"agent {agent.name} was not heard of for {silent_s:.0f} s"
        command = LoseAgent(at=wire.now_ms(), agent_id=agent.agent_id, epoch=agent.epoch, reason=reason)
        # Hung up on first: no heartbeat of it is answered, and nothing more is sent to it, while that is on its way.
        self._sessions.drop(agent.agent_id)
        try:
            await self._replica.propose(command)
        except PistageError as refusal:
            if refusal.code is not Code.CONFLICT:
                raise
            log.info("agent=%s is not lost: %s", agent.name, refusal)
