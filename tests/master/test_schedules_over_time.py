"""The leader's part of schedules in simulated time: leaders that fall, proposals that are lost, clocks that change."""

import asyncio
import random
import sqlite3
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest

from pistage.core import commands as c
from pistage.core import commands_of_schedules as s
from pistage.core import limits, machine
from pistage.core.cron import CatchUp, Overlap, Schedule, zone_named
from pistage.core.machine import Outcome
from pistage.errors import Code, PistageError
from pistage.master.schedules import Schedules
from tests.core.cron.clocks import instant
from tests.core.cron.naive import walk
from tests.core.plans import a_plan
from tests.fleet.cluster import Snapshot
from tests.fleet.loop import SimLoop

MINUTE = 60_000
#: Across midnight of the places, on the nights in which their clocks change.
NIGHTS = [
    ("Europe/Berlin", "2026-10-24T22:00", 8),
    ("Europe/Berlin", "2026-03-28T22:00", 8),
    ("America/New_York", "2026-11-01T03:00", 8),
    ("Australia/Lord_Howe", "2026-04-04T13:00", 6),
    ("America/Sao_Paulo", "2018-11-04T01:00", 6),
]
CRONS = [
    "* * * * *", "*/5 * * * *", "0 * * * *", "30 2 * * *", "0,30 1-3 * * *", "15 0-4 * * *", "*/20 1,2 * * *",
    "0 0 * * *", "59 23 * * *", "0-59/10 2 * * *",
]  # fmt: skip


class Loop(SimLoop):
    """Threads are none: what is given to one is done at once."""

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> asyncio.Future[Any]:
        done = self.create_future()
        done.set_result(func(*args))
        return done


@dataclass(slots=True)
class Proposal:
    """A command on its way, and who waits for its outcome."""

    command: c.Command
    answer: asyncio.Future[Outcome]


class Master:
    """Stands for a replica and a planner, with the real `Schedules`."""

    def __init__(self, group: "Group") -> None:
        self.group = group
        self.listeners: list[Callable[[Outcome], None]] = []
        self.schedules = Schedules(self, self, refuse_unless_space=lambda: None, now_ms=group.now_ms)  # type: ignore[arg-type]
        self.task: asyncio.Task[None] | None = None

    def lead(self) -> None:
        self.task = self.group.loop.create_task(self.schedules.serve())
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
        proposal = Proposal(replace(command, at=self.now_ms()), self.group.loop.create_future())
        self.group.log.append(proposal)
        self.group.loop.call_later(self.group.rng.uniform(0.001, 0.05), self.group.commit)
        if self.group.rng.random() < 0.1:
            self.group.loop.call_later(self.group.rng.uniform(0.0, 0.05), self.group.kill, self)
        outcome = await proposal.answer
        if outcome.error is not None:
            raise outcome.error
        return outcome

    async def plan(self, submission: Any, project: str) -> tuple[Any, str]:
        if submission.action is not None:
            raise PistageError(Code.NOT_FOUND, "no action 'x'")
        return SimpleNamespace(plan=a_plan(name="night")), submission.text


class Group:
    """One log and one state; masters that lead in turn, with times between in which none does."""

    def __init__(self, seed: int, start_ms: int) -> None:
        self.loop, self.rng, self.start_ms = Loop(), random.Random(seed), start_ms
        asyncio.set_event_loop(self.loop)
        self.db = sqlite3.connect(":memory:", isolation_level=None)
        machine.create_tables(self.db)
        self.index = 0
        self.log: deque[Proposal] = deque()
        self.counts: Counter[str] = Counter()
        self.masters = [Master(self) for _ in range(3)]
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
        rows = self.db.execute("SELECT id FROM run WHERE state = 'queued' AND cancel_reason IS NULL").fetchall()
        for (run_id,) in rows:
            self.loop.call_later(self.rng.expovariate(1 / 150), self._end, run_id)

    def _end(self, run_id: str) -> None:
        self.apply(c.CancelRun(at=self.now_ms(), run_id=run_id, owner="o", reason="it is over"))

    def elect(self) -> None:
        for (
            _
        ) in self.log:  # what the one before had placed in the logs of a majority may come after a look at the state
            self.loop.call_later(self.rng.uniform(0.0, 0.02), self.commit)
        self.leader = self.rng.choice(self.masters)
        self.leader.lead()
        self.loop.call_later(self.rng.choice([3.0, 60.0, 1800.0]) * self.rng.uniform(0.3, 1.0), self.kill, self.leader)

    def kill(self, master: Master) -> None:
        """What it had proposed as the leader is lost, or is committed without anybody's hearing of it."""
        if self.leader is not master or master.task is None:
            return
        master.task.cancel()
        self.leader = None
        kept = self.rng.randint(0, len(self.log))
        self.counts["proposal kept"] += kept
        self.counts["proposal lost"] += len(self.log) - kept
        while len(self.log) > kept:
            self.log.pop()
        self.counts["leader killed"] += 1
        self.loop.call_later(self.rng.choice([0.5, 3.0, 100.0, 1000.0]) * self.rng.uniform(0.5, 1.0), self.elect)

    def put(self, name: str, schedule: Schedule, *, action: str | None = None) -> None:
        command = s.PutSchedules(
            at=self.now_ms(), since=self.now_ms(), project="default", owner="o", definition=name,
            source="" if action else "text", action=action,
            schedules=(s.NewSchedule(id=name, name=name, schedule=schedule),),
        )  # fmt: skip
        assert self.apply(command).error is None


