"""Copies of output: what was acknowledged is on as many masters as there have to be, whoever leads, and stays."""

import asyncio
import hashlib
import os
import random
import shutil
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, closing
from pathlib import Path
from typing import Any

import pytest

from pistage import raft, wire
from pistage.errors import Code, PistageError
from pistage.master import repair
from pistage.master.copies import Copies
from pistage.master.feeds import Feed, LedRun, Place
from pistage.master.logs import LogStore
from pistage.master.logwriter import Bounds
from pistage.master.records import RECORD_BYTES
from pistage.master.store import DurableLog
from pistage.owning import running
from pistage.wire import CopyAnswer, CopyQuestion
from tests.master.fakes import a_replica
from tests.master.kept import records_in
from tests.waiting import until

RUN, ATTEMPT = wire.new_id(), wire.new_id()
NAMES = ("m1", "m2", "m3")


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pistage.master.tenure._WAIT_S", 1.0)
    monkeypatch.setattr("pistage.master.tenure._AGAIN_S", 0.02)
    monkeypatch.setattr("pistage.master.tenure._LOOK_EVERY_S", 0.02)
    monkeypatch.setattr("pistage.master.tenure._STRAGGLERS_S", 0.05)
    monkeypatch.setattr("pistage.master.feeding._SLOW_S", 0.2)
    monkeypatch.setattr("pistage.master.tenure._SWEEP_AGAIN_S", 0.05)
    monkeypatch.setattr("pistage.master.feeds._BACKOFF_FIRST_S", 0.01)
    monkeypatch.setattr("pistage.master.feeds._BACKOFF_MAX_S", 0.05)


class One:
    """A master, as far as output goes; stands for its group and carries its questions."""

    def __init__(self, group: "Group", node_id: str, directory: Path, replicas: int) -> None:
        self.group, self.node_id = group, node_id
        self.term = 0
        self.is_leading = False
        self.membership = raft.Config(voters=group.names)
        self.logs = LogStore(directory, Bounds(1 << 30, 1 << 30, 0))
        self.copies = Copies(self, self.logs, self, replicas=replicas)
        self._changed = asyncio.Event()

    async def role_change(self) -> None:
        await self._changed.wait()

    def become(self, term: int, *, is_leading: bool) -> None:
        self.term, self.is_leading = term, is_leading
        self._changed.set()
        self._changed = asyncio.Event()

    async def ask(self, node_id: str, question: CopyQuestion, timeout_s: float) -> CopyAnswer:
        """A courier that packs and unpacks as the real one does, and loses what a cut link loses."""
        await asyncio.sleep(0)
        other = self.group.up.get(node_id)
        if other is None or self.group.up.get(self.node_id) is not self or self.group.loses(self, node_id, question):
            raise PistageError(Code.UNAVAILABLE, "it does not answer")
        self.group.asked.append(question)
        _, question = wire.unpack_copy_question(wire.pack_copy_question("g", question))
        answer = wire.pack_copy_answer(await other.copies.answer(question))
        if self.group.loses(self, node_id, question):
            raise PistageError(Code.UNAVAILABLE, "the answer was lost")
        return wire.unpack_copy_answer(question, answer)


