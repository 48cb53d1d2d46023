"""One log, one state and masters that lead in turn, in simulated time: what a leader does beside Raft runs in it whole.

Leaders fall while their proposals are under way, and these are lost, or committed without anybody's hearing of it.
"""

import asyncio
import random
import sqlite3
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any, Protocol

from pistage.core import commands as c
from pistage.core import machine
from pistage.core.machine import Outcome
from tests.fleet.cluster import Snapshot
from tests.fleet.loop import SimLoop


class Loop(SimLoop):
    """Threads are none: what is given to one is done at once."""

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> asyncio.Future[Any]:
        done = self.create_future()
        done.set_result(func(*args))
        return done


class Service(Protocol):
    """What a leader does for as long as it leads."""

    async def serve(self) -> None: ...


@dataclass(slots=True)
class Proposal:
    """A command on its way, and who waits for its outcome."""

    command: c.Command
    answer: asyncio.Future[Outcome]


class Master:
    """Stands for a replica, with a real service."""

    service: Service

    def __init__(self, group: "Group") -> None:
        self.group = group
        self.listeners: list[Callable[[Outcome], None]] = []
        self.task: asyncio.Task[None] | None = None

    def lead(self) -> None:
        self.task = self.group.loop.create_task(self.service.serve())
        self.task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self.group.loop.fail(error)

    def on_applied(self, listener: Callable[[Outcome], None]) -> None:
        self.listeners.append(listener)

    def now_ms(self) -> int:
        return self.group.now_ms()

    @property
    def reader(self) -> "Master":
        return self

    @asynccontextmanager
    async def snapshot(self) -> AsyncIterator[Snapshot]:
        await asyncio.sleep(self.group.rng.uniform(0.0, 0.01))
        yield Snapshot(self.group.db)

    single = snapshot

    async def propose(self, command: c.Command) -> Outcome:
        group = self.group
        proposal = Proposal(replace(command, at=self.now_ms()), group.loop.create_future())
        group.log.append(proposal)
        group.loop.call_later(group.rng.uniform(0.001, 0.05), group.commit)
        if group.is_deadly and group.rng.random() < group.deadliness:
            group.loop.call_later(group.rng.uniform(0.0, 0.05), group.kill, self)
        outcome = await proposal.answer
        if outcome.error is not None:
            raise outcome.error
        return outcome


class Group:
    """`kind` makes each of its three masters. Nobody leads before the first `elect`; `is_deadly`: leaders fall."""

    #: How long leaders last, and how long there is none, in seconds; each is cut by up to so much.
    lives_s: Sequence[float] = (3.0, 60.0, 1800.0)
    pauses_s: Sequence[float] = (0.5, 3.0, 100.0, 1000.0)
    #: The share of proposals of which the leader falls.
    deadliness = 0.1

    def __init__(self, kind: Callable[[Any], Master], seed: int, start_ms: int, *, is_deadly: bool = True) -> None:
        self.loop, self.rng, self.start_ms, self.is_deadly = Loop(), random.Random(seed), start_ms, is_deadly
        asyncio.set_event_loop(self.loop)
        self.db = sqlite3.connect(":memory:", isolation_level=None)
        machine.create_tables(self.db)
        self.index = 0
        self.log: deque[Proposal] = deque()
        self.counts: Counter[str] = Counter()
        self.masters = [kind(self) for _ in range(3)]
        self.leader: Master | None = None

    def now_ms(self) -> int:
        return self.start_ms + int(self.loop.now_s * 1000)

    def apply(self, command: c.Command) -> Outcome:
        self.index += 1
        outcome = machine.apply(self.db, self.index, command)
        for master in self.masters:
            for listener in master.listeners:
                listener(outcome)
        return outcome

    def commit(self) -> None:
        """The next proposal, if it is still there, and while somebody leads."""
        if not self.log or self.leader is None:
            return
        proposal = self.log.popleft()
        outcome = self.apply(proposal.command)
        if not proposal.answer.done():
            proposal.answer.set_result(outcome)
        self.after_commit()

    def after_commit(self) -> None:
        """What the rest of the cluster does then."""

    def elect(self) -> None:
        if self.leader is not None:
            return
        # What the one before had placed in the logs of a majority may come after a look at the state.
        for _ in self.log:
            self.loop.call_later(self.rng.uniform(0.0, 0.02), self.commit)
        self.leader = self.rng.choice(self.masters)
        self.leader.lead()
        if self.is_deadly:
            life_s = self.rng.choice(self.lives_s) * self.rng.uniform(0.3, 1.0)
            self.loop.call_later(life_s, self.kill, self.leader)

    def kill(self, master: Master) -> None:
        """What it had proposed as the leader is lost, or is committed without anybody's hearing of it."""
        if self.leader is not master or master.task is None or not self.is_deadly:
            return
        master.task.cancel()
        self.leader = None
        kept = self.rng.randint(0, len(self.log))
        self.counts["proposal kept"] += kept
        self.counts["proposal lost"] += len(self.log) - kept
        while len(self.log) > kept:
            self.log.pop()
        self.counts["leader killed"] += 1
        self.loop.call_later(self.rng.choice(self.pauses_s) * self.rng.uniform(0.5, 1.0), self.elect)

    def settle(self) -> None:
        """From now on somebody leads, and nobody falls: a minute later nothing is left to do."""
        self.is_deadly = False
        self.elect()
        self.loop.run_until(self.loop.now_s + 60)

    def close(self) -> None:
        self.loop.finish()
        self.db.close()
        asyncio.set_event_loop(None)
