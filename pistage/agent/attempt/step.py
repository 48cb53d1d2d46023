"""One step: its command, its tries and hooks, its deadline, its output until the master has it, its result."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, nullcontext

from pistage.agent.attempt import words
from pistage.agent.attempt.output import StepOutput
from pistage.agent.attempt.stop import Brake, Stop, StoppedError
from pistage.agent.journal import Entry
from pistage.agent.masking import Masks
from pistage.agent.outbox import Outbox, OutputRefusedError, StreamKey
from pistage.agent.runtimes.base import Command, ExecutionError, Exit, Place, Running
from pistage.core.commands import AttemptEvent, StepFinished, StepStarted
from pistage.core.model import Result, State, StreamEnd
from pistage.core.plan import Context, FailureClass, Step
from pistage.wire import now_ms

_KILL_AGAIN_S = 10.0
_LAUNCH_S = 5.0  # that an engine may take to say that a command runs which is to be stopped


class StepRunner:
    """Runs the steps of one attempt and remembers which failed first."""

    def __init__(
        self,
        entry: Entry,
        place: Place,
        outbox: Outbox,
        brake: Brake,
        *,
        agent_name: str,
        grace_s: float,
        report: Callable[[AttemptEvent], Awaitable[None]],
    ) -> None:
        self._entry = entry
        self._assign = entry.assign
        self._place = place
        self._outbox = outbox
        self._brake = brake
        self._agent_name = agent_name
        self._grace_s = grace_s
        self.masks = Masks(())  # what its output and its results must not show, once the attempt begins
        self._report = report
        self._outputs: dict[str, StepOutput] = {}
        self._failures: list[tuple[Step, Result]] = []
        self._started = {event.step: event for event in entry.events if isinstance(event, StepStarted)}
        self._resumed = frozenset(self._started)
        self._ended: set[str] = set()  # steps none of whose commands runs any more
        self._has_ended = asyncio.Event()
        self._finished = {event.step: event for event in entry.events if isinstance(event, StepFinished)}
        steps = list(self._assign.task.steps())
        self._left = Counter(step.context for step in steps if step.id not in self._finished)
        #: Whether every step ran, or was skipped, as it would have without a stop.
        self.was_untouched = True

    def stream_keys(self) -> Iterator[StreamKey]:
        """The streams that are in the outbox now."""
        return (key for output in list(self._outputs.values()) for key in output.keys)

    def hurry(self, grace_s: float = 0.0) -> None:
        """Kill after no more than this; 0: another attempt of the task may be running by now."""
        self._grace_s = min(self._grace_s, grace_s)

    async def quiet(self) -> None:
        """Wait until no command that was started runs any more. Useful after a stop: nothing else is started then."""
        while set(self._started) - set(self._finished) - self._ended:
            self._has_ended.clear()
            await self._has_ended.wait()

    def first_failure(self) -> Result:
        """How the attempt ended, when a step failed: as that step did, and which one it was."""
        step, result = self._failures[0]
        label = f"step {step.id}" if step.name in {"", step.id} else f"step {step.id} ({step.name})"
        return words.failed(result.failure or FailureClass.FAILURE, f"{label}: {result.reason}", result.exit_code)

    async def run(self, step: Step, *, skip_reason: str | None) -> bool:
        """Run a step to its reported end; whether what follows may take it as a success."""
        if (known := self._finished.get(step.id)) is not None:
            return self._note(step, known.result)
        reason = skip_reason or step.skip_reason
        if reason is None and self._brake.stop is not None and step.id not in self._resumed:
            self.was_untouched = False
            reason = self._brake.stop.reason
        if reason is not None:
            return await self._finish(step, words.skipped(reason), None)
        is_new = step.id not in self._started
        output = self._outputs[step.id] = StepOutput(
            self._outbox, self._assign.attempt_id, step.id, is_new=is_new, masks=self.masks
        )
        try:
            result = await self._outcome(step, output)
            return await self._finish(step, result, output.ends())
        finally:
            del self._outputs[step.id]
            self._outbox.drop(output.keys)

    async def _outcome(self, step: Step, output: StepOutput) -> Result:
        """How the step ended, once the master holds all it printed, or will not."""
        result: Result | None = None
        try:
            result = await self._tries(step, output)
        except StoppedError as interruption:
            result = self._interrupted(step, interruption)
        except ExecutionError as failure:
            result = words.failed(failure.failure, failure.reason, failure.exit_code)
            if failure.failure is FailureClass.LOST:
                self._brake.request(Stop(state=State.LOST, failure=FailureClass.LOST, reason=failure.reason))
        except OutputRefusedError:
            pass  # said by `kept`, which finds the same refusal
        finally:
            self._ended.add(step.id)
            self._has_ended.set()
        try:
            await output.kept()
        except OutputRefusedError as refusal:
            if result is None or result.state is State.SUCCEEDED:
                return words.failed(FailureClass.FAILURE, f"its output could not be kept: {refusal}")
        assert result is not None, "output that was refused once is not kept after all"
        return result

    def _interrupted(self, step: Step, interruption: StoppedError) -> Result:
        if interruption.stop is not None:
            self.was_untouched = False
            return interruption.stop.result()
        assert step.timeout_s is not None, "only a step with a timeout has a deadline"
        return words.failed(FailureClass.TIMEOUT, f"ran longer than its {words.seconds(step.timeout_s)}")

    async def _finish(self, step: Step, result: Result, ends: tuple[StreamEnd, StreamEnd] | None) -> bool:
        stdout, stderr = ends or (None, None)
        result = words.masked(result, self.masks)
        await self._report(
            StepFinished(
                at=now_ms(), attempt_id=self._assign.attempt_id, fence=self._assign.fence,
                step=step.id, result=result, stdout=stdout, stderr=stderr,
            )
        )  # fmt: skip
        self._left[step.context] -= 1
        if not self._left[step.context]:
            self._place.retire(self._assign.task.context_of(step))
        return self._note(step, result)

    def _note(self, step: Step, result: Result) -> bool:
        is_ok = result.state in {State.SUCCEEDED, State.SKIPPED}
        if not is_ok:
            self._failures.append((step, result))
        return is_ok

    # --- tries and hooks ------------------------------------------------------------------------------------

    async def _tries(self, step: Step, output: StepOutput) -> Result:
        """The command, again as often as `retries` allows, with its hooks; the result is that of the last try."""
        deadline = self._deadline(step)
        context = self._assign.task.context_of(step)
        result = Result(state=State.FAILED)
        try:
            for number in range(step.retries + 1):
                ended = await self._try(step, number, output, deadline)
                result = words.result_of(ended, context)
                if ended.code == 0:
                    return result
        except StoppedError as interruption:
            if interruption.stop is not None or not step.failed:
                raise
            result = self._interrupted(step, interruption)
        await self._hooks(step, "failed", step.failed, output, self._deadline_from_now(step))
        return result

    async def _try(self, step: Step, number: int, output: StepOutput, deadline: float | None) -> Exit:
        if number:
            ended = await self._hooks(step, f"reentry{number}", step.reentry, output, deadline)
            if ended.code != 0:
                return ended
        key = f"{step.id}-retry{number}" if number else step.id
        return await self._command(step, self._command_of(step, key), output, deadline)

    async def _hooks(
        self, step: Step, kind: str, scripts: tuple[str, ...], output: StepOutput, deadline: float | None
    ) -> Exit:
        for number, script in enumerate(scripts):
            command = self._command_of(step, f"{step.id}-{kind}-{number}", script=script)
            ended = await self._command(step, command, output, deadline)
            if ended.code != 0:
                return ended
        return Exit(code=0)

    def _command_of(self, step: Step, key: str, *, script: str | None = None) -> Command:
        return Command(
            key=key,
            script=script if script is not None else step.script,
            program=None if script is not None else step.program,
            entrypoint=None if script is not None else step.entrypoint,
            command=None if script is not None else step.command,
            env=words.environment(self._assign, step, self._agent_name),
            workdir=step.workdir,
            user=step.user,
            is_resumed=step.id in self._resumed,
        )

    def _deadline(self, step: Step) -> float | None:
        """The step's deadline on the loop's clock; a step that an earlier agent started has used some of its time."""
        if step.timeout_s is None:
            return None
        started = self._started.get(step.id)
        used = time.time() - started.at / 1000 if started else 0.0
        return asyncio.get_running_loop().time() + step.timeout_s - max(0.0, used)

    def _deadline_from_now(self, step: Step) -> float | None:
        return None if step.timeout_s is None else asyncio.get_running_loop().time() + step.timeout_s

    # --- one command ----------------------------------------------------------------------------------------

    async def _command(self, step: Step, command: Command, output: StepOutput, deadline: float | None) -> Exit:
        """Run one command to its end; when it is interrupted it has ended all the same, by signal if it must."""
        output.begin_part()
        # What an earlier agent started is found again even if it is to be stopped: for its signal, and its output.
        is_running = command.is_resumed and command.key == step.id
        running = await self._start(step, command, nullcontext() if is_running else self._brake.scope(deadline))
        async with asyncio.TaskGroup() as group:
            ended = group.create_task(_outcome_of(running, output), name=f"step {step.id}")
            if step.id not in self._started:
                await self._report_started(step, running)
            outcome: Exit | Exception
            try:
                async with self._brake.scope(deadline):
                    outcome = await asyncio.shield(ended)
            except StoppedError as stopped:
                await self._stop(running, ended)
                outcome = stopped
        match outcome:
            case Exit():
                return outcome
            case OutputRefusedError():
                await self._stop_unheard(running)
        raise outcome  # here, because inside the group it would become a group of errors

    async def _start(self, step: Step, command: Command, scope: AbstractAsyncContextManager[None]) -> Running:
        """Start it. A stop gives it up, unless it may run already: then it is started all the same, to be stopped.

        An engine may be slow to say that a container runs, which prints meanwhile.
        """
        context = self._assign.task.context_of(step)
        stopped: StoppedError | None = None
        async with asyncio.TaskGroup() as group:
            starting = group.create_task(_started(self._place, context, command), name=f"start of step {step.id}")
            try:
                async with scope:
                    await asyncio.shield(starting)
            except StoppedError as error:
                if command.launch.has_begun:
                    await asyncio.wait([starting], timeout=_LAUNCH_S)
                if not starting.done():
                    starting.cancel()
                    stopped = error
        if stopped is not None:
            raise stopped  # here, because inside the group it would become a group of errors
        if isinstance(started := starting.result(), Exception):
            raise started
        return started

    async def _report_started(self, step: Step, running: Running) -> None:
        started = StepStarted(
            at=now_ms(), attempt_id=self._assign.attempt_id, fence=self._assign.fence,
            step=step.id, container=running.container,
        )  # fmt: skip
        self._started[step.id] = started
        await self._report(started)

    async def _stop(self, running: Running, ended: asyncio.Task[Exit | ExecutionError | OutputRefusedError]) -> None:
        """Stop signal, grace, kill; what the command still prints is kept."""
        signals, wait_s = iter(["TERM"]), self._grace_s
        while not ended.done():
            await running.signal(next(signals, "KILL"))
            await asyncio.wait([ended], timeout=wait_s)
            wait_s = _KILL_AGAIN_S

    async def _stop_unheard(self, running: Running) -> None:
        """Nobody takes the output any more: end the command and let its output go."""
        deaf = _Deaf()
        async with asyncio.TaskGroup() as group:
            ended = group.create_task(_outcome_of(running, deaf))
            await self._stop(running, ended)


async def _started(place: Place, context: Context, command: Command) -> Running | Exception:
    """The error as a value, too: it must not tear down the group that waits for it."""
    try:
        return await place.start(context, command)
    except Exception as error:
        return error


async def _outcome_of(running: Running, output: StepOutput | _Deaf) -> Exit | ExecutionError | OutputRefusedError:
    """The end as a value: an error must not tear down the group that still has to stop the command."""
    outcome: Exit | ExecutionError
    try:
        try:
            outcome = await running.ended(output)
        except ExecutionError as error:
            outcome = error
        await output.end_part()
    except OutputRefusedError as refusal:
        return refusal
    return outcome


class _Deaf:
    """Takes output and keeps nothing."""

    is_deaf = True

    def __init__(self) -> None:
        self._lengths = {1: 0, 2: 0}

    async def write(self, stream: int, offset: int, chunk: bytes) -> None:
        self._lengths[stream] = max(self._lengths[stream], offset + len(chunk))

    def length_of(self, stream: int) -> int:
        return self._lengths[stream]

    async def note_gap(self, stream: int, offset: int) -> None:
        pass

    async def end_part(self) -> None:
        pass
