import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from pistage.agent.outbox import Outbox, OutputRefusedError, StreamKey
from pistage.core import limits
from pistage.wire import LogAck, LogFrame, LogRefused

KEY = StreamKey("attempt", "1", 1)
OTHER = StreamKey("attempt", "1", 2)


def ack(length: int, *, is_gap: bool = False, key: StreamKey = KEY) -> LogAck:
    return LogAck(attempt_id=key.attempt_id, step=key.step, stream=key.stream, length=length, is_gap=is_gap)


def refusal(reason: str, *, is_final: bool = False) -> LogRefused:
    return LogRefused(attempt_id=KEY.attempt_id, step=KEY.step, stream=KEY.stream, reason=reason, is_final=is_final)


class Wire:
    """The socket's side: frames arrive in `frames`."""

    def __init__(self) -> None:
        self.frames: asyncio.Queue[LogFrame] = asyncio.Queue()

    async def get(self) -> LogFrame:
        async with asyncio.timeout(5):
            return await self.frames.get()


@asynccontextmanager
async def pumping(outbox: Outbox) -> AsyncIterator[Wire]:
    wire = Wire()
    async with asyncio.TaskGroup() as group:
        pump = group.create_task(outbox.pump(wire.frames.put))
        yield wire
        pump.cancel()


async def test_small_writes_travel_together() -> None:
    outbox = Outbox(wait_s=1)
    outbox.open(KEY, is_new=True)
    async with pumping(outbox) as wire:
        for offset in range(100):
            await outbox.put(KEY, offset, b"x")
        frame = await wire.get()
    assert (frame.offset, frame.data) == (0, b"x" * 100)


async def test_a_frame_is_never_larger_than_the_limit() -> None:
    outbox = Outbox(wait_s=1)
    outbox.open(KEY, is_new=True)
    async with pumping(outbox) as wire:
        for offset in range(0, 1_000_000, 100_000):
            await outbox.put(KEY, offset, b"x" * 100_000)
        frames = []
        while sum(len(frame.data) for frame in frames) < 1_000_000:
            frames.append(await wire.get())
    assert max(len(frame.data) for frame in frames) <= limits.FRAME_BYTES_MAX
    assert [frame.offset for frame in frames] == sorted(frame.offset for frame in frames)


async def test_a_full_outbox_holds_the_writer_until_something_is_acknowledged() -> None:
    outbox = Outbox(wait_s=1, bytes_max=100)
    outbox.open(KEY, is_new=True)
    outbox.open(OTHER, is_new=True)
    await outbox.put(KEY, 0, b"x" * 100)
    async with asyncio.TaskGroup() as group:
        put = group.create_task(outbox.put(OTHER, 0, b"y" * 50))
        for _ in range(5):
            await asyncio.sleep(0)
        assert not put.done()
        outbox.on_ack(ack(60))
    assert outbox.held_bytes == 90


async def test_what_was_not_acknowledged_is_sent_again_from_where_the_next_master_stands() -> None:
    outbox = Outbox(wait_s=1)
    outbox.open(KEY, is_new=True)
    await outbox.put(KEY, 0, b"0123456789")
    async with pumping(outbox) as wire:
        assert (await wire.get()).data == b"0123456789"
    outbox.begin_session()
    async with pumping(outbox) as wire:
        question = await wire.get()
        assert (question.offset, question.data) == (0, b"")
        outbox.on_ack(ack(4))
        rest = await wire.get()
    assert (rest.offset, rest.data) == (4, b"456789")


async def test_a_stream_of_an_earlier_process_skips_what_the_master_has() -> None:
    outbox = Outbox(wait_s=1)
    outbox.open(KEY, is_new=False)
    await outbox.put(KEY, 0, b"0123456789")
    async with pumping(outbox) as wire:
        assert (await wire.get()).data == b""
        outbox.on_ack(ack(8))
        assert (await wire.get()).data == b"89"
    await outbox.put(KEY, 2, b"234567")
    assert outbox.held_bytes == 2


async def test_a_gap_is_filled_from_the_length_in_the_answer() -> None:
    outbox = Outbox(wait_s=1)
    outbox.open(KEY, is_new=True)
    await outbox.put(KEY, 0, b"0123456789")
    async with pumping(outbox) as wire:
        await wire.get()
        outbox.on_ack(ack(3, is_gap=True))
        assert (await wire.get()).data == b"3456789"


async def test_a_refusal_fails_the_step_only_after_the_wait() -> None:
    outbox = Outbox(wait_s=0.05)
    outbox.open(KEY, is_new=True)
    await outbox.put(KEY, 0, b"x")
    outbox.on_refused(refusal("the disk is full"))
    with pytest.raises(OutputRefusedError, match="the disk is full"):
        await outbox.kept(KEY, 1)


async def test_a_refusal_that_ends_is_forgotten() -> None:
    outbox = Outbox(wait_s=10)
    outbox.open(KEY, is_new=True)
    await outbox.put(KEY, 0, b"x")
    outbox.on_refused(refusal("the disk is full"))
    async with asyncio.TaskGroup() as group:
        kept = group.create_task(outbox.kept(KEY, 1))
        await asyncio.sleep(0)
        outbox.on_ack(ack(1))
    assert kept.done()


async def test_a_final_refusal_fails_the_step_at_once() -> None:
    outbox = Outbox(wait_s=1000)
    outbox.open(KEY, is_new=True)
    await outbox.put(KEY, 0, b"x")
    outbox.on_refused(refusal("more than it may", is_final=True))
    with pytest.raises(OutputRefusedError, match="more than it may"):
        await outbox.kept(KEY, 1)


async def test_output_that_masters_lost_is_said_not_hidden() -> None:
    outbox = Outbox(wait_s=1)
    outbox.open(KEY, is_new=True)
    await outbox.put(KEY, 0, b"0123456789")
    outbox.on_ack(ack(5))
    outbox.begin_session()
    outbox.on_ack(ack(2))
    with pytest.raises(OutputRefusedError, match="lost output"):
        await outbox.kept(KEY, 10)


async def test_dropping_a_stream_frees_its_room_and_its_writer() -> None:
    outbox = Outbox(wait_s=1, bytes_max=10)
    outbox.open(KEY, is_new=True)
    await outbox.put(KEY, 0, b"x" * 10)
    async with asyncio.TaskGroup() as group:
        put = group.create_task(_put_or_refused(outbox))
        await asyncio.sleep(0)
        outbox.drop([KEY])
    assert put.result() is True
    assert outbox.held_bytes == 0


async def _put_or_refused(outbox: Outbox) -> bool:
    try:
        await outbox.put(KEY, 10, b"y")
    except OutputRefusedError:
        return True
    return False


async def test_streams_take_turns() -> None:
    outbox = Outbox(wait_s=1)
    for key in (KEY, OTHER):
        outbox.open(key, is_new=True)
        for number in range(3):
            await outbox.put(key, number * 200_000, b"x" * 200_000)
    async with pumping(outbox) as wire:
        streams = [(await wire.get()).stream for _ in range(6)]
    assert streams == [1, 2, 1, 2, 1, 2]
