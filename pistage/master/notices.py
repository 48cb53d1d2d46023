"""Notices on their way: the leader tells receivers of runs that have ended, until each notice is told or given up."""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import logging
import random
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Protocol

from pistage import __version__
from pistage.core import limits
from pistage.core.commands_of_notices import RecordTry
from pistage.core.definition.messages import TEST, Told, body_of, headers_of
from pistage.core.machine import Outcome
from pistage.core.notices import Receiver, Verdict, wait_ms
from pistage.errors import Code, PistageError
from pistage.master import notified
from pistage.master.notified import Key, Notice
from pistage.master.outward import Tried
from pistage.master.replica import Replica

log = logging.getLogger(__name__)

_LOOK_EVERY_S: Final = 1.0  # at the clock, which may be set
_AGAIN_S: Final = 0.5
_TEST_S: Final = 6.0  # somebody waits for it, and asks another master after 8 s
_AGENT: Final = f"Pistage/{__version__}"
_OURS: Final = Tried(verdict=Verdict.WAITING, reason="a fault of ours; the master's log has more")


class Sender(Protocol):
    """Sends one request; an Outward does."""

    async def post(self, url: str, body: bytes, headers: Mapping[str, str]) -> Tried:
        """What came of it; never an error of the network's."""


@dataclass(slots=True)
class _Target:
    """Notices for one receiver, the one that is due first in front."""

    due: list[tuple[int, Key]] = field(default_factory=list)
    on_their_way: int = 0


