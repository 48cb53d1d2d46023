"""One term of a leader's care for output: what it collects before it goes on, and when a frame is safe.

With n voters and r copies of each record, a leader that has heard n - r + 1 of them has heard of everything that was
acknowledged: any such set meets any r. Each of them has promised to take nothing more from an earlier leader, and the
log with the highest last term, then the longest, has all of it (§5.4.1 for elections; here the leader is given, and
brings its own log up to that one).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from itertools import islice
from typing import Any, Protocol

from pistage import raft
from pistage.core import limits
from pistage.errors import Code, PistageError
from pistage.master.feeding import Feeding
from pistage.master.feeds import COPY_BYTES, Courier, Feed, Held, LedRun, Place, Waiting, deadline_in
from pistage.master.logs import LogStore
from pistage.master.logwriter import Appended
from pistage.wire import (
    CopyAnswer,
    CopyQuestion,
    Extent,
    Extents,
    Fetch,
    Fetched,
    Inventory,
    LogFrame,
    LogGap,
    Piece,
    Survey,
)

log = logging.getLogger(__name__)

SURVEYED_AT_ONCE = 128
LISTED_AT_ONCE = 500
_WAIT_S = 5.0  # then a frame is refused for now, and its sender, who keeps it, asks again
_ASK_S = 2.0
_STRAGGLERS_S = 0.3  # once enough have answered
_AGAIN_S = 0.3
_LOOK_EVERY_S = 0.25
_FETCH_S = 15.0
_PULLS_AT_ONCE = 4
_HELD_BYTES_MAX = 64 * limits.MIB
_RUNS_MAX = 4096
_SWEEP_EVERY_S, _SWEEP_AGAIN_S, _SWEEP_PAUSE_S = 60.0, 5.0, 0.05
_SWEPT_AT_ONCE = 64
#: Of these runs, those whose output is dropped, by the state.
Dropped = Callable[[Sequence[str]], Awaitable[Collection[str]]]


class Group(Protocol):
    """What must be known of the masters' group; a Replica is one."""

    @property
    def node_id(self) -> str: ...
    @property
    def term(self) -> int: ...
    @property
    def is_leading(self) -> bool: ...
    @property
    def membership(self) -> raft.Config: ...
    async def role_change(self) -> None:
        """Wait for news."""


