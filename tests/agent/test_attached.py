"""A client that is attached and slow: what is left when the container ends is held, and it has all of it."""

import asyncio
import os
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiodocker.stream import Message

from pistage.agent import policy
from pistage.agent.runtimes.attached import Attached, Urgent
from pistage.agent.runtimes.base import STDERR, STDOUT, Launch
from pistage.agent.runtimes.docker_log import ContainerLog
from pistage.agent.runtimes.docker_own import OwnProcess
from pistage.agent.runtimes.engine import Engine
from pistage.agent.runtimes.process_end import process_end
from tests.agent.test_docker_log import Notes

LINES = 500_000
PRINTED = b"".join(b"%d\n" % number for number in range(1, LINES + 1))


class SlowSink:
    """Takes so many bytes a second; notes gaps."""

    is_deaf = False

    def __init__(self, bytes_s: float) -> None:
        self._bytes_s = bytes_s
        self.streams = {STDOUT: bytearray(), STDERR: bytearray()}
        self.gaps: list[tuple[int, int]] = []

    async def write(self, stream: int, offset: int, chunk: bytes) -> None:
        kept = self.streams[stream]
        fresh = chunk[len(kept) - offset :] if offset < len(kept) else chunk
        assert offset <= len(kept), "a gap"
        if len(fresh) > 1_000:  # lines of the log, of which there are many, come as quickly as they can
            await asyncio.sleep(len(fresh) / self._bytes_s)
        kept += fresh

    def length_of(self, stream: int) -> int:
        return len(self.streams[stream])

    async def note_gap(self, stream: int, offset: int) -> None:
        self.gaps.append((stream, offset))


@pytest.fixture
async def engine() -> AsyncIterator[Engine]:
    if "DOCKER_HOST" not in os.environ:
        pytest.skip("DOCKER_HOST is not set: eval $(scripts/engine start)")
    engine = Engine("")
    await engine.connect()
    try:
        yield engine
    finally:
        await engine.close()


async def printed_through(engine: Engine, sink: SlowSink, command: str) -> OwnProcess:
    spec = policy.ContainerSpec(image="busybox", entrypoint=("/bin/sh", "-ec"), command=(command,), log_driver="local")
    container = await engine.create(f"keeping-up-{os.getpid()}-{os.urandom(4).hex()}", spec.render())
    try:
        notes: Any = Notes()
        log = ContainerLog(
            engine, container, notes, "1", loses_newlines=engine.api_version < (1, 42), outlives_engine=False
        )
        process = await OwnProcess.start(engine, log, Launch())
        assert (await process.ended(sink)).code == 0
        return process
    finally:
        await engine.remove(container)


async def untold(engine: Engine, container: str) -> bool:
    return False


@pytest.mark.engine
@pytest.mark.slow
@pytest.mark.parametrize("is_told", [True, False], ids=["its end is told", "its end is not told"])
@pytest.mark.parametrize("bytes_s", [300_000, 600_000, 4_000_000, 100_000_000])
async def test_however_slowly_it_is_taken_all_of_it_is_there(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, bytes_s: float, is_told: bool
) -> None:
    if not is_told:  # as where the engine is on another machine
        monkeypatch.setattr("pistage.agent.runtimes.docker_own.process_end", untold)
    sink = SlowSink(bytes_s)
    await printed_through(engine, sink, f"seq 1 {LINES}")
    assert bytes(sink.streams[STDOUT]) == PRINTED
    assert not sink.gaps


@pytest.mark.engine
@pytest.mark.slow
async def test_who_takes_nothing_for_a_while_and_then_all_of_it_loses_nothing(engine: Engine) -> None:
    class Stalled(SlowSink):
        async def write(self, stream: int, offset: int, chunk: bytes) -> None:
            if offset > 1_000_000 and not self.gaps:
                self.gaps.append((0, 0))
                await asyncio.sleep(6)
            await super().write(stream, offset, chunk)

    sink = Stalled(50_000_000)
    await printed_through(engine, sink, f"seq 1 {LINES}")
    assert bytes(sink.streams[STDOUT]) == PRINTED
    assert sink.gaps == [(0, 0)]


@pytest.mark.engine
@pytest.mark.slow
async def test_a_step_that_prints_little_and_ends_late_is_attached_to_its_end(engine: Engine) -> None:
    sink = SlowSink(100_000_000)
    process = await printed_through(engine, sink, "for i in 1 2 3; do echo $i; sleep 1; done")
    assert bytes(sink.streams[STDOUT]) == b"1\n2\n3\n"
    assert not process._log._walks, "the log was not needed"


@pytest.mark.engine
@pytest.mark.slow
async def test_the_end_of_a_process_is_told_at_once_and_only_by_the_machine_that_has_it(engine: Engine) -> None:
    spec = policy.ContainerSpec(image="busybox", entrypoint=("sleep",), command=("60",), log_driver="local")
    container = await engine.create(f"ending-{os.getpid()}-{os.urandom(4).hex()}", spec.render())
    try:
        assert await process_end(engine, container), "it has not begun"
        await engine.start(container)
        async with asyncio.timeout(10), asyncio.TaskGroup() as group:
            ending = group.create_task(process_end(engine, container))
            assert not (await asyncio.wait([ending], timeout=0.3))[0]
            await engine.kill(container, "SIGKILL")
        assert ending.result()
        assert not await process_end(engine, "0" * 64)
        elsewhere = Engine("tcp://127.0.0.1:1")
        assert not await process_end(elsewhere, container)
    finally:
        await engine.remove(container)


class Piped:
    """A stream of so many messages of 64 KiB, on stdout unless said."""

    def __init__(self, count: int, number: int = STDOUT) -> None:
        self.left, self._number = count, number
        self._queue = self._resp = None

    async def read_out(self) -> Message | None:
        await asyncio.sleep(0)
        if not self.left:
            return None
        self.left -= 1
        return Message(self._number, b"x" * 65_536)

    async def close(self) -> None:
        pass


async def ended() -> bool:
    return True


async def test_what_is_left_is_held_up_to_what_makes_room_for_the_rest() -> None:
    stream: Any = Piped(100)
    attached = Attached(stream, Urgent())
    await attached.watch(ended)
    assert stream.left == 100 - 24 and attached.safe_ns
    taken = 0
    while message := await attached.read_out():
        taken += len(message.data)
    assert taken == 100 * 65_536


async def test_who_is_not_at_its_end_waits_for_those_that_are() -> None:
    urgent = Urgent()
    busy: Any = Piped(3)
    attached = Attached(busy, urgent)
    async with asyncio.timeout(5), asyncio.TaskGroup() as group:
        with urgent.one(), urgent.one():
            reading = group.create_task(attached.read_out())
            for _ in range(5):
                await asyncio.sleep(0)
            assert busy.left == 3
        await reading
    assert busy.left == 2


async def test_what_an_engine_says_for_itself_breaks_the_stream() -> None:
    stream: Any = Piped(1, number=3)
    with pytest.raises(OSError, match="the engine says"):
        await Attached(stream, Urgent()).read_out()
