"""Dispatch: on the leader, turns what the state says into assignments, cancellations and declared losses."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from dataclasses import replace
from typing import assert_never

from pistage import wire
from pistage.core import schedule
from pistage.core.commands import AssignTask, LoseAgent
from pistage.core.machine import CancelAttempt, Effect, Outcome, ReleaseRun, SendAssignment
from pistage.errors import Code, PistageError
from pistage.master import reads
from pistage.master.logs import LogStore
from pistage.master.replica import Replica
from pistage.master.sessions import Sessions

log = logging.getLogger(__name__)

_LOOK_EVERY_S = 1.0  # agents that connect or fall silent are no entry of the log, so they are looked for


class Dispatch:
    """Runs `serve` for as long as this master leads."""

    def __init__(self, replica: Replica, sessions: Sessions, logs: LogStore, *, lease_s: float) -> None:
        self._replica = replica
        self._sessions = sessions
        self._logs = logs
        self._lease_s = lease_s
        self._effects: deque[Effect] = deque()
        self._work = asyncio.Event()
        self._decision = schedule.Decision()
        self._reasons_due = 0.0
        self._is_leading = False
        replica.on_applied(self._note)

    def why_waiting(self, run_id: str, task: str) -> tuple[str, bool]:
        """Why the last decision left the task waiting, "" if it did not; whether an agent here could ever take it."""
        key = (run_id, task)
        return self._decision.reasons.get(key, ""), key not in self._decision.hopeless

    def wake(self) -> None:
        """Decide again now: an agent came or went."""
        self._work.set()

    async def serve(self) -> None:
        """Carry out effects and decide, after each change and once a second, until cancelled.

        What an earlier leader decided and did not tell stands in the state: each agent is told when it comes here.
        """
        self._effects.clear()
        self._decision = schedule.Decision()
        self._is_leading = True
        try:
            await self._serve()
        finally:
            self._is_leading = False

    async def _serve(self) -> None:
        wake_in_s = 0.0
        look_at = time.monotonic() + _LOOK_EVERY_S
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(wake_in_s, _LOOK_EVERY_S)):
                    await self._work.wait()
            if time.monotonic() >= look_at:  # by the clock: there may be work in every second
                await self._declare_losses()
                look_at = time.monotonic() + _LOOK_EVERY_S
            self._work.clear()
            while self._effects:
                effect = self._effects.popleft()
                try:
                    await self._carry_out(effect)
                except PistageError as error:  # a row that cannot be read must not stop the others
                    log.error("%s not carried out: %s", effect, error)
            wake_in_s = await self._place()

    def _note(self, outcome: Outcome) -> None:
        if not self._is_leading:
            return
        self._effects.extend(outcome.effects)
        self._work.set()

    async def _carry_out(self, effect: Effect) -> None:
        match effect:
            case SendAssignment(attempt_id=attempt_id, agent_id=agent_id):
                if self._sessions.is_connected(agent_id):
                    async with self._replica.reader.snapshot() as snapshot:
                        message = await reads.assignment(snapshot, attempt_id)
                    self._sessions.send(agent_id, message)
            case CancelAttempt(attempt_id=attempt_id, agent_id=agent_id, reason=reason):
                self._sessions.send(agent_id, wire.Cancel(attempt_id=attempt_id, reason=reason))
            case ReleaseRun(run_id=run_id, agent_ids=agent_ids):
                for agent_id in agent_ids:
                    self._sessions.send(agent_id, wire.Release(run_id=run_id))
                await self._logs.end(run_id)
            case _:
                assert_never(effect)

    async def _place(self) -> float:
        """Place what can be placed; returns in how many seconds time alone changes that."""
        if not await self._has_room():
            # Nothing can be placed. Why each waits is news to people, who do not look with every change.
            if (left_s := self._reasons_due - time.monotonic()) > 0:
                return left_s
            self._reasons_due = time.monotonic() + _LOOK_EVERY_S
        decided = schedule.Decision()
        after: reads.Place | None = reads.FRONT
        while after is not None:
            async with self._replica.reader.snapshot() as snapshot:
                view, after = await reads.view(snapshot, after)
            connected = (replace(one, is_connected=self._sessions.is_connected(one.info.id)) for one in view.agents)
            view = replace(view, agents=tuple(connected))
            decision = schedule.decide(view, self._replica.now_ms())
            if decision.placements:
                async with asyncio.TaskGroup() as group:
                    for placement in decision.placements:
                        group.create_task(self._assign(placement))
            decided = decided.joined(decision)
            # Those in front may wait for an agent that never comes: who stands behind them is looked at as well.
            if view.free_slots <= len(decision.placements):
                break
        self._decision = decided
        return _LOOK_EVERY_S if decided.wake_at is None else max(0.0, (decided.wake_at - self._replica.now_ms()) / 1000)

    async def _has_room(self) -> bool:
        if not self._sessions.has_any:
            return False
        async with self._replica.reader.snapshot() as snapshot:
            agents = await reads.candidates(snapshot)
        return any(
            one.free.slots > 0 and not one.is_draining and self._sessions.is_connected(one.info.id) for one in agents
        )

    async def _assign(self, placement: schedule.Placement) -> None:
        command = AssignTask(
            at=wire.now_ms(),
            attempt_id=wire.new_id(),
            run_id=placement.run_id,
            task=placement.task,
            agent_id=placement.agent_id,
            agent_epoch=placement.agent_epoch,
        )
        try:
            await self._replica.propose(command)
        except PistageError as refusal:
            # The state moved on between the view and the log: the next decision sees it.
            log.info("run=%s task=%s not assigned: %s", placement.run_id, placement.task, refusal)

    async def _declare_losses(self) -> None:
        async with self._replica.reader.snapshot() as snapshot:
            agents = await reads.agents_up(snapshot)
        for agent_id, epoch, name in agents:
            if (silent_s := self._sessions.silent_s(agent_id)) <= self._lease_s:
                continue
            log.warning("agent=%s silent for %.0f s: lost", name, silent_s)
            reason = f"agent {name} was not heard of for {silent_s:.0f} s"
            try:
                await self._replica.propose(LoseAgent(at=wire.now_ms(), agent_id=agent_id, epoch=epoch, reason=reason))
                self._sessions.drop(agent_id)
            except PistageError as refusal:
                if refusal.code is not Code.CONFLICT:
                    log.warning("agent=%s not declared lost: %s", name, refusal)
