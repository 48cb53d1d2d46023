"""A group of replicas in one process, over links that a test can cut: what was answered stays, everywhere the same."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from pistage import raft
from pistage.core import commands as c
from pistage.errors import Code, PistageError
from pistage.master.driver import Driver, Pace
from pistage.master.replica import Replica
from pistage.master.snapshots import copy_state
from pistage.master.store import DurableLog, Identity
from tests.core.plans import a_plan

NAMES = ("m1", "m2", "m3")


class Links:
    """Carries messages between the replicas, but for those that are cut off."""

    def __init__(self) -> None:
        self.replicas: dict[str, Replica] = {}
        self.away: set[str] = set()
        self.snapshots = 0

    def carrier_of(self, node_id: str) -> "_Carrier":
        return _Carrier(self, node_id)


class _Carrier:
    def __init__(self, links: Links, node_id: str) -> None:
        self._links, self._node_id = links, node_id

    def send(self, message: raft.Message) -> None:
        asyncio.get_running_loop().call_soon(self._deliver, message)

    def _deliver(self, message: raft.Message) -> None:
        receiver = self._links.replicas.get(message.dst)
        if receiver is not None and not {message.src, message.dst} & self._links.away:
            receiver.receive(message)

    async def fetch_snapshot(self, source: str, index: int, path: Path) -> None:
        if {source, self._node_id} & self._links.away:
            raise PistageError(Code.UNAVAILABLE, "cut off")
        self._links.snapshots += 1
        await asyncio.to_thread(copy_state, self._links.replicas[source].reader.path, path)


class Group:
    """Starts and stops its members one by one."""

    def __init__(self, directory: Path, entries_kept: int) -> None:
        self.links = Links()
        self._directory, self._entries_kept = directory, entries_kept
        self._stacks: dict[str, AsyncExitStack] = {}

    @property
    def replicas(self) -> list[Replica]:
        return list(self.links.replicas.values())

    async def start(self, name: str, *, is_founder: bool = True) -> Replica:
        data_dir = self._directory / name
        data_dir.mkdir(exist_ok=True)
        if not (data_dir / "raft.db").exists():
            identity = Identity(node_id=name, group_id="g", founders={name: f"http://{name}" for name in NAMES})
            config = raft.Config(voters=NAMES if is_founder else ())
            DurableLog.create(data_dir / "raft.db", identity, raft.Base(config=config))
        replica = Replica(
            DurableLog(data_dir / "raft.db"),
            data_dir,
            carrier=self.links.carrier_of(name),
            pace=Pace.of(election_timeout_s=0.3),
            entries_kept=self._entries_kept,
        )
        self._stacks[name] = AsyncExitStack()
        await self._stacks[name].enter_async_context(replica.running())
        self.links.replicas[name] = replica
        return replica

    async def stop(self, name: str) -> None:
        del self.links.replicas[name]
        await self._stacks.pop(name).aclose()

    async def stop_all(self) -> None:
        for name in list(self._stacks):
            await self.stop(name)

    async def leader(self, *, but: str = "") -> Replica:
        async with asyncio.timeout(20):
            while True:
                for replica in self.replicas:
                    if replica.is_leading and replica.node_id != but:
                        return replica
                await asyncio.sleep(0.01)

    async def settle(self) -> None:
        """Until all are where the leader is, with the same digest."""
        leader = await self.leader()
        await eventually(lambda: all(one.applied_index == leader.applied_index for one in self.replicas))
        assert len({one.digest for one in self.replicas}) == 1


async def eventually(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - the replicas have no event for every thing a test asks
            await asyncio.sleep(0.01)


@asynccontextmanager
async def a_group(directory: Path, *, entries_kept: int = 10_000) -> AsyncIterator[Group]:
    group = Group(directory, entries_kept)
    try:
        for name in NAMES:
            await group.start(name)
        yield group
    finally:
        await group.stop_all()


def a_run(run_id: str) -> c.SubmitRun:
    return c.SubmitRun(at=1, run_id=run_id, project="default", owner="o", plan=a_plan(), source="")


async def run_ids(replica: Replica) -> list[str]:
    async with replica.reader.snapshot() as snapshot:
        return [row["id"] for row in await snapshot.rows("SELECT id FROM run ORDER BY id")]


async def submit(group: Group, run_id: str) -> None:
    """Through whoever leads, again until it is answered: the same run, made once or refused as made."""
    async with asyncio.timeout(20):
        while True:
            with contextlib.suppress(PistageError):
                await (await group.leader()).propose(a_run(run_id))
                return


@pytest.mark.slow
async def test_what_was_answered_survives_its_leader(tmp_path: Path) -> None:
    async with a_group(tmp_path) as group:
        for n in range(20):
            await submit(group, f"r{n:02}")
        leader = await group.leader()
        await group.stop(leader.node_id)
        await submit(group, "r20")
        await group.start(leader.node_id)
        await group.settle()
        for replica in group.replicas:
            assert await run_ids(replica) == [f"r{n:02}" for n in range(21)]


async def test_a_read_anywhere_holds_every_write_that_was_answered(tmp_path: Path) -> None:
    async with a_group(tmp_path) as group:
        leader = await group.leader()
        for n in range(10):
            await leader.propose(a_run(f"r{n}"))
            for replica in group.replicas:
                await replica.read()
                assert f"r{n}" in await run_ids(replica)


@pytest.mark.slow
async def test_a_deposed_leader_answers_no_read_and_doubts_its_writes(tmp_path: Path) -> None:
    async with a_group(tmp_path) as group:
        old = await group.leader()
        group.links.away.add(old.node_id)
        async with asyncio.TaskGroup() as tasks:
            reading = tasks.create_task(outcome_of(old.read()))
            writing = tasks.create_task(outcome_of(old.propose(a_run("lost"))))
            new = await group.leader(but=old.node_id)
            await new.propose(a_run("kept"))
        assert isinstance(reading.result(), PistageError) and isinstance(writing.result(), PistageError)
        group.links.away.clear()
        await group.settle()
        assert await run_ids(old) == ["kept"]


async def outcome_of(asked: Awaitable[object]) -> object:
    try:
        return await asked
    except PistageError as refusal:
        return refusal


@pytest.mark.slow
async def test_a_master_that_missed_too_much_is_sent_the_whole_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pistage.master.state._CHECKPOINT_ENTRIES", 5)
    async with a_group(tmp_path, entries_kept=10) as group:
        leader = await group.leader()
        away = next(one.node_id for one in group.replicas if one is not leader)
        await group.stop(away)
        for n in range(100):
            await leader.propose(a_run(f"r{n:02}"))
        back = await group.start(away)
        await group.settle()
        assert group.links.snapshots
        assert len(await run_ids(back)) == 100
        await leader.propose(a_run("s"))
        await group.settle()
        await group.stop(away)
        back = await group.start(away)
        await group.settle()
        assert len(await run_ids(back)) == 101
        (generation,) = (tmp_path / away / "state").iterdir()
        assert generation.name != "1"


@pytest.mark.slow
async def test_a_new_master_learns_is_promoted_and_votes(tmp_path: Path) -> None:
    async with a_group(tmp_path) as group:
        leader = await group.leader()
        await leader.propose(a_run("r1"))
        await group.start("m4", is_founder=False)
        await leader.change_membership(raft.Change(kind=raft.ChangeKind.ADD_LEARNER, node_id="m4"))
        await group.settle()
        await leader.change_membership(raft.Change(kind=raft.ChangeKind.PROMOTE, node_id="m4"))
        await leader.transfer("m4")
        assert (await group.leader()).node_id == "m4"
        await submit(group, "r2")
        await group.settle()


@pytest.mark.slow
async def test_a_leader_that_hands_over_knows_the_next_one_at_once(tmp_path: Path) -> None:
    async with a_group(tmp_path) as group:
        leader = await group.leader()
        await group.settle()
        await leader.hand_over()
        assert not leader.is_leading
        assert leader.leader in {*NAMES} - {leader.node_id}


@pytest.mark.slow
async def test_many_proposals_share_a_sync(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    syncs = 0
    write = DurableLog.write

    def counted(store: DurableLog, writes: object) -> None:
        nonlocal syncs
        syncs += 1
        write(store, writes)  # type: ignore[arg-type]

    async with a_group(tmp_path) as group:
        leader = await group.leader()
        monkeypatch.setattr(DurableLog, "write", counted)
        async with asyncio.TaskGroup() as tasks:
            for n in range(300):
                tasks.create_task(leader.propose(a_run(f"r{n:03}")))
        assert syncs < 60


@pytest.mark.slow
async def test_proposals_that_come_during_a_write_are_one_message_to_each_follower(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    proposed = 0
    write, step = DurableLog.write, Driver.step

    def slow(store: DurableLog, writes: object) -> None:
        time.sleep(0.02)
        write(store, writes)  # type: ignore[arg-type]

    def counted(driver: Driver, event: raft.Event) -> None:
        nonlocal proposed
        proposed += isinstance(event, raft.Propose)
        step(driver, event)

    async with a_group(tmp_path) as group:
        leader = await group.leader()
        monkeypatch.setattr(DurableLog, "write", slow)
        monkeypatch.setattr(Driver, "step", counted)
        async with asyncio.TaskGroup() as tasks:
            for n in range(100):
                tasks.create_task(leader.propose(a_run(f"r{n:03}")))
                await asyncio.sleep(0)  # one at a time
        assert proposed < 50
