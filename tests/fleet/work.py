"""Work: one attempt in an agent's process, from its place in the journal to the end that a master has acknowledged."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pistage import wire
from pistage.core import commands as c
from pistage.core.model import Result, State
from pistage.core.plan import FailureClass, OnPartition

if TYPE_CHECKING:
    from tests.fleet.agents import Agent


@dataclass(slots=True)
class Record:
    """What stands in the journal of an attempt."""

    assign: wire.Assign
    events: list[c.AttemptEvent] = field(default_factory=list)

    @property
    def is_over(self) -> bool:
        return any(isinstance(event, c.Finished) for event in self.events)


class Work:
    """Lives as long as the process; what it must not forget stands in its record."""

    def __init__(self, agent: Agent, record: Record) -> None:
        self.agent, self.record = agent, record
        self.execution = agent.world.ground.of_attempt.get(self.id)
        self.stop: Result | None = None
        self.is_abandoned = self.is_fenced = self.is_done = self.is_acknowledged = False
        for event in record.events:
            agent.reports.add(event)
        if record.is_over:
            self._remove()
            return
        if not record.events:
            self._report(
                c.Accepted(
                    at=wire.now_ms(), attempt_id=self.id, fence=record.assign.fence, runtime=agent.info.runtimes[0]
                )
            )
        if self.execution is None:
            agent.after(agent.world.rng.expovariate(1.0), self._start)
        else:
            self.execution.work = self
            agent.world.count("execution found again")
            if self.execution.is_over:
                self.noticed()

    @property
    def id(self) -> str:
        return self.record.assign.attempt_id

    @property
    def may_run_on(self) -> bool:
        """Whether it may run although no master is heard of."""
        return self.record.assign.task.on_partition is OnPartition.CONTINUE

    def order_stop(self, result: Result, *, grace_s: float) -> None:
        """Stop signal, grace, kill; the first order counts."""
        if self.stop is not None or self.is_done:
            return
        self.stop = result
        if self.execution is not None and not self.execution.is_over:
            self.agent.after(self.agent.world.rng.uniform(0.0, grace_s), self._killed)
        elif self.execution is None:
            self.agent.after(0.0, self._killed)

    def abandon(self) -> None:
        """The masters want nothing of it any more."""
        self.is_abandoned = True
        self.order_stop(lost("given up"), grace_s=2.0)

    def noticed(self) -> None:
        """Its containers have ended by themselves, or with their machine."""
        self.agent.after(0.05 * self.agent.world.rng.random(), self._ended)

    def _start(self) -> None:
        if self.stop is not None or self.record.is_over:
            return
        self.agent.look_at_the_lease()  # before anything is begun
        if self.stop is not None:
            return
        assign = self.record.assign
        self._report(c.StepStarted(at=wire.now_ms(), attempt_id=self.id, fence=assign.fence, step="1", container="x"))
        self.execution = self.agent.world.ground.begin(self.agent, assign)
        self.execution.work = self

    def _killed(self) -> None:
        if self.execution is not None and not self.execution.is_over:
            self.execution.kill()
        self._ended()

    def _ended(self) -> None:
        """An end of its own is the truth, whatever was ordered meanwhile."""
        if self.record.is_over or self.is_done:
            return
        own = None if self.execution is None else self.execution.result
        result = own or self.stop or lost("its containers are gone")
        fence, at = self.record.assign.fence, wire.now_ms()
        if self.execution is not None:
            self._report(c.StepFinished(at=at, attempt_id=self.id, fence=fence, step="1", result=result))
        self._report(c.Finished(at=at, attempt_id=self.id, fence=fence, result=result))
        self._remove()

    def _report(self, event: c.AttemptEvent) -> None:
        if not self.is_abandoned:
            self.record.events.append(event)
            self.agent.reports.add(event)

    def _remove(self) -> None:
        def removed() -> None:
            self.is_done = True
            if self.is_abandoned or self.is_acknowledged:
                self.agent.forget(self)

        self.agent.after(self.agent.world.rng.uniform(0.0, 0.5), removed)


def lost(reason: str) -> Result:
    return Result(state=State.LOST, failure=FailureClass.LOST, reason=reason)


def cancelled(reason: str) -> Result:
    return Result(state=State.CANCELLED, reason=reason)


Call = Callable[..., None]
