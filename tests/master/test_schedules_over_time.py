"""The leader's part of schedules in simulated time: leaders that fall, proposals that are lost, clocks that change."""

from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest

from pistage.core import commands as c
from pistage.core import commands_of_schedules as s
from pistage.core import limits
from pistage.core.cron import CatchUp, Overlap, Schedule, zone_named
from pistage.errors import Code, PistageError
from pistage.master.schedules import Schedules
from tests.core.cron.clocks import instant
from tests.core.cron.naive import walk
from tests.core.plans import a_plan
from tests.master import led

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


class Master(led.Master):
    """Stands for a replica and a planner, with the real `Schedules`."""

    def __init__(self, group: led.Group) -> None:
        super().__init__(group)
        self.service = Schedules(self, self, refuse_unless_space=lambda: None, now_ms=group.now_ms)  # type: ignore[arg-type]

    async def plan_unattended(self, submission: Any, project: str) -> tuple[Any, str] | PistageError:
        if submission.action is not None:
            return PistageError(Code.NOT_FOUND, "no action 'x'")
        return SimpleNamespace(plan=a_plan(name="night")), submission.text


class Group(led.Group):
    """Its runs end after a while."""

    def after_commit(self) -> None:
        rows = self.db.execute(
            "SELECT id FROM run WHERE state = 'queued' AND cancel_reason IS NULL ORDER BY name, number"
        ).fetchall()
        for (run_id,) in rows:
            self.loop.call_later(self.rng.expovariate(1 / 150), self._end, run_id)

    def _end(self, run_id: str) -> None:
        self.apply(c.CancelRun(at=self.now_ms(), run_id=run_id, owner="o", reason="it is over"))

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
        groups.append(Group(Master, seed, start_ms))
        return groups[-1]

    yield made
    for group in groups:
        group.close()


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


def test_minutes_are_decided_in_simulated_time(group_of: Callable[[int, int], Group]) -> None:
    begin = instant("2026-10-24T22:00")
    group = group_of(0, begin)
    group.is_deadly = False
    group.put("each", Schedule(cron="* * * * *", overlap=Overlap.QUEUE))
    group.put("without its action", Schedule(cron="* * * * *"), action="x")
    group.elect()
    group.loop.run_until(200)
    minutes = [begin + number * MINUTE for number in (1, 2, 3)]
    assert decided(group, "each", minutes) == {"ran": 3}
    assert decided(group, "without its action", minutes) == {"failed": 3}


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
    group.settle()
    end = group.now_ms()
    from_utc, until_utc = (datetime.fromtimestamp(at / 1000, UTC) for at in (begin + MINUTE, end + 1))
    oracle = walk(CRONS, zone_named(zone), from_utc, until_utc)
    outcomes: Counter[str] = Counter()
    for name, schedule in schedules.items():
        (known,) = group.db.execute("SELECT decided_until FROM schedule WHERE id = ?", (name,)).fetchone()
        expected = [at for at in oracle[schedule.cron] if at <= known]
        assert not [at for at in oracle[schedule.cron] if known < at <= end - 5_000], "what was due is not decided"
        outcomes += decided(group, name, expected)
    assert min(outcomes[what] for what in ("ran", "skipped", "missed", "failed")) > 0
    assert min(group.counts[what] for what in ("leader killed", "proposal kept", "proposal lost")) > 0
