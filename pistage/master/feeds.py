"""What the leader knows of a run's copies, and how it feeds one other master: from files, never from memory.

A feed sends what the other master lacks, a batch at a time; while one is on its way the next one grows, so that a
single fsync there does for many frames.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Protocol

from pistage.core import limits
from pistage.errors import Code, PistageError
from pistage.master.logs import LogStore
from pistage.master.logwriter import Appended
from pistage.wire import Copied, Copy, CopyAnswer, CopyQuestion, Fit, LogFrame, LogGap, Piece

log = logging.getLogger(__name__)

COPY_BYTES: Final = 4 * limits.MIB
RUNS_AT_ONCE: Final = 64
_ANSWER_S = 15.0  # 4 MiB over a slow line, and its fsync
_BACKOFF_FIRST_S, _BACKOFF_MAX_S = 0.1, 2.0


class Courier(Protocol):
    """Carries questions to other masters."""

    async def ask(self, node_id: str, question: CopyQuestion, timeout_s: float) -> CopyAnswer:
        """The answer. PistageError: what that master says against it; `unavailable` where it does not answer."""


@dataclass(frozen=True, slots=True)
class Held:
    """A frame that waits until its run is open."""

    frame: LogFrame | LogGap
    answer: asyncio.Future[Appended]
    deadline: float


@dataclass(frozen=True, slots=True)
class Waiting:
    """A frame that is durable here and waits for others, `since` when (monotonic seconds)."""

    appended: Appended
    answer: asyncio.Future[Appended]
    since: float


@dataclass(slots=True)
class Place:
    """Where another master is in a run: `match` records are the same there, durably; `next` is sent next."""

    next: int
    match: int = 0


@dataclass(slots=True)
class LedRun:
    """A run in one term of its leader's.

    First `completed`: what was acknowledged in earlier terms is here. Then, once somebody writes, `is_open`: the term
    has begun in it, and it is fed to the others.
    """

    run_id: str
    completed: asyncio.Event = field(default_factory=asyncio.Event)
    is_written: bool = False
    is_open: bool = False
    is_coming_up: bool = False
    count: int = 0  # records, durable here
    floor: int = 0  # records that were here when it was complete
    safe: int = 0  # records on as many masters as there have to be
    in_store: int = 0  # frames on their way to the disk
    stored_at: float = 0.0  # when the last one came there, monotonic seconds
    safe_at: float = 0.0  # when `safe` last rose
    held: deque[Held] = field(default_factory=deque)
    waiting: deque[Waiting] = field(default_factory=deque)
    places: dict[str, Place] = field(default_factory=dict)

    @property
    def is_idle(self) -> bool:
        """Whether nobody waits for anything of it."""
        return not (self.held or self.waiting or self.in_store or self.is_coming_up)

    def place(self, node_id: str) -> Place:
        """Where that master is, as far as is known: at the end, until it says otherwise."""
        return self.places.setdefault(node_id, Place(self.count))

    def settle(self, needed: int, voters: frozenset[str]) -> bool:
        """Answer every frame that is safe now, on `needed` masters, this one among them. Whether any more is."""
        counts = sorted((place.match for node_id, place in self.places.items() if node_id in voters), reverse=True)
        others = needed - 1
        safe = self.count if others <= 0 else min(self.count, counts[others - 1]) if len(counts) >= others else 0
        has_news = safe > self.safe
        self.safe_at = time.monotonic() if has_news else self.safe_at
        self.safe = max(safe, self.safe)
        while self.waiting and self.waiting[0].appended.count <= self.safe:
            waiting = self.waiting.popleft()
            if not waiting.answer.done():
                waiting.answer.set_result(waiting.appended)
        return has_news


class Feed:
    """`serve` for as long as the other master is a member and the term lasts."""

    def __init__(
        self, node_id: str, term: int, logs: LogStore, courier: Courier, *, on_match: Callable[[LedRun], None]
    ) -> None:
        self.node_id = node_id
        self.due: dict[str, LedRun] = {}
        self.trouble = ""  # why it does not get on, "" if it does
        self.swept_at = float("-inf")  # monotonic seconds
        self._term, self._logs, self._courier, self._on_match = term, logs, courier, on_match
        self._news = asyncio.Event()
        self._is_careful = False
        self._sent_alone = ""

    def offer(self, run: LedRun) -> None:
        """There is more of the run."""
        self.due[run.run_id] = run
        self._news.set()

    def forget(self, run_id: str) -> None:
        """The run is let go."""
        self.due.pop(run_id, None)

    async def serve(self) -> None:
        """Send what is due, until cancelled."""
        wait_s = _BACKOFF_FIRST_S
        while True:
            await self._news.wait()
            self._news.clear()
            while self.due:
                try:
                    await self._send()
                except PistageError as refusal:
                    self._note(refusal)
                    await asyncio.sleep(wait_s)
                    wait_s = min(wait_s * 2, _BACKOFF_MAX_S)
                else:
                    wait_s = _BACKOFF_FIRST_S
                    if self.trouble:
                        log.info("master=%s takes copies of output again", self.node_id)
                    self.trouble = ""

    def _note(self, refusal: PistageError) -> None:
        if not self.trouble:
            log.warning("master=%s takes no copies of output: %s", self.node_id, refusal)
        self.trouble = str(refusal)
        self.swept_at = float("-inf")  # who knows what it misses meanwhile
        if refusal.code is Code.INVALID:
            # One run that does not fit must not stop the others: find it by sending them singly, then pass it over.
            if self._is_careful:
                self.forget(self._sent_alone)
            self._is_careful = not self._is_careful

    def _chosen(self) -> list[LedRun]:
        if self._is_careful:
            self._sent_alone = next(iter(self.due))  # it may be let go, and another come, before the answer does
            return [self.due[self._sent_alone]]
        # Those first for which somebody waits; of the rest, which is caught up, a few, that the others stay quick.
        live = [run for run in self.due.values() if run.waiting][:RUNS_AT_ONCE]
        rest = (run for run in self.due.values() if not run.waiting)
        return [*live, *(run for run, _ in zip(rest, range(RUNS_AT_ONCE - len(live)), strict=False))]

    async def _send(self) -> None:
        batch: list[tuple[LedRun, Piece]] = []
        left = COPY_BYTES
        for run in self._chosen():
            place = run.place(self.node_id)
            start, count = place.next, run.count  # it grows while it is read
            try:
                piece = await self._logs.piece(run.run_id, start, count, left)
            except PistageError as damage:
                log.error("run=%s cannot be copied: %s", run.run_id, damage)
                self.forget(run.run_id)
                continue
            if start < count and not piece.records:  # its output was dropped meanwhile
                self.forget(run.run_id)
                continue
            batch.append((run, piece))
            left -= len(piece.data) + len(piece.records) + sum(len(stub) for _, stub in piece.stubs)
            if left <= 0:
                break
        if not batch:
            return
        question = Copy(self._term, tuple(piece for _, piece in batch))
        answer = await self._courier.ask(self.node_id, question, _ANSWER_S)
        assert isinstance(answer, Copied), "the answer to that question"
        if len(answer.fits) != len(batch):
            raise PistageError(Code.INVALID, "it did not answer to every piece")
        for (run, piece), fit in zip(batch, answer.fits, strict=True):
            self._learn(run, piece, fit)

    def _learn(self, run: LedRun, piece: Piece, fit: Fit) -> None:
        place = run.place(self.node_id)
        self.due.pop(run.run_id, None)
        if fit.is_taken:
            place.match = max(place.match, fit.count)
            place.next = fit.count
        else:
            place.next = max(0, min(fit.count, piece.start - 1))
        if not fit.is_taken or place.next < run.count:
            self.due[run.run_id] = run  # at the end: a turn for each
        if fit.is_taken:
            self._on_match(run)


def deadline_in(seconds: float) -> float:
    """Monotonic seconds."""
    return time.monotonic() + seconds