class Group:
    """Masters that are started, stopped, cut off and elected by the test."""

    def __init__(self, directory: Path, names: tuple[str, ...], replicas: int) -> None:
        self.directory, self.names, self.replicas = directory, names, replicas
        self.up: dict[str, One] = {}
        self.away: set[str] = set()
        self.cut: set[frozenset[str]] = set()
        self.lost: tuple[type[CopyQuestion], ...] = ()
        self.asked: list[CopyQuestion] = []
        self.term = 0
        self._stacks: dict[str, AsyncExitStack] = {}

    def loses(self, sender: One, receiver: str, question: CopyQuestion) -> bool:
        ends = frozenset({sender.node_id, receiver})
        return bool(ends & self.away) or ends in self.cut or isinstance(question, self.lost)

    async def start(self, *names: str) -> None:
        for name in names:
            one = One(self, name, self.directory / name, self.replicas)
            stack = self._stacks[name] = AsyncExitStack()
            stack.callback(one.logs.close)
            await stack.enter_async_context(running(one.logs.serve(), _lead(one)))
            self.up[name] = one

    async def stop(self, name: str) -> None:
        del self.up[name]
        await self._stacks.pop(name).aclose()

    async def elect(self, name: str, *, is_old_one_told: bool = True) -> One:
        self.term += 1
        for one in self.up.values():
            if one.node_id == name:
                one.become(self.term, is_leading=True)
            elif is_old_one_told and one.node_id not in self.away:
                one.become(self.term, is_leading=False)
        leader = self.up[name]
        await until(lambda: (tenure := leader.copies._tenure) is not None and tenure.term == self.term)
        return leader

    async def end(self) -> None:
        for name in list(self._stacks):
            await self.stop(name)

    async def until_alike(self, run_id: str = RUN) -> bytes:
        """The stream, once every master that is up has the same index and the same bytes."""
        async with asyncio.timeout(10):
            while True:
                indexes = {
                    (self.directory / name / run_id / "index").read_bytes()
                    for name in self.up
                    if self._has(name, run_id)
                }
                if len(indexes) == 1 and all(self._has(name, run_id) for name in self.up):
                    contents = {(self.directory / name / run_id / ATTEMPT / "1.1").read_bytes() for name in self.up}
                    if len(contents) == 1:
                        return contents.pop()
                await asyncio.sleep(0.01)

    def _has(self, name: str, run_id: str) -> bool:
        return (self.directory / name / run_id / ATTEMPT / "1.1").exists()

    def content(self, name: str) -> bytes:
        path = self.directory / name / RUN / ATTEMPT / "1.1"
        return path.read_bytes() if path.exists() else b""


async def _lead(one: One) -> None:
    while True:
        while not one.is_leading:
            await one.role_change()
        async with running(one.copies.lead()):
            while one.is_leading:
                await one.role_change()


@asynccontextmanager
async def a_group(directory: Path, names: tuple[str, ...] = NAMES, *, replicas: int = 2) -> AsyncIterator[Group]:
    group = Group(directory, names, replicas)
    await group.start(*names)
    try:
        yield group
    finally:
        await group.end()


def a_frame(data: bytes, offset: int = 0) -> wire.LogFrame:
    return wire.LogFrame(attempt_id=ATTEMPT, step="1", stream=1, offset=offset, at=7, data=data)


def a_gap(offset: int, length: int) -> wire.LogGap:
    reason = wire.GapReason.LOST if length else wire.GapReason.ENGINE
    return wire.LogGap(attempt_id=ATTEMPT, step="1", stream=1, offset=offset, length=length, at=7, reason=reason)


async def put(leader: One, data: bytes, offset: int = 0, run_id: str = RUN) -> int:
    """The length that is acknowledged."""
    return (await (await leader.copies.append(run_id, a_frame(data, offset)))).length


async def test_a_frame_is_acknowledged_once_two_masters_have_it(tmp_path: Path) -> None:
    async with a_group(tmp_path) as group:
        leader = await group.elect("m1")
        assert await put(leader, b"hello") == 5
        assert [group.content(name) for name in NAMES].count(b"hello") >= 2
        assert await group.until_alike() == b"hello"


@pytest.mark.slow
@pytest.mark.parametrize(("away", "is_kept"), [({"m3"}, True), ({"m2", "m3"}, False)])
async def test_a_dead_master_holds_nothing_up_and_two_hold_everything_up(
    tmp_path: Path, away: set[str], is_kept: bool
) -> None:
    async with a_group(tmp_path) as group:
        leader = await group.elect("m1")
        assert await put(leader, b"hello") == 5
        group.away = away
        if is_kept:
            assert await put(leader, b" world", 5) == 11
        else:
            with pytest.raises(PistageError, match="2 masters must have it") as caught:
                await put(leader, b" world", 5)
            assert caught.value.code is Code.UNAVAILABLE
        group.away = set()
        assert await put(leader, b"") == 11
        assert await group.until_alike() == b"hello world"


