import asyncio
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from pistage.agent.outbox import Outbox, OutputRefusedError, StreamKey
from pistage.core import limits
from pistage.wire import GapReason, LogAck, LogFrame, LogGap, LogRefused
from tests.agent.fake_store import FakeStore

KEY = StreamKey("attempt", "1", 1)
OTHER = StreamKey("attempt", "1", 2)


def ack(length: int, *, key: StreamKey = KEY, **fields: int | bool) -> LogAck:
    return LogAck(attempt_id=key.attempt_id, step=key.step, stream=key.stream, length=length, **fields)  # type: ignore[arg-type]


def refusal(reason: str, *, is_final: bool = False) -> LogRefused:
    return LogRefused(attempt_id=KEY.attempt_id, step=KEY.step, stream=KEY.stream, reason=reason, is_final=is_final)


class Wire:
    """The socket's side: frames and gaps arrive in `frames`."""

    def __init__(self) -> None:
        self.frames: asyncio.Queue[LogFrame | LogGap] = asyncio.Queue()

    async def next(self) -> LogFrame | LogGap:
        async with asyncio.timeout(5):
            return await self.frames.get()

    async def get(self) -> LogFrame:
        frame = await self.next()
        assert isinstance(frame, LogFrame)
        return frame

    async def gap(self) -> tuple[int, int, GapReason]:
        gap = await self.next()
        assert isinstance(gap, LogGap)
        return gap.offset, gap.length, gap.reason


async def settled() -> None:
    """Everybody who can has gone on."""
    for _ in range(20):
        await asyncio.sleep(0)


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
        await outbox.kept(KEY)


async def test_a_refusal_that_ends_is_forgotten() -> None:
    outbox = Outbox(wait_s=10)
    outbox.open(KEY, is_new=True)
    await outbox.put(KEY, 0, b"x")
    outbox.on_refused(refusal("the disk is full"))
    async with asyncio.TaskGroup() as group:
        kept = group.create_task(outbox.kept(KEY))
        await asyncio.sleep(0)
        outbox.on_ack(ack(1))
    assert kept.done()


async def test_a_final_refusal_fails_the_step_at_once() -> None:
    outbox = Outbox(wait_s=1000)
    outbox.open(KEY, is_new=True)
    await outbox.put(KEY, 0, b"x")
    outbox.on_refused(refusal("more than it may", is_final=True))
    with pytest.raises(OutputRefusedError, match="more than it may"):
        await outbox.kept(KEY)


async def test_output_that_masters_lost_leaves_a_gap_and_the_rest_goes_on() -> None:
    outbox = Outbox(wait_s=1)
    outbox.open(KEY, is_new=True)
    await outbox.put(KEY, 0, b"0123456789")
    outbox.on_ack(ack(5))
    outbox.begin_session()
    async with pumping(outbox) as wire:
        assert (await wire.get()).data == b""
        outbox.on_ack(ack(2))
        assert await wire.gap() == (2, 3, GapReason.LOST)
        await settled()
        assert wire.frames.empty(), "a gap travels alone"
        outbox.on_ack(ack(5, missing=3))
        assert ((frame := await wire.get()).offset, frame.data) == (5, b"56789")
        outbox.on_ack(ack(10, missing=3))
        await outbox.kept(KEY)
    assert outbox.kept_of(KEY) == (10, 3)


async def test_what_is_lost_twice_is_one_gap() -> None:
    outbox = Outbox(wait_s=1)
    outbox.open(KEY, is_new=True)
    await outbox.put(KEY, 0, b"0123456789")
    outbox.on_ack(ack(10))
    for length in (8, 3):
        outbox.begin_session()
        outbox.end(KEY)
        async with pumping(outbox) as wire:
            assert (await wire.get()).data == b""
            outbox.on_ack(ack(length))
            assert await wire.gap() == (length, 10 - length, GapReason.LOST)


async def test_a_step_does_not_end_before_a_new_master_said_what_it_has() -> None:
    outbox = Outbox(wait_s=1)
    outbox.open(KEY, is_new=True)
    await outbox.put(KEY, 0, b"0123456789")
    outbox.on_ack(ack(10))
    outbox.begin_session()
    async with pumping(outbox) as wire, asyncio.TaskGroup() as group:
        kept = group.create_task(outbox.kept(KEY))
        assert (await wire.get()).data == b""
        assert not kept.done()
        outbox.on_ack(ack(10))


