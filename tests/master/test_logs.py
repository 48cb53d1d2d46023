"""Output on disk: exact, in the order it came, and whole after a crash."""

import asyncio
import hashlib
import os
import random
import shutil
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Self

import pytest

from pistage import wire
from pistage.core import limits
from pistage.errors import Code, PistageError
from pistage.master import blocks, logrun
from pistage.master.blocks import block_of
from pistage.master.logs import LogStore
from pistage.master.logwriter import Appended, Bounds
from pistage.master.records import RECORD_BYTES, Record
from pistage.wire import GapReason
from tests.master.kept import blocks_in, bytes_in, records_in
from tests.waiting import until

RUN, ATTEMPT = wire.new_id(), wire.new_id()


@asynccontextmanager
async def a_store(
    directory: Path, *, run_bytes_max: int = 1 << 30, step_bytes_max: int = 1 << 30, free_bytes_min: int = 0
) -> AsyncIterator[LogStore]:
    store = LogStore(directory, Bounds(run_bytes_max, step_bytes_max, free_bytes_min))
    async with asyncio.TaskGroup() as group:
        serving = group.create_task(store.serve())
        try:
            yield store
        finally:
            serving.cancel()
    store.close()


def a_frame(data: bytes, offset: int = 0, *, stream: int = 1, step: str = "1", attempt: str = ATTEMPT) -> wire.LogFrame:
    return wire.LogFrame(attempt_id=attempt, step=step, stream=stream, offset=offset, at=7, data=data)


def a_gap(offset: int, length: int, reason: GapReason = GapReason.LIMIT) -> wire.LogGap:
    return wire.LogGap(attempt_id=ATTEMPT, step="1", stream=1, offset=offset, length=length, at=7, reason=reason)


async def put(store: LogStore, frame: wire.LogFrame | wire.LogGap) -> Appended:
    return await (await store.append(RUN, frame, term=0))


async def test_a_stream_is_what_was_appended_byte_for_byte(tmp_path: Path) -> None:
    chance = random.Random(1)
    pieces = [chance.randbytes(chance.randrange(1, 5_000)) for _ in range(200)]
    async with a_store(tmp_path) as store:
        offset = 0
        waiting = []
        for piece in pieces:
            waiting.append(await store.append(RUN, a_frame(piece, offset), term=0))
            offset += len(piece)
        assert (await asyncio.gather(*waiting))[-1] == Appended(offset)
        whole = bytes_in(store, RUN, (ATTEMPT, "1", 1), 0, offset + 1)
        assert hashlib.sha256(whole).digest() == hashlib.sha256(b"".join(pieces)).digest()
        records = records_in(store, RUN, 0, 1000)
        assert [(r.offset, r.length) for r in records][:2] == [(0, len(pieces[0])), (len(pieces[0]), len(pieces[1]))]


async def test_a_repeat_is_trimmed_and_a_gap_is_refused(tmp_path: Path) -> None:
    async with a_store(tmp_path) as store:
        assert await put(store, a_frame(b"hello")) == Appended(5)
        assert await put(store, a_frame(b"hello")) == Appended(5)
        assert await put(store, a_frame(b"lo world", 3)) == Appended(11)
        assert await put(store, a_frame(b"later", 20)) == Appended(11, is_gap=True)
        assert await put(store, a_frame(b"")) == Appended(11)
        assert bytes_in(store, RUN, (ATTEMPT, "1", 1), 0, 100) == b"hello world"


async def test_what_somebody_has_put_beside_the_output_stops_no_master(tmp_path: Path) -> None:
    async with a_store(tmp_path) as store:
        await put(store, a_frame(b"hello"))
    (tmp_path / RUN / ATTEMPT / "1.1.bak").write_bytes(b"hello")
    async with a_store(tmp_path) as store:
        assert await put(store, a_frame(b" world", 5)) == Appended(11)
    assert (tmp_path / RUN / ATTEMPT / "1.1.bak").read_bytes() == b"hello"


async def test_a_piece_is_a_record_at_least(tmp_path: Path) -> None:
    async with a_store(tmp_path) as store:
        for offset in range(2):
            await put(store, a_frame(b"x", offset))
        assert len((await store.piece(RUN, 0, 2, 1)).records) == RECORD_BYTES


async def test_stubs_count_toward_what_a_piece_may_hold(tmp_path: Path) -> None:
    async with a_store(tmp_path) as store:
        attempts = [wire.new_id() for _ in range(4)]
        for attempt in attempts:
            await put(store, a_frame(b"x", attempt=attempt))
        for attempt in attempts:
            shutil.rmtree(tmp_path / RUN / attempt)
            (tmp_path / RUN / f"{attempt}.stub").write_bytes(b"s" * 400)
        for start, taken in ((0, attempts[:2]), (2, attempts[2:])):
            piece = await store.piece(RUN, start, 4, 1_000)
            assert len(piece.records) == 2 * RECORD_BYTES
            assert [attempt for attempt, _ in piece.stubs] == taken
        assert len((await store.piece(RUN, 0, 4, 300)).records) == RECORD_BYTES