async def test_a_master_that_is_alone_needs_nobody(tmp_path: Path) -> None:
    async with a_group(tmp_path, ("m1",)) as group:
        leader = await group.elect("m1")
        assert await put(leader, b"hello") == 5
        leader = await group.elect("m1")
        assert await put(leader, b"", 0) == 5
        assert group.asked == [] and len(records_in(leader.logs, RUN, 0, 9)) == 1


async def test_a_new_leader_goes_on_where_the_old_one_acknowledged(tmp_path: Path) -> None:
    async with a_group(tmp_path) as group:
        leader = await group.elect("m1")
        group.away = {"m3"}
        for n in range(20):
            await put(leader, b"%08d" % n, 8 * n)
        group.away = set()
        await group.stop("m1")
        leader = await group.elect("m3")  # which has nothing at all
        assert await put(leader, b"") == 160
        assert await put(leader, b"more", 160) == 164
        assert await group.until_alike() == b"".join(b"%08d" % n for n in range(20)) + b"more"


@pytest.mark.slow
async def test_a_new_leader_waits_until_enough_have_said_what_they_have(tmp_path: Path) -> None:
    async with a_group(tmp_path) as group:
        leader = await group.elect("m1")
        group.away = {"m3"}
        await put(leader, b"hello")
        group.away = {"m1", "m2"}
        leader = await group.elect("m3")
        with pytest.raises(PistageError, match="must say what they have"):
            await put(leader, b"", 0)
        with pytest.raises(PistageError, match="whether the output here is complete"):
            await leader.copies.readable(RUN)
        group.away = {"m1"}
        assert await put(leader, b"", 0) == 5


@pytest.mark.slow
async def test_a_deposed_leader_gets_nothing_acknowledged_and_its_tail_is_cut_off(tmp_path: Path) -> None:
    async with a_group(tmp_path) as group:
        old = await group.elect("m1")
        await put(old, b"hello")
        await group.until_alike()
        group.away = {"m1"}
        late = await old.copies.append(RUN, a_frame(b" from the old one", 5))
        await until(lambda: group.content("m1") != b"hello")
        leader = await group.elect("m2")
        assert await put(leader, b" world", 5) == 11
        group.away = set()  # the old one does not know yet
        with pytest.raises(PistageError):
            await late
        with pytest.raises(PistageError):
            await put(old, b" and more", 22)
        old.become(group.term, is_leading=False)
        assert await group.until_alike() == b"hello world"


async def test_a_leader_that_has_told_its_successor_what_it_has_acknowledges_no_more(tmp_path: Path) -> None:
    async with a_group(tmp_path) as group:
        old = await group.elect("m1")
        await put(old, b"hello")
        await group.until_alike()
        group.cut = {frozenset({"m2", "m3"})}
        leader = await group.elect("m2", is_old_one_told=False)
        assert await put(leader, b"") == 5  # as m1 said
        with pytest.raises(PistageError, match="another master leads, in term 2"):
            await put(old, b" lost", 5)  # though m3 knows of no term but the first


@pytest.mark.slow
async def test_what_a_new_leader_found_is_not_acknowledged_before_others_have_it_from_this_one(tmp_path: Path) -> None:
    async with a_group(tmp_path) as group:
        leader = await group.elect("m1")
        await put(leader, b"hello")
        await group.until_alike()
        group.lost = (wire.Copy,)
        leader = await group.elect("m2")
        with pytest.raises(PistageError, match="2 masters must have it"):
            await put(leader, b"")
        assert await leader.copies.readable(RUN) == 2  # it may be read
        group.lost = ()
        assert await put(leader, b"") == 5


