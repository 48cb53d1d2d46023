"""Masters that agree: one log, applied in order to the real state machine; one of them leads, or none for a while."""

from __future__ import annotations

import asyncio
import sqlite3
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from pistage.core import commands as c
from pistage.core import machine
from pistage.core.machine import Outcome, meta
from pistage.errors import Code, PistageError
from pistage.master.dispatch import Dispatch
from pistage.master.losses import Losses
from pistage.master.replica import OUTCOME_WAIT_S, LogClock
from tests.fleet.desk import Sessions

if TYPE_CHECKING:
    from tests.fleet.world import World

EPOCH_MS = 1_700_000_000_000


@dataclass(slots=True)
class Entry:
    """A command in the log, and who waits for its outcome."""

    command: c.Command
    due_s: float
    master: Master
    answer: asyncio.Future[Outcome]


class Cluster:
    """The log and the state. What is in the log is committed when its time comes, unless its leader falls before."""

    def __init__(self, world: World, masters: int) -> None:
        self.world = world
        self.db = sqlite3.connect(":memory:", isolation_level=None, cached_statements=512)
        self.db.execute("BEGIN")
        machine.create_tables(self.db)
        self.db.execute("COMMIT")
        self.index = self.at = 0
        self.log: deque[Entry] = deque()
        self.is_stalled = False
        self.term = 0
        self.leader: Master | None = None
        self.masters = [Master(self, f"m{n}") for n in range(masters)]
        self.elect(self.masters[0])

    # --- the log -------------------------------------------------------------------------------------------------

    def append(self, master: Master, command: c.Command) -> asyncio.Future[Outcome]:
        """The outcome comes once it is committed."""
        last = self.log[-1].due_s if self.log else 0.0
        wait_s = self.world.rng.expovariate(1 / self.world.mix.commit_s)
        entry = Entry(command, max(last, self.world.now_s + wait_s), master, self.world.loop.create_future())
        self.log.append(entry)
        if len(self.log) == 1 and not self.is_stalled:
            self.world.loop.call_at(entry.due_s, self._commit, entry)
        return entry.answer

    def _commit(self, entry: Entry) -> None:
        if self.is_stalled or not self.log or self.log[0] is not entry:
            return
        self.log.popleft()
        if self.log:
            self.world.loop.call_at(self.log[0].due_s, self._commit, self.log[0])
        self.index += 1
        self.db.execute("BEGIN")
        outcome = machine.apply(self.db, self.index, entry.command)
        meta.put(self.db, {"applied_index": str(self.index)})
        self.db.execute("COMMIT")
        self.at = max(self.at, entry.command.at)
        self.world.checker.applied(entry.command, outcome)
        if not entry.answer.done() and not entry.master.is_cut_off:
            entry.answer.set_result(outcome)
        for master in self.masters:
            if not master.is_cut_off:
                master.listener(outcome)

    def stall(self, wait_s: float) -> None:
        """Nothing is committed for so long: disks are slow, or the majority is away."""

        def go_on() -> None:
            self.is_stalled = False
            if self.log:
                self.world.at(0.0, self._commit, self.log[0])

        if not self.is_stalled:
            self.is_stalled = True
            self.world.at(wait_s, go_on)

    # --- leaders -------------------------------------------------------------------------------------------------

    def elect(self, master: Master) -> None:
        """It leads; its state has all that was committed before."""
        while self.log:  # what an earlier leader had placed in the logs of a majority
            entry, self.is_stalled = self.log[0], False
            self._commit(entry)
        if master.is_cut_off:
            master.find_out(master.led_in)
            self.world.at(0.05, self.elect, master)  # once what it did as the leader that it was has ended
            return
        self.term += 1
        self.leader = master
        master.lead()

    def depose(self, *, how: str) -> None:
        """The leader crashes, is cut off and leads on in its own eyes, or hands over; part of its log is lost."""
        world, old = self.world, self.leader
        if old is None:
            return
        world.count(f"leader: {how}")
        self.leader = None
        kept = len(self.log) if how == "hand over" else world.rng.randint(0, len(self.log))
        lost = [self.log.pop() for _ in range(len(self.log) - kept)]
        world.count("proposal lost", len(lost))
        if how == "cut off" and len(self.masters) > 1:
            old.freeze()
            world.at(world.rng.uniform(1.0, 15.0), old.find_out, self.term)
        else:
            old.step_down()
        for entry in lost:
            world.at(world.rng.uniform(0.0, 1.0), _refuse, entry.answer)
        others = [master for master in self.masters if master is not old] or [old]
        wait_s = 0.3 if how == "hand over" else world.rng.uniform(0.5, 4.0)
        world.at(wait_s, self.elect, world.rng.choice(others))


def _refuse(answer: asyncio.Future[Outcome]) -> None:
    if not answer.done():
        answer.set_exception(PistageError(Code.UNAVAILABLE, "the masters changed their leader; this was not done"))
        answer.exception()


