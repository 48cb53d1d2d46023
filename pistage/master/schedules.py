"""Schedules at work: the leader knows when each is due, and has its times decided, a hundred by one command."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import heapq
import logging
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from pistage import wire
from pistage.core import codec, limits
from pistage.core.commands_of_schedules import Fire, FirePlan, FireSchedules
from pistage.core.cron import CronError, Due, Timer
from pistage.core.machine import Outcome
from pistage.core.plan import Plan
from pistage.errors import Code, PistageError
from pistage.master import scheduled
from pistage.master.api.submissions import Planner, Submission
from pistage.master.replica import Replica
from pistage.master.scheduled import Scheduled

log = logging.getLogger(__name__)

_LOOK_EVERY_S = 1.0  # at the clock, which may be set
_AGAIN_S = 0.5
_NO_SPACE_S = 5.0
_PLANS_BYTES_MAX: Final = 64 * limits.MIB  # of plans that are kept for the next time
_COMMAND_BYTES_MAX: Final = 2 * limits.MIB
_COMMAND_TASKS_MAX: Final = 5_000
_PASSING = frozenset({Code.UNAVAILABLE, Code.STORAGE, Code.TIMEOUT})


@dataclass(slots=True)
class _Entry:
    about: Scheduled
    timer: Timer
    due_at: int | None


@dataclass(frozen=True, slots=True)
class _Made:
    """A plan, its document if that is not the schedule's own, and how large it is."""

    plan: FirePlan
    size: int


@dataclass(slots=True)
class _Batch:
    """What goes into one command; each plan once, however many fires it has."""

    plans: list[FirePlan] = field(default_factory=list)
    fires: list[Fire] = field(default_factory=list)
    size: int = 0
    tasks: int = 0

    def add(self, fire: Fire, made: _Made | None) -> None:
        """One more, that executes this plan, or none."""
        if made is None:
            self.fires.append(fire)
            return
        numbers = (number for number, plan in enumerate(self.plans) if plan is made.plan)
        if (number := next(numbers, None)) is None:
            number = len(self.plans)
            self.plans.append(made.plan)
            self.size += made.size
        self.fires.append(replace(fire, plan=number))
        self.tasks += len(made.plan.plan.tasks)

    def has_room(self, made: _Made | None) -> bool:
        """Whether one more fire of it goes in, or one without a plan."""
        size, tasks = (0, 0) if made is None else (made.size, len(made.plan.plan.tasks))
        return not self.fires or (
            len(self.fires) < limits.FIRES_AT_ONCE
            and self.size + size <= _COMMAND_BYTES_MAX
            and self.tasks + tasks <= _COMMAND_TASKS_MAX
        )

    def part(self, fires: Sequence[Fire]) -> _Batch:
        """These of its fires, with the plans that they execute."""
        numbers = sorted({fire.plan for fire in fires if fire.plan is not None})
        at = {number: place for place, number in enumerate(numbers)}
        kept = [fire if fire.plan is None else replace(fire, plan=at[fire.plan]) for fire in fires]
        return _Batch(plans=[self.plans[number] for number in numbers], fires=kept)