@pytest.mark.slow
async def test_two_tails_that_were_never_acknowledged_end_as_one(tmp_path: Path) -> None:
    """Figure 8 of the paper: a later term with less must not win over what a leader has carried on meanwhile."""
    async with a_group(tmp_path) as group:
        first = await group.elect("m1")
        await put(first, b"0123")
        await group.until_alike()
        group.away = {"m1"}
        waiting = [await first.copies.append(RUN, a_frame(b"aaaaaaaa", 4))]
        await until(lambda: len(group.content("m1")) == 12)
        second = await group.elect("m2")
        assert await put(second, b"", 0) == 4
        group.away = {"m1", "m2"}
        waiting.append(await second.copies.append(RUN, a_frame(b"bb", 4)))
        await until(lambda: len(group.content("m2")) == 6)
        group.away = {"m2"}
        third = await group.elect("m1")
        assert await put(third, b"", 0) in {4, 12}
        length = await put(third, b"", 0)
        group.away = {"m1"}
        fourth = await group.elect("m2")  # has the tail of term 2, which is later than that of term 1
        assert await put(fourth, b"", 0) == length
        group.away = set()
        for one in (first, third):
            one.become(group.term, is_leading=False)
        assert await group.until_alike() == b"0123aaaaaaaa"[:length]
        await asyncio.gather(*waiting, return_exceptions=True)


async def test_a_promise_to_a_later_term_survives_a_restart(tmp_path: Path) -> None:
    store = LogStore(tmp_path, Bounds(1 << 30, 1 << 30, 0))
    async with running(store.serve()):
        await store.promise(7)
    store.close()
    store = LogStore(tmp_path, Bounds(1 << 30, 1 << 30, 0))
    async with running(store.serve()):
        for refused in (store.promise(6), store.extend(6, ()), store.survey(6, (RUN,)), store.mark(RUN, 6)):
            with pytest.raises(PistageError, match="term 7"):
                await refused
    store.close()


async def test_a_master_that_was_away_is_caught_up_from_disk_a_batch_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pistage.master.feeds.COPY_BYTES", 10_000)
    chance = random.Random(3)
    async with a_group(tmp_path) as group:
        leader = await group.elect("m1")
        group.away = {"m3"}
        whole = b""
        for _ in range(100):
            data = chance.randbytes(chance.randrange(1, 3_000))
            await put(leader, data, len(whole))
            whole += data
        group.away = set()
        assert hashlib.sha256(await group.until_alike()).digest() == hashlib.sha256(whole).digest()
        sizes = [sum(len(piece.data) for piece in one.pieces) for one in group.asked if isinstance(one, wire.Copy)]
        assert max(sizes) < 13_000


@pytest.mark.slow
async def test_runs_that_nobody_asks_about_are_mended_by_the_sweep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pistage.master.tenure.LISTED_AT_ONCE", 4)
    runs = [wire.new_id() for _ in range(15)]
    async with a_group(tmp_path) as group:
        leader = await group.elect("m1")
        await group.stop("m3")
        for n, run_id in enumerate(runs):
            await put(leader, b"x" * n + b"y", run_id=run_id)
        await group.stop("m1")
        await group.start("m1", "m3")
        await group.elect("m3")
        for n, run_id in enumerate(runs):
            assert await group.until_alike(run_id) == b"x" * n + b"y"
        await asyncio.sleep(0.2)
        before = {run_id: (tmp_path / "m1" / run_id / "index").read_bytes() for run_id in runs}
        await group.elect("m2")
        await asyncio.sleep(0.2)  # nothing differs, so nothing is written
        assert before == {run_id: (tmp_path / "m1" / run_id / "index").read_bytes() for run_id in runs}


