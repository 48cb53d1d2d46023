"""Sealing: what is over becomes one file that reads as before; nothing is lost on the way, and damage is told."""

import asyncio
import hashlib
import os
import random
import shutil
import sqlite3
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from pistage import raft, wire
from pistage.core import commands as c
from pistage.core import machine
from pistage.core.changes import AttemptEnded
from pistage.core.machine import Outcome
from pistage.core.model import Result, State, StreamEnd
from pistage.errors import Code, PistageError
from pistage.master import records, sealed, sealing
from pistage.master.logrun import files_seen
from pistage.master.logs import LogStore
from pistage.master.logwriter import Appended, Bounds, LogWriter, Placed
from pistage.master.mending import Mender
from pistage.master.records import RECORD_BYTES
from pistage.master.sealing import Sealing, Verdict
from pistage.master.state import Reader
from pistage.owning import running
from pistage.wire import GapReason
from pistage.wire.codecs import Codec
from tests.master import test_copies as copying
from tests.master.fakes import FakeAgent, a_master, an_agent
from tests.master.kept import bytes_in
from tests.master.test_logs import a_store
from tests.master.test_output_failover import three_masters
from tests.waiting import until

RUN, ATTEMPT = wire.new_id(), wire.new_id()
TEXT = b"a line that a step printed\n" * 2_000


class Told:
    """A state in which attempts have ended, and what their agents reported of them."""

    def __init__(self, path: Path) -> None:
        self._db = sqlite3.connect(path, isolation_level=None)
        self._db.execute("PRAGMA journal_mode = WAL")
        machine.create_tables(self._db)

    def attempt(self, attempt_id: str, *, run: str = RUN, state: str = "succeeded", finished_at: int = 0) -> None:
        self._db.execute(
            "INSERT OR IGNORE INTO run (id, project, name, number, owner, started_by, state, reason, priority,"
            " queue, concurrency_limit, notes, is_pinned, output_dropped_reason, created_at, plan, source)"
            " VALUES (?, 'default', ?, 1, '', '{}', 'running', '', 0, 'default', 0, '[]', 0, '', 0, '', '')",
            (run, run),
        )
        self._db.execute(
            "INSERT OR REPLACE INTO attempt (id, run_id, position, number, agent_id, fence, state, reason, runtime,"
            " assigned_at, finished_at) VALUES (?, ?, 0, 1, 'a', 1, ?, '', 'docker', 0, ?)",
            (attempt_id, run, state, finished_at),
        )

    def step(self, attempt_id: str, step: str, out: bytes | None, err: bytes = b"") -> None:
        streams = [(None, None)] * 2 if out is None else [(len(one), sha256(one)) for one in (out, err)]
        self._db.execute(
            "INSERT INTO step (attempt_id, id, state, reason, container, stdout_bytes, stdout_sha256, stderr_bytes,"
            " stderr_sha256) VALUES (?, ?, 'succeeded', '', '', ?, ?, ?, ?)",
            (attempt_id, step, *streams[0], *streams[1]),
        )

    def ended(self, attempt_id: str, out: bytes, err: bytes = b"", *, run: str = RUN) -> None:
        self.attempt(attempt_id, run=run)
        self.step(attempt_id, "1", out, err)

    def close(self) -> None:
        self._db.close()


class Courier:
    """Carries questions to stores in this process."""

    def __init__(self, stores: dict[str, LogStore]) -> None:
        self._stores = stores

    async def ask(self, node_id: str, question: wire.CopyQuestion, timeout_s: float) -> wire.CopyAnswer:
        if node_id not in self._stores:
            raise PistageError(Code.UNAVAILABLE, "it is away")
        assert isinstance(question, wire.Fetch)
        return await self._stores[node_id].fetch(question.run_id, question.start, question.before, 4_000)


class Group:
    """What a mender knows of its group."""

    node_id, leader, term = "here", "leader", 3

    def __init__(self, *voters: str) -> None:
        self.membership = raft.Config(voters=voters)


class Place:
    """A store, its sealing, and the state they go by."""

    def __init__(self, directory: Path, store: LogStore, service: Sealing, told: Told) -> None:
        self.directory, self.store, self.sealing, self.told = directory, store, service, told

    async def put(
        self, data: bytes, offset: int = 0, *, stream: int = 1, attempt: str = ATTEMPT, run: str = RUN
    ) -> Appended:
        frame = wire.LogFrame(attempt_id=attempt, step="1", stream=stream, offset=offset, at=7, data=data)
        return await (await self.store.append(run, frame, term=0))

    async def attend(self, attempt: str = ATTEMPT) -> Verdict:
        return (await self.sealing.attend([attempt]))[attempt]

    async def read(self, stream: int = 1) -> bytes:
        return bytes_in(self.store, RUN, (ATTEMPT, "1", stream), 0, 1 << 30)

    @property
    def plain(self) -> Path:
        return self.directory / "logs" / RUN / ATTEMPT

    @property
    def sealed(self) -> Path:
        return self.plain.with_suffix(".sealed")


