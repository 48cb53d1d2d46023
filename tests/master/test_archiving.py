"""Archiving: what is sealed is stored once, read from there when it is old, and deleted when it is dropped."""

import asyncio
import contextlib
import hashlib
import os
import shutil
import sqlite3
import struct
import threading
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pistage import wire
from pistage.errors import Code, PistageError
from pistage.master import records
from pistage.master.archive import Archive
from pistage.master.records import RECORD_BYTES
from pistage.master.sealed import SealedFile, Source, write
from pistage.master.sealing import Sealing
from pistage.wire import Codec
from tests.master.fakes import Api, FakeAgent, a_master, an_agent
from tests.master.kept import bytes_in
from tests.master.test_logs import a_store
from tests.master.test_output_failover import three_masters
from tests.master.test_retention import keep
from tests.waiting import until

LINES = b"".join(b"line %d\n" % number for number in range(20_000))


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pistage.master.archiving._LOOK_EVERY_S", 0.05)
    monkeypatch.setitem(Sealing.__init__.__kwdefaults__, "delay_s", 0.05)


@pytest.fixture
def url(tmp_path: Path) -> str:
    (tmp_path / "archive").mkdir()
    return f"file://{tmp_path}/archive"


async def a_run(api: Api, agent: FakeAgent) -> dict[str, Any]:
    run = await api.submit()
    assign: wire.Assign = await agent.receive(wire.Assign)
    await agent.accept(assign)
    await agent.print(assign, LINES[:100_000])
    await agent.print(assign, LINES[100_000:], 100_000)
    await agent.finish(assign, length=len(LINES), sha256=hashlib.sha256(LINES).hexdigest())
    return await api.ended(run["id"])


def files_of(data_dir: Path, run: dict[str, Any], logs: str = "logs") -> set[str]:
    return {path.suffix or path.name for path in (data_dir / logs / run["id"]).iterdir()}


def is_archived(data_dir: Path, run: dict[str, Any]) -> bool:
    """Whether the masters have agreed that the archive has it."""
    with contextlib.closing(sqlite3.connect(f"file:{data_dir}/state/1/state.db?mode=ro", uri=True)) as state:
        return bool(state.execute("SELECT 1 FROM archived WHERE run_id = ?", (run["id"],)).fetchone())


def stored(tmp_path: Path) -> list[str]:
    return sorted(path.suffix or path.name for path in (tmp_path / "archive").glob("*/*/*/*"))


async def read(api: Api, run: dict[str, Any]) -> bytes:
    headers = {"Accept": "application/octet-stream"}
    async with api.session.get(f"{api.url}/api/v1/runs/{run['id']}/logs", headers=headers) as response:
        assert response.status == 200
        return await response.read()


async def test_old_and_new_output_have_one_address_and_what_is_dropped_is_deleted_in_the_archive(
    tmp_path: Path, url: str
) -> None:
    data_dir = tmp_path / "m1"
    async with a_master(data_dir, archive=url, archive_after="1ms") as api, an_agent(api) as (agent, _):
        old = await a_run(api, agent)
        live = await api.submit()
        await until(lambda: files_of(data_dir, old) == {"index", ".stub"})
        assert stored(tmp_path) == [".sealed", "index"]
        assert await read(api, old) == LINES
        await keep(api, runs_max=None, age_s=0.001)
        await until(lambda: stored(tmp_path) == [] and not (data_dir / "logs" / old["id"]).exists())
        assert (await api.run(live["id"]))["output_dropped_at"] is None


async def test_what_is_young_stays_on_the_master_as_well(tmp_path: Path, url: str) -> None:
    data_dir = tmp_path / "m1"
    async with a_master(data_dir, archive=url) as api, an_agent(api) as (agent, _):
        run = await a_run(api, agent)
        await until(lambda: stored(tmp_path) == [".sealed", "index"])
        await asyncio.sleep(0.2)  # a stub would have come by now
        assert files_of(data_dir, run) == {"index", ".sealed"}
        Archive(url).delete_below("")
        assert await read(api, run) == LINES


@pytest.mark.slow
async def test_a_file_that_the_archive_has_otherwise_is_not_given_up_but_one_with_the_same_output_is(
    tmp_path: Path, url: str
) -> None:
    data_dir = tmp_path / "m1"
    async with a_master(data_dir, archive=url) as api, an_agent(api) as (agent, _):
        run = await a_run(api, agent)
        await until(lambda: is_archived(data_dir, run))
    [path] = (tmp_path / "archive").glob("*/*/*/*.sealed")
    [(part, sealed)] = SealedFile.open(path).streams.items()
    for output in (b"x" * len(LINES), LINES):
        (tmp_path / "plain").write_bytes(output)
        write(path, [Source(*part, tmp_path / "plain", sealed.length)], codec=Codec.RAW)
        async with a_master(data_dir, archive=url, archive_after="1ms") as api:
            if output == LINES:
                await until(lambda: files_of(data_dir, run) == {"index", ".stub"})
            else:
                await asyncio.sleep(0.3)
                assert files_of(data_dir, run) == {"index", ".sealed"}
            assert await read(api, run) == LINES


