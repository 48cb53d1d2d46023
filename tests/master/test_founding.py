"""How a group begins: who waits says for whom, and why."""

from pathlib import Path

import pytest

from pistage.master import founding
from pistage.master.owning import running
from tests.master.fakes import TOKEN
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
