"""The runner: one attempt from its assignment to its acknowledged end, through the tree of the task's steps."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress

from pistage.agent.attempt import words
from pistage.agent.attempt.step import StepRunner
from pistage.agent.attempt.stop import Brake, Stop, StoppedError
from pistage.agent.gpus import GpuPool
from pistage.agent.journal import Entry, JournalError
from pistage.agent.masking import Masks
from pistage.agent.outbox import Outbox
from pistage.agent.runtimes.base import ExecutionError, Place, Runtime
from pistage.core.commands import Accepted, AttemptEvent, Finished
from pistage.core.model import Result, State
from pistage.core.plan import Block, FailureClass, Step
from pistage.wire import now_ms

log = logging.getLogger(__name__)

_REMOVAL_RETRY_S = 5.0
_KILL_RETRY_S = 0.5


class Runner:
    """Sees one attempt through; `run` is called once, in a task of the agent's."""

    def __init__(
        self,
        entry: Entry,
        runtime: Runtime,
        outbox: Outbox,
        *,
        agent_name: str,
        grace_s: float,
        gpus: GpuPool,
        publish: Callable[[AttemptEvent], None],
        look: Callable[[], None] = lambda: None,
    ) -> None:
        self._entry = entry
        self._assign = entry.assign
        self._runtime = runtime
        self._brake = Brake(look)
        self._publish = publish
        self.is_abandoned = False  # the masters want nothing of it any more
        self.is_fenced = False  # no master was heard of for too long
        self.is_done = False  # `run` returned: nothing of it is left here
        self.is_acknowledged = False  # its end is committed
        self._place: Place = runtime.place(entry.assign, entry, gpus)
        self._steps = StepRunner(
            entry, self._place, outbox, self._brake, agent_name=agent_name, grace_s=grace_s, report=self._report
        )
        self._outbox = outbox

    @property
    def attempt_id(self) -> str:
        return self._assign.attempt_id

    @property
    def run_id(self) -> str:
        return self._assign.run_id

    @property
    def fence(self) -> int:
        return self._assign.fence

    @property
    def finished(self) -> Finished | None:
        """The attempt's end, if it is in the journal."""
        return next((event for event in self._entry.events if isinstance(event, Finished)), None)

    def cancel(self, reason: str) -> None:
        """Stop signal, grace, kill; `Finished` follows once everything is gone."""
        self._brake.request(Stop(state=State.CANCELLED, reason=reason))

    def evict(self, reason: str) -> None:
        """Stop it as `cancel` does, but as lost: it is tried again elsewhere."""
        self._brake.request(Stop(state=State.LOST, failure=FailureClass.LOST, reason=reason, is_ordered=True))

    def fence_off(self, reason: str, *, grace_s: float) -> Awaitable[None]:
        """Stop it as lost, now: nobody may want it any more. Its end, and what it printed, wait for a master in `run`.

        What is returned has to be awaited: it sees to it that nothing runs once `grace_s` and a kill are over.
        """
        self.is_fenced = True
        self._steps.hurry(grace_s)
        self.evict(reason)
        return self._be_gone(grace_s)

    async def _be_gone(self, grace_s: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(grace_s):
                await self._steps.quiet()
        # At once, whoever is in the middle of stopping what: a step may have another step's grace, or a helper that
        # hangs. What is dead can still be read, so its removal waits for that.
        await self._insist(self._place.kill, _KILL_RETRY_S)
        await self._steps.quiet()
        with suppress(JournalError):  # met by `run` as well
            await self._remove()

    def abandon(self, reason: str) -> None:
        """The masters want nothing of it any more: stop and remove it without another word."""
        self.is_abandoned = True
        self._steps.hurry()
        self._brake.request(Stop(state=State.LOST, failure=FailureClass.LOST, reason=reason))
        self._outbox.drop(self._steps.stream_keys())

    async def run(self) -> None:
        """Until the attempt's end is in the journal and nothing of it is left on this machine."""
        if self.finished is None:
            if self._assign.masks:  # of fifty keys, of thirty lines each, the spellings take seconds
                self._steps.masks = await asyncio.to_thread(Masks, self._assign.masks)
            if not any(isinstance(event, Accepted) for event in self._entry.events):
                await self._report(
                    Accepted(
                        at=now_ms(), attempt_id=self.attempt_id, fence=self.fence,
                        runtime=self._runtime.name, notes=self._runtime.notes(),
                    )
                )  # fmt: skip
            result = words.masked(await self._execute(), self._steps.masks)
            # What succeeded has no process left but a container that waits for work: its removal may follow. In all
            # other cases another attempt may begin at once, so this one must be proven gone. Of a lost one nothing
            # can be proven, unless it was lost by order: what is left is removed when the engine is there again.
            if result.state not in {State.SUCCEEDED, State.LOST} or (result.state is State.LOST and self._is_ordered):
                await self._remove()
            await self._report(
                Finished(at=now_ms(), attempt_id=self.attempt_id, fence=self.fence, result=result)
            )  # fmt: skip
            log.info("attempt=%s task=%s %s %s", self.attempt_id, self._assign.task.name, result.state, result.reason)
        await self._remove()

    async def give_up(self, reason: str) -> None:
        """After a bug of ours, or where the journal cannot be written: end it, say so, remove what can be removed."""
        with suppress(ExecutionError):  # of what is lost nothing can be proven
            await self._place.kill()
        result = words.masked(words.failed(FailureClass.LOST, reason), self._steps.masks)
        lost = Finished(at=now_ms(), attempt_id=self.attempt_id, fence=self.fence, result=result)
        is_unsaid = self.finished is None and not self.is_abandoned
        try:
            if is_unsaid:
                self._entry.add_event(lost)
            await self._entry.flush()
        except JournalError:
            # A later agent does not hold it, which says the same. From here on nothing of it waits for the disk.
            self._entry.drop()
            if is_unsaid:
                self._entry.add_event(lost)
        if is_unsaid:
            self._publish(lost)
        await self._remove()

    @property
    def _is_ordered(self) -> bool:
        return self._brake.stop is not None and self._brake.stop.is_ordered

    async def _remove(self) -> None:
        """Until it is gone; an engine that is away for now holds this up and nothing else."""
        await self._insist(self._place.close, _REMOVAL_RETRY_S)

    async def _insist(self, job: Callable[[], Awaitable[None]], wait_s: float) -> None:
        said = ""
        while True:
            try:
                await job()
                return
            except ExecutionError as failure:
                if failure.reason != said:
                    log.warning("attempt=%s is not removed yet: %s", self.attempt_id, failure.reason)
                said = failure.reason
                await asyncio.sleep(wait_s)

    async def _report(self, event: AttemptEvent) -> None:
        if self.is_abandoned:
            return
        self._entry.add_event(event)
        self._publish(event)

    async def _execute(self) -> Result:
        deadline = asyncio.get_running_loop().call_later(self._time_left_s(), self._brake.request, self._timeout())
        try:
            await self._prepare()
            is_ok = await self._walk(self._assign.task.body)
        finally:
            deadline.cancel()
        # An end of its own is the truth, whatever was ordered meanwhile.
        is_its_own = self._steps.was_untouched and (is_ok or self._is_ordered)
        if (stop := self._brake.stop) is not None and not is_its_own:
            return stop.result()
        return Result(state=State.SUCCEEDED, exit_code=0) if is_ok else self._steps.first_failure()

    def _timeout(self) -> Stop:
        reason = f"the task ran longer than its {words.seconds(self._assign.task.timeout_s)}"
        return Stop(state=State.FAILED, failure=FailureClass.TIMEOUT, reason=reason)

    def _time_left_s(self) -> float:
        accepted = next((event.at for event in self._entry.events if isinstance(event, Accepted)), now_ms())
        return max(0.0, self._assign.task.timeout_s - (time.time() - accepted / 1000))

    async def _prepare(self) -> None:
        try:
            async with self._brake.scope():
                await self._place.prepare()
        except StoppedError:
            pass
        except ExecutionError as failure:
            result = words.failed(failure.failure, failure.reason)
            self._brake.request(Stop(state=result.state, failure=result.failure, reason=result.reason))

    # --- the tree -------------------------------------------------------------------------------------------

    async def _walk(self, block: Block) -> bool:
        """Run a block; whether nothing in it failed."""
        if block.kind == "parallel":
            async with asyncio.TaskGroup() as group:
                branches = [group.create_task(self._node(child, has_failed=False)) for child in block.children]
            return all(branch.result() for branch in branches)
        has_failed = False
        waiting: list[asyncio.Task[bool]] = []
        async with asyncio.TaskGroup() as group:
            for child in block.children:
                if child.is_async:
                    waiting.append(group.create_task(self._node(child, has_failed=has_failed)))
                elif not await self._node(child, has_failed=has_failed):
                    has_failed = True
        return not has_failed and all(task.result() for task in waiting)

    async def _node(self, node: Step | Block, *, has_failed: bool) -> bool:
        reason = words.unmet(node.when, has_failed=has_failed)
        match node:
            case Step():
                return await self._steps.run(node, skip_reason=reason)
            case Block() if reason is not None:
                await self._skip(node, reason)
                return True
            case Block():
                return await self._walk(node)

    async def _skip(self, block: Block, reason: str) -> None:
        for child in block.children:
            match child:
                case Step():
                    await self._steps.run(child, skip_reason=reason)
                case Block():
                    await self._skip(child, reason)