@pytest.fixture
def group_of(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int, int], Group]]:
    monkeypatch.setattr(limits, "FIRES_KEPT", 1_000_000)
    groups: list[Group] = []

    def made(seed: int, start_ms: int) -> Group:
        groups.append(Group(seed, start_ms))
        return groups[-1]

    yield made
    for group in groups:
        group.loop.finish()
        group.db.close()
    asyncio.set_event_loop(None)


def decided(group: Group, name: str, expected: list[int]) -> Counter[str]:
    """What became of the times, each of which must have been decided once, and no other."""
    sql = "SELECT nominal, until, count, outcome, run_id, reason FROM fire WHERE schedule_id = ? ORDER BY nominal"
    rows = group.db.execute(sql, (name,)).fetchall()
    runs = dict(group.db.execute("SELECT nominal, id FROM run WHERE schedule_id = ?", (name,)).fetchall())
    found: list[int] = []
    outcomes: Counter[str] = Counter()
    for nominal, until, count, outcome, run_id, reason in rows:
        times = [at for at in expected if nominal <= at <= until]
        assert (times[0], times[-1], len(times)) == (nominal, until, count), (name, outcome)
        assert outcome == "missed" or count == 1
        assert (runs.pop(nominal, None), outcome == "ran") == (run_id, run_id is not None)
        assert reason or outcome == "ran"
        found += times
        outcomes[outcome] += len(times)
    assert runs == {}
    assert found == expected
    return outcomes


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("zone", "start", "hours"), NIGHTS)
def test_each_time_is_decided_once_through_a_change_of_clocks_whoever_leads(
    group_of: Callable[[int, int], Group], zone: str, start: str, hours: int, seed: int
) -> None:
    begin = instant(start)
    group = group_of(seed, begin)
    schedules = {
        f"{number} {overlap} {catch_up}": Schedule(cron=cron, timezone=zone, overlap=overlap, catch_up=catch_up)
        for number, cron in enumerate(CRONS)
        for overlap in Overlap
        for catch_up in CatchUp
    }
    for name, schedule in schedules.items():
        group.put(name, schedule)
    schedules["without its action"] = Schedule(cron="*/5 * * * *", timezone=zone)
    group.put("without its action", schedules["without its action"], action="x")
    group.elect()
    group.loop.run_until(hours * 3600)
    end = group.now_ms()
    from_utc, until_utc = (datetime.fromtimestamp(at / 1000, UTC) for at in (begin + MINUTE, end + 1))
    oracle = walk(CRONS, zone_named(zone), from_utc, until_utc)
    outcomes: Counter[str] = Counter()
    for name, schedule in schedules.items():
        (known,) = group.db.execute("SELECT decided_until FROM schedule WHERE id = ?", (name,)).fetchone()
        expected = [at for at in oracle[schedule.cron] if at <= known]
        late = [at for at in oracle[schedule.cron] if known < at]
        assert not late or end - late[0] < 1_100_000, "what was due long ago is not decided"
        outcomes += decided(group, name, expected)
    assert min(outcomes[what] for what in ("ran", "skipped", "missed", "failed")) > 0
    assert min(group.counts[what] for what in ("leader killed", "proposal kept", "proposal lost")) > 0