@asynccontextmanager
async def a_place(directory: Path, *, delay_s: float = 0.0) -> AsyncIterator[Place]:
    told = Told(directory / "state.db")
    reader = Reader(directory / "state.db")
    await reader.open()
    async with a_store(directory / "logs") as store:
        alone = Mender(Group("here"), Courier({}), directory / "logs")
        service = Sealing(lambda: reader, store, directory / "logs", mender=alone, delay_s=delay_s)
        try:
            yield Place(directory, store, service, told)
        finally:
            service.close()
            await reader.close()
            told.close()


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


# --- what is over is sealed ------------------------------------------------------------------------------------------


async def test_what_an_attempt_printed_becomes_one_smaller_file_that_reads_the_same(tmp_path: Path) -> None:
    async with a_place(tmp_path) as place:
        await place.put(TEXT)
        await place.put(b"error\n", stream=2)
        before = await place.store.piece(RUN, 0, 10, 1 << 20)
        place.told.ended(ATTEMPT, TEXT, b"error\n")
        assert await place.attend() is Verdict.SEALED
        assert not place.plain.exists()
        assert place.sealed.stat().st_size < len(TEXT) // 10
        assert (await place.read(1), await place.read(2)) == (TEXT, b"error\n")
        assert bytes_in(place.store, RUN, (ATTEMPT, "1", 1), 1_000, 50) == TEXT[1_000:1_050]
        assert await place.store.piece(RUN, 0, 10, 1 << 20) == before  # so another master gets a copy
        assert await place.attend() is Verdict.NOTHING
        assert place.sealing.sealed_count == 1


async def test_a_run_that_is_not_open_is_sealed_by_its_index(tmp_path: Path) -> None:
    async with a_place(tmp_path) as place:
        await place.put(b"before a restart")
        await place.store.end(RUN)
        place.told.ended(ATTEMPT, b"before a restart")
        assert await place.attend() is Verdict.SEALED
        assert await place.read() == b"before a restart"
        assert await place.put(b"", 16) == Appended(16)


async def test_what_still_runs_and_what_nobody_knows_stays_as_it_is(tmp_path: Path) -> None:
    async with a_place(tmp_path) as place:
        await place.put(b"so far")
        assert await place.attend() is Verdict.NOTHING
        place.told.attempt(ATTEMPT, state="running")
        assert await place.attend() is Verdict.NOTHING
        assert place.plain.exists()


async def test_a_copy_that_is_behind_waits_for_the_rest(tmp_path: Path) -> None:
    async with a_place(tmp_path) as place:
        place.told.ended(ATTEMPT, b"hello world")
        assert await place.attend() is Verdict.NOTHING  # nothing of the run is here: it is found when it comes
        await place.put(b"of another attempt", attempt=wire.new_id())
        assert await place.attend() is Verdict.LATER
        await place.put(b"hello")
        assert await place.attend() is Verdict.LATER
        await place.put(b" world", 5)
        assert await place.attend() is Verdict.SEALED
        assert await place.read() == b"hello world"


async def test_of_a_stream_with_a_gap_what_is_kept_is_sealed(tmp_path: Path) -> None:
    async with a_place(tmp_path) as place:
        await place.put(b"head")
        gap = wire.LogGap(
            attempt_id=ATTEMPT, step="1", stream=1, offset=4, length=90, at=7, reason=GapReason.LIMIT
        )  # fmt: skip
        await (await place.store.append(RUN, gap, term=0))
        await place.put(b"tail", 94)
        place.told.ended(ATTEMPT, b"head" + b"." * 90 + b"tail")
        assert await place.attend() is Verdict.SEALED
        assert await place.read() == b"headtail"


async def test_what_no_agent_reported_waits_for_an_agent_that_may_come_back(tmp_path: Path) -> None:
    async with a_place(tmp_path) as place:
        await place.put(b"then the agent was gone")
        place.told.attempt(ATTEMPT, state="lost", finished_at=wire.now_ms())
        place.told.step(ATTEMPT, "1", None)
        assert await place.attend() is Verdict.LATER
        place.told.attempt(ATTEMPT, state="lost", finished_at=wire.now_ms() - 3_700_000)
        assert await place.attend() is Verdict.SEALED
        assert await place.read() == b"then the agent was gone"


async def test_an_attempt_that_printed_nothing_is_none_of_it(tmp_path: Path) -> None:
    async with a_place(tmp_path) as place:
        await place.put(b"of another attempt", attempt=wire.new_id())
        place.told.ended(ATTEMPT, b"")
        assert await place.attend() is Verdict.NOTHING