async def test_a_master_that_comes_later_gets_stubs_not_the_bytes(tmp_path: Path, url: str) -> None:
    async with a_master(tmp_path / "m1", archive=url, archive_after="1ms") as api, an_agent(api) as (agent, _):
        run = await a_run(api, agent)
        await until(lambda: files_of(tmp_path / "m1", run) == {"index", ".stub"})
        logs = api.master.context.logs  # type: ignore[attr-defined]
        piece = await logs.piece(run["id"], 0, 1_000, 1 << 22)
        fetched = await logs.fetch(run["id"], 0, b"", 1 << 22)
    assert piece.data == fetched.data == b"" and piece.stubs == fetched.stubs
    [question] = [wire.unpack_copy_question(wire.pack_copy_question("g", wire.Copy(1, (piece,))))[1]]
    assert isinstance(question, wire.Copy)
    attempt_id = piece.stubs[0][0]
    async with a_store(tmp_path / "m2") as store:
        half = replace(piece, records=piece.records[:RECORD_BYTES], data=LINES[: records.unpack(piece.records)[0].kept])
        await store.extend(1, (replace(half, stubs=()),))  # what it has of before: it is in the stub as well
        (fit,) = await store.extend(1, question.pieces)
        assert fit.is_taken
        assert files_of(tmp_path, run, "m2") == {"index", ".stub"}
        assert bytes_in(store, run["id"], (attempt_id, "1", 1), 5, 1 << 20) == LINES[5 : 5 + (1 << 20)]
    async with a_store(tmp_path / "m2") as store:
        assert (await store.survey(1, (run["id"],)))[0].count == fit.count
        for body in (
            None,
            b"",
            b"\1\0\1\0\xff\xff",
            b"\0" * 4 + b"x" * 80,
            b"\0" * 4 + b"\1" * 47,
            b"\0" * 4 + b"\0" * 8 + b"\1" * 40,
            b"\0" * 4 + b"\0" * 7,
        ):
            poison = (
                b"x"
                if body is None
                else b"stub..1\n" + body + struct.pack("<IQ8s", zlib.crc32(body), len(body), b"sealed1\n")
            )
            with pytest.raises(PistageError, match="not a stub"):
                await store.extend(1, (replace(piece, run_id=wire.new_id(), stubs=((attempt_id, poison),)),))


async def test_an_archive_that_is_away_is_said_and_what_is_there_is_stored_later(tmp_path: Path, url: str) -> None:
    data_dir = tmp_path / "m1"
    (tmp_path / "archive").rmdir()
    (tmp_path / "archive").write_text("no directory")
    async with a_master(data_dir, archive=url) as api, an_agent(api) as (agent, _):
        run = await a_run(api, agent)
        archiving = api.master.context.archiving  # type: ignore[attr-defined]
        await until(lambda: bool(archiving.trouble))
        assert "could not be stored" in archiving.trouble
        (tmp_path / "archive").unlink()
        (tmp_path / "archive").mkdir()
        await until(lambda: stored(tmp_path) == [".sealed", "index"])
        assert await read(api, run) == LINES
        await until(lambda: not archiving.trouble)


