"""The leader's part of notices in simulated time: leaders that fall, proposals that are lost, receivers that fail."""

import asyncio
import itertools
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import pytest

from pistage.core import commands as c
from pistage.core import commands_of_notices as n
from pistage.core import limits
from pistage.core.notices import End, Notify, Receiver, Verdict, verdict_on
from pistage.master.notices import Notices
from pistage.master.outward import Tried
from tests.core.plans import a_plan
from tests.master import led

HOUR = 3_600.0
START_MS = 1_767_225_600_000
#: How receivers behave, by a word in their URL.
GOOD, FLAKY, DOWN, GONE, HANGING, ASKING = "good", "flaky", "down", "gone", "hanging", "asking"


class World:
    """All receivers: what they were sent, and what they answered."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.taken: dict[str, list[bytes]] = defaultdict(list)  # by delivery id
        self.tries: Counter[str] = Counter()
        self.open: Counter[str] = Counter()
        self.most: Counter[str] = Counter()  # of them at one time

    async def post(self, url: str, body: bytes, headers: Mapping[str, str]) -> Tried:
        delivery = headers["X-Pistage-Delivery"]
        self.open.update([url, "all"])
        try:
            self.most |= self.open
            self.tries[delivery] += 1
            if HANGING in url:
                await asyncio.sleep(limits.NOTICE_TOTAL_S)
                return Tried(verdict=Verdict.WAITING, reason="no answer")
            await asyncio.sleep(self.rng.uniform(0.001, 0.2))
            status = self._status(url)
            if status == 204:
                self.taken[delivery].append(body)
            await asyncio.sleep(self.rng.uniform(0.001, 0.2))
            asked_ms = 120_000 if status == 429 else None
            return Tried(verdict=verdict_on(status), status=status, asked_ms=asked_ms, reason=f"{status}")
        finally:
            self.open.subtract([url, "all"])

    def _status(self, url: str) -> int:
        for word, status, share in ((GONE, 404, 1.0), (DOWN, 503, 1.0), (FLAKY, 500, 0.4), (ASKING, 429, 0.5)):
            if word in url and self.rng.random() < share:
                return status
        return 204


class Master(led.Master):
    """Stands for a replica, with the real `Notices`."""

    def __init__(self, group: "Group") -> None:
        super().__init__(group)
        self.service = self.notices = Notices(self, group.world, rng=random.Random(1))  # type: ignore[arg-type]


class Group(led.Group):
    """With receivers, and runs that end."""

    lives_s = (1.0, 3.0, 60.0, 1800.0)
    pauses_s = (0.5, 3.0, 100.0)
    deadliness = 0.05

    def __init__(self, seed: int, *, is_deadly: bool = True) -> None:
        self.runs = 0
        self.world = World(seed)
        super().__init__(Master, seed, START_MS, is_deadly=is_deadly)

    def put(self, name: str, **given: Any) -> None:
        receiver = Receiver(url=f"https://{name}.example/", on=tuple(End), **given)
        assert self.apply(n.PutReceiver(at=1, project="default", owner="o", name=name, receiver=receiver)).error is None

    def end_a_run(self, *notify: Notify) -> str:
        self.runs += 1
        run_id, at = f"r{self.runs}", self.now_ms()
        plan = replace(a_plan(name="night"), notify=notify)
        self.apply(c.SubmitRun(at=at, run_id=run_id, project="default", owner="o", plan=plan, source=""))
        self.apply(c.CancelRun(at=at, run_id=run_id, owner="o", reason="it is over"))
        return run_id

    def rows(self) -> list[tuple[Any, ...]]:
        sql = "SELECT run_id, position, receiver, state, tries, reason, created_at, ended_at FROM delivery"
        return self.db.execute(sql).fetchall()


@pytest.fixture
def group_of() -> Iterator[Callable[..., Group]]:
    groups: list[Group] = []

    def made(seed: int, **given: Any) -> Group:
        groups.append(Group(seed, **given))
        return groups[-1]

    yield made
    for group in groups:
        group.close()


@pytest.mark.parametrize("seed", [pytest.param(seed, marks=[pytest.mark.slow] * (seed > 0)) for seed in range(12)])
def test_each_end_is_told_or_given_up_whoever_leads_and_under_one_id(group_of: Callable[..., Group], seed: int) -> None:
    group = group_of(seed)
    words = (GOOD, FLAKY, DOWN, GONE, HANGING, ASKING)
    for word in words:
        group.put(word)
    group.elect()
    inline = Notify(url=f"https://{GOOD}.inline.example/", on=tuple(End))
    for _ in range(60):
        group.loop.call_later(group.rng.uniform(0.0, 2 * HOUR), group.end_a_run, inline)
    group.loop.run_until(8 * HOUR)
    group.is_deadly = False
    group.loop.run_until(10 * HOUR)
    rows = group.rows()
    assert len(rows) == 60 * (len(words) + 1)
    by_state: dict[str, Counter[str]] = defaultdict(Counter)
    for run_id, position, receiver, state, tries, reason, created_at, ended_at in rows:
        by_state[receiver or "inline"][state] += 1
        taken = group.world.taken[f"{run_id}-{position}"]
        assert len(set(taken)) <= 1, "a notice says something else at another try"
        assert (state == "delivered") <= bool(taken), "it is recorded as told, and was not"
        assert 1 <= tries <= limits.NOTICE_TRIES_MAX and ended_at > created_at
        assert state == "delivered" or (reason and "fault of ours" not in reason)
        group.counts["told twice"] += len(taken) > 1
    assert by_state.keys() == {*words, "inline"}
    for word in (GOOD, "inline", FLAKY, ASKING):
        assert by_state[word].keys() <= {"delivered", "given_up"} and by_state[word]["delivered"] > 50
    assert by_state[GOOD] == by_state["inline"] == {"delivered": 60}
    assert [by_state[word] for word in (DOWN, GONE, HANGING)] == [{"given_up": 60}] * 3
    assert min(group.counts[what] for what in ("leader killed", "told twice")) > 0
    assert max(group.world.most.values()) == group.world.most["all"] <= limits.NOTICES_AT_ONCE
    assert group.counts["proposal lost"] + group.counts["proposal kept"] > 0


def test_receivers_that_hang_hold_up_no_other(group_of: Callable[..., Group]) -> None:
    group = group_of(1, is_deadly=False)
    hanging = [f"{HANGING}-{number}" for number in range(3)]
    for word in (GOOD, *hanging):
        group.put(word)
    group.elect()
    for number in range(300):
        group.loop.call_later(number * 0.5, group.end_a_run)
    group.loop.run_until(200.0)
    waits = [ended - created for _, _, receiver, _, _, _, created, ended in group.rows() if receiver == GOOD]
    assert len(waits) == 300 and max(waits) < 2_000
    assert [group.world.most[f"https://{word}.example/"] for word in hanging] == [limits.NOTICES_TO_ONE_AT_ONCE] * 3


def test_no_more_are_on_their_way_than_there_are_places(group_of: Callable[..., Group]) -> None:
    group = group_of(1, is_deadly=False)
    for number in range(8):
        group.put(f"{HANGING}-{number}")
    group.elect()
    for _ in range(20):
        group.end_a_run()
    group.loop.run_until(100.0)
    assert group.world.most["all"] == limits.NOTICES_AT_ONCE


def test_what_was_not_told_within_a_day_is_given_up_and_not_sent(group_of: Callable[..., Group]) -> None:
    group = group_of(1, is_deadly=False)
    group.put(GOOD)
    run_id = group.end_a_run()
    group.loop.run_until(25 * HOUR)  # nobody leads
    group.elect()
    group.loop.run_until(25 * HOUR + 10)
    ((_, _, _, state, _, reason, *_),) = group.rows()
    assert (state, reason) == ("given_up", "there was no leader to deliver it within a day")
    assert group.world.tries[f"{run_id}-1"] == 0


def test_what_would_be_tried_after_a_day_is_given_up_at_once(group_of: Callable[..., Group]) -> None:
    group = group_of(1, is_deadly=False)
    group.put(f"{DOWN}-{ASKING}")
    run_id = group.end_a_run()
    group.loop.run_until(24 * HOUR - 0.5)  # nobody leads
    group.elect()
    group.loop.run_until(24 * HOUR + 10)
    ((_, _, _, state, _, reason, *_),) = group.rows()
    assert (state, reason) == ("given_up", "503; it is a day old")
    assert group.world.tries[f"{run_id}-1"] == 1


def test_waits_between_tries_are_those_that_are_promised(group_of: Callable[..., Group]) -> None:
    group = group_of(1, is_deadly=False)
    group.put(DOWN)
    group.elect()
    times: list[float] = []
    send = group.world.post

    async def timed(url: str, body: bytes, headers: Mapping[str, str]) -> Tried:
        times.append(group.loop.now_s)
        return await send(url, body, headers)

    group.world.post = timed  # type: ignore[method-assign]
    group.end_a_run()
    group.loop.run_until(2 * HOUR)
    waits = [after - before for before, after in itertools.pairwise(times)]
    promised = [1, 4, 16, 64, 256, 600, 600, 600, 600]
    assert len(waits) == len(promised)
    assert all(0.8 * one <= wait <= 1.2 * one + 1.5 for wait, one in zip(waits, promised, strict=True))


def test_what_cannot_be_read_is_given_up_and_stops_no_leader(group_of: Callable[..., Group]) -> None:
    group = group_of(1, is_deadly=False)
    group.put(GOOD)
    group.put("bad")
    inline = Notify(url=f"https://{GOOD}.inline.example/", on=tuple(End))
    poisoned = [group.end_a_run(inline) for _ in range(3)]
    for run_id, poison in zip(poisoned, ("{{", '{"notify": 7}', "[]"), strict=True):
        group.db.execute("UPDATE run SET plan = ? WHERE id = ?", (poison, run_id))
    group.db.execute("UPDATE receiver SET spec = '{}' WHERE name = 'bad'")
    group.db.execute("UPDATE run SET started_by = '' WHERE id = ?", (poisoned[0],))
    group.elect()
    fine = group.end_a_run()
    group.loop.run_until(60)
    found = {(run_id, receiver): (state, reason) for run_id, _, receiver, state, _, reason, *_ in group.rows()}
    unread = ("given_up", "what the state has of it cannot be read")
    assert found.pop((poisoned[0], GOOD)) == unread
    assert all(found.pop((run_id, None)) == found.pop((run_id, "bad")) == unread for run_id in poisoned)
    assert found == {(run_id, GOOD): ("delivered", "204") for run_id in (*poisoned[1:], fine)}


def test_a_fault_of_ours_stops_neither_the_leader_nor_the_other_notices(
    group_of: Callable[..., Group], caplog: pytest.LogCaptureFixture
) -> None:
    group = group_of(1, is_deadly=False)
    group.put(GOOD)
    group.put(FLAKY)
    send = group.world.post

    async def faulty(url: str, body: bytes, headers: Mapping[str, str]) -> Tried:
        if FLAKY in url:
            raise RuntimeError(f"a bug at {url}")
        return await send(url, body, headers)

    group.world.post = faulty  # type: ignore[method-assign]
    group.elect()
    group.end_a_run()
    group.loop.run_until(2 * HOUR)
    found = {receiver: (state, reason) for _, _, receiver, state, _, reason, *_ in group.rows()}
    assert found[GOOD][0] == "delivered"
    assert found[FLAKY] == ("given_up", "a fault of ours; the master's log has more; it was tried 10 times")
    assert "could not be sent: RuntimeError at" in caplog.text and f"{FLAKY}.example" not in caplog.text