async def test_output_that_changes_while_it_is_sealed_stays_plain(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with a_place(tmp_path) as place:
        await place.put(b"so far")
        place.told.attempt(ATTEMPT, state="lost")
        real_seal = place.store.seal

        async def late(*given: object) -> bool:
            await place.put(b", and more", 6)
            return await real_seal(*given)  # type: ignore[arg-type]

        with monkeypatch.context() as patch:
            patch.setattr(place.store, "seal", late)
            assert await place.attend() is Verdict.LATER
        assert not place.sealed.exists()
        assert await place.read() == b"so far, and more"
        assert list((tmp_path / "logs").glob("*.sealing")) == []
        assert await place.attend() is Verdict.SEALED
        assert await place.read() == b"so far, and more"


async def test_a_disk_without_room_for_both_leaves_it_plain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with a_place(tmp_path) as place:
        await place.put(TEXT)
        place.told.ended(ATTEMPT, TEXT)
        with monkeypatch.context() as patch:
            patch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(1, 1, len(TEXT) - 1))
            assert await place.attend() is Verdict.LATER
        with monkeypatch.context() as patch:
            patch.setattr(sealed, "write", lambda *given, **named: (_ for _ in ()).throw(OSError(28, "No space left")))
            assert await place.attend() is Verdict.LATER
        assert await place.attend() is Verdict.SEALED


async def test_nobody_may_read_what_is_sealed_or_unsealed_who_might_not_before(tmp_path: Path) -> None:
    async with a_place(tmp_path) as place:
        await place.put(b"hello")
        mode = (place.plain / "1.1").stat().st_mode
        place.told.attempt(ATTEMPT, state="lost")
        assert await place.attend() is Verdict.SEALED
        assert place.sealed.stat().st_mode == mode
        await place.put(b" world", 5)
        assert (place.plain / "1.1").stat().st_mode == mode


# --- damage ----------------------------------------------------------------------------------------------------------


async def test_bytes_that_are_not_what_was_printed_stay_plain_and_are_told_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with a_place(tmp_path) as place:
        await place.put(TEXT)
        place.told.ended(ATTEMPT, TEXT)
        file = place.plain / "1.1"
        file.write_bytes(b"A" + TEXT[1:])
        for _ in range(2):
            assert await place.attend() is Verdict.DAMAGED
        assert set(place.sealing.damaged) == {ATTEMPT}
        errors = [record.message for record in caplog.records if record.levelname == "ERROR"]
        assert len(errors) == 1
        assert f"run={RUN} attempt={ATTEMPT} " in errors[0]
        assert "step=1 stream=1" in errors[0]
        assert await place.read() == b"A" + TEXT[1:]
        assert not place.sealed.exists()
        file.write_bytes(TEXT)
        assert await place.attend() is Verdict.SEALED
        assert place.sealing.damaged == {}


async def test_a_file_that_is_shorter_than_its_index_says_is_damage(tmp_path: Path) -> None:
    async with a_place(tmp_path) as place:
        await place.put(TEXT)
        place.told.ended(ATTEMPT, TEXT)
        os.truncate(place.plain / "1.1", 100)
        assert await place.attend() is Verdict.DAMAGED


async def test_damage_of_what_is_sealed_is_told_to_its_readers_and_costs_no_other_attempt(tmp_path: Path) -> None:
    other = wire.new_id()
    async with a_place(tmp_path) as place:
        await place.put(TEXT)
        await place.put(b"whole", attempt=other)
        place.told.ended(ATTEMPT, TEXT)
        assert await place.attend() is Verdict.SEALED
        spoil(place.sealed)
        await place.store.end(RUN)
        assert await place.put(b"", 5, attempt=other) == Appended(5)  # its index is as it was
        assert bytes_in(place.store, RUN, (other, "1", 1), 0, 9) == b"whole"
        with pytest.raises(PistageError, match="damaged") as refusal:
            await place.read()
        assert refusal.value.code is Code.STORAGE


@pytest.mark.parametrize("whole_at", ["leader", "other"])
async def test_damage_is_mended_from_a_master_that_has_what_was_printed(tmp_path: Path, whole_at: str) -> None:
    pieces = [random.Random(n).randbytes(1_000) for n in range(20)]
    whole = b"".join(pieces)
    async with (
        a_store(tmp_path / "leader") as leader,
        a_store(tmp_path / "other") as other,
        a_place(tmp_path) as place,
    ):
        stores = {"leader": leader, "other": other}
        attempt = wire.new_id()
        for n, piece in enumerate(pieces):
            for of_attempt in (attempt, ATTEMPT):
                frame = wire.LogFrame(
                    attempt_id=of_attempt, step="1", stream=1, offset=1_000 * n, at=7, data=piece
                )  # fmt: skip
                await (await leader.append(RUN, frame, term=0))
        everything = await leader.piece(RUN, 0, 99, 1 << 20)
        for store in (other, place.store):
            await store.extend(0, [everything])
        place.told.ended(ATTEMPT, whole)
        for name in {"leader", "other", "logs"} - {whole_at}:
            spoil(tmp_path / name / RUN / ATTEMPT / "1.1")
        place.sealing._mender = Mender(Group("away", "here", "leader", "other"), Courier(stores), tmp_path / "logs")
        assert await place.attend() is Verdict.SEALED
        assert await place.read() == whole
        assert place.sealing.damaged == {}
        assert sorted(path.name for path in (tmp_path / "logs").iterdir()) == [RUN]