async def test_a_run_that_is_dropped_while_it_is_stored_is_left_nowhere(
    tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    put, puts = Archive.put, 0

    def slow_put(self: Archive, name: str, path: Path) -> None:
        nonlocal puts
        put(self, name, path)
        shutil.rmtree(path.parent)
        puts += 1

    monkeypatch.setattr(Archive, "put", slow_put)
    async with a_master(tmp_path / "m1", archive=url) as api, an_agent(api) as (agent, _):
        run = await a_run(api, agent)
        await until(lambda: puts == 1 and stored(tmp_path) == [])
        assert (await api.run(run["id"]))["state"] == "succeeded"
        assert not api.master.context.archiving.trouble  # type: ignore[attr-defined]


@pytest.mark.slow
async def test_a_run_of_which_this_master_lacks_an_attempt_is_not_stored(tmp_path: Path, url: str) -> None:
    data_dir = tmp_path / "m1"
    async with a_master(data_dir) as api, an_agent(api) as (agent, _):
        run = await a_run(api, agent)
        await until(lambda: files_of(data_dir, run) == {"index", ".sealed"})
    [path] = (data_dir / "logs" / run["id"]).glob("*.sealed")
    other = path.rename(path.with_name(f"{wire.new_id()}.sealed"))
    async with a_master(data_dir, archive=url) as api, an_agent(api) as (agent, _):
        await a_run(api, agent)
        await until(lambda: stored(tmp_path) == [".sealed", "index"])
        other.rename(path)
        await until(lambda: stored(tmp_path) == [".sealed", ".sealed", "index", "index"])


@pytest.mark.slow
async def test_an_archive_of_before_that_is_away_does_not_keep_output_from_the_one_of_now(
    tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    data_dir = tmp_path / "m1"
    delete_below = Archive.delete_below

    def away(self: Archive, name: str) -> int:
        if self.url == url:
            raise PistageError(Code.UNAVAILABLE, "it does not answer")
        return delete_below(self, name)

    monkeypatch.setattr(Archive, "delete_below", away)
    async with a_master(data_dir, archive=url) as api, an_agent(api) as (agent, _):
        first = await a_run(api, agent)
        await until(lambda: is_archived(data_dir, first))
    (tmp_path / "other").mkdir()
    async with a_master(data_dir, archive=f"file://{tmp_path}/other") as api, an_agent(api) as (agent, _):
        archiving = api.master.context.archiving  # type: ignore[attr-defined]
        runs = [await a_run(api, agent) for _ in range(2)]
        await until(lambda: len(list((tmp_path / "other").glob("*/*/*/index"))) == 2)
        await keep(api, runs_max=1, age_s=None)
        await until(lambda: "does not answer" in archiving.trouble)
        runs.append(await a_run(api, agent))
        there = {runs[1]["id"], runs[2]["id"]}  # what was dropped went, and what is new comes
        await until(lambda: {path.parent.parent.name for path in (tmp_path / "other").glob("*/*/*/index")} == there)


async def test_one_damaged_file_does_not_keep_the_others_from_making_room(tmp_path: Path, url: str) -> None:
    data_dir = tmp_path / "m1"
    async with a_master(data_dir, archive=url) as api, an_agent(api) as (agent, _):
        runs = [await a_run(api, agent) for _ in range(3)]
        await until(lambda: stored(tmp_path) == [".sealed"] * 3 + ["index"] * 3)
    damaged = next(run_id for run_id in os.listdir(data_dir / "logs") if run_id != "term")  # noqa: PTH208 - the first one that it meets
    [path] = (data_dir / "logs" / damaged).glob("*.sealed")
    path.write_bytes(path.read_bytes()[:-5])
    async with a_master(data_dir, archive=url, archive_after="1ms"):
        rest = [run for run in runs if run["id"] != damaged]
        await until(lambda: all(files_of(data_dir, run) == {"index", ".stub"} for run in rest))


@pytest.mark.slow
@pytest.mark.parametrize("end", ["goes on", "times out"])
async def test_what_a_former_leader_is_still_storing_takes_nothing_from_what_the_next_one_has_stored(
    tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    put, delete_below = Archive.put, Archive.delete_below
    is_stuck, go_on, is_through, stuck = threading.Event(), threading.Event(), threading.Event(), set[int]()

    def slow_put(self: Archive, name: str, path: Path) -> None:
        if is_stuck.is_set():
            put(self, name, path)
            return
        stuck.add(threading.get_ident())
        is_stuck.set()
        assert go_on.wait(30)
        if end == "times out":
            raise PistageError(Code.UNAVAILABLE, "no answer in time")
        put(self, name, path)

    def told_delete(self: Archive, name: str) -> int:
        deleted = delete_below(self, name)
        if threading.get_ident() in stuck and go_on.is_set():
            is_through.set()
        return deleted

    monkeypatch.setattr(Archive, "put", slow_put)
    monkeypatch.setattr(Archive, "delete_below", told_delete)
    async with three_masters(tmp_path, archive=url, archive_after="1ms") as masters:
        first = await masters.leader()
        async with an_agent(first) as (agent, _):
            run = await a_run(first, agent)
        assert await asyncio.to_thread(is_stuck.wait, 10)
        _, cluster = await first.call("GET", "/api/v1/cluster")
        others = {one["id"]: tmp_path / one["url"].rpartition(":")[2] for one in cluster["masters"]}
        former = others.pop(cluster["leader"])

        def heirs() -> list[str]:  # who has sealed a copy: another would fetch one first
            there = {master: path for master, path in others.items() if (path / "logs" / run["id"]).is_dir()}
            return [master for master, path in there.items() if ".sealed" in files_of(path, run)]

        await until(lambda: bool(heirs()))
        heir = heirs()[0]
        assert (await first.call("POST", "/api/v1/cluster/transfer", json={"master": heir}))[0] == 200
        second = await masters.leader(other_than=first.url)
        await until(lambda: files_of(former, run) == files_of(others[heir], run) == {"index", ".stub"})
        go_on.set()
        assert await asyncio.to_thread(is_through.wait, 10)
        assert stored(tmp_path) == [".sealed", "index"]
        assert await read(second, run) == LINES


async def test_a_file_that_was_away_while_it_was_stored_is_stored_by_the_next_look(
    tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    put, delete, away = Archive.put, Archive.delete_below, list[Path]()

    def overtaken(archive: Archive, name: str, path: Path) -> None:
        if path.suffix == ".sealed" and not away:  # late output came
            away.append(path.rename(path.with_suffix(".away")))
        put(archive, name, path)

    def slow(archive: Archive, name: str) -> None:
        delete(archive, name)
        if away[0].exists():  # and was sealed
            away[0].rename(away[0].with_suffix(".sealed"))

    monkeypatch.setattr(Archive, "put", overtaken)
    monkeypatch.setattr(Archive, "delete_below", slow)
    async with a_master(tmp_path / "m1", archive=url) as api, an_agent(api) as (agent, _):
        run = await a_run(api, agent)
        await until(lambda: is_archived(tmp_path / "m1", run))
        assert away
