"""How a group begins: who waits says for whom, and why."""

import asyncio
import shutil
import sqlite3
import threading
from pathlib import Path

import pytest

from pistage import raft
from pistage.config import MasterConfig
from pistage.errors import Code, PistageError
from pistage.master import founding
from pistage.master.store import DurableLog
from pistage.owning import running
from tests.master.fakes import TOKEN, a_log, write
from tests.master.test_group import eventually
from tests.master.test_output_failover import free_ports


async def test_founders_with_different_tokens_are_told_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(founding, "_ASK_EVERY_S", 0.05)
    monkeypatch.setattr(founding, "_REMIND_EVERY", 1)
    caplog.set_level("INFO")
    ports = free_ports(2)
    peers = tuple(sorted(f"http://127.0.0.1:{port}" for port in ports))

    async def found(port: int, token: str) -> None:
        data_dir = tmp_path / token
        data_dir.mkdir()
        url = f"http://127.0.0.1:{port}"
        await founding.open_log(
            founding.Founder(data_dir=data_dir, listen=("127.0.0.1", port), url=url, peers=peers, token=token)
        )

    async with running(found(ports[0], TOKEN), found(ports[1], "another")):
        for port in ports:
            await eventually(lambda port=port: f"http://127.0.0.1:{port} has another token" in caplog.text)


@pytest.mark.parametrize(
    "wrong", ["10.0.0.1:8470", "http://", "http://a..b:8470", "http://a:8470/x", "ftp://a:1", "a b"]
)
def test_a_url_that_leads_to_no_master_is_named_with_its_key(tmp_path: Path, wrong: str) -> None:
    with pytest.raises(PistageError, match="peers: expected the URL of a master") as refusal:
        founding.founder_of(MasterConfig(data_dir=tmp_path, peers=(wrong,)), None)
    assert refusal.value.code is Code.USAGE
    with pytest.raises(PistageError, match="advertise: expected the URL of a master"):
        founding.founder_of(MasterConfig(data_dir=tmp_path, advertise=wrong), None)


async def test_a_start_that_is_stopped_while_the_log_is_read_closes_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "alive").mkdir()
    store = a_log(tmp_path / "alive")
    for first in (1, 11):  # the first write moves what there was
        write(store, [raft.Entry(index=n, term=1, payload=b"x" * 500) for n in range(first, first + 10)])
    shutil.copytree(tmp_path / "alive", tmp_path / "killed")
    store.close()
    reading, go_on, read = threading.Event(), threading.Event(), DurableLog._verified

    def slow(store: DurableLog, db: sqlite3.Connection) -> list[raft.Entry]:
        reading.set()
        assert go_on.wait(10)
        return read(store, db)

    monkeypatch.setattr(DurableLog, "_verified", slow)
    url = "http://127.0.0.1:1"
    founder = founding.Founder(
        data_dir=tmp_path / "killed", listen=("127.0.0.1", 1), url=url, peers=(url,), token=TOKEN
    )
    async with asyncio.TaskGroup() as group:
        opening = group.create_task(founding.open_log(founder))
        assert await asyncio.to_thread(reading.wait, 10)
        for _ in range(2):  # who is impatient does no more damage
            opening.cancel()
            await asyncio.sleep(0)
        assert not opening.done()
        go_on.set()
    assert opening.cancelled()
    monkeypatch.setattr(DurableLog, "_verified", read)
    sums = (tmp_path / "killed" / "raft.db-sums").read_bytes()
    store = a_log(tmp_path / "killed")
    assert (store.last_index, (tmp_path / "killed" / "raft.db-sums").read_bytes()) == (20, sums)
    store.close()
