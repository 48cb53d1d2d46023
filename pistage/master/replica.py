"""The replica: `propose` is the only way to change the state, `read` makes sure of what it says.

A proposal becomes an entry of the log, durable on a majority, is applied to the state in the same order on every
master, and only then answered.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Final

from pistage import raft, wire
from pistage.core import commands, limits
from pistage.core.commands import Command
from pistage.core.machine import Outcome
from pistage.errors import Code, PistageError
from pistage.master.driver import Carrier, Driver, Pace
from pistage.master.pending import Pending, Proposal, outcome_unknown, refusal_of
from pistage.master.state import Reader
from pistage.master.store import DurableLog
from pistage.owning import running

log = logging.getLogger(__name__)

#: After this long without a majority, who proposed is told that the outcome is not known.
OUTCOME_WAIT_S: Final = 15.0
#: A read that could not be confirmed in this time is refused.
READ_WAIT_S: Final = 5.0
_HANDOVER_WAIT_S = 3.0
_APPLY_WAIT_S = 10.0  # a batch of the largest submissions takes half of that
_HEARD_TICKS = 8  # four heartbeats
_DOUBT_AFTER_S = 1.0
Listener = Callable[[Outcome], None]


class LogClock:
    """Time for what enters the log."""

    def __init__(self, wall_ms: Callable[[], int], monotonic_s: Callable[[], float]) -> None:
        self._wall_ms, self._monotonic_s = wall_ms, monotonic_s
        self._newest_ms, self._since_s = 0, monotonic_s()

    def now_ms(self, least_ms: int) -> int:
        """Not below `least_ms`, the newest time in the log, nor below what was told before."""
        now_s = self._monotonic_s()
        ticking_ms = self._newest_ms + int((now_s - self._since_s) * 1000)
        newest_ms = max(self._wall_ms(), least_ms, ticking_ms)
        if newest_ms > self._newest_ms:  # part of a millisecond is not lost by being asked for often
            self._newest_ms, self._since_s = newest_ms, now_s
        return newest_ms


class Nobody:
    """The carrier of a group of one."""

    def send(self, message: raft.Message) -> None:
        """Lost."""

    async def fetch_snapshot(self, source: str, index: int, path: Path) -> None:
        """There is nobody to fetch from."""
        raise PistageError(Code.UNAVAILABLE, f"no master {source}")


class Replica:
    """Use as `async with Replica(log, data_dir).running() as replica`; leaving it loses nothing that was answered."""

    def __init__(
        self,
        durable_log: DurableLog,
        data_dir: Path,
        *,
        carrier: Carrier | None = None,
        pace: Pace | None = None,
        entries_kept: int = 10_000,
    ) -> None:
        self._driver = Driver(
            durable_log,
            data_dir,
            carrier=carrier or Nobody(),
            observer=self,
            pace=pace or Pace(),
            entries_kept=entries_kept,
        )
        self.identity = durable_log.identity
        self._pending = Pending()
        self._proposals: list[Proposal] = []
        self._waiting_bytes = 0
        self._clock = LogClock(wire.now_ms, time.monotonic)
        self._led_term = 0  # the newest term in which this master led, until it has given up what it proposed
        self._listeners: list[Listener] = []
        self._role_changed = asyncio.Event()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Replica]:
        """Open the files, bring the state up to the log, and take part in the group until left."""
        try:
            async with self._driver.running(), running(self._pass_on_what_cannot_be_served()):
                yield self
        finally:
            self._pending.give_up(PistageError(Code.UNAVAILABLE, "this master is stopping", hint="try again"))

    # --- what is known -------------------------------------------------------------------------------------------

    @property
    def node(self) -> raft.Node:
        """To be looked at, never stepped."""
        return self._driver.node

    @property
    def reader(self) -> Reader:
        return self._driver.reader

    @property
    def applied_index(self) -> int:
        return self._driver.state.position.index

    @property
    def digest(self) -> bytes:
        """Of the state at `applied_index`."""
        return self._driver.state.position.digest

    @property
    def term(self) -> int:
        return self.node.term

    @property
    def leader(self) -> str | None:
        """The node id of the leader, as far as is known."""
        return self.node.leader

    @property
    def role_name(self) -> str:
        """What this master is to the group, for people."""
        return self.role_of(self.node_id)

    def role_of(self, node_id: str) -> str:
        """What a master is to the group, as far as this one knows."""
        if node_id == self.leader:
            return "leader"
        if node_id in self.membership.learners:
            return "learner"
        if node_id not in self.membership.voters:
            return "outsider"
        return str(self.node.role) if node_id == self.node_id else "follower"

    @property
    def heard(self) -> dict[str, int]:
        """The other members that this leader has just heard of, and how far the log of each is; {} of a follower."""
        leadership = self.node.leadership
        followers = leadership.followers if leadership else {}
        return {peer: one.match for peer, one in followers.items() if one.heard_tick > self.node.now - _HEARD_TICKS}

    def heard_ms(self, tick: int) -> int:
        """How long ago the node's clock was at `tick`."""
        return round((self.node.now - tick) * self._driver.tick_s * 1000)

    @property
    def membership(self) -> raft.Config:
        """The one in force here, committed or not."""
        return self.node.log.config

    @property
    def is_leading(self) -> bool:
        """Whether this master leads, and its state holds everything that was committed before it did."""
        leadership = self.node.leadership
        return leadership is not None and self.applied_index >= leadership.first_index and not self._driver.is_closed

    @property
    def is_serving(self) -> bool:
        """Whether a change that reaches this master can be made, by it or by the leader it knows."""
        return not self._driver.is_closed and self.node.leader is not None and not self.is_disk_full

    @property
    def is_disk_full(self) -> bool:
        """Whether this master's log waits for space."""
        return self.node.writes.is_disk_full

    @property
    def is_alone(self) -> bool:
        """Whether no other master could lead in this one's place."""
        return self.membership.voters == (self.node_id,)

    @property
    def command_version(self) -> int:
        """The newest version of commands that may be proposed."""
        return self._driver.state.command_version

    @property
    def node_id(self) -> str:
        return self.identity.node_id

    @property
    def leader_contact_s(self) -> float | None:
        """How long ago a leader was heard, 0 where it is this master, None if none was heard since the start."""
        return self._driver.leader_contact_s

    @property
    def lag_s(self) -> float:
        """How late the loop was at the worst, in the last ten seconds."""
        return self._driver.lag_s

    def on_applied(self, listener: Listener) -> None:
        """Call `listener` with each outcome, on the loop, in order; it must not block."""
        self._listeners.append(listener)

    async def role_change(self) -> None:
        """Wait for the next time that role, term, leader or `is_leading` may have changed."""
        await self._role_changed.wait()

    async def until_leading(self) -> None:
        """Wait until `is_leading`."""
        while not self.is_leading:
            await self.role_change()

    async def until_deposed(self) -> None:
        """Wait until not `is_leading`."""
        while self.is_leading:
            await self.role_change()

    async def until_applied(self, index: int) -> None:
        """Wait until the state here is at `index`."""
        if self.applied_index < index:
            await self._pending.until(index)

    # --- what can be asked ---------------------------------------------------------------------------------------

    async def propose(self, command: Command) -> Outcome:
        """Change the state; returns once that is committed and applied here.

        PistageError: the command's refusal; `unavailable` where this master does not lead, too much waits (64 MiB),
        or the outcome is not known; `storage` when the disk is full.
        """
        self._refuse_unless_able(command)
        payload = wire.pack_command(replace(command, at=max(command.at, self.now_ms())))
        if len(payload) > limits.PEER_MESSAGE_BYTES_MAX - limits.MIB:  # no message could carry it to another master
            raise PistageError(Code.TOO_LARGE, f"a change of {len(payload) / limits.MIB:.0f} MiB is too large")
        if self._waiting_bytes + len(payload) > limits.UNCOMMITTED_BYTES_MAX:
            raise PistageError(Code.UNAVAILABLE, "too many changes wait for the disk", hint="try again in a second")
        proposal = Proposal(payload, asyncio.get_running_loop().create_future())
        self._waiting_bytes += len(payload)
        # When it is answered, not when its proposer goes away: until then it waits in the queue.
        proposal.answer.add_done_callback(lambda _: self._make_room(len(payload)))
        if not self._proposals:
            self._driver.when_written(self._propose_waiting)
        self._proposals.append(proposal)
        try:
            async with asyncio.timeout(OUTCOME_WAIT_S):
                outcome = await asyncio.shield(proposal.answer)
        except TimeoutError:
            raise outcome_unknown() from None
        if outcome.error is not None:
            raise outcome.error
        return outcome

    def now_ms(self) -> int:
        """The time of the log, milliseconds UTC: it never goes back, nor stands still, whatever clocks leaders have.

        Where an earlier leader's clock was ahead of ours, it goes on from there until ours has caught up.
        """
        return self._clock.now_ms(self._driver.state.position.at)

    def _refuse_unless_able(self, command: Command) -> None:
        if self._driver.is_closed:
            raise _stopping()
        if self.is_disk_full and self.is_alone:
            raise PistageError(Code.STORAGE, "the master's disk is full", hint="free some space; nothing was changed")
        if commands.version_of(command) > self.command_version:
            raise PistageError(
                Code.UNAVAILABLE, "not every master knows this kind of change yet", hint="upgrade the others first"
            )

    def _make_room(self, size: int) -> None:
        self._waiting_bytes -= size

    def _propose_waiting(self) -> None:
        proposals, self._proposals = self._proposals, []
        token = self._pending.ask(lambda reply: self._pending.place(proposals, reply))
        self._driver.step(raft.Propose(token=token, payloads=tuple(proposal.payload for proposal in proposals)))

    async def read(self) -> None:
        """Wait until the state here holds every change that was answered, anywhere, before this call."""
        ready = self._begin_read()
        try:
            async with asyncio.timeout(READ_WAIT_S):
                await self.until_applied(await ready)
        except TimeoutError:
            raise PistageError(
                Code.UNAVAILABLE, "the masters have no majority now", hint="try again, or read with ?stale=1"
            ) from None

    async def confirm_leading(self) -> None:
        """Wait until a majority has said, since this call, that it follows the leader; how far it is applied is aside.

        PistageError `unavailable` if it does not in time.
        """
        ready = self._begin_read()
        try:
            async with asyncio.timeout(READ_WAIT_S):
                await ready
        except TimeoutError:
            raise PistageError(Code.UNAVAILABLE, "the masters have no majority now", hint="try again") from None

    def _begin_read(self) -> asyncio.Future[int]:
        token, ready = self._pending.ask_to_read()
        self._driver.step(raft.Read(token=token))
        return ready

    async def change_membership(self, change: raft.Change) -> None:
        """One step of one member; returns once it is committed. PistageError: why not."""
        reply = self._ask(lambda token: raft.Conf(token=token, change=change))
        try:
            async with asyncio.timeout(OUTCOME_WAIT_S):
                await self.until_applied(reply.index)
        except TimeoutError:
            raise outcome_unknown() from None

    async def transfer(self, target: str) -> None:
        """Hand leadership to that node; returns once it leads. PistageError if it does not in time."""
        self._ask(lambda token: raft.Transfer(token=token, target=target))
        try:
            async with asyncio.timeout(_HANDOVER_WAIT_S):
                while self.leader != target:
                    await self.role_change()
        except TimeoutError:
            raise PistageError(
                Code.UNAVAILABLE, f"master {target} did not take over in time", hint="is it running and caught up?"
            ) from None

    async def hand_over(self) -> None:
        """A leader that stops on purpose leaves no gap: the others need not find out by waiting."""
        heard = self.heard
        voters = [voter for voter in self.membership.voters if voter in heard]
        if voters and not self._driver.is_closed:
            try:
                await self.transfer(max(voters, key=lambda voter: heard[voter]))
            except PistageError as error:
                log.warning("leadership was not handed over: %s", error)

    async def _pass_on_what_cannot_be_served(self) -> None:
        """A state whose disk hangs, or has no space, does not stop the core from leading: its log may have both."""
        while True:
            await asyncio.sleep(_APPLY_WAIT_S / 2)
            if self.node.leadership is not None and self._driver.apply_s > _APPLY_WAIT_S:
                log.error("state.db does not get on: another master is to lead")
                await self.hand_over()

    def _ask(self, event_with: Callable[[int], raft.Conf | raft.Transfer]) -> raft.Reply:
        """What the core answers at once."""
        replies: list[raft.Reply] = []
        self._driver.step(event_with(self._pending.ask(replies.append)))
        if not replies:  # it has failed, and answers nothing any more
            raise _stopping()
        (reply,) = replies
        if reply.refusal is not None:
            raise refusal_of(reply)
        return reply

    def stop(self, error: PistageError) -> None:
        """End this master with that error: it found itself unfit."""
        self._driver.fail(error)

    def receive(self, message: raft.Message) -> None:
        """A message of another master's."""
        self._driver.step(raft.Recv(message=message))

    # --- what the driver tells -----------------------------------------------------------------------------------

    def replied(self, reply: raft.Reply) -> None:
        """The answer to a request."""
        self._pending.on_reply(reply)

    def read_ready(self, ready: raft.ReadReady) -> None:
        """A read may be served."""
        self._pending.on_read_ready(ready)

    def applied(self, entries: Sequence[raft.Entry], outcomes: Sequence[Outcome]) -> None:
        """These are in the state: answer who proposed them, tell who listens."""
        self._pending.settle(entries, outcomes)
        for outcome in outcomes:
            for listener in self._listeners:
                listener(outcome)

    def installed(self, index: int) -> None:
        """The state is at `index` by another's snapshot."""
        self._pending.installed(index)

    def role_changed(self) -> None:
        """Wake who waits for a leader, or for the end of one."""
        if self.node.leadership is not None:
            self._led_term = self.node.term
        elif self._led_term and not self._driver.is_closed:
            # Most of it is known in a moment. Longer than that, and it is better asked of the next leader.
            asyncio.get_running_loop().call_later(_DOUBT_AFTER_S, self._pending.doubt, self._led_term)
            self._led_term = 0
        self._role_changed.set()
        self._role_changed = asyncio.Event()


def _stopping() -> PistageError:
    return PistageError(
        Code.UNAVAILABLE, "this master is stopping: its disk or its state failed", hint="ask another master"
    )
