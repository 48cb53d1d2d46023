"""How a group begins: who waits says for whom, and why."""

from pathlib import Path

import pytest

from pistage.config import MasterConfig
from pistage.errors import Code, PistageError
from pistage.master import founding
from pistage.owning import running
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


@pytest.mark.parametrize(
    "wrong", ["10.0.0.1:8470", "http://", "http://a..b:8470", "http://a:8470/x", "ftp://a:1", "a b"]
)
def test_a_url_that_leads_to_no_master_is_named_with_its_key(tmp_path: Path, wrong: str) -> None:
    with pytest.raises(PistageError, match="peers: expected the URL of a master") as refusal:
        founding.founder_of(MasterConfig(data_dir=tmp_path, peers=(wrong,)), None)
    assert refusal.value.code is Code.USAGE
    with pytest.raises(PistageError, match="advertise: expected the URL of a master"):
        founding.founder_of(MasterConfig(data_dir=tmp_path, advertise=wrong), None)