async def test_streams_steps_and_attempts_are_kept_apart(tmp_path: Path) -> None:
    other = wire.new_id()
    async with a_store(tmp_path) as store:
        for n, frame in enumerate(
            [a_frame(b"0"), a_frame(b"1", stream=2), a_frame(b"2", step="2"), a_frame(b"3", attempt=other)]
        ):
            await put(store, frame)
            assert bytes_in(store, RUN, (frame.attempt_id, frame.step, frame.stream), 0, 9) == b"%d" % n
        assert len(records_in(store, RUN, 0, 10)) == 4
        assert [record.key for record in records_in(store, RUN, 3, 10)] == [(other, "1", 1)]


async def test_lengths_are_found_again_after_a_restart(tmp_path: Path) -> None:
    async with a_store(tmp_path) as store:
        await put(store, a_frame(b"hello"))
    async with a_store(tmp_path) as store:
        assert await put(store, a_frame(b" world", 5)) == Appended(11)


async def test_what_a_crash_left_beyond_the_index_is_cut_off_and_taken_again(tmp_path: Path) -> None:
    async with a_store(tmp_path) as store:
        await put(store, a_frame(b"hello"))
    with (tmp_path / RUN / ATTEMPT / "1.1").open("ab") as file:
        file.write(b"torn")
    with (tmp_path / RUN / "index").open("ab") as file:
        file.write(b"x" * (RECORD_BYTES // 2))
    async with a_store(tmp_path) as store:
        assert await put(store, a_frame(b"")) == Appended(5)
        assert await put(store, a_frame(b" world", 5)) == Appended(11)
        assert bytes_in(store, RUN, (ATTEMPT, "1", 1), 0, 100) == b"hello world"
        assert len(records_in(store, RUN, 0, 10)) == 2


async def test_a_full_disk_refuses_and_takes_again_once_there_is_space(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with a_store(tmp_path) as store:
        await put(store, a_frame(b"hello"))
        real_write = os.write
        with monkeypatch.context() as patch:
            patch.setattr(os, "write", lambda fd, data: (_ for _ in ()).throw(OSError(28, "No space left on device")))
            with pytest.raises(PistageError) as caught:
                await put(store, a_frame(b" world", 5))
            assert caught.value.code is Code.STORAGE
        assert os.write is real_write
        assert await put(store, a_frame(b" world", 5)) == Appended(11)


async def test_less_free_space_than_the_reserve_refuses(tmp_path: Path) -> None:
    async with a_store(tmp_path, free_bytes_min=1 << 60) as store:
        with pytest.raises(PistageError, match="disk is full"):
            await put(store, a_frame(b"x"))


@pytest.mark.parametrize("bound", ["run_bytes_max", "step_bytes_max"])
async def test_a_full_stream_takes_a_gap_and_then_a_tail_also_after_a_restart(tmp_path: Path, bound: str) -> None:
    async with a_store(tmp_path, **{bound: 1_000}) as store:
        await put(store, a_frame(b"x" * 800))
        assert await put(store, a_frame(b"y" * 300, 800)) == Appended(800, is_full=True)
        assert await put(store, a_gap(800, 0)) == Appended(800)  # said when it is reached: nothing is open by that
        assert await put(store, a_frame(b"y" * 300, 800)) == Appended(800, is_full=True)
        assert await put(store, a_gap(800, 9_000)) == Appended(9_800, missing=9_000)
        assert await put(store, a_frame(b"tail", 9_800)) == Appended(9_804, missing=9_000)
    async with a_store(tmp_path, **{bound: 1_000}) as store:
        assert await put(store, a_frame(b"s", 9_804)) == Appended(9_805, missing=9_000)
        assert bytes_in(store, RUN, (ATTEMPT, "1", 1), 799, 99) == b"xtails"
        records = records_in(store, RUN, 0, 99)
        assert [(one.offset, one.place, one.length, one.gap) for one in records] == [
            (0, 0, 800, None), (800, 800, 0, GapReason.LIMIT), (800, 800, 9_000, GapReason.LIMIT),
            (9_800, 800, 4, None), (9_804, 804, 1, None),
        ]  # fmt: skip


async def test_a_tail_is_no_way_around_the_limit(tmp_path: Path) -> None:
    async with a_store(tmp_path, step_bytes_max=10) as store:
        await put(store, a_gap(0, 5))
        size = limits.LOG_TAIL_BYTES_MAX // 4
        for at in range(5, 5 + 4 * size, size):
            assert not (await put(store, a_frame(b"x" * size, at))).is_full
        assert (await put(store, a_frame(b"x", 5 + 4 * size))).is_full


async def test_more_gaps_make_no_room_for_more_than_a_run_may_keep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pistage.master.logwriter._TAILS_MIN", 2)
    monkeypatch.setattr("pistage.master.logwriter._GAPS_MAX", 5)

    async def fill(store: LogStore, at: int) -> int:
        while not (answer := await put(store, a_frame(b"x" * limits.FRAME_BYTES_MAX, at))).is_full:
            at = answer.length
        return at

    async with a_store(tmp_path, run_bytes_max=10) as store:
        at = 0
        for _ in range(2):
            at = await fill(store, (await put(store, a_gap(at, 1))).length)
        assert at == 2 * (1 + limits.LOG_TAIL_BYTES_MAX)
        assert await put(store, a_gap(at, 1)) == Appended(at, missing=2, is_full=True)
    async with a_store(tmp_path, run_bytes_max=10) as store:
        assert await put(store, a_gap(at, 1)) == Appended(at, missing=2, is_full=True)
        for length in (1, 1, 1):
            at = (await put(store, a_gap(at, length, GapReason.LOST))).length
        assert (await put(store, a_gap(at, 1, GapReason.LOST))).is_full
        assert len(records_in(store, RUN, 0, 99)) == 5 + 2 * limits.LOG_TAIL_BYTES_MAX // limits.FRAME_BYTES_MAX


async def test_the_index_counts_toward_the_limit_of_a_run(tmp_path: Path) -> None:
    async with a_store(tmp_path, run_bytes_max=640) as store:
        answers = [await put(store, a_frame(b"x", min(at, 10))) for at in range(12)]
        assert [answer.is_full for answer in answers] == [at >= 10 for at in range(12)]


async def test_a_gap_that_is_sent_again_is_recorded_once(tmp_path: Path) -> None:
    async with a_store(tmp_path) as store:
        await put(store, a_frame(b"hello"))
        for _ in range(2):
            assert await put(store, a_gap(5, 0, GapReason.ENGINE)) == Appended(5)
        for _ in range(2):
            assert await put(store, a_gap(5, 7, GapReason.LOST)) == Appended(12, missing=7)
        assert await put(store, a_gap(10, 4, GapReason.LOST)) == Appended(14, missing=9)
        assert (await put(store, a_gap(15, 1, GapReason.LOST))).is_gap
        assert [one.length for one in records_in(store, RUN, 0, 99)] == [5, 0, 7, 2]
        assert await put(store, a_frame(b"gone and there", 2)) == Appended(16, missing=9)
        assert bytes_in(store, RUN, (ATTEMPT, "1", 1), 0, 99) == b"hellore"
        assert await put(store, a_gap(5, 0, GapReason.ENGINE)) == Appended(16, missing=9)
        assert len(records_in(store, RUN, 0, 99)) == 5


async def test_blocks_say_what_the_records_hold_whatever_became_of_their_file(tmp_path: Path) -> None:
    path = tmp_path / RUN / "blocks"
    chance = random.Random(4)
    async with a_store(tmp_path) as store:
        offsets = dict.fromkeys([(stream, step) for stream in (1, 2) for step in ("1", "2")], 0)
        for _ in range(2_500):
            stream, step = chance.choice(list(offsets))
            data = chance.choice([b"x", b"x\n", b"\n\ny", b"yy"])
            await store.append(RUN, a_frame(data, offsets[stream, step], stream=stream, step=step), term=0)
            offsets[stream, step] += len(data)
        records = await written(store, 2_500)
        expected = [block_of(records[:1_024]), block_of(records[1_024:2_048])]
        assert blocks_in(store, RUN) == expected
        whole = path.read_bytes()
    for damaged in (b"", whole[:-1], whole[:50] + b"x" + whole[51:], whole + b"more"):
        path.write_bytes(damaged)
        known = blocks.read(path)
        assert known == expected[: len(known)]
        async with a_store(tmp_path) as store:
            await put(store, a_frame(b"", step="3"))
            assert blocks_in(store, RUN) == expected


async def test_a_run_is_the_same_whether_or_not_its_blocks_are_believed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chance = random.Random(9)
    path = tmp_path / RUN
    async with a_store(tmp_path) as store:
        offsets = dict.fromkeys(("1", "2"), 0)
        for number in range(5_500):
            step = chance.choice("12")
            length = number if number in {700, 3_300, 3_301} else chance.randrange(1, 4)
            frame = a_gap(offsets[step], length) if length > 3 else a_frame(b"\n" * length, offsets[step])
            await store.append(RUN, replace(frame, step=step), term=0)
            offsets[step] += length
        await written(store, 5_500)
    whole = (path / "blocks").read_bytes()
    looked_at: list[int] = []
    add_each = logrun._add_each

    def counted(run: logrun.Run, records: Sequence[Record], sizes: logrun._Sizes) -> int:
        looked_at.append(len(records))
        return add_each(run, records, sizes)

    monkeypatch.setattr(logrun, "_add_each", counted)
    believed = logrun.recovered(path)
    assert looked_at == [1_024, 1_024, 380]  # those with gaps, and those of no block yet
    (path / "blocks").unlink()
    assert logrun.recovered(path) == believed
    assert (path / "blocks").read_bytes() == whole
    assert (believed.gaps, believed.tails, believed.count) == (3, 3, 5_500)


@pytest.mark.parametrize("spoiled", ["index", "data"])
async def test_what_was_damaged_below_its_blocks_is_cut_off_all_the_same(tmp_path: Path, spoiled: str) -> None:
    async with a_store(tmp_path) as store:
        for offset in range(2_100):
            await store.append(RUN, a_frame(b"x", offset), term=0)
        await written(store, 2_100)
    if spoiled == "data":
        os.truncate(tmp_path / RUN / ATTEMPT / "1.1", 1_500)
    else:
        with (tmp_path / RUN / "index").open("r+b") as index:
            index.seek(1_500 * RECORD_BYTES)
            index.write(bytes(RECORD_BYTES))
    async with a_store(tmp_path) as store:
        assert await put(store, a_frame(b"")) == Appended(1_500)
        assert await put(store, a_frame(b"y" * 600, 1_500)) == Appended(2_100)
        assert len(blocks_in(store, RUN)) == 1


async def written(store: LogStore, count: int) -> list[Record]:
    """The records, once there are so many."""
    while len(records := records_in(store, RUN, 0, count)) < count:
        await put(store, a_frame(b"", step="3"))
    return records


@pytest.mark.parametrize("step", ["../1", "", "1/2", "٣"])
async def test_a_frame_cannot_name_a_path(tmp_path: Path, step: str) -> None:
    async with a_store(tmp_path) as store:
        with pytest.raises(PistageError):
            await store.append(RUN, a_frame(b"x", step=step), term=0)
        with pytest.raises(PistageError):
            await store.append("../../etc", a_frame(b"x"), term=0)
        with pytest.raises(PistageError):
            await store.append(RUN, a_frame(b"x", attempt="../x"), term=0)


async def test_many_runs_keep_few_files_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pistage.master.logwriter._FILES_OPEN", 4)
    monkeypatch.setattr("pistage.master.logwriter._RUNS_OPEN", 4)
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - what is counted is this process
    async with a_store(tmp_path) as store:
        runs = [wire.new_id() for _ in range(20)]
        for offset in range(3):
            for run_id in runs:
                assert await (await store.append(run_id, a_frame(b"x", offset), term=0)) == Appended(offset + 1)
        assert len(os.listdir("/proc/self/fd")) - before < 12  # noqa: PTH208
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


async def test_who_stops_listing_runs_closes_no_directory_that_a_thread_is_reading(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reading, go_on, told = threading.Event(), threading.Event(), list[str]()
    scandir = os.scandir

    class Watched:
        """A directory that one thread reads and another may close, which must not be at the same time."""

        def __init__(self, path: Path) -> None:
            self._entries = scandir(path)

        def __enter__(self) -> Self:
            return self

        def __exit__(self, *_: object) -> None:
            told.append("closed")
            self._entries.close()

        def __iter__(self) -> Iterator[os.DirEntry[str]]:
            reading.set()
            assert go_on.wait(10)
            told.append("read")
            yield from self._entries

    for _ in range(3):
        (tmp_path / wire.new_id()).mkdir()
    async with a_store(tmp_path) as store:
        monkeypatch.setattr("pistage.master.logs.os.scandir", Watched)
        async with asyncio.TaskGroup() as group:
            listing = group.create_task(store.run_ids().__anext__())
            assert await asyncio.to_thread(reading.wait, 10)
            listing.cancel()
        go_on.set()
        await until(lambda: told == ["read", "closed"])


async def test_an_index_of_many_records_is_read_in_pieces_and_a_tail_of_zeros_is_cut_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pistage.master.records._RECORDS_AT_ONCE", 3)
    async with a_store(tmp_path) as store:
        for offset in range(10):
            await put(store, a_frame(b"x", offset))
    with (tmp_path / RUN / "index").open("ab") as index:
        index.write(bytes(3 * RECORD_BYTES))
    async with a_store(tmp_path) as store:
        assert await put(store, a_frame(b"y", 10)) == Appended(11)
        assert [record.offset for record in records_in(store, RUN, 0, 99)] == list(range(11))
