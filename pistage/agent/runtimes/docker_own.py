"""A command that is its container's own process: attached to before it starts, found again by the engine's log."""

from __future__ import annotations

import asyncio
import contextlib
import time
from datetime import datetime
from functools import partial

from aiodocker.stream import Stream

from pistage.agent.runtimes.attached import FORGIVEN_S, Attached, close
from pistage.agent.runtimes.base import STDERR, STDOUT, ExecutionError, Exit, Launch, Sink
from pistage.agent.runtimes.docker_log import ContainerLog, Heard
from pistage.agent.runtimes.engine import Engine, EngineError, EngineGoneError
from pistage.agent.runtimes.process_end import process_end
from pistage.core.plan import FailureClass
from pistage.owning import running

ENGINE_RETURN_S = 30.0
_ENGINE_POLL_S = 0.5
#: A container ends when its output does, or a moment later; if not, it has closed its output, or the connection broke.
_END_DELAY_S = 0.5
_END_DELAY_MAX_S = 10.0  # then the log is read again, from its beginning
#: The connection on which absences are noticed breaks in the same moment as ours.
_NOTICE_S = 0.25
#: What a client that is attached is brought so long after an absence did not come through an engine that ended.
_OUTLIVED_S = 5.0
_KILLED = frozenset({137, 143, 255})  # what a container that was running is left with when its engine dies


class OwnProcess:
    """A container with one command. `absences` is how often its engine had gone away before it was started."""

    def __init__(self, engine: Engine, log: ContainerLog, stream: Stream | None, *, absences: int = 0) -> None:
        self._engine = engine
        self.container = log.container
        self._log = log
        self._stream = stream
        self._heard: dict[int, Heard] = {}
        self._has_process_ended = False  # as far as was known when the stream ended
        self._behind_ns = 0  # when nothing more could be lost, if there was something to be taken all along
        self._before = self._seen = absences

    @classmethod
    async def start(cls, engine: Engine, log: ContainerLog, launch: Launch) -> OwnProcess:
        """Attach, then start."""
        container, absences = log.container, engine.absence_count
        stream = await engine.attach(container)
        launch.begin()
        try:
            await engine.start(container)
        except EngineError as error:
            await close(stream)
            raise EngineError(error.status, f"its container could not be started: {error.message}") from None
        except BaseException:
            await close(stream)
            raise
        return cls(engine, log, stream, absences=absences)

    async def ended(self, sink: Sink) -> Exit:
        """See `Running`."""
        was_attached, is_exact = self._stream is not None, await self._listen(sink)
        if was_attached and not is_exact:
            await asyncio.sleep(_NOTICE_S)
        wait_s = _END_DELAY_MAX_S if is_exact and self._has_process_ended else _END_DELAY_S
        while True:
            try:
                if is_exact and (code := await self._end_soon(wait_s)) is not None:
                    if self._behind_ns:
                        await self._note_what_was_forgotten(sink, self._behind_ns)
                    return await self._exit(code)
                # The log holds everything from the start, and the sink knows what it has of it.
                is_exact = False
                self._note_absences()
                if not sink.is_deaf:
                    await self._log.tell(sink)
                if (code := await self._end_soon(wait_s)) is not None:
                    if not sink.is_deaf:
                        await self._log.complete(sink)
                    return await self._exit(code)
                wait_s = min(2 * wait_s, _END_DELAY_MAX_S)
            except EngineGoneError as gone:
                is_exact = False
                await asyncio.sleep(_NOTICE_S)
                self._note_absences()  # before the engine is back, for an agent that comes after this one
                await wait_for_engine(self._engine, gone)
            except EngineError as error:
                raise ExecutionError(FailureClass.LOST, f"its container is gone: {error.message}") from None

    async def _listen(self, sink: Sink) -> bool:
        """Bring what the attached stream carries; whether that is sure to be all up to the stream's end."""
        stream, self._stream = self._stream, None
        if stream is None:
            return False
        self._heard = {STDOUT: Heard(), STDERR: Heard()}
        attached = Attached(stream, self._engine.urgent)
        watched = attached.watch(partial(process_end, self._engine, self.container))
        is_whole = True
        try:
            async with running(attached.look(), watched):
                await self._take(attached, sink)
        except (OSError, EngineGoneError):
            is_whole = False
        finally:
            await attached.close()
        self._has_process_ended = attached.has_process_ended
        self._behind_ns = attached.safe_ns if attached.was_behind else 0
        return is_whole and not attached.has_hung_up

    async def _take(self, attached: Attached, sink: Sink) -> None:
        while (message := await attached.read_out()) is not None:
            heard = self._heard[message.stream]
            if not attached.has_hung_up:
                self._outlive(time.monotonic())
            await sink.write(message.stream, heard.length, message.data)
            heard.add(message.data)

    async def _note_what_was_forgotten(self, sink: Sink, safe_ns: int) -> None:
        """Whether the engine gave us up with something left is not known; if it may have, a gap says so."""
        known = await self._engine.inspect(self.container) or {}
        try:
            finished_s = datetime.fromisoformat(known["State"]["FinishedAt"]).timestamp()
        except (KeyError, ValueError):
            finished_s = 0.0
        late_s = (safe_ns + await self._engine.clock_ahead_ns()) / 1e9 - finished_s
        if late_s > FORGIVEN_S:
            for number in (STDOUT, STDERR):
                await sink.note_gap(number, sink.length_of(number))

    def _outlive(self, now: float) -> None:
        """Something came: the absences of a while ago were those of something between us and the engine."""
        while absences := self._engine.absences_after(self._seen):
            if now - absences[0][1] < _OUTLIVED_S:
                return
            self._seen += 1

    def _note_absences(self) -> None:
        for at_ns, _ in self._engine.absences_after(self._seen):
            self._log.note_absence(at_ns, self._heard)
            self._heard = {}  # by the next one, nobody was attached any more
        self._seen = self._engine.absence_count

    async def _end_soon(self, wait_s: float) -> int | None:
        try:
            async with asyncio.timeout(wait_s):
                return await self._engine.wait(self.container)
        except TimeoutError:
            return None

    async def _exit(self, code: int) -> Exit:
        if code in _KILLED and (self._log.has_absences or self._engine.absence_count != self._before):
            raise ExecutionError(FailureClass.LOST, "the engine went away and took the container with it")
        if code != 137:
            return Exit(code=code)
        known = await self._engine.inspect(self.container) or {}
        return Exit(code=code, is_oom=bool(known.get("State", {}).get("OOMKilled")))

    async def signal(self, name: str) -> None:
        """See `Running`."""
        with contextlib.suppress(EngineGoneError, EngineError):
            await self._engine.kill(self.container, f"SIG{name}")


async def wait_for_engine(engine: Engine, gone: EngineGoneError) -> None:
    """Until the engine answers again; ExecutionError `lost` if it does not within `ENGINE_RETURN_S`."""
    deadline = time.monotonic() + ENGINE_RETURN_S
    while time.monotonic() < deadline:
        await asyncio.sleep(_ENGINE_POLL_S)
        with contextlib.suppress(EngineGoneError, EngineError):
            await engine.json("GET", "version", versioned=False, timeout_s=5.0)
            return
    reason = f"the engine went away and did not come back within {ENGINE_RETURN_S:g} s: {gone}"
    raise ExecutionError(FailureClass.LOST, reason)