async def test_of_each_stream_what_is_whole_is_taken_whoever_has_it(tmp_path: Path) -> None:
    async with a_store(tmp_path / "leader") as leader, a_place(tmp_path) as place:
        for store in (leader, place.store):
            for stream in (1, 2):
                frame = wire.LogFrame(attempt_id=ATTEMPT, step="1", stream=stream, offset=0, at=7, data=TEXT)
                await (await store.append(RUN, frame, term=0))
        place.told.ended(ATTEMPT, TEXT, TEXT)
        spoil(place.plain / "1.1")
        spoil(tmp_path / "leader" / RUN / ATTEMPT / "1.2")
        place.sealing._mender = Mender(Group("here", "leader"), Courier({"leader": leader}), tmp_path / "logs")
        assert await place.attend() is Verdict.SEALED
        assert (await place.read(1), await place.read(2)) == (TEXT, TEXT)


@pytest.mark.parametrize("archived", ["the damaged one", "another"])
async def test_damage_is_mended_from_a_master_that_has_only_stubs(tmp_path: Path, archived: str) -> None:
    (tmp_path / "archive").mkdir()
    url, other = f"file://{tmp_path}/archive", wire.new_id()
    async with a_store(tmp_path / "leader") as leader, a_place(tmp_path) as place:
        for offset in range(0, 3_000, 1_000):
            for attempt in (other, ATTEMPT):
                frame = wire.LogFrame(
                    attempt_id=attempt, step="1", stream=1, offset=offset, at=7, data=TEXT[offset : offset + 1_000]
                )
                for store in (leader, place.store):
                    await (await store.append(RUN, frame, term=0))
        place.told.ended(ATTEMPT, TEXT[:3_000])
        stubbed = {"the damaged one": ATTEMPT, "another": other}[archived]
        directory = tmp_path / "leader" / RUN
        source = sealed.Source("1", 1, directory / stubbed / "1.1", 3_000)
        sealed.write(tmp_path / "archive" / "it", [source], codec=Codec.ZLIB)
        (directory / f"{stubbed}.stub").write_bytes(sealed.stub_of(url, "it")[0])
        shutil.rmtree(directory / stubbed)
        spoil(place.plain / "1.1")
        place.sealing._mender = Mender(Group("here", "leader"), Courier({"leader": leader}), tmp_path / "logs")
        assert await place.attend() is Verdict.SEALED
        assert await place.read() == TEXT[:3_000]


async def test_what_cannot_be_written_while_it_is_mended_ends_no_master(tmp_path: Path) -> None:
    async with a_store(tmp_path / "leader") as leader, a_place(tmp_path) as place:
        frame = wire.LogFrame(attempt_id=ATTEMPT, step="1", stream=1, offset=0, at=7, data=TEXT)
        for store in (leader, place.store):
            await (await store.append(RUN, frame, term=0))
        place.told.ended(ATTEMPT, TEXT)
        spoil(place.plain / "1.1")
        (tmp_path / "logs" / f"{ATTEMPT}.mending").write_text("in the way")
        place.sealing._mender = Mender(Group("here", "leader"), Courier({"leader": leader}), tmp_path / "logs")
        assert await place.attend() is Verdict.DAMAGED
        assert place.sealing.damaged == {ATTEMPT: False}


async def test_damage_that_all_have_is_hopeless_and_not_asked_for_again(tmp_path: Path) -> None:
    async with a_store(tmp_path / "leader") as leader, a_place(tmp_path) as place:
        frame = wire.LogFrame(attempt_id=ATTEMPT, step="1", stream=1, offset=0, at=7, data=b"what came")
        for store in (leader, place.store):
            await (await store.append(RUN, frame, term=0))
        place.told.ended(ATTEMPT, b"was sent!")
        group = Group("away", "here", "leader")
        place.sealing._mender = Mender(group, Courier({"leader": leader}), tmp_path / "logs")
        assert await place.attend() is Verdict.DAMAGED
        assert place.sealing.damaged == {ATTEMPT: False}  # one is away
        group.membership = raft.Config(voters=("here", "leader"))
        assert await place.attend() is Verdict.DAMAGED
        assert place.sealing.damaged == {ATTEMPT: True}
        assert await place.read() == b"what came"


async def test_a_master_that_has_another_index_mends_nothing(tmp_path: Path) -> None:
    async with a_store(tmp_path / "leader") as leader, a_place(tmp_path) as place:
        for store, at in ((leader, 7), (place.store, 8)):
            frame = wire.LogFrame(attempt_id=ATTEMPT, step="1", stream=1, offset=0, at=at, data=b"hello")
            await (await store.append(RUN, frame, term=0))
        mender = Mender(Group("away", "here", "leader", "other"), Courier({"leader": leader}), tmp_path / "logs")
        with pytest.raises(PistageError, match="something else"):
            await mender.fetch("leader", RUN, ATTEMPT, tmp_path / "fetched")