class Tenure:
    """Made when the term begins; `serve` while it lasts, then `close`."""

    def __init__(self, group: Group, logs: LogStore, courier: Courier, *, replicas: int, dropped: Dropped) -> None:
        self.term = group.term
        self._dropped = dropped
        self._group, self._logs, self._courier, self._replicas = group, logs, courier, replicas
        self._runs: dict[str, LedRun] = {}
        self._wanted: dict[str, LedRun] = {}  # to be surveyed
        self._news = asyncio.Event()
        self._feeding = Feeding()
        self._pulls = asyncio.Semaphore(_PULLS_AT_ONCE)
        self._held_bytes = 0
        self._trouble = ""
        self.is_closed = False

    # --- what is asked of it -------------------------------------------------------------------------------------

    async def append(self, run_id: str, frame: LogFrame | LogGap) -> asyncio.Future[Appended]:
        """Take a frame; the future is done once it is safe, or cannot be made so for now."""
        run = self._run(run_id)
        answer: asyncio.Future[Appended] = asyncio.get_running_loop().create_future()
        if run.is_open and not run.held:
            await self._store(run, frame, answer)
        elif self._held_bytes + len(frame.data) > _HELD_BYTES_MAX:
            _refuse(answer, self._refusal("too much output waits"))
        else:
            self._held_bytes += len(frame.data)
            run.held.append(Held(frame, answer, deadline_in(_WAIT_S)))
            self._want(run, is_written=True)
        return answer

    async def readable(self, run_id: str) -> int:
        """How many records of the run may be read: all that was acknowledged in earlier terms, and what is safe."""
        run = self._run(run_id)
        if not run.completed.is_set():
            self._want(run)
            try:
                async with asyncio.timeout(_WAIT_S):
                    await run.completed.wait()
            except TimeoutError:
                raise self._refusal("whether the output here is complete is not known") from None
        if self.is_closed:
            raise deposed()
        return max(run.floor, run.safe)

    def drop(self, run_ids: Sequence[str]) -> None:
        """The output of these runs is removed everywhere: nobody is fed with it any more."""
        for run_id in run_ids:
            self._feeding.forget(run_id)
            if (run := self._runs.get(run_id)) and run.is_idle and run_id not in self._wanted:
                del self._runs[run_id]

    def close(self) -> None:
        """The term is over: refuse what waits, and wake who reads."""
        self.is_closed = True
        for run in self._runs.values():
            for answer in [held.answer for held in run.held] + [waiting.answer for waiting in run.waiting]:
                _refuse(answer, deposed())
            run.completed.set()
            self._logs.signals.wake(run.run_id)
        self._runs.clear()

    async def serve(self) -> None:
        """Until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._mind_members())
            tasks.create_task(self._open_runs())
            tasks.create_task(self._give_up_late_ones())
            tasks.create_task(self._sweep())

    # --- frames --------------------------------------------------------------------------------------------------

    @property
    def _voters(self) -> frozenset[str]:
        return frozenset(self._group.membership.voters)

    @property
    def _needed(self) -> int:
        return min(self._replicas, len(self._group.membership.voters))

    @property
    def _others(self) -> list[str]:
        return [node_id for node_id in self._group.membership.members if node_id != self._group.node_id]

    async def _store(self, run: LedRun, frame: LogFrame | LogGap, answer: asyncio.Future[Appended]) -> None:
        run.in_store += 1
        try:
            local = await self._logs.append(run.run_id, frame, term=self.term)
        except PistageError as refusal:
            run.in_store -= 1
            return _refuse(answer, refusal)
        except BaseException:
            run.in_store -= 1
            raise
        local.add_done_callback(lambda local: self._on_stored(run, local, answer))

    def _on_stored(self, run: LedRun, local: asyncio.Future[Appended], answer: asyncio.Future[Appended]) -> None:
        run.in_store -= 1
        if local.cancelled():
            answer.cancel()
        elif isinstance(error := local.exception(), PistageError):
            _refuse(answer, error)
        elif self.is_closed:
            _refuse(answer, deposed())
        else:
            appended = local.result()
            run.count = max(run.count, appended.count)
            run.stored_at = time.monotonic()
            run.waiting.append(Waiting(appended, answer, run.stored_at))
            self._settle(run)
            self._feeding.offer(run, self._needed - 1, self._voters)

    def _settle(self, run: LedRun) -> None:
        if run.settle(self._needed, self._voters - {self._group.node_id}):
            self._logs.signals.wake(run.run_id)

    async def _give_up_late_ones(self) -> None:
        while True:
            await asyncio.sleep(_LOOK_EVERY_S)
            self._feeding.look()
            now = time.monotonic()
            for run in list(self._runs.values()):
                while run.waiting and run.waiting[0].since + _WAIT_S < now:
                    _refuse(run.waiting.popleft().answer, self._refusal("output cannot be kept safe now"))
                while run.held and not run.is_open and run.held[0].deadline < now:
                    held = run.held.popleft()
                    self._held_bytes -= len(held.frame.data)
                    _refuse(held.answer, self._refusal("output cannot be kept safe now"))

    def _refusal(self, what: str) -> PistageError:
        known = [f"{feed.node_id}: {feed.trouble}" for feed in self._feeding.feeds.values() if feed.trouble]
        reasons = "; ".join(known) or self._trouble or "they are slow"
        return PistageError(Code.UNAVAILABLE, f"{what}: {self._needed} masters must have it; {reasons}"[:1000])

    # --- members -------------------------------------------------------------------------------------------------

    async def _mind_members(self) -> None:
        async with asyncio.TaskGroup() as group:
            tasks: dict[str, asyncio.Task[None]] = {}
            voters = self._voters
            while True:
                others = self._others
                for node_id in [node_id for node_id in tasks if node_id not in others]:
                    tasks.pop(node_id).cancel()
                    del self._feeding.feeds[node_id]
                for node_id in [node_id for node_id in others if node_id not in tasks]:
                    feed = Feed(node_id, self.term, self._logs, self._courier, on_match=self._settle)
                    self._feeding.feeds[node_id] = feed
                    tasks[node_id] = group.create_task(feed.serve())
                    for run in self._runs.values():
                        if run.is_open:
                            feed.offer(run)
                if voters != (voters := self._voters):
                    for run in self._runs.values():
                        self._settle(run)
                await asyncio.sleep(_LOOK_EVERY_S)

    # --- runs come up --------------------------------------------------------------------------------------------

    def _run(self, run_id: str) -> LedRun:
        if self.is_closed:
            raise deposed()
        run = self._runs.get(run_id)
        if run is None:
            if len(self._runs) >= _RUNS_MAX:
                self._let_go()
            run = self._runs[run_id] = LedRun(run_id)
        return run

    def _let_go(self) -> None:
        """Of runs that nobody waits for; a copy that lags then is found by the next sweep."""
        idle = [run_id for run_id, run in self._runs.items() if run.is_idle and run_id not in self._wanted]
        for run_id in idle[: _RUNS_MAX // 4]:
            del self._runs[run_id]
            self._feeding.forget(run_id)

    def _want(self, run: LedRun, *, is_written: bool = False) -> None:
        run.is_written |= is_written
        if not run.is_coming_up:
            self._wanted[run.run_id] = run
            self._news.set()

    async def _open_runs(self) -> None:
        async with asyncio.TaskGroup() as group:
            while True:
                await self._news.wait()
                self._news.clear()
                while batch := list(islice(self._wanted.values(), SURVEYED_AT_ONCE)):
                    try:
                        ours, theirs = await self._survey([run.run_id for run in batch])
                    except PistageError as refusal:
                        self._trouble = str(refusal)
                        await asyncio.sleep(_AGAIN_S)
                        continue
                    for run in batch:
                        del self._wanted[run.run_id]
                        run.is_coming_up = True
                        known = {node_id: found[run.run_id] for node_id, found in theirs.items()}
                        group.create_task(self._bring_up(run, ours[run.run_id], known))

    async def _survey(self, run_ids: Sequence[str]) -> tuple[_Found, Mapping[str, _Found]]:
        """What is here, and what the others have; PistageError until enough of them have answered."""
        ours = {extent.run_id: extent for extent in await self._logs.survey(self.term, run_ids)}
        needed = len(self._voters) - self._needed + 1 - (self._group.node_id in self._voters)
        answers = await self._ask_all(Survey(self.term, tuple(run_ids)), needed)
        theirs = {}
        for node_id, answer in answers.items():
            found = {extent.run_id: extent for extent in answer.extents} if isinstance(answer, Extents) else {}
            if found.keys() == ours.keys():
                theirs[node_id] = found
        if len(self._voters & theirs.keys()) < needed:
            raise PistageError(Code.UNAVAILABLE, f"{needed} others must say what they have of it")
        return ours, theirs

    async def _ask_all(self, question: CopyQuestion, needed: int) -> dict[str, CopyAnswer]:
        """The answers of all who answer soon; of a few more once enough voters have."""
        answers: dict[str, CopyAnswer] = {}

        async def ask(node_id: str) -> None:
            with contextlib.suppress(PistageError):
                answers[node_id] = await self._courier.ask(node_id, question, _ASK_S)

        async with asyncio.TaskGroup() as group:
            pending = {group.create_task(ask(node_id)) for node_id in self._others}
            until = deadline_in(_ASK_S)
            while pending and (left_s := until - time.monotonic()) > 0:
                _, pending = await asyncio.wait(pending, timeout=left_s, return_when=asyncio.FIRST_COMPLETED)
                if len(self._voters & answers.keys()) >= needed:
                    until = min(until, deadline_in(_STRAGGLERS_S))
            for task in pending:
                task.cancel()
        return answers

    async def _bring_up(self, run: LedRun, ours: Extent, theirs: Mapping[str, Extent]) -> None:
        try:
            best = max(theirs, key=lambda node_id: theirs[node_id].rank, default=None)
            if best is not None and theirs[best].rank > ours.rank:
                async with self._pulls:
                    ours = await self._pull(run.run_id, best, theirs[best], ours.count)
            is_opening = run.is_written
            if is_opening and self._others:
                ours = await self._logs.mark(run.run_id, self.term)
        except PistageError as refusal:
            self._trouble = str(refusal)
            await asyncio.sleep(_AGAIN_S)
            run.is_coming_up = False
            self._want(run)
            return
        run.is_coming_up = False
        run.count = run.floor = ours.count
        run.completed.set()
        if is_opening:
            run.places = {node_id: Place(min(extent.count, ours.count)) for node_id, extent in theirs.items()}
            run.is_open = True
            self._settle(run)
            self._feeding.offer_all(run)
            await self._store_held(run)
        elif run.is_written:
            self._want(run)

    async def _store_held(self, run: LedRun) -> None:
        while run.held:
            held = run.held[0]  # stays in front until it is queued, so that what comes meanwhile queues behind it
            await self._store(run, held.frame, held.answer)
            run.held.popleft()
            self._held_bytes -= len(held.frame.data)

    async def _pull(self, run_id: str, node_id: str, target: Extent, start: int) -> Extent:
        """Make what is here what that master has."""
        log.info("run=%s term=%d its output is brought up from master=%s", run_id, self.term, node_id)
        while True:
            before = (await self._logs.piece(run_id, start, start, COPY_BYTES)).before
            answer = await self._courier.ask(node_id, Fetch(self.term, run_id, start, before), _FETCH_S)
            assert isinstance(answer, Fetched), "the answer to that question"
            if not answer.fit.is_taken:
                start = max(0, min(answer.fit.count, start - 1))
                continue
            if not answer.records:
                break
            piece = Piece(run_id, start, before, answer.records, answer.data, answer.stubs)
            (fit,) = await self._logs.extend(self.term, (piece,))
            start = fit.count
        (ours,) = await self._logs.survey(self.term, (run_id,))
        if ours.rank < target.rank:
            raise PistageError(Code.UNAVAILABLE, f"master {node_id} has less of it than it said")
        return ours

    # --- the sweep -----------------------------------------------------------------------------------------------

    async def _sweep(self) -> None:
        """Compare what there is with each of the others, at leisure, and mend what differs; the newest runs first."""
        while True:
            for feed in list(self._feeding.feeds.values()):
                if time.monotonic() - feed.swept_at > _SWEEP_EVERY_S:
                    with contextlib.suppress(PistageError):
                        await self._compare_with(feed)
                        feed.swept_at = time.monotonic()
            await asyncio.sleep(_SWEEP_AGAIN_S if self._feeding.feeds else _LOOK_EVERY_S)

    async def _compare_with(self, feed: Feed) -> None:
        before = ""
        while True:
            matching = {run.run_id: run.place(feed.node_id).match for run in self._runs.values() if run.is_open}
            question = Inventory(self.term, before, LISTED_AT_ONCE)
            answer = await self._courier.ask(feed.node_id, question, _FETCH_S)
            assert isinstance(answer, Extents), "the answer to that question"
            pages = [
                {extent.run_id: extent.rank for extent in extents}
                for extents in (await self._logs.inventory(before, LISTED_AT_ONCE), answer.extents)
            ]
            # A page that is full says nothing about runs older than its last one.
            bound = max((min(page) for page in pages if len(page) == LISTED_AT_ONCE), default="")
            known = sorted(pages[0].keys() | pages[1].keys(), reverse=True)
            differing = [
                run_id for run_id in known if run_id >= bound and len({page.get(run_id, (0, 0)) for page in pages}) > 1
            ]
            # What only one of us has not removed yet must not come back.
            gone = await self._dropped(differing) if differing else ()
            for run_id in differing:
                if run_id not in gone:
                    _, count = pages[1].get(run_id, (0, 0))
                    await self._mend(run_id, feed, count, has_lost=count < matching.get(run_id, 0))
            if not bound:
                return
            before = bound
            await asyncio.sleep(_SWEEP_PAUSE_S)

    async def _mend(self, run_id: str, feed: Feed, count: int, *, has_lost: bool) -> None:
        while len(self._wanted) + len(feed.due) > _SWEPT_AT_ONCE:
            if feed.trouble:
                raise PistageError(Code.UNAVAILABLE, feed.trouble)
            await asyncio.sleep(_SWEEP_PAUSE_S)
        run = self._run(run_id)
        place = run.place(feed.node_id)
        if has_lost and run.is_open:  # what it had taken before it was asked: its disk is another, or was damaged
            log.warning("run=%s master=%s has lost output: it gets it again", run_id, feed.node_id)
            place.match = place.next = count
        if not run.is_open:
            self._want(run, is_written=True)
        elif place.match < run.count:
            feed.offer(run)


_Found = Mapping[str, Extent]


def deposed() -> PistageError:
    """For what comes to a master that does not lead, or not yet."""
    return PistageError(Code.UNAVAILABLE, "this master does not lead now", hint="it goes on with the next leader")


def _refuse(answer: asyncio.Future[Any], refusal: PistageError) -> None:
    if not answer.done():
        answer.set_exception(refusal)
        answer.exception()  # the session may be gone; that is no news to anybody
