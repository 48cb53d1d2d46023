"""The replica: what is answered is durable, applied in order, and there after a restart."""

import asyncio
import contextlib
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from pistage import raft, wire
from pistage.core import commands as c
from pistage.core import limits
from pistage.errors import Code, PistageError
from pistage.master.replica import LogClock, Replica
from pistage.master.state import State
from pistage.master.store import DurableLog
from tests.core.plans import a_plan
from tests.master.fakes import a_replica, write


def a_run(run_id: str) -> c.SubmitRun:
    return c.SubmitRun(at=1, run_id=run_id, project="default", owner="o", plan=a_plan(), source="")


async def run_ids(replica: Replica) -> list[str]:
    async with replica.reader.snapshot() as snapshot:
        return [row["id"] for row in await snapshot.rows("SELECT id FROM run ORDER BY id")]


async def test_what_was_answered_is_there_after_a_restart(tmp_path: Path) -> None:
    async with a_replica(tmp_path) as replica:
        await asyncio.gather(*(replica.propose(a_run(f"r{n:03}")) for n in range(100)))
        index = replica.applied_index
    async with a_replica(tmp_path) as replica:
        assert replica.applied_index == index + 1  # the first of its term
        assert await run_ids(replica) == [f"r{n:03}" for n in range(100)]


async def test_a_log_ahead_of_the_state_is_applied_once_it_is_known_to_be_committed(tmp_path: Path) -> None:
    async with a_replica(tmp_path) as replica:
        await replica.propose(a_run("r1"))
        index, term = replica.applied_index, replica.term
    store = DurableLog(tmp_path / "raft.db")
    write(store, [raft.Entry(index=index + 1, term=term, payload=wire.pack_command(a_run("r2")))])
    store.close()
    async with a_replica(tmp_path) as replica:
        assert await run_ids(replica) == ["r1", "r2"]


async def test_a_state_ahead_of_its_log_is_refused(tmp_path: Path) -> None:
    async with a_replica(tmp_path) as replica:
        await replica.propose(a_run("r1"))
    for file in tmp_path.glob("raft.*"):
        file.unlink()
    with pytest.raises(PistageError, match="do not belong together"):
        async with a_replica(tmp_path):
            pass


async def test_a_log_without_its_state_is_refused(tmp_path: Path) -> None:
    async with a_replica(tmp_path) as replica:
        await replica.propose(a_run("r1"))
    shutil.rmtree(tmp_path / "state")
    with pytest.raises(PistageError, match=r"state\.db is gone"):
        async with a_replica(tmp_path):
            pass


async def test_a_refusal_is_raised_to_its_proposer_alone(tmp_path: Path) -> None:
    delete = c.DeleteAction(at=1, project="default", name="nothing")
    async with a_replica(tmp_path) as replica:
        results = await asyncio.gather(
            replica.propose(a_run("r1")), replica.propose(delete), replica.propose(a_run("r2")), return_exceptions=True
        )
        assert isinstance(results[1], PistageError) and results[1].code is Code.NOT_FOUND
        assert await run_ids(replica) == ["r1", "r2"]


def test_a_full_disk_under_the_state_is_waited_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def make_space(_: float) -> None:
        state._db.execute("PRAGMA max_page_count = 1000000")

    state = State(tmp_path / "state.db")
    monkeypatch.setattr(state._is_leaving, "wait", make_space)
    pages = state._db.execute("PRAGMA page_count").fetchone()[0]
    state._db.execute(f"PRAGMA max_page_count = {pages + 2}")
    applied = state.apply(
        [raft.Entry(index=n, term=1, payload=wire.pack_command(a_run(f"r{n:03}"))) for n in range(1, 101)]
    )
    assert [outcome.value["number"] for outcome in applied.outcomes] == list(range(1, 101))
    assert state.position.index == 100
    state.close()


async def test_listeners_see_each_outcome_in_order(tmp_path: Path) -> None:
    seen: list[str] = []
    async with a_replica(tmp_path) as replica:
        replica.on_applied(lambda outcome: seen.append(str(outcome.value.get("run_id"))))
        await asyncio.gather(*(replica.propose(a_run(f"r{n:02}")) for n in range(20)))
    assert seen == [f"r{n:02}" for n in range(20)]


async def test_too_much_at_once_is_refused_and_told_to_come_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "UNCOMMITTED_BYTES_MAX", 1)
    async with a_replica(tmp_path) as replica:
        with pytest.raises(PistageError) as caught:
            await replica.propose(a_run("r1"))
    assert caught.value.code is Code.UNAVAILABLE


async def test_a_change_that_no_message_could_carry_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "PEER_MESSAGE_BYTES_MAX", limits.MIB + 100)
    async with a_replica(tmp_path) as replica:
        with pytest.raises(PistageError) as caught:
            await replica.propose(a_run("r1"))
        assert caught.value.code is Code.TOO_LARGE


