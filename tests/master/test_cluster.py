"""The masters' own affairs: what a master answers about its group, and what is made offline of its files."""

import asyncio
import contextlib
import hashlib
import sqlite3
import threading
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from pistage import raft, wire
from pistage.core import commands as c
from pistage.core import machine
from pistage.errors import Code, PistageError
from pistage.master import repair, snapshots
from pistage.master.checksums import PageSums
from pistage.master.replica import Replica
from pistage.master.snapshots import contents_of
from pistage.master.store import DurableLog, Identity
from tests.core.plans import a_plan
from tests.master.fakes import TOKEN, Api, a_log, a_master, a_replica, write
from tests.master.test_group import eventually

URL = "http://127.0.0.1:8470"
GROUP = repair.Group(group_id="g", members={"m2": "http://m2"})


# --- what a master answers -------------------------------------------------------------------------------------------


async def test_a_snapshot_is_a_whole_state_with_its_check_sum_at_the_end(tmp_path: Path) -> None:
    async with a_master(tmp_path / "data") as api:
        run = await api.submit()
        async with api.session.get(api.url + "/api/v1/cluster/snapshot") as response:
            body = await response.read()
            assert (response.status, response.content_length) == (200, len(body))
            assert int(response.headers["Pistage-Applied-Index"]) > 0
        assert not any((tmp_path / "data" / "snapshots").iterdir())  # nothing of it is kept
    assert hashlib.sha256(body[:-32]).digest() == body[-32:]
    (tmp_path / "state.db").write_bytes(body[:-32])
    assert contents_of(tmp_path / "state.db").base.index > 0
    with closing(sqlite3.connect(tmp_path / "state.db")) as db:
        assert db.execute("SELECT id FROM run").fetchall() == [(run["id"],)]


@pytest.mark.parametrize(
    ("verb", "body", "status", "said"),
    [
        ("transfer", {}, 409, "the only master that votes"),
        ("transfer", {"master": "nobody"}, 404, "no master 'nobody'"),
        ("transfer", {"master": 1}, 422, "the body names no master"),
        ("transfer", ["m1"], 422, "the body names no master"),
        ("transfer", {"leader": "m1"}, 422, "the body names no master"),
        ("remove", {}, 422, "no master is named"),
        ("remove", {"master": "nobody"}, 404, "no master 'nobody'"),
        ("remove", {"master": "x" * 300}, 422, "the body names no master"),
    ],
)
async def test_a_request_that_makes_no_sense_is_refused(
    tmp_path: Path, verb: str, body: Any, status: int, said: str
) -> None:
    async with a_master(tmp_path) as api:
        answered, problem = await api.call("POST", f"/api/v1/cluster/{verb}", json=body)
        assert (answered, said in problem["detail"]) == (status, True), problem


async def test_the_only_master_leads_and_stays(tmp_path: Path) -> None:
    async with a_master(tmp_path) as api:
        _, cluster = await api.call("GET", "/api/v1/cluster")
        status, answer = await api.call("POST", "/api/v1/cluster/transfer", json={"master": api.url})
        assert (status, answer["leader"]) == (200, cluster["node"])
        status, problem = await api.call("POST", "/api/v1/cluster/remove", json={"master": cluster["node"][:12]})
        assert (status, problem["detail"]) == (409, "the leader is the only master that votes")
        assert (cluster["is_disk_full"], cluster["disk_free_bytes"] > 0) == (False, True)


async def test_many_backups_at_once_leave_threads_to_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copying, most, may_go_on = 0, 0, threading.Event()
    copy_state = snapshots.copy_state

    def slow(*given: Any, **named: Any) -> None:
        nonlocal copying, most
        copying += 1
        most = max(most, copying)
        may_go_on.wait(10)
        copy_state(*given, **named)
        copying -= 1

    async def back_up(api: Api) -> int:
        async with api.session.get(api.url + "/api/v1/cluster/snapshot") as response:
            await response.read()
            return response.status

    monkeypatch.setattr(snapshots, "copy_state", slow)
    async with a_master(tmp_path) as api, asyncio.TaskGroup() as tasks:
        backups = [tasks.create_task(back_up(api)) for _ in range(5)]
        await eventually(lambda: copying > 0)
        await api.call("GET", "/api/v1/cluster")
        may_go_on.set()
    assert most == 1
    assert all(backup.result() == 200 for backup in backups)


