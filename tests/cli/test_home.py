"""A data directory has one owner; others find it, and a dead owner leaves nothing that misleads."""

import os
import stat
from pathlib import Path

import pytest

from pistage.cli.connect import connect, find
from pistage.cli.home import Endpoint, Home
from pistage.cli.root import execute
from pistage.config import ClientConfig, load
from pistage.errors import PistageError
from tests.cli.conftest import FakeMaster


def endpoint(home: Home, url: str, *, has_agent: bool = True) -> Endpoint:
    return Endpoint(url=url, pid=os.getpid(), token_file=str(home.token_file), has_agent=has_agent)


def test_the_token_is_made_once_and_is_for_its_user_only(tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    with home.lock() as is_owner:
        assert is_owner
        token = home.token()
        assert len(token) >= 32
        assert home.token() == token
        assert home.token("given by hand") == "given by hand" == home.token()
    assert stat.S_IMODE(home.token_file.stat().st_mode) == 0o600


def test_there_is_one_owner(tmp_path: Path) -> None:
    home = Home(tmp_path)
    with home.lock() as is_owner:
        assert is_owner
        with Home(tmp_path).lock() as is_second:
            assert not is_second
    with Home(tmp_path).lock() as is_owner:
        assert is_owner


async def test_the_endpoint_of_an_owner_that_died_is_not_believed(tmp_path: Path) -> None:
    home = Home(tmp_path)
    home.publish(endpoint(home, "http://127.0.0.1:1"))
    assert await home.endpoint(needs_agent=True) is None


async def test_an_owner_is_found_with_its_token(tmp_path: Path, master: FakeMaster) -> None:
    config = load(ClientConfig, flags={"data_dir": tmp_path}, environ={})
    home = Home(tmp_path)
    with home.lock():
        home.master_dir.mkdir()
        home.token("t")
        home.publish(endpoint(home, master.url))
        assert await find(config) == ((master.url,), "t")
        async with connect(config) as connection:
            assert not connection.is_embedded
            assert [one["name"] for one in (await connection.client.fetch_agents())["items"]] == ["box"]


async def test_nothing_here_yet_is_said_so(tmp_path: Path) -> None:
    config = load(ClientConfig, flags={"data_dir": tmp_path / "none"}, environ={})
    with pytest.raises(PistageError, match="nothing was run here yet"):
        async with connect(config):
            pass
    assert not (tmp_path / "none").exists()


def test_a_second_dev_says_where_the_first_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    home = Home(tmp_path)
    with home.lock():
        home.publish(endpoint(home, "http://127.0.0.1:7"))
        assert execute(["dev", "--data-dir", str(tmp_path)]) == 2
    err = capsys.readouterr().err
    assert "http://127.0.0.1:7" in err
    assert str(os.getpid()) in err