async def test_answers_to_what_was_sent_before_do_not_send_it_again_and_again() -> None:
    outbox = Outbox(wait_s=1)
    outbox.open(KEY, is_new=True)
    async with pumping(outbox) as wire:
        for number in range(4):
            await outbox.put(KEY, number * 200_000, b"x" * 200_000)
        assert [(await wire.get()).offset for _ in range(4)] == [0, 200_000, 400_000, 600_000]
        outbox.on_ack(ack(0, is_gap=True))
        assert [(await wire.get()).offset for _ in range(4)] == [0, 200_000, 400_000, 600_000]
        for _ in range(3):
            outbox.on_ack(ack(0, is_gap=True))
        await settled()
        assert wire.frames.empty()


# --- of which no more is kept --------------------------------------------------------------------------------


@asynccontextmanager
async def kept_by(outbox: Outbox, store: FakeStore) -> AsyncIterator[None]:
    async def take(message: LogFrame | LogGap) -> None:
        outbox.on_ack(store.append(message))

    async with asyncio.TaskGroup() as group:
        pump = group.create_task(outbox.pump(take))
        yield
        pump.cancel()


def numbered(start: int, end: int) -> bytes:
    return b"".join(b"%07d\n" % number for number in range(start, end))


async def test_of_a_stream_that_is_full_the_command_runs_on_and_the_end_is_kept() -> None:
    store = FakeStore(step_bytes_max=800_000)
    outbox = Outbox(wait_s=1, bytes_max=200_000)
    outbox.open(KEY, is_new=True)
    length = 0
    async with kept_by(outbox, store):
        async with asyncio.timeout(20):
            for number in range(0, 500_000, 5_000):
                await outbox.put(KEY, length, data := numbered(number, number + 5_000))
                length += len(data)
            stream = store.streams[KEY]
            head = len(stream.kept)
            assert stream.gaps == [(GapReason.LIMIT, head, 0)], "it is said when the limit is reached"
            await outbox.kept(KEY)
    assert 600_000 <= head <= 800_000
    missing = length - head - limits.LOG_TAIL_BYTES_MAX
    assert stream.gaps[1:] == [(GapReason.LIMIT, head, missing)]
    assert stream.pieces() == [
        (0, numbered(0, 500_000)[:head]),
        (head + missing, numbered(0, 500_000)[head + missing :]),
    ]
    assert outbox.kept_of(KEY) == (length, missing)
    assert outbox.held_bytes == 0


async def test_a_full_stream_leaves_the_room_to_the_others() -> None:
    outbox = Outbox(wait_s=1, bytes_max=100)
    outbox.open(KEY, is_new=True)
    outbox.open(OTHER, is_new=True)
    await outbox.put(KEY, 0, b"x" * 100)
    async with asyncio.TaskGroup() as group:
        more = group.create_task(outbox.put(KEY, 100, b"x" * 50))
        other = group.create_task(outbox.put(OTHER, 0, b"y" * 50))
        await settled()
        assert not more.done() and not other.done()
        outbox.on_ack(ack(40, is_full=True))
    assert outbox.held_bytes == 50
    for number in range(100):
        await outbox.put(KEY, 150 + number * 1000, b"x" * 1000)
    assert outbox.held_bytes == 50


async def test_with_many_full_streams_each_keeps_less() -> None:
    keys = [StreamKey("attempt", str(step), 1) for step in range(1, 5)]
    outbox = Outbox(wait_s=1, tails_bytes_max=2_000)
    store = FakeStore(step_bytes_max=0)
    async with kept_by(outbox, store):
        for key in keys:
            outbox.open(key, is_new=True)
            await outbox.put(key, 0, b"x" * 3_000)
            await settled()
            assert store.streams[key].gaps
        for key in keys:
            await outbox.put(key, 3_000, b"y" * 100)
        for key in keys:
            await outbox.kept(key)
    # Each that ended left its share to those that were still there, but nothing that was gone came back.
    assert [len(store.streams[key].kept) for key in keys] == [500, 500, 500, 500]
    assert all(store.streams[key].kept.endswith(b"x" + b"y" * 100) for key in keys)


async def test_a_tail_has_times_of_its_own() -> None:
    outbox = Outbox(wait_s=1)
    outbox.open(KEY, is_new=True)
    await outbox.put(KEY, 0, b"x")
    outbox.on_ack(ack(0, is_full=True))
    for number in range(6):
        await outbox.put(KEY, 1 + number * 4096, b"y" * 4096)
        await asyncio.sleep(limits.FRAME_DELAY_S * 1.1)  # pieces of a moment share one time, and a moment has to pass
    async with pumping(outbox) as wire:
        outbox.end(KEY)
        assert await wire.gap() == (0, 0, GapReason.LIMIT)
        outbox.on_ack(ack(0))
        assert await wire.gap() == (0, 1, GapReason.LIMIT)
        outbox.on_ack(ack(1, missing=1))
        frames = [await wire.get() for _ in range(6)]
    assert len({frame.at for frame in frames}) == 6