class Master:
    """Stands for the replica of one master, and has what it runs while it leads."""

    def __init__(self, cluster: Cluster, name: str) -> None:
        world = cluster.world
        self.cluster, self.world, self.name = cluster, world, name
        ahead_ms = world.rng.choice((0, 0, world.rng.randint(-3_000, 3_000)))
        self._clock = LogClock(lambda: world.now_ms() + ahead_ms, lambda: world.now_s)
        self.frozen: tuple[sqlite3.Connection, int] | None = None  # the state it had when it was cut off, and its time
        self.is_cut_off = self.is_leading = False
        self.led_in = 0
        self.listener: Callable[[Outcome], None] = lambda _: None
        self.sessions = Sessions(world, self)
        self.dispatch = Dispatch(self, self.sessions, Logs())  # type: ignore[arg-type]
        self.losses = Losses(self, self.sessions, lease_s=world.lease_s)  # type: ignore[arg-type]
        self.sessions.on_change(self.dispatch.wake)
        self._services: list[asyncio.Task[None]] = []

    def lead(self) -> None:
        self.is_leading, self.led_in = True, self.cluster.term
        self.sessions.open()
        for service in (self.dispatch.serve(), self.losses.serve()):
            task = self.world.loop.create_task(service)
            task.add_done_callback(self._ended)
            self._services.append(task)

    def step_down(self) -> None:
        self.is_leading = False
        for service in self._services:
            service.cancel()
        self._services.clear()
        self.sessions.close()

    def find_out(self, term: int) -> None:
        """Reached again, it hears that another leads, unless it heard of that before."""
        if self.is_cut_off and term == self.led_in:
            self.step_down()
            self.is_cut_off, self.frozen = False, None

    def freeze(self) -> None:
        """Cut off: no news, and no heartbeat is answered; but it does not know that."""
        twin = sqlite3.connect(":memory:", isolation_level=None)
        twin.deserialize(self.cluster.db.serialize())
        self.is_cut_off, self.frozen = True, (twin, self.cluster.at)

    def _ended(self, service: asyncio.Task[None]) -> None:
        if not service.cancelled() and (error := service.exception()) is not None:
            self.world.loop.fail(error)

    # --- what Dispatch and Losses ask of a replica ------------------------------------------------------------------

    def on_applied(self, listener: Callable[[Outcome], None]) -> None:
        self.listener = listener

    def now_ms(self) -> int:
        return self._clock.now_ms(self.cluster.at if self.frozen is None else self.frozen[1])

    @property
    def reader(self) -> Master:
        return self

    @asynccontextmanager
    async def snapshot(self) -> AsyncIterator[Snapshot]:
        """Sometimes read slowly, while the state moves on."""
        world = self.world
        db = self.cluster.db if self.frozen is None else self.frozen[0]
        if world.is_stormy and world.rng.random() < world.mix.slow_read:
            world.count("slow read")
            twin = sqlite3.connect(":memory:", isolation_level=None)
            twin.deserialize(db.serialize())
            yield Snapshot(twin, lambda: asyncio.sleep(world.rng.uniform(0.0, 0.05)))
            return
        if world.is_stormy and world.rng.random() < 0.2:
            await asyncio.sleep(world.rng.uniform(0.0, 0.02))
        yield Snapshot(db)

    single = snapshot

    async def propose(self, command: c.Command) -> Outcome:
        if not self.is_leading:
            raise PistageError(Code.UNAVAILABLE, "this master does not lead now")
        command = replace(command, at=max(command.at, self.now_ms()))
        if self.is_cut_off:
            self.world.count("proposal of a deposed leader")
            answer: asyncio.Future[Outcome] = self.world.loop.create_future()
        else:
            answer = self.cluster.append(self, command)
        try:
            async with asyncio.timeout(OUTCOME_WAIT_S):
                outcome = await asyncio.shield(answer)
        except TimeoutError:
            raise PistageError(Code.UNAVAILABLE, "whether this was done is not known") from None
        if outcome.error is not None:
            raise outcome.error
        return outcome

    async def hand_over(self) -> None:
        if len(self.cluster.masters) > 1 and self.cluster.leader is self:
            self.world.at(0.01, self._hand_over)

    def _hand_over(self) -> None:
        if self.cluster.leader is self:
            self.cluster.depose(how="hand over")


class Snapshot:
    """Rows of the state, read at once or with others in between."""

    def __init__(self, db: sqlite3.Connection, pause: Callable[[], Any] | None = None) -> None:
        self._cursor = db.cursor()
        self._cursor.row_factory = sqlite3.Row
        self._pause = pause

    async def rows(self, sql: str, parameters: Any = ()) -> list[sqlite3.Row]:
        if self._pause is not None:
            await self._pause()
        return self._cursor.execute(sql, parameters).fetchall()

    async def row(self, sql: str, parameters: Any = ()) -> sqlite3.Row | None:
        found = await self.rows(sql, parameters)
        return found[0] if found else None

    async def value(self, sql: str, parameters: Any = ()) -> Any:
        found = await self.rows(sql, parameters)
        return found[0][0] if found else None

    async def applied_index(self) -> int:
        return int(await self.value("SELECT value FROM meta WHERE key = 'applied_index'") or 0)


class Logs:
    """Output is no part of this."""

    async def end(self, *run_ids: str) -> None:
        pass
