"""What comes after runs: the leader makes the plan of what the state says is due, and has its runs made."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from pistage import wire
from pistage.core import codec, limits
from pistage.core.commands_of_triggers import AfterFire, FireAfters
from pistage.core.machine import Outcome
from pistage.core.machine.endings import UNREADABLE
from pistage.core.plan import Plan
from pistage.core.triggers.settings import AfterRule
from pistage.errors import Code, PistageError
from pistage.master.api.submissions import Planner, Submission
from pistage.master.replica import Replica

log = logging.getLogger(__name__)

_LOOK_EVERY_S = 5.0  # nothing is missed: this is for what nobody thought of
_AGAIN_S = 0.5
_NO_SPACE_S = 5.0
_COMMAND_TASKS_MAX: Final = 5_000
_PASSING: Final = frozenset({Code.UNAVAILABLE, Code.STORAGE, Code.TIMEOUT})


@dataclass(frozen=True, slots=True)
class _Due:
    """What is due of one definition."""

    after_id: str
    fence: int
    project: str
    definition: str
    rule: AfterRule | None  # none that can be read
    runs: tuple[str, ...]  # that have ended, the first one first


class Afters:
    """Runs `serve` for as long as this master leads. A later leader goes on from what is not decided."""

    def __init__(self, replica: Replica, planner: Planner, *, refuse_unless_space: Callable[[], None]) -> None:
        self._replica, self._planner, self._refuse_unless_space = replica, planner, refuse_unless_space
        self._news = asyncio.Event()
        replica.on_applied(self._note)

    def _note(self, outcome: Outcome) -> None:
        if outcome.has_due_afters:
            self._news.set()

    async def serve(self) -> None:
        """Have runs made of what is due, until cancelled."""
        while True:
            self._news.clear()
            try:
                due = await self._due()
                for one in due:
                    await self._fire(one)
            except PistageError as refusal:  # we do not lead any more, or have no majority or no space now
                log.warning("what comes after runs waits: %s", refusal)
                await asyncio.sleep(_NO_SPACE_S if refusal.code is Code.STORAGE else _AGAIN_S)
                continue
            if not due:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_LOOK_EVERY_S):
                        await self._news.wait()

    async def _due(self) -> list[_Due]:
        """Of each definition what has been due for longest."""
        async with self._replica.reader.snapshot() as snapshot:
            rows = await snapshot.rows(_DUE_RUNS, (limits.AFTERS_AT_ONCE,))
            runs: dict[str, list[str]] = {}
            for row in rows:
                runs.setdefault(row["after_id"], []).append(row["run_id"])
            found = []
            for after_id, ended in runs.items():
                (row,) = await snapshot.rows(_RULE, (after_id,))
                rule: AfterRule | None = codec.readable(AfterRule, row["spec"])
                found.append(
                    _Due(after_id, row["fence"], row["project"], row["definition"], rule, tuple(ended))
                )  # fmt: skip
        return found

    async def _fire(self, due: _Due) -> None:
        self._refuse_unless_space()
        plan = await self._plan(due)
        command = FireAfters(at=wire.now_ms(), after_id=due.after_id, fence=due.fence, fires=())
        if isinstance(plan, PistageError):
            await self._propose(replace(command, reason=str(plan)), due.runs)
            return
        command = replace(command, plan=plan)
        at_once = max(1, _COMMAND_TASKS_MAX // len(plan.tasks))
        for start in range(0, len(due.runs), at_once):
            try:
                await self._propose(command, due.runs[start : start + at_once])
            except PistageError as refusal:
                if refusal.code in _PASSING:
                    raise
                # What the state cannot hold must not come for ever, nor keep others waiting.
                log.error("after=%s: %s", due.definition, refusal)
                reason = str(refusal)
                await self._propose(replace(command, plan=None, reason=reason), due.runs[start : start + at_once])

    async def _plan(self, due: _Due) -> Plan | PistageError:
        """What each of them is to execute, or why nothing can be."""
        if due.rule is None:
            return PistageError(Code.INTERNAL, UNREADABLE)
        async with self._replica.reader.single() as snapshot:
            source = str(await snapshot.value("SELECT source FROM after_rule WHERE id = ?", (due.after_id,)) or "")
        submission = Submission(source, None, dict(due.rule.parameters))
        found = await self._planner.plan_unattended(submission, due.project)
        return found if isinstance(found, PistageError) else found[0].plan

    async def _propose(self, command: FireAfters, runs: Sequence[str]) -> None:
        fires = tuple(AfterFire(after_run=run_id, run_id=wire.new_id()) for run_id in runs)
        await self._replica.propose(replace(command, fires=fires))


_DUE_RUNS: Final = "SELECT after_id, run_id FROM after_due WHERE outcome = '' ORDER BY at, run_id, after_id LIMIT ?"
_RULE: Final = "SELECT fence, project, definition, spec FROM after_rule WHERE id = ?"