async def test_a_tail_that_fits_whole_begins_one_byte_later() -> None:
    # The master takes a tail behind a gap only.
    store = FakeStore(step_bytes_max=10)
    outbox = Outbox(wait_s=1)
    outbox.open(KEY, is_new=True)
    async with kept_by(outbox, store):
        await outbox.put(KEY, 0, b"0123456789abc")
        await outbox.kept(KEY)
    assert store.streams[KEY].gaps == [(GapReason.LIMIT, 0, 0), (GapReason.LIMIT, 0, 1)]
    assert store.streams[KEY].kept == b"123456789abc"


async def test_a_full_stream_that_is_refused_is_refused_no_longer_once_its_gap_is_taken() -> None:
    outbox = Outbox(wait_s=0.05)
    outbox.open(KEY, is_new=True)
    await outbox.put(KEY, 0, b"x")
    outbox.on_ack(ack(0, is_full=True))
    async with pumping(outbox) as wire:
        assert await wire.gap() == (0, 0, GapReason.LIMIT)
        outbox.on_refused(refusal("the disk is full"))
        outbox.begin_session()
        assert (await wire.get()).data == b""
        outbox.on_ack(ack(0))
        assert await wire.gap() == (0, 0, GapReason.LIMIT)
        outbox.on_ack(ack(0))
    await asyncio.sleep(0.06)  # the wait is over, which is nothing to it
    await outbox.put(KEY, 1, b"y")


def carry(outbox: Outbox, store: FakeStore, messages_max: int = 1_000) -> None:
    """To the master and back, at once."""
    for _ in range(messages_max):
        if (message := outbox._next_message(math.inf)) is None:
            return
        outbox.on_ack(store.append(message))


@pytest.mark.parametrize("sent", [0, 1, 2, 3, 4])
async def test_an_agent_that_is_started_again_brings_the_same_end(sent: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one before it had sent so much of the end: nothing, the gap, one piece of the tail, two, all three."""
    monkeypatch.setattr(limits, "LOG_TAIL_BYTES_MAX", 30)
    monkeypatch.setattr(limits, "FRAME_BYTES_MAX", 10)
    text = bytes(range(100))
    store = FakeStore(step_bytes_max=20)
    stream = store.streams[KEY]
    for is_new in (True, False):
        outbox = Outbox(wait_s=1)
        outbox.open(KEY, is_new=is_new)
        for offset in range(0, 100, 10):
            await outbox.put(KEY, offset, text[offset : offset + 10])
            carry(outbox, store)
        outbox.end(KEY)
        if is_new:
            carry(outbox, store, sent)
            assert len(stream.kept) == 20 + max(0, sent - 1) * 10
    carry(outbox, store)
    await outbox.kept(KEY)
    assert stream.gaps == [(GapReason.LIMIT, 20, 0), (GapReason.LIMIT, 20, 50)]
    assert stream.pieces() == [(0, text[:20]), (70, text[70:])]
    assert outbox.kept_of(KEY) == (100, 50)


# --- gaps of the engine --------------------------------------------------------------------------------------


async def test_a_gap_stands_where_the_stream_ended_when_it_was_noted() -> None:
    store = FakeStore()
    outbox = Outbox(wait_s=1)
    outbox.open(KEY, is_new=True)
    async with kept_by(outbox, store):
        await outbox.put(KEY, 0, b"before")
        outbox.note_gap(KEY, 6, GapReason.ENGINE)
        await outbox.put(KEY, 6, b"after")
        await outbox.kept(KEY)
    assert store.streams[KEY].gaps == [(GapReason.ENGINE, 6, 0)]
    assert store.streams[KEY].kept == b"beforeafter"


async def test_a_gap_at_the_very_end_is_waited_for() -> None:
    outbox = Outbox(wait_s=1)
    outbox.open(KEY, is_new=True)
    async with pumping(outbox) as wire, asyncio.TaskGroup() as group:
        await outbox.put(KEY, 0, b"all")
        outbox.note_gap(KEY, 3, GapReason.ENGINE)
        kept = group.create_task(outbox.kept(KEY))
        assert (await wire.get()).data == b"all"
        outbox.on_ack(ack(3))
        assert await wire.gap() == (3, 0, GapReason.ENGINE)
        await settled()
        assert not kept.done()
        outbox.on_ack(ack(3))


# --- the rest ------------------------------------------------------------------------------------------------


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