@pytest.mark.slow
async def test_a_copy_that_is_gone_is_made_again_in_the_same_term(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pistage.master.tenure._SWEEP_EVERY_S", 0.05)
    async with a_group(tmp_path, NAMES[:2]) as group:
        leader = await group.elect("m1")
        await put(leader, b"hello")
        await group.stop("m2")
        shutil.rmtree(tmp_path / "m2" / RUN)
        await group.start("m2")
        await until(lambda: group.content("m2") == b"hello")
        assert await put(leader, b" world", 5) == 11
        assert group.content("m2") == b"hello world"


@pytest.mark.slow
async def test_what_may_still_be_unsaid_is_not_shown(tmp_path: Path) -> None:
    async with a_group(tmp_path) as group:
        leader = await group.elect("m1")
        await put(leader, b"hello")
        group.away = {"m2", "m3"}
        changed = leader.logs.signals.changed(RUN)
        late = await leader.copies.append(RUN, a_frame(b" world", 5))
        await until(lambda: group.content("m1") == b"hello world")
        assert await leader.copies.readable(RUN) == 1 and not changed.is_set()
        group.away = set()
        await late
        assert await leader.copies.readable(RUN) == 2 and changed.is_set()
        leader.become(group.term + 1, is_leading=False)
        await until(lambda: leader.copies._tenure is None)
        with pytest.raises(PistageError, match="does not lead"):
            await leader.copies.readable(RUN)


@pytest.mark.slow
async def test_a_copy_whose_data_a_crash_left_without_its_records_is_sent_again(tmp_path: Path) -> None:
    async with a_group(tmp_path) as group:
        leader = await group.elect("m1")
        await put(leader, b"hello")
        await group.until_alike()
        await group.stop("m2")
        with (tmp_path / "m2" / RUN / ATTEMPT / "1.1").open("ab") as file:
            file.write(b" wor")
        with (tmp_path / "m2" / RUN / "index").open("ab") as file:
            file.write(b"\0" * (RECORD_BYTES + 7))
        await put(leader, b" world", 5)
        await group.start("m2")
        assert await group.until_alike() == b"hello world"


async def test_what_comes_while_a_feed_reads_is_sent_as_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = LogStore.piece

    async def read_slowly(*asked: Any) -> wire.Piece:
        piece = await read(*asked)
        await asyncio.sleep(0.05)
        return piece

    monkeypatch.setattr(LogStore, "piece", read_slowly)
    async with a_group(tmp_path, NAMES[:2]) as group:
        leader = await group.elect("m1")
        assert await put(leader, b"hello") == 5  # what the feed read was empty


@pytest.mark.parametrize("spoil", [{"start": 1}, {"data": b"hell"}, {"run_id": "../../etc"}, {"records": b"x" * 64}])
async def test_a_piece_that_does_not_fit_is_not_taken(tmp_path: Path, spoil: dict[str, object]) -> None:
    async with a_group(tmp_path, NAMES[:2]) as group:
        leader = await group.elect("m1")
        await put(leader, b"hello")
        piece = await leader.logs.piece(RUN, 0, 1, 100)
        other = wire.new_id()
        given = {"run_id": other, "start": 0, "before": b"", "records": piece.records, "data": piece.data} | spoil
        store = group.up["m2"].logs
        if "start" in spoil:
            assert await store.extend(1, (wire.Piece(**given),)) == (wire.Fit(False, 0),)
        else:
            with pytest.raises(PistageError) as caught:
                await store.extend(1, (wire.Piece(**given),))
            assert caught.value.code is Code.INVALID
        assert await store.survey(1, (other,)) in {(wire.Extent(other, 0, 0),)}


@pytest.mark.slow
async def test_a_run_that_one_master_cannot_take_does_not_hold_up_the_others(tmp_path: Path) -> None:
    async with a_group(tmp_path, NAMES[:2], replicas=1) as group:
        leader = await group.elect("m1")
        await put(leader, b"hello")
        await group.until_alike()
        os.truncate(tmp_path / "m1" / RUN / ATTEMPT / "1.1", 0)  # damaged behind the back of who has it open
        await put(leader, b"world", 5)
        other = wire.new_id()
        await put(leader, b"fine", run_id=other)
        assert await group.until_alike(other) == b"fine"


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
async def test_nothing_acknowledged_is_lost_whoever_is_cut_off_stopped_or_elected(tmp_path: Path, seed: int) -> None:
    """An agent like the outbox; of the masters one at a time is away or stopped, and some are deposed unknowingly."""
    chance = random.Random(seed)
    whole = chance.randbytes(200_000)
    async with a_group(tmp_path) as group:
        agent = _Agent(group, whole)
        agent.leader = await group.elect("m1")
        for _ in range(60):
            match chance.randrange(8):
                case 0:
                    group.away = {chance.choice(NAMES)} if len(group.up) == len(NAMES) else set()
                case 1:
                    group.away = set()
                case 2 if len(group.up) == len(NAMES) and not group.away:
                    await group.stop(chance.choice(NAMES))
                case 3:
                    await group.start(*(name for name in NAMES if name not in group.up))
                case 4 | 5:
                    name = chance.choice([name for name in group.up if name not in group.away])
                    agent.leader = await group.elect(name, is_old_one_told=chance.random() < 0.5)
                    agent.is_known = False
            if agent.leader.node_id in group.up or chance.random() < 0.5:
                await agent.print(chance)
        group.away = set()
        await group.start(*(name for name in NAMES if name not in group.up))
        agent.leader, agent.is_known = await group.elect(chance.choice(NAMES)), False
        while agent.acked < len(whole):
            await agent.print(chance)
        assert await group.until_alike() == whole[:50_000] + whole[53_000:]
        gaps = [record for record in records_in(agent.leader.logs, RUN, 0, 10_000) if record.gap]
        assert {record.offset: record.length for record in gaps} == GAPS
        assert len(gaps) == len(GAPS)


GAPS = {50_000: 3_000, 120_000: 0}  # offset -> bytes that are missing there


class _Agent:
    def __init__(self, group: Group, whole: bytes) -> None:
        self.group, self.whole = group, whole
        self.leader: One
        self.is_known = False
        self.acked = 0

    async def print(self, chance: random.Random) -> None:
        """Some frames, without waiting for each; what is refused is asked about the next time."""
        if self.leader.node_id not in self.group.up or self.group.up[self.leader.node_id] is not self.leader:
            return
        try:
            if not self.is_known:
                length = await put(self.leader, b"")
                assert length >= self.acked, "the masters lost output that they had acknowledged"
                self.acked, self.is_known = length, True
            answers, offset = [], self.acked
            for _ in range(chance.randrange(1, 20)):
                if offset in GAPS:
                    answers.append(await self.leader.copies.append(RUN, a_gap(offset, GAPS[offset])))
                    offset += GAPS[offset]
                until = min((gap for gap in GAPS if gap > offset), default=len(self.whole))
                data = self.whole[offset : min(until, offset + chance.randrange(1, 2_000))]
                answers.append(await self.leader.copies.append(RUN, a_frame(data, offset)))
                offset += len(data)
            for answer in answers:
                self.acked = max(self.acked, (await answer).length)
        except PistageError:
            self.is_known = False


async def test_a_group_that_begins_again_is_beyond_every_term_that_its_output_knows(tmp_path: Path) -> None:
    async with a_replica(tmp_path):
        pass
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "term").write_text(f"{10**12 + 41}\n")
    with repair.held(tmp_path):
        repair.recover(tmp_path, "http://m1")
    with closing(DurableLog(tmp_path / "raft.db")) as durable_log:
        assert durable_log.hard_state.term > 10**12 + 41


