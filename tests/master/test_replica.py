"""The replica: what is answered is durable, applied in order, and there after a restart."""

import asyncio
import contextlib
import sqlite3
from pathlib import Path

import pytest

from pistage import wire
from pistage.core import commands as c
from pistage.core import limits
from pistage.errors import Code, PistageError
from pistage.master.replica import Replica
from pistage.master.state import State
from pistage.master.store import Entry, LogStore
from tests.core.plans import a_plan


def a_run(run_id: str) -> c.SubmitRun:
    return c.SubmitRun(at=1, run_id=run_id, project="default", owner="o", plan=a_plan(), source="")


async def run_ids(replica: Replica) -> list[str]:
    async with replica.reader.snapshot() as snapshot:
        return [row["id"] for row in await snapshot.rows("SELECT id FROM run ORDER BY id")]


async def test_what_was_answered_is_there_after_a_restart(tmp_path: Path) -> None:
    async with Replica(tmp_path).running() as replica:
        await asyncio.gather(*(replica.propose(a_run(f"r{n:03}")) for n in range(100)))
        index = replica.applied_index
    async with Replica(tmp_path).running() as replica:
        assert (replica.applied_index, await run_ids(replica)) == (index, [f"r{n:03}" for n in range(100)])


async def test_a_log_ahead_of_the_state_is_applied_at_the_start(tmp_path: Path) -> None:
    async with Replica(tmp_path).running() as replica:
        await replica.propose(a_run("r1"))
    store = LogStore(tmp_path / "raft.db")
    store.append([Entry(2, 1, wire.pack_command(a_run("r2")))])
    store.close()
    async with Replica(tmp_path).running() as replica:
        assert await run_ids(replica) == ["r1", "r2"]


async def test_a_state_ahead_of_its_log_is_refused(tmp_path: Path) -> None:
    async with Replica(tmp_path).running() as replica:
        await replica.propose(a_run("r1"))
    for name in ("raft.db", "raft.db-wal"):
        (tmp_path / name).unlink(missing_ok=True)
    with pytest.raises(PistageError, match="belong together"):
        async with Replica(tmp_path).running():
            pass


async def test_a_refusal_is_raised_to_its_proposer_alone(tmp_path: Path) -> None:
    delete = c.DeleteAction(at=1, project="default", name="nothing")
    async with Replica(tmp_path).running() as replica:
        results = await asyncio.gather(
            replica.propose(a_run("r1")), replica.propose(delete), replica.propose(a_run("r2")), return_exceptions=True
        )
        assert isinstance(results[1], PistageError) and results[1].code is Code.NOT_FOUND
        assert await run_ids(replica) == ["r1", "r2"]


def test_a_full_disk_under_the_state_is_waited_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def make_space(_: float) -> None:
        state._db.execute("PRAGMA max_page_count = 1000000")

    monkeypatch.setattr("pistage.master.state.time.sleep", make_space)
    state = State(tmp_path / "state.db")
    pages = state._db.execute("PRAGMA page_count").fetchone()[0]
    state._db.execute(f"PRAGMA max_page_count = {pages + 2}")
    outcomes = state.apply([Entry(n, 1, wire.pack_command(a_run(f"r{n:03}"))) for n in range(1, 101)])
    assert [outcome.value["number"] for outcome in outcomes] == list(range(1, 101))
    assert state.applied_index == 100
    state.close()


async def test_listeners_see_each_outcome_in_order(tmp_path: Path) -> None:
    seen: list[str] = []
    async with Replica(tmp_path).running() as replica:
        replica.on_applied(lambda outcome: seen.append(str(outcome.value.get("run_id"))))
        await asyncio.gather(*(replica.propose(a_run(f"r{n:02}")) for n in range(20)))
    assert seen == [f"r{n:02}" for n in range(20)]