class Schedules:
    """Runs `serve` for as long as this master leads. A later leader goes on from what is decided."""

    def __init__(
        self,
        replica: Replica,
        planner: Planner,
        *,
        refuse_unless_space: Callable[[], None],
        now_ms: Callable[[], int] = wire.now_ms,
    ) -> None:
        self._replica, self._planner, self._refuse_unless_space = replica, planner, refuse_unless_space
        #: The clock of this machine, and not that of the log: which never goes back, so that one leader whose clock was
        #: hours ahead would have every schedule fire hours early from then on.
        self._now_ms = now_ms
        self._entries: dict[str, _Entry] = {}
        self._queue: list[tuple[int, str]] = []
        self._changed: set[str] = set()
        self._news = asyncio.Event()
        self._plans = _Plans()
        self._since = 0  # when this master took the lead, milliseconds UTC
        self._is_serving = False
        replica.on_applied(self._note)

    def _note(self, outcome: Outcome) -> None:
        if outcome.has_new_actions:  # of which some may be made; what is being made now is kept among the old ones
            self._plans = _Plans()
        if self._is_serving and outcome.schedules:
            self._changed.update(outcome.schedules)
            self._news.set()

    async def serve(self) -> None:
        """Fire what is due, until cancelled."""
        self._entries.clear()
        self._queue.clear()
        self._changed.clear()
        self._plans = _Plans()  # of actions that may have changed while nobody told us
        self._is_serving, self._since = True, self._now_ms()
        try:
            async with self._replica.reader.snapshot() as snapshot:
                there = await scheduled.enabled(snapshot)
            await self._learn(there)
            while True:
                self._news.clear()
                await self._follow_changes()
                try:
                    if not await self._fire_what_is_due():
                        await self._wait()
                except PistageError as refusal:  # we do not lead any more, or have no majority or no space now
                    log.warning("schedules wait: %s", refusal)
                    await asyncio.sleep(_NO_SPACE_S if refusal.code is Code.STORAGE else _AGAIN_S)
        finally:
            self._is_serving = False

    async def _wait(self) -> None:
        left_s = _LOOK_EVERY_S
        if self._queue:
            left_s = min(left_s, (self._queue[0][0] - self._now_ms()) / 1000)
        if left_s > 0:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(left_s):
                    await self._news.wait()

    # --- what there is -------------------------------------------------------------------------------------------

    async def _follow_changes(self) -> None:
        if not self._changed:
            return
        changed, self._changed = self._changed, set()
        async with self._replica.reader.single() as snapshot:
            there = await scheduled.enabled_among(snapshot, changed)
        for schedule_id in changed:
            self._entries.pop(schedule_id, None)
        await self._learn(there)

    async def _learn(self, there: Sequence[Scheduled]) -> None:
        for start in range(0, len(there), limits.FIRES_AT_ONCE):
            for about in there[start : start + limits.FIRES_AT_ONCE]:
                try:
                    timer = Timer.of(about.schedule, _share_of(about.id))
                    entry = _Entry(about, timer, timer.next_due(about.decided_until))
                except CronError as error:  # this machine does not know the zone
                    log.error("schedule=%s does not fire: %s", about.name, error.message)
                    continue
                except Exception:  # a bug of ours, which else would end one leader after the other
                    log.exception("schedule=%s does not fire", about.name)
                    continue
                self._entries[about.id] = entry
                if entry.due_at is not None:
                    heapq.heappush(self._queue, (entry.due_at, about.id))
            await asyncio.sleep(0)

    # --- what is due ---------------------------------------------------------------------------------------------

    async def _fire_what_is_due(self) -> bool:
        """Have as much decided as one look takes; whether there was anything."""
        now = self._now_ms()
        entries = self._due_by(now)
        if not entries:
            return False
        try:
            self._refuse_unless_space()
            # Of what was missed over days there is much to reckon.
            due = await asyncio.to_thread(
                lambda: [entry.timer.due(entry.about.decided_until, now) for entry in entries]
            )
            made = await self._planned([entry for entry, one in zip(entries, due, strict=True) if one.fires])
            await self._decide(list(zip(entries, due, strict=True)), made)
        except BaseException:
            self._changed.update(entry.about.id for entry in entries)  # none of them is in the queue now
            raise
        return True

    def _due_by(self, now: int) -> list[_Entry]:
        entries: list[_Entry] = []
        while self._queue and self._queue[0][0] <= now and len(entries) < limits.FIRES_AT_ONCE:
            due_at, schedule_id = heapq.heappop(self._queue)
            entry = self._entries.get(schedule_id)
            if entry is not None and entry.due_at == due_at:
                entry.due_at = None
                entries.append(entry)
        return entries

    async def _planned(self, entries: Sequence[_Entry]) -> dict[str, _Made | PistageError]:
        """What each of them is to execute, or why nothing can be."""
        by_key = {_key_of(entry.about): entry.about for entry in entries}
        results = await asyncio.gather(*(self._plan(key, about) for key, about in by_key.items()))
        made = dict(zip(by_key, results, strict=True))
        return {entry.about.id: made[_key_of(entry.about)] for entry in entries}

    async def _plan(self, key: str, about: Scheduled) -> _Made | PistageError:
        plans = self._plans
        if (made := plans.get(key)) is not None:
            return made
        async with self._replica.reader.single() as snapshot:
            source = await scheduled.source_of(snapshot, about.id)
        submission = Submission(source, about.action, dict(about.schedule.parameters), about.start_node)
        found = await self._planner.plan_unattended(submission, about.project)
        if isinstance(found, PistageError):
            return found
        planned, text = found
        plan = FirePlan(plan=planned.plan, source=text if about.action is not None else "")
        made = _Made(plan, len(codec.to_json(Plan, planned.plan)) + len(plan.source))
        plans.keep(key, made)
        return made

    async def _decide(self, due: Sequence[tuple[_Entry, Due]], made: dict[str, _Made | PistageError]) -> None:
        batch = _Batch()
        for entry, one in due:
            for fire, plan in self._fires(entry, one, made.get(entry.about.id)):
                if not batch.has_room(plan):
                    await self._propose(batch)
                    batch = _Batch()
                batch.add(fire, plan)
        await self._propose(batch)

    def _fires(
        self, entry: _Entry, due: Due, made: _Made | PistageError | None
    ) -> Iterator[tuple[Fire, _Made | None]]:  # fmt: skip
        about = entry.about
        known = Fire(schedule_id=about.id, fence=about.fence, after=about.decided_until, nominal=0)
        if (missed := due.missed) is not None:
            reason = self._reason(entry, missed.last)
            yield replace(known, nominal=missed.first, until=missed.last, count=missed.count, reason=reason), None
            known = replace(known, after=missed.last)
        if isinstance(made, _Made):
            for nominal in due.fires:
                yield replace(known, nominal=nominal, run_id=wire.new_id()), made
                known = replace(known, after=nominal)
        elif due.fires:
            reason = str(made)[: limits.REASON_CHARS_MAX]
            first, last, count = due.fires[0], due.fires[-1], len(due.fires)
            yield replace(known, nominal=first, until=last, count=count, outcome="failed", reason=reason), None

    def _reason(self, entry: _Entry, last: int) -> str:
        who = "no leader" if last < self._since else "the leader was late"
        return f"{who}, catch_up {entry.about.schedule.catch_up}"

    async def _propose(self, batch: _Batch) -> None:
        command = FireSchedules(at=wire.now_ms(), plans=tuple(batch.plans), fires=tuple(batch.fires))
        try:
            await self._replica.propose(command)
        except PistageError as refusal:
            if refusal.code in _PASSING:
                raise
            await self._propose_less(batch, refusal)

    async def _propose_less(self, batch: _Batch, refusal: PistageError) -> None:
        """One that the state cannot hold must not keep the others from being decided, nor come for ever."""
        if len(batch.fires) > 1:
            middle = len(batch.fires) // 2
            await self._propose(batch.part(batch.fires[:middle]))
            await self._propose(batch.part(batch.fires[middle:]))
            return
        (fire,) = batch.fires
        if fire.plan is None:
            raise refusal
        log.error("schedule=%s nominal=%d: %s", fire.schedule_id, fire.nominal, refusal)
        reason = str(refusal)[: limits.REASON_CHARS_MAX]
        await self._propose(_Batch(fires=[replace(fire, plan=None, outcome="failed", reason=reason)]))


class _Plans:
    """Plans that were made before: most schedules execute the same one each time. As large as is allowed, no more."""

    def __init__(self) -> None:
        self._kept: OrderedDict[str, _Made] = OrderedDict()
        self._size = 0

    def get(self, key: str) -> _Made | None:
        """What was kept under the key, if it still is."""
        if (made := self._kept.get(key)) is not None:
            self._kept.move_to_end(key)
        return made

    def keep(self, key: str, made: _Made) -> None:
        """For the next time; what was longest not asked for goes."""
        if key in self._kept:
            return
        self._kept[key] = made
        self._size += len(key) + made.size
        while self._size > _PLANS_BYTES_MAX:
            forgotten, oldest = self._kept.popitem(last=False)
            self._size -= len(forgotten) + oldest.size


def _key_of(about: Scheduled) -> str:
    parameters = codec.canonical_json(about.schedule.parameters)
    return codec.canonical_json([about.project, about.action, about.sha256, about.start_node, parameters])


def _share_of(schedule_id: str) -> float:
    """Of its jitter, the same whoever leads."""
    return int.from_bytes(hashlib.sha256(schedule_id.encode()).digest()[:4]) / (1 << 32)
