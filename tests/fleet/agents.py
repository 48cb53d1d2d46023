"""Agents: a machine, the process on it that talks to masters, its journal and lease, and what goes wrong with them."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pistage import wire
from pistage.agent.reports import Reports
from pistage.core import commands as c
from pistage.core.model import AgentInfo
from tests.fleet.desk import HEARTBEAT_S
from tests.fleet.links import Link
from tests.fleet.work import Call, Record, Work, cancelled, lost

if TYPE_CHECKING:
    from tests.fleet.world import World

STOP_GRACE_S = 2.0
_WELCOME_TIMEOUT_S = 10.0
_BACKOFF_MAX_S = 5.0
_BEATS_MISSED_MAX = 3


class Agent:
    """`life` is of the process: what was to happen in an earlier one does not."""

    def __init__(self, world: World, info: AgentInfo) -> None:
        self.world, self.id, self.info = world, info.id, info
        self.rate = world.rng.uniform(1 / 1.1, 1.1) if world.rng.random() < world.mix.clocks else 1.0
        self.journal: dict[str, Record] = {}
        self.links: dict[Link, None] = {}
        self.works: dict[str, Work] = {}
        self.reports = Reports()
        self.life = 0
        self.is_running = self.is_gone = self.is_leaving = False
        self.paused_until = self.cut_in_until = self.cut_out_until = 0.0
        self.lease_from = -1.0  # none was given yet
        self._link: Link | None = None
        self._pump: asyncio.Task[None] | None = None
        self._hello_s = self._frame_s = 0.0
        self._backoff_s = 0.1
        self._beats: dict[int, float] = {}
        self._beat = 0

    # --- time -------------------------------------------------------------------------------------------------------

    def after(self, wait_s: float, call: Call, *arguments: Any) -> None:
        """By the clock of this machine, if its process lives then; later, if it stands still."""
        self.world.at(wait_s / self.rate, self._call, self.life, call, arguments)

    def _call(self, life: int, call: Call, arguments: tuple[Any, ...]) -> None:
        if life == self.life:
            if self.is_paused:
                self.world.loop.call_at(self.paused_until, self._call, life, call, arguments)
            else:
                call(*arguments)

    @property
    def is_paused(self) -> bool:
        return self.world.now_s < self.paused_until

    @property
    def is_deaf(self) -> bool:
        return self.world.now_s < max(self.cut_in_until, self.paused_until)

    @property
    def is_mute(self) -> bool:
        return self.world.now_s < self.cut_out_until

    @property
    def is_blind(self) -> bool:
        """Whether no process here could stop anything now."""
        return not self.is_running or self.is_paused

    @property
    def lease_ends_s(self) -> float:
        return self.lease_from + self.world.lease_s / self.rate

    @property
    def is_lease_over(self) -> bool:
        return self.world.now_s >= self.lease_ends_s - 0.3  # so late an outage can come that nothing can be stopped

    # --- the process ------------------------------------------------------------------------------------------------

    def boot(self) -> None:
        """A process begins: it reads the journal and looks for a master."""
        self.life += 1
        self.is_running, self.is_leaving = True, False
        self.info = replace(self.info, incarnation=f"{self.id}.{self.life}")
        self.works.clear()
        self.reports = Reports()
        self._link, self._backoff_s = None, 0.1
        if self.lease_from >= 0:
            if self.world.now_s >= self.lease_ends_s:
                self.excuse()
            self.lease_from -= self.world.rng.random()  # the file is written once a second
            self._arm_the_lease()
        self.after(self.world.rng.uniform(0.0, 1.0), self._dial)

    def die(self, *, is_said: bool = True) -> None:
        """The process ends; containers do not."""
        self.life += 1
        self.is_running = False
        self._hang_up(is_said=is_said)
        for work in self.works.values():
            if work.execution is not None:
                work.execution.work = None
        self.works.clear()

    def crash(self, *, keeps_journal: bool) -> None:
        """The machine fails: nothing runs on, and nobody is told."""
        self.die(is_said=False)
        for execution in list(self.world.ground.of_agent.get(self.id, ())):
            execution.kill()
        self.lease_from = -1.0
        self.paused_until = 0.0
        if not keeps_journal:
            self.journal.clear()

    def pause(self, wait_s: float) -> None:
        """The machine stands still, and what it runs."""
        self.paused_until = self.world.now_s + wait_s
        for execution in self.world.ground.of_agent.get(self.id, ()):
            execution.stand_still()
        self.world.at(wait_s, self._resume, self.paused_until)

    def _resume(self, until: float) -> None:
        if until != self.paused_until:
            return
        if self.world.now_s >= self.lease_ends_s:
            self.excuse()
        for execution in self.world.ground.of_agent.get(self.id, ()):
            execution.go_on()
        self.look_at_the_lease()
        self.pump()

    def excuse(self) -> None:
        """Its lease ended while nobody here could act: what runs here may overlap with what was begun elsewhere."""
        for execution in self.world.ground.of_agent.get(self.id, ()):
            execution.is_excused = True
            self.world.count("execution beyond the promise")

    def pump(self) -> None:
        for link in list(self.links):
            link.pump()

    def leave(self, *, waits_s: float) -> None:
        """SIGTERM: see through what there is, for so long, and take no more."""
        if not self.is_running or self.is_leaving:
            return
        self.world.count("leaving")
        self.is_leaving = True
        self._say_leaving()
        self.after(waits_s, self._hurry)
        self.after(0.5, self._look_whether_all_is_done)

    def _say_leaving(self) -> None:
        if self.is_leaving and self._link is not None and self._link.session is not None:
            self._link.to_master(wire.Leaving())

    def _hurry(self) -> None:
        for work in list(self.works.values()):
            work.order_stop(lost("its agent was stopped"), grace_s=STOP_GRACE_S)
        self.after(STOP_GRACE_S + 5.0, self._left)

    def _look_whether_all_is_done(self) -> None:
        if not self.works and not self.reports.has_any:
            self._left()
        else:
            self.after(0.5, self._look_whether_all_is_done)

    def _left(self) -> None:
        self.world.count("left")
        self.die()

    # --- the session ------------------------------------------------------------------------------------------------

    def _dial(self) -> None:
        world = self.world
        master = world.rng.choice(world.cluster.masters)
        if not master.is_leading and world.cluster.leader is not None and world.rng.random() < 0.9:
            master = world.cluster.leader  # it says who leads
        if not master.is_leading or self._link is not None:
            self._dial_later()
            return
        held = tuple(
            wire.Held(attempt_id=one.assign.attempt_id, run_id=one.assign.run_id, fence=one.assign.fence)
            for one in self.journal.values()
        )
        self._link = Link(world, self, master)
        self._hello_s = self._frame_s = world.now_s
        self._link.to_master(wire.Hello(info=self.info, held=held, is_leaving=self.is_leaving))
        self.after(_WELCOME_TIMEOUT_S, self._give_up, self._link)

    def _give_up(self, link: Link) -> None:
        if self._link is link and self._pump is None:
            self._hang_up()
            self._dial_later()

    def _dial_later(self) -> None:
        self.after(self._backoff_s * self.world.rng.uniform(0.5, 1.0), self._dial)
        self._backoff_s = min(2 * self._backoff_s, _BACKOFF_MAX_S)

    def _hang_up(self, *, is_said: bool = True) -> None:
        if self._pump is not None:
            self._pump.cancel()
            self._pump = None
        if self._link is not None:
            link, self._link = self._link, None
            link.close_by_agent(is_said=is_said)

    def disconnected(self, link: Link) -> None:
        if self._link is link and self.is_running:
            self._hang_up()
            self._dial_later()

    def received(self, link: Link, message: wire.ToAgent) -> None:
        if link is not self._link or not self.is_running:
            return
        self._frame_s = self.world.now_s
        match message:
            case wire.Welcome():
                self._welcomed(link, message)
            case wire.HeartbeatAck(number=number):
                if (sent_s := self._beats.pop(number, None)) is not None:
                    self._renew(sent_s)
            case _:
                self.look_at_the_lease()
                self._told(message)

    def _told(self, message: wire.ToAgent) -> None:
        match message:
            case wire.Assign():
                self._assigned(message)
            case wire.Cancel(attempt_id=attempt_id, reason=reason):
                if work := self.works.get(attempt_id):
                    work.order_stop(cancelled(reason), grace_s=STOP_GRACE_S)
            case wire.Evict(attempt_id=attempt_id, reason=reason):
                if work := self.works.get(attempt_id):
                    self.world.count("eviction", work.stop is None)
                    work.order_stop(lost(reason), grace_s=STOP_GRACE_S)
            case wire.Reported(number=number, refused=refused):
                self._reported(number, refused)
            case _:
                pass

    def _welcomed(self, link: Link, welcome: wire.Welcome) -> None:
        self._backoff_s = 0.1
        self._renew(self._hello_s)
        self.reports.begin_session()
        kept = {verdict.attempt_id: verdict.is_kept for verdict in welcome.verdicts}
        for attempt_id, record in list(self.journal.items()):
            work = self._work_of(record)
            if not kept.get(attempt_id, True):
                self._abandon(work)
        self._beats.clear()
        self._heartbeat(link)
        self._pump = self.world.loop.create_task(self.reports.pump(self._send_report))
        self._say_leaving()

    async def _send_report(self, report: wire.Report) -> None:
        if self._link is not None:
            self._link.to_master(report)

    def _heartbeat(self, link: Link) -> None:
        if self._link is not link:
            return
        if self.world.now_s - self._frame_s > _BEATS_MISSED_MAX * HEARTBEAT_S:
            self.world.count("session ended by silence")
            self._hang_up()
            self._dial_later()
            return
        self._beat += 1
        self._beats[self._beat] = self.world.now_s
        link.to_master(wire.Heartbeat(number=self._beat))
        self.after(HEARTBEAT_S, self._heartbeat, link)

    # --- the lease --------------------------------------------------------------------------------------------------

    def _renew(self, sent_s: float) -> None:
        """What a lease that ended meanwhile demands is done first."""
        self.look_at_the_lease()
        self.lease_from = max(self.lease_from, sent_s)
        self._arm_the_lease()

    def _arm_the_lease(self) -> None:
        self.after((self.lease_ends_s - self.world.now_s) * self.rate, self._lease_timer, self.lease_from)

    def _lease_timer(self, lease_from: float) -> None:
        if lease_from == self.lease_from:
            self.look_at_the_lease()

    def look_at_the_lease(self) -> None:
        """If it is over, what must not run twice ends before the masters give it to another."""
        if not self.is_running or self.lease_from < 0 or self.world.now_s < self.lease_ends_s - 1e-6:
            return
        for record in list(self.journal.values()):
            work = self._work_of(record)
            if record.is_over or work.may_run_on or work.is_fenced or work.is_abandoned:
                continue
            work.is_fenced = True
            self.world.count("fenced")
            late_s = self.world.now_s - self.lease_ends_s
            # An eighth of the lease for the stop signals, and as much again for the kill.
            grace_s = max(0.0, self.world.lease_s / 8 - late_s) + self.world.rng.uniform(0.0, self.world.lease_s / 8)
            work.stop = None  # what was ordered before may take longer
            work.order_stop(lost("no master was heard of"), grace_s=grace_s)

    # --- attempts ---------------------------------------------------------------------------------------------------

    def _work_of(self, record: Record) -> Work:
        attempt_id = record.assign.attempt_id
        if attempt_id not in self.works:
            self.works[attempt_id] = Work(self, record)
        return self.works[attempt_id]

    def _assigned(self, assign: wire.Assign) -> None:
        if assign.attempt_id in self.journal:
            self.world.count("assignment twice")
            return
        if self.is_leaving:
            result = lost("the agent is stopping")
            self.reports.add(
                c.Finished(at=wire.now_ms(), attempt_id=assign.attempt_id, fence=assign.fence, result=result)
            )
            return
        self._work_of(self.journal.setdefault(assign.attempt_id, Record(assign)))

    def _abandon(self, work: Work) -> None:
        self.world.count("abandoned")
        self.reports.forget(work.id)
        work.abandon()
        if work.is_done:
            self.forget(work)

    def _reported(self, number: int, refused: tuple[str, ...]) -> None:
        for event in self.reports.on_reported(number):
            work = self.works.get(event.attempt_id)
            if work is None or not isinstance(event, c.Finished) or event.attempt_id in refused:
                continue
            self.world.checker.acknowledged(event)
            work.is_acknowledged = True
            if work.is_done:
                self.forget(work)
        for attempt_id in refused:
            if work := self.works.get(attempt_id):
                self._abandon(work)

    def forget(self, work: Work) -> None:
        """A master has its end, or wants nothing of it."""
        if self.works.pop(work.id, None) is not None:
            del self.journal[work.id]