async def test_too_much_at_once_is_refused_and_told_to_come_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "UNCOMMITTED_BYTES_MAX", 1)
    async with Replica(tmp_path).running() as replica:
        with pytest.raises(PistageError) as caught:
            await replica.propose(a_run("r1"))
    assert caught.value.code is Code.UNAVAILABLE


async def test_what_its_proposer_has_left_counts_for_as_long_as_it_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "UNCOMMITTED_BYTES_MAX", 3 * len(wire.pack_command(a_run("r0"))))
    async with Replica(tmp_path).running() as replica:
        async with asyncio.TaskGroup() as group:
            left = [group.create_task(replica.propose(a_run(f"r{n}"))) for n in range(3)]
            await asyncio.sleep(0)
            for proposing in left:
                proposing.cancel()
        with pytest.raises(PistageError) as caught:
            await replica.propose(a_run("r4"))
        assert caught.value.code is Code.UNAVAILABLE
        while len(await run_ids(replica)) < 3:  # noqa: ASYNC110 - reads until they are applied
            await asyncio.sleep(0)
        await replica.propose(a_run("r5"))


async def test_the_log_is_trimmed_behind_a_durable_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "LOG_ENTRIES_KEPT", 10)
    monkeypatch.setattr("pistage.master.replica._TRIM_EVERY", 5)
    async with Replica(tmp_path).running() as replica:
        for n in range(40):
            await replica.propose(a_run(f"r{n:02}"))
    store = LogStore(tmp_path / "raft.db")
    assert 10 <= store.last_index - store.base_index <= 16
    store.close()
    async with Replica(tmp_path).running() as replica:
        assert len(await run_ids(replica)) == 40


async def test_a_disk_too_full_to_trim_the_log_stops_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(store: LogStore, index: int) -> None:
        store._db.execute("PRAGMA max_page_count = 1")  # SQLite keeps what is there, and gives no page more
        store._db.execute("CREATE TABLE more AS SELECT zeroblob(1000000)")

    monkeypatch.setattr(limits, "LOG_ENTRIES_KEPT", 4)
    monkeypatch.setattr("pistage.master.replica._TRIM_EVERY", 2)
    async with Replica(tmp_path).running() as replica:
        for n in range(5):
            await replica.propose(a_run(f"r{n}"))
        with monkeypatch.context() as full:
            full.setattr(LogStore, "trim", refuse)
            for n in range(5, 9):
                with contextlib.suppress(PistageError):  # the disk is full for it as well
                    await replica.propose(a_run(f"r{n}"))
        assert replica.is_serving


async def test_a_command_of_a_later_version_stops_the_master_instead_of_being_skipped(tmp_path: Path) -> None:
    store = LogStore(tmp_path / "raft.db")
    store.append([Entry(1, 1, wire.pack_value({"kind": "from_the_future", "at": 1}))])
    store.close()
    with pytest.raises(RuntimeError, match="entry 1 holds a command"):
        async with Replica(tmp_path).running():
            pass


def test_a_damaged_entry_is_found_and_said(tmp_path: Path) -> None:
    store = LogStore(tmp_path / "raft.db")
    store.append([Entry(n, 1, b"payload") for n in range(1, 6)])
    store.close()
    with sqlite3.connect(tmp_path / "raft.db") as db:
        db.execute("UPDATE entries SET payload = x'00' WHERE idx = 3")
    db.close()
    with pytest.raises(PistageError, match="damaged at entry 3"):
        LogStore(tmp_path / "raft.db")


def test_the_log_survives_trimming_with_its_chain_of_check_sums(tmp_path: Path) -> None:
    store = LogStore(tmp_path / "raft.db")
    store.append([Entry(n, 1, b"%d" % n) for n in range(1, 11)])
    store.trim(7)
    store.close()
    store = LogStore(tmp_path / "raft.db")
    assert [entry.index for entry in store.entries_after(7)] == [8, 9, 10]
    store.append([Entry(11, 1, b"11")])
    store.close()
    LogStore(tmp_path / "raft.db").close()