def spoil(path: Path, at: int = -5) -> None:
    raw = bytearray(path.read_bytes())
    raw[at] ^= 1
    path.write_bytes(raw)


# --- what is written to it afterwards --------------------------------------------------------------------------------


async def test_what_comes_late_makes_it_plain_again_and_is_sealed_with_it(tmp_path: Path) -> None:
    async with a_place(tmp_path) as place:
        await place.put(b"hello")
        place.told.attempt(ATTEMPT, state="lost")
        assert await place.attend() is Verdict.SEALED
        assert await place.put(b"hello") == Appended(5)  # a repeat changes nothing
        assert place.sealed.exists()
        assert await place.put(b" world", 5) == Appended(11)
        assert not place.sealed.exists()
        assert await place.read() == b"hello world"
        assert await place.attend() is Verdict.SEALED
        assert await place.read() == b"hello world"


async def test_what_comes_late_to_damage_is_refused_and_other_frames_beside_it_are_taken(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with a_place(tmp_path) as place:
        await place.put(TEXT)
        place.told.ended(ATTEMPT, TEXT)
        assert await place.attend() is Verdict.SEALED
        spoil(place.sealed, 20)
        answers = await asyncio.gather(
            place.put(b"late", len(TEXT)), place.put(b"other", attempt=wire.new_id()), return_exceptions=True
        )
        assert isinstance(answers[0], PistageError)
        assert answers[0].code is Code.STORAGE
        assert answers[1] == Appended(5)
        assert "steps wait" not in caplog.text  # as they do for a disk that is full


async def a_piece_of_another_leader(directory: Path, text: bytes) -> wire.Piece:
    async with a_store(directory) as other:
        await other.promise(2)
        frame = wire.LogFrame(attempt_id=ATTEMPT, step="1", stream=1, offset=0, at=7, data=text)
        await (await other.append(RUN, frame, term=2))
        return await other.piece(RUN, 0, 9, 1 << 20)


async def test_a_leader_that_knows_better_makes_it_plain_and_what_it_says(tmp_path: Path) -> None:
    piece = await a_piece_of_another_leader(tmp_path / "other", b"what was printed")
    async with a_place(tmp_path) as place:
        await place.put(b"another")
        place.told.attempt(ATTEMPT, state="lost")
        assert await place.attend() is Verdict.SEALED
        assert await place.store.extend(2, [piece]) == (wire.Fit(True, 1),)
        assert await place.read() == b"what was printed"
        assert not place.sealed.exists()


async def test_damage_that_a_leader_writes_to_is_set_aside_and_copied_anew(tmp_path: Path) -> None:
    first, second = wire.new_id(), wire.new_id()
    async with a_store(tmp_path / "other") as leader:
        for attempt, data in ((first, b"1"), (ATTEMPT, b"hello"), (second, b"2"), (ATTEMPT, b"hello world")):
            frame = wire.LogFrame(attempt_id=attempt, step="1", stream=1, offset=0, at=7, data=data)
            await (await leader.append(RUN, frame, term=0))
        async with a_place(tmp_path) as place:
            assert await place.store.extend(0, [await leader.piece(RUN, 0, 3, 1 << 20)]) == (wire.Fit(True, 3),)
            place.told.attempt(ATTEMPT, state="lost")
            assert await place.attend() is Verdict.SEALED
            spoil(place.sealed, 10)
            late = await leader.piece(RUN, 3, 4, 1 << 20)
            assert await place.store.extend(0, [late]) == (wire.Fit(False, 1),)
            assert place.sealed.with_suffix(".aside").exists()
            assert await place.store.extend(0, [await leader.piece(RUN, 1, 4, 1 << 20)]) == (wire.Fit(True, 4),)
            assert await place.read() == b"hello world"
            assert bytes_in(place.store, RUN, (second, "1", 1), 0, 9) == b"2"


async def test_what_is_sealed_beyond_the_index_is_cut_off_when_the_run_is_opened(tmp_path: Path) -> None:
    async with a_place(tmp_path) as place:
        await place.put(b"hello")
        await place.put(b" world", 5)
        place.told.attempt(ATTEMPT, state="lost")
        assert await place.attend() is Verdict.SEALED
        await place.store.end(RUN)
        os.truncate(tmp_path / "logs" / RUN / "index", RECORD_BYTES)
        (place.plain.with_suffix(".unsealing")).mkdir()  # and what a crash has left of that
        assert await place.put(b"") == Appended(5)
        assert await place.read() == b"hello"
        assert await place.put(b", you", 5) == Appended(10)
        assert await place.read() == b"hello, you"
        assert not place.plain.with_suffix(".unsealing").exists()


async def test_a_run_that_is_removed_keeps_no_file_of_it_open(tmp_path: Path) -> None:
    async with a_place(tmp_path) as place:
        await place.put(b"hello")
        place.told.ended(ATTEMPT, b"hello")
        assert await place.attend() is Verdict.SEALED
        assert await place.read() == b"hello"
        assert str(place.sealed) in open_files()
        await place.store.remove(RUN)
        assert await place.read() == b""
        assert [path for path in open_files() if path.startswith(str(tmp_path / "logs"))] == []


def open_files() -> list[str]:
    found = []
    for fd in os.listdir("/proc/self/fd"):  # noqa: PTH208 - numbers, no paths
        try:
            found.append(os.readlink(f"/proc/self/fd/{fd}"))  # noqa: PTH115
        except FileNotFoundError:  # that of the listing itself
            continue
    return found


# --- crashes, and readers meanwhile ----------------------------------------------------------------------------------


class CrashError(BaseException):
    """The process is gone: nothing after it happens."""


@contextmanager
def a_crash_after(steps: int) -> Iterator[None]:
    """Let so many calls that change what directories hold happen, and then no more."""
    left = steps

    def stopped(real: Callable[..., object]) -> Callable[..., object]:
        def call(*given: object, **named: object) -> object:
            nonlocal left
            left -= 1
            if left < 0:
                raise CrashError
            return real(*given, **named)

        return call

    with pytest.MonkeyPatch.context() as patch:
        for owner, name in ((Path, "rename"), (Path, "unlink"), (shutil, "rmtree"), (os, "fsync"), (os, "write")):
            patch.setattr(owner, name, stopped(getattr(owner, name)))
        yield


def seal_by_hand(writer: LogWriter, directory: Path, text: bytes) -> None:
    """What the service does, in one thread."""
    plain = directory / RUN / ATTEMPT
    seen = files_seen(plain)
    fresh = directory / f"{ATTEMPT}.sealing"
    aside = directory / f"{ATTEMPT}.removed"
    sealed.write(fresh, [sealed.Source("1", 1, plain / "1.1", len(text))], codec=Codec.ZLIB)
    assert writer.seal(RUN, ATTEMPT, fresh, seen, aside)
    shutil.rmtree(aside)


@pytest.mark.slow
def test_a_crash_at_any_step_leaves_every_byte_readable_and_to_be_written_to(tmp_path: Path) -> None:
    frame = wire.LogFrame(attempt_id=ATTEMPT, step="1", stream=1, offset=0, at=7, data=b"hello")
    late = wire.LogFrame(attempt_id=ATTEMPT, step="1", stream=1, offset=5, at=7, data=b" world")
    key, steps = (ATTEMPT, "1", 1), 0
    for steps in range(100):
        directory = tmp_path / str(steps)
        directory.mkdir()
        with closing(LogWriter(directory, Bounds(1 << 30, 1 << 30, 0))) as writer:
            assert writer.write([Placed(RUN, frame, 0)]) == [Appended(5)]
            try:
                with a_crash_after(steps):
                    seal_by_hand(writer, directory, b"hello")
                    writer.write([Placed(RUN, late, 0)])
            except CrashError:
                pass
            else:
                break
            assert records.read_bytes(directory / RUN, key, 0, 5) == b"hello"
        with closing(LogWriter(directory, Bounds(1 << 30, 1 << 30, 0))) as writer:
            assert writer.write([Placed(RUN, late, 0)]) == [Appended(11)]
            assert records.read_bytes(directory / RUN, key, 0, 99) == b"hello world"
    assert steps > 15
    records.close_sealed(tmp_path)


@pytest.mark.slow
def test_who_reads_while_it_is_sealed_and_unsealed_reads_all_of_it(tmp_path: Path) -> None:
    text = random.Random(1).randbytes(5_000)
    frame = wire.LogFrame(attempt_id=ATTEMPT, step="1", stream=1, offset=0, at=7, data=text)
    is_over = threading.Event()
    wrong: list[int] = []

    def read_on() -> None:
        chance = random.Random(2)
        while not is_over.is_set():
            place = chance.randrange(5_000)
            if records.read_bytes(tmp_path / RUN, (ATTEMPT, "1", 1), place, 100) != text[place : place + 100]:
                wrong.append(place)

    with closing(LogWriter(tmp_path, Bounds(1 << 30, 1 << 30, 0))) as writer:
        writer.write([Placed(RUN, frame, 0)])
        readers = [threading.Thread(target=read_on) for _ in range(2)]
        for reader in readers:
            reader.start()
        for _ in range(12):
            seal_by_hand(writer, tmp_path, text)
            sealed.unseal(tmp_path / RUN / f"{ATTEMPT}.sealed", tmp_path / RUN / ATTEMPT)
        is_over.set()
        for reader in readers:
            reader.join()
    assert wrong == []
    records.close_sealed(tmp_path)


# --- the service -----------------------------------------------------------------------------------------------------


async def test_what_ended_before_the_start_is_found_and_what_a_crash_left_is_cleared_away(tmp_path: Path) -> None:
    alive, both = wire.new_id(), wire.new_id()
    async with a_place(tmp_path) as place:
        for attempt in (ATTEMPT, alive, both):
            await place.put(b"hello", attempt=attempt)
        place.told.attempt(alive, state="running")
        for attempt in (ATTEMPT, both):
            place.told.ended(attempt, b"hello")
        assert await place.attend(both) is Verdict.SEALED
        shutil.copytree(tmp_path / "logs" / RUN / ATTEMPT, tmp_path / "logs" / RUN / both)
        (tmp_path / "logs" / f"{ATTEMPT}.sealing").write_bytes(b"half a file")
        async with running(place.sealing.serve()):
            await until(
                lambda: place.sealed.exists() and [path.name for path in (tmp_path / "logs").iterdir()] == [RUN]
            )
        assert await place.read() == b"hello"
        assert bytes_in(place.store, RUN, (both, "1", 1), 0, 9) == b"hello"
        assert (tmp_path / "logs" / RUN / alive).exists()
        assert not (tmp_path / "logs" / RUN / both).exists()


async def test_what_ends_is_sealed_and_what_is_not_all_here_is_looked_at_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sealing, "_PAUSE_S", 0.01)
    async with a_place(tmp_path) as place, running(place.sealing.serve()):
        await place.put(b"hello")
        place.told.ended(ATTEMPT, b"hello world")
        looks: list[Verdict] = []
        real_attend = place.sealing.attend

        async def attend(attempt_ids: list[str]) -> dict[str, Verdict]:
            verdicts = await real_attend(attempt_ids)
            looks.extend(verdicts.values())
            return verdicts

        monkeypatch.setattr(place.sealing, "attend", attend)
        place.sealing.notice(Outcome(changes=(AttemptEnded(ATTEMPT),)))
        await until(lambda: len(looks) >= 3)
        assert set(looks) == {Verdict.LATER}
        await place.put(b" world", 5)
        await until(place.sealed.exists)
        assert await place.read() == b"hello world"


