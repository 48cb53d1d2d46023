"""The masters find each other again, wherever they have moved meanwhile."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from pistage.config import MasterConfig
from pistage.master.service import Master
from pistage.owning import running
from tests.master.test_group import eventually
from tests.master.test_output_failover import free_ports


@asynccontextmanager
async def masters_at(directory: Path, ports: Sequence[int]) -> AsyncIterator[list[Master]]:
    """One at each port, told that all are there; entered once all serve."""
    urls = tuple(f"http://127.0.0.1:{port}" for port in ports)
    serving: list[Master] = []

    async def serve(number: int, port: int) -> None:
        settings = MasterConfig(
            data_dir=directory / f"m{number}", listen=f"127.0.0.1:{port}", peers=urls, election_timeout=0.3,
            disk_free_min=0,
        )  # fmt: skip
        async with Master(settings, token=None) as master:
            serving.append(master)
            await asyncio.Event().wait()

    async with running(*(serve(number, port) for number, port in enumerate(ports))):
        await eventually(lambda: len(serving) == len(ports))
        yield serving


def are_registered_at(masters: Sequence[Master], ports: Sequence[int]) -> bool:
    urls = {f"http://127.0.0.1:{port}" for port in ports}
    return all({one.url for one in master.context.members.registered.values()} == urls for master in masters)


@pytest.mark.slow
async def test_masters_that_have_all_moved_find_each_other_where_peers_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pistage.master.members._ASK_EVERY_S", 0.5)
    monkeypatch.setattr("pistage.master.replica._HANDOVER_WAIT_S", 0.1)  # all stop at once
    ports = free_ports(6)
    before, after = ports[:3], ports[3:]
    async with masters_at(tmp_path, before) as masters:
        await eventually(lambda: are_registered_at(masters, before))
    async with masters_at(tmp_path, after) as masters:
        await eventually(lambda: are_registered_at(masters, after))