async def test_who_hangs_up_while_a_snapshot_is_made_lets_nobody_begin_another_before_it_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copying, go_on, made = threading.Semaphore(0), threading.Event(), []
    copy_state = snapshots.copy_state

    def slow(*arguments: Any, **options: Any) -> None:
        made.append(1)
        copying.release()
        assert go_on.wait(10)
        copy_state(*arguments, **options)

    monkeypatch.setattr("pistage.master.snapshots.copy_state", slow)
    async with a_master(tmp_path) as api:
        for _ in range(20):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.02), api.session.get(api.url + "/api/v1/cluster/snapshot"):
                    pass
        assert await asyncio.to_thread(copying.acquire, timeout=10)
        assert made == [1]
        go_on.set()
        async with api.session.get(api.url + "/api/v1/cluster/snapshot") as response:
            assert response.status == 200
            await response.read()


async def test_a_snapshot_is_for_those_with_the_token_alone(tmp_path: Path) -> None:
    async with a_master(tmp_path) as api:
        for headers in ({"Authorization": "Bearer wrong"}, {"Authorization": ""}):
            status, _ = await api.call("GET", "/api/v1/cluster/snapshot", headers=headers)
            assert status == 401
    assert TOKEN


# --- what is made of files -------------------------------------------------------------------------------------------


def a_run(n: int) -> c.SubmitRun:
    return c.SubmitRun(at=n, run_id=f"r{n:02}", project="default", owner="o", plan=a_plan(), source="")


async def a_master_of_three(data: Path) -> int:
    """Runs 0 to 9 applied, 10 to 12 in its log only; the majority is gone. The last index of its log."""
    data.mkdir(exist_ok=True)
    async with a_replica(data) as replica:
        await replica.propose(c.FoundCluster(at=1, cluster_id="the-cluster"))
        await replica.propose(c.RegisterMaster(at=1, node_id="m1", url="http://m1", version="1", command_version=1))
        for n in range(10):
            await replica.propose(a_run(n))
    log = a_log(data)
    after = log.last_index + 1
    tail = [raft.Entry(index=after + n, term=1, payload=wire.pack_command(a_run(10 + n))) for n in range(3)]
    config = raft.Config(voters=("m1", "m2", "m3"))
    write(log, [*tail, raft.Entry(index=after + 3, term=1, kind=raft.Kind.CONFIG, payload=config.encode())])
    log.close()
    return after + 3


async def what_it_holds(data: Path) -> tuple[list[str], str, list[str]]:
    """Runs, the cluster's id and the masters, of one that leads alone."""
    async with Replica(DurableLog(data / "raft.db"), data).running() as replica:
        await replica.until_leading()
        await replica.propose(a_run(99))
        async with replica.reader.snapshot() as snapshot:
            runs = [row["id"] for row in await snapshot.rows("SELECT id FROM run ORDER BY id")]
            masters = [row["id"] for row in await snapshot.rows("SELECT id FROM master ORDER BY id")]
            return runs, await snapshot.value("SELECT value FROM meta WHERE key = 'cluster_id'"), masters


async def test_what_is_recovered_holds_all_that_its_log_held(tmp_path: Path) -> None:
    last = await a_master_of_three(tmp_path)
    before = repair.examine(tmp_path)
    assert before is not None
    assert (before.last_index, before.membership.voters) == (last, ("m1", "m2", "m3"))
    made = repair.recover(tmp_path, URL)
    after = repair.examine(tmp_path)
    assert after is not None
    assert after.identity == made.identity
    assert after.identity.group_id != before.identity.group_id
    assert after.membership == raft.Config(voters=(made.identity.node_id,))
    assert after.term > before.term
    assert after.applied_index == after.last_index == made.index > before.last_index
    assert await what_it_holds(tmp_path) == ([f"r{n:02}" for n in [*range(13), 99]], "the-cluster", [])


async def test_what_was_there_before_a_recovery_is_kept(tmp_path: Path) -> None:
    await a_master_of_three(tmp_path / "m")
    made = repair.recover(tmp_path / "m", URL)
    assert made.aside is not None
    former = repair.examine(made.aside)
    assert former is not None
    assert former.identity.node_id == "m1"
    assert former.applied_index < former.last_index  # not even brought up