async def test_damage_is_counted_until_the_run_is_removed(tmp_path: Path) -> None:
    async with a_place(tmp_path) as place:
        await place.put(TEXT)
        place.told.ended(ATTEMPT, TEXT)
        spoil(place.plain / "1.1")
        async with running(place.sealing.serve()):
            await until(lambda: place.sealing.damaged == {ATTEMPT: True})
        await place.sealing._walk()
        assert place.sealing.damaged == {ATTEMPT: True}
        await place.store.remove(RUN)
        await place.sealing._walk()
        assert place.sealing.damaged == {}


async def test_of_more_than_can_wait_the_rest_is_left_to_the_next_walk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sealing, "_WAITING_MAX", 4)
    attempts = [wire.new_id() for _ in range(9)]
    async with a_place(tmp_path) as place:
        for attempt in attempts:
            await place.put(b"hello", attempt=attempt)
            place.told.ended(attempt, b"hello")
        place.sealing.notice(Outcome(changes=tuple(AttemptEnded(attempt) for attempt in attempts)))
        monkeypatch.setattr(sealing, "_ASKED_AT_ONCE", 2)
        async with running(place.sealing.serve()):
            await until(lambda: place.sealing.sealed_count == len(attempts))


async def test_what_never_comes_does_not_take_the_place_of_others_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sealing, "_WAITING_MAX", 1)
    monkeypatch.setattr(sealing, "_PAUSE_S", 0.01)
    monkeypatch.setattr(sealing, "_PAUSE_MAX_S", 0.03)
    async with a_place(tmp_path) as place:
        await place.put(TEXT)
        place.told.ended(ATTEMPT, TEXT + b"and a line that no master has")
        other = wire.new_id()
        await place.put(TEXT, attempt=other)
        place.told.ended(other, TEXT)
        async with running(place.sealing._work()):
            place.sealing._offer(ATTEMPT)
            await until(lambda: place.sealing._offer(other) or other in place.sealing._pauses)  # type: ignore[func-returns-value]
            await until(lambda: place.sealing.sealed_count == 1)


