"""The archive: what is put there is there, in a directory and in an S3 store; what is wrong with it is said."""

import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from pistage.errors import Code, PistageError
from pistage.master.archive import Archive
from tests.e2e.processes import free_port


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """The endpoint of an S3 store of its own, with a bucket."""
    endpoint = f"http://127.0.0.1:{free_port()}"
    command = [
        sys.executable,
        "-W",
        "ignore",
        "-m",
        "moto.server",
        "-H",
        "127.0.0.1",
        "-p",
        endpoint.rpartition(":")[2],
    ]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(300):
            with suppress(urllib.error.URLError, ConnectionError):
                urllib.request.urlopen(urllib.request.Request(f"{endpoint}/bucket", method="PUT"), timeout=5).close()
                break
            time.sleep(0.1)
        yield endpoint
    finally:
        process.terminate()
        process.wait(timeout=10)


def environment(monkeypatch: pytest.MonkeyPatch, endpoint: str) -> None:
    given = {"ACCESS_KEY_ID": "some", "SECRET_ACCESS_KEY": "thing", "REGION": "us-east-1", "ENDPOINT_URL": endpoint}
    for name, value in given.items():
        monkeypatch.setenv(f"AWS_{name}", value)


@pytest.fixture(params=["directory", pytest.param("s3", marks=pytest.mark.slow)])
def archive(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Archive:
    if request.param == "directory":
        (tmp_path / "archive").mkdir()
        return Archive(f"file://{tmp_path}/archive")
    environment(monkeypatch, request.getfixturevalue("s3"))
    return Archive(f"s3://bucket/{tmp_path.name}")


def test_what_is_put_is_there_and_every_part_of_it_can_be_read(archive: Archive, tmp_path: Path) -> None:
    whole = bytes(range(256)) * 50_000  # more than one part of an upload
    (tmp_path / "file").write_bytes(whole)
    archive.put("cluster/run/attempt", tmp_path / "file")
    assert archive.size("cluster/run/attempt") == len(whole)
    assert archive.read("cluster/run/attempt", 12_345_678, 300) == whole[12_345_678:12_345_978]
    assert archive.read("cluster/run/attempt", 0, 0) == b""
    (tmp_path / "file").write_bytes(b"another")
    archive.put("cluster/run/attempt", tmp_path / "file")
    assert archive.read("cluster/run/attempt", 0, 7) == b"another"


def test_what_is_deleted_is_gone_and_nothing_beside_it(archive: Archive, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    for name in ("a/1/x", "a/1/y", "a/12/x"):
        archive.put(name, tmp_path / "file")
    assert archive.delete_below("a/1") == 2
    assert archive.delete_below("a/1") == 0
    assert [archive.size(name) for name in ("a/1/x", "a/1/y", "a/12/x")] == [None, None, 1]
    with pytest.raises(PistageError) as caught:
        archive.read("a/1/x", 0, 1)
    assert caught.value.code is Code.STORAGE


@pytest.mark.parametrize("url", ["", "s3", "nowhere://bucket", "/srv/archive"])
def test_a_url_that_names_no_store_is_refused(url: str) -> None:
    with pytest.raises(PistageError, match="no object store") as caught:
        Archive(url)
    assert caught.value.code is Code.USAGE


@pytest.mark.slow
def test_a_store_that_does_not_answer_is_unavailable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    environment(monkeypatch, f"http://127.0.0.1:{free_port()}")
    with pytest.raises(PistageError) as caught:
        Archive("s3://bucket/x").size("a")
    assert caught.value.code is Code.UNAVAILABLE
