"""Retention at work: the leader decides what is dropped, and every master removes what was."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Collection, Sequence

from pistage import wire
from pistage.core.commands_of_output import DropOutput
from pistage.core.machine import Outcome
from pistage.core.retention import DROPS_MAX, Drop, Kept, decide
from pistage.errors import PistageError
from pistage.master import reads, retained
from pistage.master.copies import Copies
from pistage.master.logs import LogStore
from pistage.master.replica import Replica
from pistage.master.retained import Pipeline, Said
from pistage.master.tenure import Dropped

log = logging.getLogger(__name__)

_LOOK_EVERY_S = 60.0
_SWEEP_EVERY_S = 600.0
_AGAIN_S = 60.0  # after a removal that failed
_DUE_MAX = 10_000  # runs to be removed that are known one by one; of more, the next sweep finds them all


class Drops:
    """Runs `serve` for as long as this master leads."""

    def __init__(self, replica: Replica) -> None:
        self._replica = replica
        self._work = asyncio.Event()

    def wake(self) -> None:
        """Look now: something else is said of retention, or a run is not pinned any more."""
        self._work.set()

    async def serve(self) -> None:
        """Look at every pipeline once a minute, until cancelled."""
        while True:
            self._work.clear()
            try:
                await self._look()
            except PistageError as refusal:  # we do not lead any more, or have no majority now
                log.info("retention: %s", refusal)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LOOK_EVERY_S):
                    await self._work.wait()

    async def _look(self) -> None:
        async with self._replica.reader.snapshot() as snapshot:
            said = await retained.said(snapshot)
            now = self._replica.now_ms()
            due = [
                pipeline
                async for pipeline, oldest in retained.pipelines(snapshot)
                if _may_have_too_much(said, pipeline, oldest, now)
            ]
        drops: list[Drop] = []
        for pipeline in due:
            await self._decide(pipeline, said, now, drops)
        await self._propose(drops)

    async def _decide(self, pipeline: Pipeline, said: Said, now: int, drops: list[Drop]) -> None:
        """Add to `drops` what is to go of the pipeline; as many as one command takes are proposed at once."""
        retention, last = said.of(pipeline), None
        kept = Kept(runs=0, output_bytes=0)
        if retention.runs_max is not None or retention.bytes_max is not None:
            async with self._replica.reader.single() as snapshot:
                kept = await retained.kept(snapshot, pipeline)
        while True:
            async with self._replica.reader.single() as snapshot:
                runs = await retained.oldest(snapshot, pipeline, last, DROPS_MAX)
            decision = decide(retention, runs, kept, now)
            drops.extend(decision.drops)
            while len(drops) >= DROPS_MAX:
                await self._propose(drops[:DROPS_MAX])
                del drops[:DROPS_MAX]
            if decision.is_all or len(runs) < DROPS_MAX:
                return
            kept, last = decision.kept, runs[-1]

    async def _propose(self, drops: Sequence[Drop]) -> None:
        if drops:
            outcome = await self._replica.propose(DropOutput(at=wire.now_ms(), drops=tuple(drops)))
            log.info("output of %d runs is dropped", len(outcome.dropped))


def _may_have_too_much(said: Said, pipeline: Pipeline, oldest: int, now: int) -> bool:
    retention = said.of(pipeline)
    is_counted = retention.runs_max is not None or retention.bytes_max is not None
    return is_counted or (retention.age_ms is not None and oldest + retention.age_ms <= now)


class Removals:
    """Runs `serve` for as long as this master runs.

    What is dropped while it was down, or came with a snapshot of the state, is found by a sweep: at its start, and
    every ten minutes.
    """

    def __init__(self, replica: Replica, logs: LogStore, copies: Copies) -> None:
        self._replica, self._logs, self._copies = replica, logs, copies
        self._due: dict[str, None] = {}
        self._news = asyncio.Event()
        self._sweep_at = float("-inf")  # monotonic seconds
        replica.on_applied(self._note)

    def _note(self, outcome: Outcome) -> None:
        if not outcome.dropped:
            return
        self._copies.drop(outcome.dropped)
        self._due.update(dict.fromkeys(outcome.dropped))
        if len(self._due) > _DUE_MAX:
            self._due.clear()
            self._sweep_at = float("-inf")
        self._news.set()

    async def serve(self) -> None:
        """Remove what is dropped, until cancelled."""
        while True:
            self._news.clear()
            try:
                await self._remove_what_is_due()
                if time.monotonic() >= self._sweep_at:
                    self._sweep_at = time.monotonic() + _SWEEP_EVERY_S
                    await self._sweep()
            except PistageError as refusal:  # the disk is full, or this master stops
                log.warning("output that was dropped is not removed yet: %s", refusal)
                self._sweep_at = time.monotonic() + _AGAIN_S
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, self._sweep_at - time.monotonic())):
                    await self._news.wait()

    async def _remove_what_is_due(self) -> None:
        while self._due:
            run_id = next(iter(self._due))
            del self._due[run_id]
            await self._logs.remove(run_id)
            log.debug("run=%s its output is removed", run_id)

    async def _sweep(self) -> None:
        await self._logs.finish_removals()
        async with contextlib.aclosing(self._logs.run_ids()) as pages:
            async for run_ids in pages:
                async with self._replica.reader.single() as snapshot:
                    dropped = await reads.output_dropped(snapshot, run_ids)
                for run_id in dropped:
                    await self._logs.remove(run_id)
                if dropped:
                    log.info("output of %d runs, dropped before, is removed", len(dropped))


def dropped_in(replica: Replica) -> Dropped:
    """Asks the state here which runs' output is dropped."""

    async def dropped(run_ids: Sequence[str]) -> Collection[str]:
        async with replica.reader.single() as snapshot:
            return await reads.output_dropped(snapshot, run_ids)

    return dropped