@pytest.mark.slow
async def test_what_its_proposer_has_left_counts_for_as_long_as_it_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        limits, "UNCOMMITTED_BYTES_MAX", 3 * len(wire.pack_command(replace(a_run("r0"), at=wire.now_ms())))
    )
    made: list[object] = []
    async with a_replica(tmp_path) as replica:
        replica.on_applied(lambda outcome: made.extend([outcome.value["run_id"]] if "run_id" in outcome.value else []))
        async with asyncio.TaskGroup() as group:
            left = [group.create_task(replica.propose(a_run(f"r{n}"))) for n in range(3)]
            await asyncio.sleep(0)
            for proposing in left:
                proposing.cancel()
        with pytest.raises(PistageError) as caught:
            await replica.propose(a_run("r4"))
        assert caught.value.code is Code.UNAVAILABLE
        while len(made) < 3:  # noqa: ASYNC110 - the state may be read before they are answered
            await asyncio.sleep(0)
        await asyncio.sleep(0)  # in which the answers that were just given make room
        await replica.propose(a_run("r5"))


async def test_the_log_is_trimmed_behind_a_durable_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pistage.master.state._CHECKPOINT_ENTRIES", 3)
    async with a_replica(tmp_path, entries_kept=10) as replica:
        for n in range(40):
            await replica.propose(a_run(f"r{n:02}"))
    store = DurableLog(tmp_path / "raft.db")
    assert 10 <= store.last_index - store.base.index <= 20
    store.close()
    async with a_replica(tmp_path) as replica:
        assert len(await run_ids(replica)) == 40


@pytest.mark.slow
async def test_a_full_disk_under_the_log_loses_nothing_and_is_got_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(store: DurableLog, writes: object) -> None:
        raise PistageError(Code.STORAGE, "the master's disk is full")

    async def propose_in_vain() -> None:
        with contextlib.suppress(PistageError):  # it may be done only after another election
            await replica.propose(a_run("r2"))

    async with a_replica(tmp_path) as replica:
        await replica.propose(a_run("r1"))
        async with asyncio.TaskGroup() as group:
            with monkeypatch.context() as full:
                full.setattr(DurableLog, "write", refuse)
                group.create_task(propose_in_vain())
                while replica.is_serving:  # noqa: ASYNC110 - reads until the disk has said so
                    await asyncio.sleep(0)
                with pytest.raises(PistageError) as refusal:
                    await replica.propose(a_run("r3"))
                assert refusal.value.code is Code.STORAGE
        await replica.until_leading()
        await replica.propose(a_run("r4"))
        assert await run_ids(replica) == ["r1", "r2", "r4"]


async def test_a_command_of_a_later_version_stops_the_master_instead_of_being_skipped(tmp_path: Path) -> None:
    async with a_replica(tmp_path) as replica:
        index = replica.applied_index + 1
    store = DurableLog(tmp_path / "raft.db")
    write(store, [raft.Entry(index=index, term=1, payload=wire.pack_value({"kind": "from_the_future", "at": 1}))])
    store.close()
    with pytest.raises(RuntimeError, match=f"entry {index} holds a command"):
        async with a_replica(tmp_path):
            pass


def test_the_time_of_the_log_goes_on_from_a_clock_that_was_ahead() -> None:
    wall_ms, monotonic_s = [1_000], [0.0]
    clock = LogClock(lambda: wall_ms[0], lambda: monotonic_s[0])
    assert clock.now_ms(0) == 1_000
    assert clock.now_ms(5_000) == 5_000
    monotonic_s[0] += 0.25
    assert clock.now_ms(5_000) == 5_250
    wall_ms[0] = 900
    assert clock.now_ms(0) == 5_250
    wall_ms[0] = 9_000
    assert clock.now_ms(0) == 9_000


async def test_the_time_in_the_log_outlives_a_restart_and_never_goes_back(tmp_path: Path) -> None:
    ahead = wire.now_ms() + 3_600_000
    async with a_replica(tmp_path) as replica:
        await replica.propose(replace(a_run("r1"), at=ahead))
    async with a_replica(tmp_path) as replica:
        await replica.propose(a_run("r2"))
        async with replica.reader.snapshot() as snapshot:
            rows = await snapshot.rows("SELECT created_at FROM run ORDER BY id")
    assert rows[0][0] == ahead <= rows[1][0]


async def test_a_command_that_not_every_master_knows_is_not_proposed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(c._SINCE, c.SubmitRun, 2)
    async with a_replica(tmp_path) as replica:
        with pytest.raises(PistageError, match="not every master knows"):
            await replica.propose(a_run("r1"))
        await replica.propose(c.RaiseVersion(at=1, command_version=2))
        await replica.propose(a_run("r1"))