async def test_it_stops_in_the_middle_of_a_large_one_and_leaves_it_as_it_was(tmp_path: Path) -> None:
    async with a_place(tmp_path) as place:
        text = b"x" * 250_000
        for number in range(12):
            await place.put(text, number * len(text))
        place.told.ended(ATTEMPT, 12 * text)
        place.sealing._stopping.set()
        with pytest.raises(PistageError, match="stopping"):
            await place.attend()
        assert place.sealing.damaged == {}
        assert await place.read() == 12 * text
        assert list((tmp_path / "logs").glob("*.sealing")) == []


# --- through the masters ---------------------------------------------------------------------------------------------


async def finish(agent: FakeAgent, assign: wire.Assign, out: bytes) -> None:
    """As an agent does that has counted what was printed."""
    result = Result(state=State.SUCCEEDED, exit_code=0)
    key = {"at": wire.now_ms(), "attempt_id": assign.attempt_id, "fence": assign.fence}
    streams = [StreamEnd(length=len(one), sha256=sha256(one)) for one in (out, b"")]
    await agent.report(
        c.StepFinished(**key, step="1", result=result, stdout=streams[0], stderr=streams[1]),
        c.Finished(**key, result=result),
    )


def sealed_of(run: dict[str, Any], assign: wire.Assign, data_dir: Path) -> Path:
    return data_dir / "logs" / str(run["id"]) / f"{assign.attempt_id}.sealed"