@pytest.mark.parametrize("is_another_due", [False, True])
async def test_a_run_that_is_let_go_while_its_copy_is_refused_takes_no_other_with_it(is_another_due: bool) -> None:
    class Logs:
        async def piece(self, run_id: str, start: int, end: int, most: int) -> wire.Piece:
            return wire.Piece(run_id, start, b"", b"x" * RECORD_BYTES, b"")

    class Courier:
        async def ask(self, node_id: str, question: wire.Copy, timeout_s: float) -> CopyAnswer:
            asked.append([piece.run_id for piece in question.pieces])
            if asked[-1] == ["gone"] and len(asked) > 1:
                feed.forget("gone")
            if "gone" in asked[-1]:
                raise PistageError(Code.INVALID, "a record that follows from none before it")
            await asyncio.Event().wait()
            raise AssertionError

    asked: list[list[str]] = []
    feed = Feed("m2", 1, Logs(), Courier(), on_match=lambda run: None)  # type: ignore[arg-type]
    for run_id in ("gone", *(["other"] if is_another_due else [])):
        run = LedRun(run_id, count=1)
        run.places["m2"] = Place(0)
        feed.offer(run)
    async with running(feed.serve()):
        await until(lambda: len(asked) >= 2 + is_another_due)
        assert not feed._news.is_set()
    assert list(feed.due) == (["other"] if is_another_due else [])