class Notices:
    """Runs `serve` for as long as this master leads. A later leader goes on from what is recorded.

    At least once: what was delivered under a leader that fell before this was recorded is delivered again, under the
    same delivery id.
    """

    def __init__(self, replica: Replica, sender: Sender, *, rng: random.Random | None = None) -> None:
        self._replica, self._sender, self._rng = replica, sender, rng or random.Random()
        self._targets: dict[str, _Target] = {}
        self._due_at: dict[Key, int] = {}
        self._on_their_way: set[Key] = set()
        self._changed: set[Key] = set()
        self._news = asyncio.Event()
        self._quiet = asyncio.Event()  # nothing is due, as far as is known
        self._tests = asyncio.Semaphore(limits.NOTICES_TO_ONE_AT_ONCE)
        self._is_serving = False
        replica.on_applied(self._note)

    def _note(self, outcome: Outcome) -> None:
        if self._is_serving and outcome.deliveries:
            self._changed.update(outcome.deliveries)
            self._quiet.clear()
            self._news.set()

    async def serve(self) -> None:
        """Deliver what is due, until cancelled."""
        for known in (self._targets, self._due_at, self._on_their_way, self._changed):
            known.clear()
        self._is_serving = True
        try:
            async with self._replica.reader.snapshot() as snapshot:
                self._learn(await notified.waiting(snapshot))
            async with asyncio.TaskGroup() as tasks:
                while True:
                    self._news.clear()
                    await self._follow_changes()
                    next_at = self._begin_what_is_due(tasks)
                    if not self._on_their_way and not self._changed:
                        self._quiet.set()
                    await self._wait(next_at)
        finally:
            self._is_serving = False
            self._quiet.clear()

    async def until_quiet(self) -> None:
        """Wait until nothing is due now: what is to be tried again later is not waited for."""
        await self._quiet.wait()

    async def _wait(self, next_at: int | None) -> None:
        left_s = _LOOK_EVERY_S if next_at is None else (next_at - self._replica.now_ms()) / 1000
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(min(_LOOK_EVERY_S, max(0.0, left_s))):
                await self._news.wait()

    # --- what there is -------------------------------------------------------------------------------------------

    async def _follow_changes(self) -> None:
        changed = self._changed - self._on_their_way  # those are looked at when they are back
        if not changed:
            return
        self._changed -= changed
        async with self._replica.reader.single() as snapshot:
            there = await notified.waiting_among(snapshot, changed)
        for key in changed:
            self._due_at.pop(key, None)
        self._learn(there)

    def _learn(self, there: list[notified.Waiting]) -> None:
        for one in there:
            self._due_at[one.key] = one.due_at
            heapq.heappush(self._targets.setdefault(one.target, _Target()).due, (one.due_at, one.key))

    # --- what is due ---------------------------------------------------------------------------------------------

    def _begin_what_is_due(self, tasks: asyncio.TaskGroup) -> int | None:
        """Begin as much as may be under way; when the next is due that could be, milliseconds UTC."""
        while True:
            found = self._next()
            if found is None or found[0] > self._replica.now_ms():
                return None if found is None else found[0]
            target = self._targets[found[1]]
            _, key = heapq.heappop(target.due)
            del self._due_at[key]
            target.on_their_way += 1
            self._on_their_way.add(key)
            self._quiet.clear()
            tasks.create_task(self._deliver(key, found[1]))

    def _next(self) -> tuple[int, str] | None:
        """When the first is due that has a place, and for whom."""
        if len(self._on_their_way) >= limits.NOTICES_AT_ONCE:
            return None
        best: tuple[int, str] | None = None
        for name, target in list(self._targets.items()):
            while target.due and self._due_at.get(target.due[0][1]) != target.due[0][0]:
                heapq.heappop(target.due)  # it has changed, or is over
            if not target.due:
                if not target.on_their_way:
                    del self._targets[name]
            elif target.on_their_way < limits.NOTICES_TO_ONE_AT_ONCE:
                best = min(best or (target.due[0][0], name), (target.due[0][0], name))
        return best

    async def _deliver(self, key: Key, target: str) -> None:
        try:
            async with self._replica.reader.snapshot() as snapshot:
                notice = await notified.notice(snapshot, key)
            if notice is not None:
                await self._record(await self._try(notice))
        finally:
            self._on_their_way.discard(key)
            self._targets[target].on_their_way -= 1
            self._news.set()

    async def _try(self, notice: Notice) -> RecordTry:
        run_id, position = notice.key
        number = notice.tries + 1
        tried = await self._sent(notice)
        now = self._replica.now_ms()
        verdict, due_at, reason = tried.verdict, None, tried.reason
        if verdict is Verdict.WAITING:
            due_at = now + wait_ms(number, self._rng.random(), tried.asked_ms)
            if number >= limits.NOTICE_TRIES_MAX:
                verdict, due_at, reason = Verdict.GIVEN_UP, None, f"{reason}; it was tried {number} times"
            elif due_at >= notice.created_at + limits.NOTICE_AGE_MAX_MS:
                verdict, due_at, reason = Verdict.GIVEN_UP, None, f"{reason}; it is a day old"
        if verdict is Verdict.GIVEN_UP:
            log.warning("run=%s notice=%d is given up: %s", run_id, position, reason)
        return RecordTry(
            at=now, run_id=run_id, position=position, number=number, verdict=verdict, due_at=due_at,
            status=tried.status, reason=reason,
        )  # fmt: skip

    async def _sent(self, notice: Notice) -> Tried:
        if self._replica.now_ms() >= notice.created_at + limits.NOTICE_AGE_MAX_MS:
            return Tried(verdict=Verdict.GIVEN_UP, reason="there was no leader to deliver it within a day")
        if notice.receiver is None or notice.told is None:
            return Tried(verdict=Verdict.GIVEN_UP, reason="what the state has of it cannot be read")
        try:
            return await self._send(notice.receiver, notice.told, notice.delivery)
        except PistageError as refusal:
            return Tried(verdict=Verdict.GIVEN_UP, reason=refusal.message)
        except Exception as bug:  # one notice must not bring down each leader in its turn
            # Where, and not what it says: that may have the URL in it.
            where = "".join(traceback.format_tb(bug.__traceback__))
            log.error("run=%s notice=%d could not be sent: %s at\n%s", *notice.key, type(bug).__name__, where)
            return _OURS

    async def _send(self, receiver: Receiver, told: Told, delivery: str) -> Tried:
        body = await asyncio.to_thread(body_of, told, receiver.body)  # a template may take a tenth of a second
        headers = headers_of(receiver, told, body, delivery=delivery, at_s=int(time.time()), agent=_AGENT)
        return await self._sender.post(receiver.url, body, headers)

    async def _record(self, command: RecordTry) -> None:
        """Until it stands in the log: meanwhile its place is taken, so nothing is sent that cannot be recorded."""
        while True:
            try:
                await self._replica.propose(command)
            except PistageError as refusal:
                if refusal.code is Code.CONFLICT:  # it was recorded before, or given up meanwhile
                    return
                log.warning("run=%s what became of a notice is not recorded yet: %s", command.run_id, refusal)
                await asyncio.sleep(_AGAIN_S)
            else:
                return

    # --- by hand -------------------------------------------------------------------------------------------------

    async def test(self, receiver: Receiver, told: Told, delivery: str) -> Tried:
        """Send one now, once, that nobody records.

        PistageError `invalid` if its body cannot be made, `unavailable` while many others are tested.
        """
        if self._tests.locked():
            raise PistageError(Code.UNAVAILABLE, "other receivers are being tested", hint="try again in some seconds")
        try:
            async with self._tests, asyncio.timeout(_TEST_S):
                return await self._send(receiver, told, delivery)
        except TimeoutError:
            return Tried(verdict=Verdict.WAITING, reason=f"no answer within {_TEST_S:g} s")


def sample(name: str, project: str, at: str) -> Told:
    """A run that never was, to try a receiver with."""
    task = {"name": "main", "state": "failed", "reason": "exit code 1", "started_at": at, "finished_at": at}
    run = {
        "id": "0" * 26, "project": project, "name": f"test of {name}", "number": 1, "owner": "test", "state": "failed",
        "retry_of": None, "reason": "task 'main': exit code 1",
        "started_by": {"kind": "api", "name": "", "nominal": None, "run": None},
        "created_at": at, "started_at": at, "finished_at": at,
    }  # fmt: skip
    return Told(event=TEST, run=run, tasks=[task])