async def test_a_master_seals_what_has_ended_and_shows_it_as_before(tmp_path: Path) -> None:
    async with a_master(tmp_path) as api, an_agent(api) as (agent, _):
        api.master.context.sealing._delay_s = 0.0  # type: ignore[attr-defined]
        run = await api.submit()
        assign = await agent.receive(wire.Assign)
        await agent.accept(assign)
        assert (await agent.print(assign, TEXT)).length == len(TEXT)
        await finish(agent, assign, TEXT)
        await until(sealed_of(run, assign, tmp_path).exists)
        assert await api.call("GET", f"/api/v1/runs/{run['id']}/logs") == (200, TEXT.decode())
        await until(lambda: api.master.context.sealing.sealed_count > 0)  # type: ignore[attr-defined]
        _, metrics = await api.call("GET", "/metrics")
        assert "\npistage_output_sealed_total 1\n" in metrics
        assert "\npistage_output_damaged 0\n" in metrics


@pytest.mark.slow
async def test_each_master_seals_its_own_copy_and_the_next_leader_shows_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sealing, "_PAUSE_S", 0.1)
    text = random.Random(3).randbytes(40_000).hex().encode()
    async with three_masters(tmp_path) as masters:
        for master in masters.up.values():
            master.context.sealing._delay_s = 0.0
        first = await masters.leader()
        async with an_agent(first) as (agent, _):
            run = await first.submit()
            assign = await agent.receive(wire.Assign)
            await agent.accept(assign)
            assert (await agent.print(assign, text)).length == len(text)
            await finish(agent, assign, text)
        files = [sealed_of(run, assign, tmp_path / url[-5:].strip(":")) for url in masters.urls]
        await until(lambda: all(file.exists() for file in files), timeout_s=60)
        await masters.stop(first.url)
        second = await masters.leader(other_than=first.url)
        assert await second.call("GET", f"/api/v1/runs/{run['id']}/logs") == (200, text.decode())


# --- beside copies that go on ----------------------------------------------------------------------------------------


async def seal_all_there_is(group: copying.Group, name: str) -> bool:
    """What no master does while an attempt goes on."""
    logs, directory = group.up[name].logs, group.directory / name
    plain, fresh = directory / copying.RUN / copying.ATTEMPT, directory / "fresh"
    seen = files_seen(plain)
    try:
        streams = await logs.streams(copying.RUN, {copying.ATTEMPT})
        sources = [sealed.Source("1", 1, plain / "1.1", stream.kept) for stream in (streams or {}).values()]
        if not (seen and sources):
            return False
        await asyncio.to_thread(sealed.write, fresh, sources, codec=Codec.ZSTD)
        return await logs.seal(copying.RUN, copying.ATTEMPT, fresh, seen)
    except (PistageError, FileNotFoundError):  # it is stopped, or something was cut off meanwhile
        return False


async def seal_now_and_then(group: copying.Group, chance: random.Random) -> None:
    while True:
        await asyncio.sleep(0.002)
        if (name := chance.choice(copying.NAMES)) in group.up:
            await seal_all_there_is(group, name)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
async def test_nothing_acknowledged_is_lost_by_sealing_and_unsealing(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    whole = chance.randbytes(200_000)
    sealed_count = 0
    async with copying.a_group(tmp_path) as group:
        agent = copying._Agent(group, whole)
        agent.leader = await group.elect("m1")
        async with running(seal_now_and_then(group, random.Random(seed + 100))):
            while agent.acked < len(whole):
                if chance.random() < 0.2:
                    await group.stop(stopped := chance.choice(copying.NAMES))
                    await group.start(stopped)
                    agent.leader = await group.elect(
                        chance.choice(copying.NAMES), is_old_one_told=chance.random() < 0.5
                    )
                    agent.is_known = False
                await agent.print(chance)
                sealed_count += await seal_all_there_is(group, chance.choice(copying.NAMES))
        indexes = [tmp_path / name / copying.RUN / "index" for name in copying.NAMES]
        await until(lambda: len({index.exists() and index.read_bytes() for index in indexes}) == 1, timeout_s=30)
        for name in copying.NAMES:
            read = records.read_bytes(tmp_path / name / copying.RUN, (copying.ATTEMPT, "1", 1), 0, 1 << 20)
            assert read == whole[:50_000] + whole[53_000:]
    assert sealed_count > 0
