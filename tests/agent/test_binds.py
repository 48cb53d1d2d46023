"""S5: what was checked is what is mounted, whoever swaps paths in between."""

import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from pistage.agent.runtimes.base import ExecutionError
from pistage.agent.runtimes.binds import BindPolicy
from pistage.core.plan import FailureClass
from pistage.wire import new_id

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount")


@pytest.fixture
def allowed(tmp_path: Path) -> Path:
    directory = tmp_path / "open"
    (directory / "inner").mkdir(parents=True)
    (directory / "inner" / "file").write_text("inside")
    return directory


@pytest.fixture
def policy(tmp_path: Path, allowed: Path) -> Iterator[BindPolicy]:
    policy = BindPolicy([str(allowed)], tmp_path / "pins", "/run/docker.sock")
    yield policy
    policy.sweep([])
    assert not (tmp_path / "pins").is_dir() or list((tmp_path / "pins").iterdir()) == []


def refusal(policy: BindPolicy, source: str) -> str:
    with pytest.raises(ExecutionError) as caught:
        policy.pin(new_id(), source)
    assert caught.value.failure is FailureClass.REFUSED
    return caught.value.reason


def test_nothing_is_open_unless_it_is_listed(tmp_path: Path) -> None:
    policy = BindPolicy([], tmp_path, "/run/docker.sock")
    for source in ("/", "/etc", "/var/run/docker.sock", "..", "relative", ""):
        assert "bind_paths" in refusal(policy, source)


@pytest.mark.parametrize(
    "source", ["{0}/../secret", "{0}/inner/../../secret", "{0}x", "//etc", "{0}/../open/../secret"]
)
def test_a_path_that_leads_elsewhere_is_not_below(policy: BindPolicy, allowed: Path, source: str) -> None:
    (allowed.parent / "secret").mkdir()
    assert "bind_paths" in refusal(policy, source.format(allowed))


def test_the_listed_directory_itself_needs_no_mount_of_ours(policy: BindPolicy, allowed: Path) -> None:
    assert policy.pin(new_id(), f"{allowed}/") == str(allowed.resolve())


def test_a_link_below_is_not_followed(policy: BindPolicy, allowed: Path) -> None:
    (allowed / "link").symlink_to("/etc")
    (allowed / "inner" / "deep").symlink_to("/")
    assert "symbolic link" in refusal(policy, str(allowed / "link"))
    assert "symbolic link" in refusal(policy, str(allowed / "inner" / "deep" / "etc"))


def test_sockets_devices_and_pipes_are_never_mounted(policy: BindPolicy, allowed: Path) -> None:
    os.mkfifo(allowed / "pipe")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(allowed / "s"))
        for name in ("pipe", "s"):
            assert "never mounted" in refusal(policy, str(allowed / name))


def test_a_directory_with_the_engines_socket_is_refused(tmp_path: Path, allowed: Path) -> None:
    policy = BindPolicy([str(allowed)], tmp_path / "pins", str(allowed / "inner" / "docker.sock"))
    assert "engine's own socket" in refusal(policy, str(allowed))
    assert "engine's own socket" in refusal(policy, str(allowed / "inner"))


def test_an_engine_elsewhere_has_directories_that_cannot_be_checked(tmp_path: Path, allowed: Path) -> None:
    assert "another machine" in refusal(BindPolicy([str(allowed)], tmp_path, None), str(allowed))


@needs_root
def test_a_pinned_directory_is_what_was_checked_even_after_a_swap(policy: BindPolicy, allowed: Path) -> None:
    attempt = new_id()
    pinned = Path(policy.pin(attempt, str(allowed / "inner")))
    (allowed / "inner").rename(allowed / "moved")
    (allowed / "inner").symlink_to("/etc")
    assert [file.name for file in pinned.iterdir()] == ["file"]
    policy.unpin(attempt)
    assert not pinned.exists()
    assert (allowed / "moved" / "file").read_text() == "inside", "what was pinned is untouched"


@needs_root
def test_a_file_can_be_pinned(policy: BindPolicy, allowed: Path) -> None:
    assert Path(policy.pin(new_id(), str(allowed / "inner" / "file"))).read_text() == "inside"


@needs_root
def test_no_race_of_links_wins(policy: BindPolicy, allowed: Path) -> None:
    """One thread swaps a directory for a link and back as fast as it can; no pin ever shows the link's target."""
    outside = allowed.parent / "outside"
    outside.mkdir()
    (outside / "secret").write_text("secret")
    contested, spare, link = allowed / "inner", allowed / "spare", allowed / "link"
    link.symlink_to(outside)
    has_ended = threading.Event()

    def swap() -> None:
        while not has_ended.is_set():
            contested.rename(spare)
            link.rename(contested)
            contested.rename(link)
            spare.rename(contested)

    swapper = threading.Thread(target=swap)
    swapper.start()
    pinned = refused = 0
    try:
        for number in range(50_000):
            if number >= 400 and pinned and refused:
                break
            attempt = new_id()
            try:
                names = [file.name for file in Path(policy.pin(attempt, str(contested))).iterdir()]
                assert names == ["file"]
                pinned += 1
            except ExecutionError:
                refused += 1
            finally:
                policy.unpin(attempt)
    finally:
        has_ended.set()
        swapper.join()
    assert pinned and refused, "the race must be one"