async def test_a_recovery_that_was_killed_has_changed_nothing_and_is_done_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await a_master_of_three(tmp_path)
    before = repair.examine(tmp_path)

    def die(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    for step in ("master.repair._begin_again", "master.store.DurableLog.create"):
        with monkeypatch.context() as patch:
            patch.setattr(f"pistage.{step}", die)
            with pytest.raises(KeyboardInterrupt):
                repair.recover(tmp_path, URL)
        assert repair.examine(tmp_path) == before
    repair.recover(tmp_path, URL)
    runs, _, _ = await what_it_holds(tmp_path)
    assert len(runs) == 14


async def test_a_log_of_a_later_version_is_not_recovered_by_this_one(tmp_path: Path) -> None:
    await a_master_of_three(tmp_path)
    log = DurableLog(tmp_path / "raft.db")
    payload = wire.pack_value({"kind": "from_the_future", "at": 1})
    write(log, [raft.Entry(index=log.last_index + 1, term=1, payload=payload)])
    log.close()
    before = repair.examine(tmp_path)
    with pytest.raises(PistageError, match="this version does not know"):
        repair.recover(tmp_path, URL)
    assert repair.examine(tmp_path) == before


async def test_a_restored_state_begins_a_group_of_one(tmp_path: Path) -> None:
    await a_master_of_three(tmp_path / "old")
    source = tmp_path / "old" / "state" / "1" / "state.db"
    (tmp_path / "sealed").write_bytes(source.read_bytes() + hashlib.sha256(source.read_bytes()).digest())
    runs = [f"r{n:02}" for n in [*range(10), 99]]
    for number, file in enumerate((tmp_path / "sealed", source)):  # a bare state.db does as well
        data = tmp_path / str(number)
        data.mkdir()
        made = repair.restore(data, file, URL)
        assert made.identity.founders == {made.identity.node_id: URL}
        assert await what_it_holds(data) == (runs, "the-cluster", [])


async def test_an_index_is_not_used_again_however_often_a_state_is_restored(tmp_path: Path) -> None:
    await a_master_of_three(tmp_path / "0")
    indexes = []
    for n in range(3):
        (tmp_path / str(n + 1)).mkdir()
        source = next((tmp_path / str(n)).glob("state/*/state.db"))
        indexes.append(repair.restore(tmp_path / str(n + 1), source, URL).index)
    assert indexes == [10**12, 2 * 10**12, 3 * 10**12]


@pytest.mark.parametrize("at", [0, 5000, -40, -1])
async def test_a_snapshot_with_a_damaged_byte_is_not_restored_and_leaves_nothing(tmp_path: Path, at: int) -> None:
    await a_master_of_three(tmp_path / "old")
    body = bytearray((tmp_path / "old" / "state" / "1" / "state.db").read_bytes())
    body += hashlib.sha256(body).digest()
    body[at] ^= 1
    (tmp_path / "sealed").write_bytes(body)
    (tmp_path / "new").mkdir()
    with pytest.raises(PistageError, match="check sum") as caught:
        repair.restore(tmp_path / "new", tmp_path / "sealed", URL)
    assert caught.value.code is Code.STORAGE
    assert list((tmp_path / "new").iterdir()) == []


async def test_one_that_joins_has_no_say_and_no_memory(tmp_path: Path) -> None:
    await a_master_of_three(tmp_path)
    (tmp_path / "state" / "1" / "state.db").unlink()
    (tmp_path / "logs").mkdir()
    made = repair.join(tmp_path, GROUP, is_replaced=False)
    with closing(DurableLog(tmp_path / "raft.db")) as log:
        assert (log.identity, log.base, log.last_index) == (made.identity, raft.Base(), 0)
        assert log.identity.group_id == "g"
        assert log.hard_state == raft.HardState()
    assert made.aside is not None
    assert {"raft.db", "state"} <= {path.name for path in made.aside.iterdir()}
    assert (tmp_path / "logs").is_dir()


async def test_moving_damaged_files_aside_goes_on_where_it_was_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await a_master_of_three(tmp_path)
    (tmp_path / "raft.db").write_bytes(b"")
    rename, moved = Path.rename, []

    def dying(path: Path, to: Path) -> Path:
        if len(moved) == 2:
            raise KeyboardInterrupt
        moved.append(path)
        return rename(path, to)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", dying)
        with pytest.raises(KeyboardInterrupt):
            repair.join(tmp_path, GROUP, is_replaced=False)
    with pytest.raises(PistageError, match="it is gone, but"):
        repair.examine(tmp_path)
    repair.join(tmp_path, GROUP, is_replaced=False)
    assert repair.examine(tmp_path) is not None


async def test_a_state_of_another_log_is_no_whole_master(tmp_path: Path) -> None:
    await a_master_of_three(tmp_path)
    path = tmp_path / "state" / "1" / "state.db"
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        machine.set_position(db, machine.Position(index=1000))
        PageSums(path).close(db, 1000)
    with pytest.raises(PistageError, match=r"is at index 1000, but raft\.db covers"):
        repair.examine(tmp_path)


def test_a_founder_that_has_not_begun_is_no_master_yet(tmp_path: Path) -> None:
    (tmp_path / "founding").write_text("01hq\n")
    assert repair.examine(tmp_path) is None
    made = repair.join(tmp_path, GROUP, is_replaced=False)
    assert isinstance(made.identity, Identity)
    assert not (tmp_path / "founding").exists()
