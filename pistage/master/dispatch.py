"""Dispatch: on the leader, turns what the state says into assignments and cancellations."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import Iterable, Sequence
from typing import assert_never

from pistage import wire
from pistage.core import schedule
from pistage.core.changes import AgentChanged, TaskId
from pistage.core.commands import Assignment, AssignTasks, ExpireTask, RecordEvents
from pistage.core.machine import CancelAttempt, Effect, Outcome, ReleaseRun, SendAssignment
from pistage.core.schedule import Explainer, Explanation, Placement, View
from pistage.errors import Code, PistageError
from pistage.master import reads
from pistage.master.logs import LogStore
from pistage.master.replica import Replica
from pistage.master.sessions import Sessions

log = logging.getLogger(__name__)

_LOOK_EVERY_S = 1.0
_REFUSED_WAIT_S = 0.05  # before it is decided anew: what was refused once may be refused again
_EXPLAINED_FOR_S = 0.5  # explanations may be so old; the view of a busy cluster is another with every call


class Dispatch:
    """Runs `serve` for as long as this master leads."""

    def __init__(self, replica: Replica, sessions: Sessions, logs: LogStore) -> None:
        self._replica = replica
        self._sessions = sessions
        self._logs = logs
        self._news: deque[Outcome] = deque()
        self._work = asyncio.Event()
        self._view: View | None = None
        self._explainer: tuple[float, Explainer] | None = None
        self._have_sessions_changed = False
        self._is_assigning = False
        replica.on_applied(self._note)

    def explain(self, task: TaskId) -> Explanation | None:
        """Why a task waits; None if it does not, or this master does not lead (yet)."""
        if self._view is None:
            return None
        now = time.monotonic()
        if self._explainer is None or self._explainer[0] < now - _EXPLAINED_FOR_S:
            self._explainer = now, Explainer(self._view, self._replica.now_ms())
        return self._explainer[1].explain(task)

    def wake(self) -> None:
        """Decide again now: an agent came or went."""
        self._have_sessions_changed = True
        self._work.set()

    async def serve(self) -> None:
        """Carry out effects and decide, after each change and once a second, until cancelled.

        What an earlier leader decided and did not tell stands in the state: each agent is told when it comes here. It
        may come, and changes be made, before this begins: their effects have been noted since this master leads.
        """
        self._is_assigning = False
        try:
            view, effects = await self._loaded()
            await self._carry_out(effects)
            async with asyncio.TaskGroup() as group:
                self._view = view
                await self._serve(view, group)
        finally:
            self._view = self._explainer = None

    async def _loaded(self) -> tuple[View, list[Effect]]:
        """The view of the state as it is, and the effects of what came about before; what is applied then is news."""
        view, effects = View(), list[Effect]()
        async with self._replica.reader.snapshot() as snapshot:
            index = await snapshot.applied_index()
            async for changes in reads.changes(snapshot):
                for change in changes:
                    view.take(reads.schedulable(change), self._replica.now_ms())
        while self._news and self._news[0].index <= index:
            effects.extend(self._news.popleft().effects)
        view.begin_ageing(self._replica.now_ms())
        self._have_sessions_changed = True
        return view, effects

    async def _serve(self, view: View, group: asyncio.TaskGroup) -> None:
        while True:
            self._work.clear()
            await self._carry_out(self._follow(view))
            wake_in_s = self._decide(view, group)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(wake_in_s, _LOOK_EVERY_S)):
                    await self._work.wait()

    def _note(self, outcome: Outcome) -> None:
        if not self._replica.is_leading:
            self._news.clear()
        elif outcome.changes or outcome.effects:
            self._news.append(outcome)
            self._work.set()

    def _follow(self, view: View) -> list[Effect]:
        """Bring the view up to the state; the effects of what has changed."""
        effects: list[Effect] = []
        now = self._replica.now_ms()
        has_other_agents = self._have_sessions_changed
        while self._news:
            outcome = self._news.popleft()
            effects.extend(outcome.effects)
            for change in outcome.changes:
                view.take(reads.schedulable(change), now)
                has_other_agents |= isinstance(change, AgentChanged)
        if has_other_agents:
            self._have_sessions_changed = False
            for agent_id in view.fleet.agents:
                view.fleet.set_present(agent_id, is_present=self._sessions.takes_work(agent_id))
        return effects

    # --- effects --------------------------------------------------------------------------------------------------

    async def _carry_out(self, effects: Sequence[Effect]) -> None:
        """In their order: an attempt is assigned before it is cancelled."""
        assigned: list[SendAssignment] = []
        released: list[str] = []
        for effect in effects:
            match effect:
                case SendAssignment():
                    assigned.append(effect)
                case CancelAttempt(attempt_id=attempt_id, agent_id=agent_id, reason=reason):
                    await self._send_assignments(assigned)
                    assigned.clear()
                    self._sessions.send(agent_id, wire.Cancel(attempt_id=attempt_id, reason=reason))
                case ReleaseRun(run_id=run_id, agent_ids=agent_ids):
                    released.append(run_id)
                    for agent_id in agent_ids:
                        self._sessions.send(agent_id, wire.Release(run_id=run_id))
                case _:
                    assert_never(effect)
        await self._send_assignments(assigned)
        if released:
            try:
                await self._logs.end(*released)
            except PistageError as error:  # their output can be read all the same
                log.error("the output of %d runs is not closed: %s", len(released), error)

    async def _send_assignments(self, effects: Iterable[SendAssignment]) -> None:
        agent_of = {one.attempt_id: one.agent_id for one in effects if self._sessions.is_connected(one.agent_id)}
        if not agent_of:
            return
        async with self._replica.reader.single() as snapshot:
            messages, ends = await reads.assignments(snapshot, list(agent_of))
        for message in messages:
            self._sessions.send(agent_of[message.attempt_id], message)
        if ends:
            with contextlib.suppress(PistageError):  # the next session of the agent tries it again
                await self._replica.propose(RecordEvents(at=wire.now_ms(), events=tuple(ends)))

    # --- decisions ------------------------------------------------------------------------------------------------

    def _decide(self, view: View, group: asyncio.TaskGroup) -> float:
        """Place what can be placed; returns in how many seconds to look again if nothing happens."""
        if self._is_assigning:
            return _LOOK_EVERY_S  # the answer wakes us; until then the next entry grows
        now = self._replica.now_ms()
        decision = schedule.decide(view, now)
        if decision.placements:
            self._is_assigning = True
            group.create_task(self._assign(view, decision.placements))
        for task in decision.expired:
            group.create_task(self._expire(view, task))
        if decision.is_more:
            return 0.0
        return _LOOK_EVERY_S if decision.wake_at is None else max(0.0, (decision.wake_at - now) / 1000)

    async def _assign(self, view: View, placements: Sequence[Placement]) -> None:
        made = {wire.new_id(): placement for placement in placements}
        assignments = tuple(
            Assignment(
                attempt_id=attempt_id, run_id=one.run_id, position=one.position, agent_id=one.agent_id,
                agent_epoch=one.agent_epoch,
            )
            for attempt_id, one in made.items()
        )  # fmt: skip
        refused: dict[str, str]
        try:
            outcome = await self._replica.propose(AssignTasks(at=wire.now_ms(), assignments=assignments))
            refused = outcome.value["refused"]  # type: ignore[assignment]
        except PistageError as error:
            refused = dict.fromkeys(made, str(error))
        self._is_assigning = False
        self._work.set()
        if refused:
            await asyncio.sleep(_REFUSED_WAIT_S)
        for attempt_id, reason in refused.items():
            # The state moved on between the view and the log: the next decision sees it.
            log.info("run=%s task=%s not assigned: %s", made[attempt_id].run_id, made[attempt_id].task, reason)
            view.give_back((made[attempt_id].run_id, made[attempt_id].position))
        self._work.set()

    async def _expire(self, view: View, task: TaskId) -> None:
        try:
            await self._replica.propose(ExpireTask(at=wire.now_ms(), run_id=task[0], position=task[1]))
        except PistageError as refusal:
            if refusal.code is not Code.CONFLICT:
                view.expire_again(task)
