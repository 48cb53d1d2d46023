"""A command that is its container's own process: attached to before it starts, found again by the engine's log."""

from __future__ import annotations

import asyncio
import contextlib
import time

from aiodocker.stream import Stream

from pistage.agent.runtimes.base import STDERR, STDOUT, ExecutionError, Exit, Sink
from pistage.agent.runtimes.engine import Engine, EngineError, EngineGoneError
from pistage.agent.runtimes.loglines import LineMender
from pistage.core.plan import FailureClass

ENGINE_RETURN_S = 30.0
_ENGINE_POLL_S = 0.5
#: An engine gives an attached client about two seconds after the end to take what is left.
_STALL_S = 1.0
#: A container ends when its output does, or a moment later; if not, it has closed its output, or the connection broke.
_END_DELAY_S = 0.5
_KILLED = frozenset({137, 143, 255})  # what a container that was running is left with when its engine dies


class OwnProcess:
    """A container with one command."""

    def __init__(self, engine: Engine, container: str, stream: Stream | None, *, loses_newlines: bool) -> None:
        self._engine = engine
        self.container = container
        self._stream = stream
        self._loses_newlines = loses_newlines
        self._absences = engine.absences

    @classmethod
    async def start(cls, engine: Engine, container: str, *, loses_newlines: bool) -> OwnProcess:
        """Attach, then start."""
        stream = await engine.attach(container)
        try:
            await engine.start(container)
        except EngineError as error:
            await close(stream)
            raise EngineError(error.status, f"its container could not be started: {error.message}") from None
        except BaseException:
            await close(stream)
            raise
        return cls(engine, container, stream, loses_newlines=loses_newlines)

    async def ended(self, sink: Sink) -> Exit:
        """See `Running`."""
        is_exact = await self._listen(sink)
        while True:
            try:
                if is_exact and (code := await self._end_soon()) is not None:
                    return await self._exit(code)
                # The log holds everything from the start, and the sink knows what it has of it.
                await self._replay(sink)
                return await self._exit(await self._engine.wait(self.container))
            except EngineGoneError as gone:
                is_exact = False
                await wait_for_engine(self._engine, gone)
            except EngineError as error:
                raise ExecutionError(FailureClass.LOST, f"its container is gone: {error.message}") from None

    async def _listen(self, sink: Sink) -> bool:
        """Bring what the attached stream carries; whether that is sure to be all up to the stream's end."""
        stream, self._stream = self._stream, None
        if stream is None:
            return False
        offsets = {STDOUT: 0, STDERR: 0}
        is_exact = True
        try:
            while (message := await stream.read_out()) is not None:
                began = time.monotonic()
                await sink.write(message.stream, offsets[message.stream], message.data)
                offsets[message.stream] += len(message.data)
                is_exact = is_exact and time.monotonic() - began < _STALL_S
        except (OSError, EngineGoneError):
            return False
        finally:
            # A client that is connected and does not read blocks the container, and its removal.
            await close(stream)
        return is_exact

    async def _end_soon(self) -> int | None:
        try:
            async with asyncio.timeout(_END_DELAY_S):
                return await self._engine.wait(self.container)
        except TimeoutError:
            return None

    async def _exit(self, code: int) -> Exit:
        if code in _KILLED and self._engine.absences != self._absences:
            raise ExecutionError(FailureClass.LOST, "the engine went away and took the container with it")
        if code != 137:
            return Exit(code=code)
        known = await self._engine.inspect(self.container) or {}
        return Exit(code=code, is_oom=bool(known.get("State", {}).get("OOMKilled")))

    async def _replay(self, sink: Sink) -> None:
        """The log from its beginning, for as long as the container runs."""
        menders = {number: LineMender(loses_newlines=self._loses_newlines) for number in (STDOUT, STDERR)}
        offsets = {STDOUT: 0, STDERR: 0}
        has_advanced = {STDOUT: False, STDERR: False}
        async for stream, message in self._engine.logs(self.container, is_following=True):
            text = menders[stream].feed(message)
            offset, offsets[stream] = offsets[stream], offsets[stream] + len(text)
            has_advanced[stream] = offsets[stream] > sink.length_of(stream)
            if text:
                await sink.write(stream, offset, text)
        for stream, mender in menders.items():
            # What the attached stream brought was exact: only an end that came from the log may lack its newline.
            if has_advanced[stream] and (newline := mender.finish()):
                await sink.write(stream, offsets[stream], newline)

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


async def close(stream: Stream) -> None:
    """Disconnect; aiodocker is strict about connections that the engine has closed already."""
    with contextlib.suppress(AssertionError, OSError):
        await stream.close()
