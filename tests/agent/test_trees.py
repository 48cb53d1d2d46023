"""What a pipeline made of a directory, and that it is removed all the same."""

import contextlib
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pistage.agent.runtimes.trees import remove_tree


def nested(directory: Path, depth: int, name: str = "d") -> None:
    """By its descriptors: its path is longer than any call takes."""
    descriptor = os.open(directory, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir(name, dir_fd=descriptor)
        below = os.open(name, os.O_RDONLY, dir_fd=descriptor)
        os.close(descriptor)
        descriptor = below
    os.close(descriptor)


def test_no_link_is_followed_out_of_it(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir(mode=0o755)
    (outside / "precious").touch()
    tree = tmp_path / "tree"
    (tree / "locked" / "in it").mkdir(parents=True)
    (tree / "locked" / "link").symlink_to(outside)
    (tree / "link").symlink_to(outside)
    (tree / "locked" / "in it").chmod(0)
    (tree / "locked").chmod(0o500)
    remove_tree(tree)
    assert not tree.exists()
    assert (outside / "precious").exists() and outside.stat().st_mode & 0o777 == 0o755


def test_what_is_not_a_directory_or_not_there_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "directory").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "directory")
    (tmp_path / "file").touch()
    for name in ("link", "file", "nothing"):
        remove_tree(tmp_path / name)
    assert {one.name for one in tmp_path.iterdir()} == {"directory", "link", "file"}


@pytest.mark.parametrize(("depth", "name"), [(3_000, "d"), (1_500, "n" * 250)])
def test_no_depth_is_too_deep(tmp_path: Path, depth: int, name: str) -> None:
    tree = tmp_path / "tree"
    (tree / "beside").mkdir(parents=True)
    (tree / "beside" / "file").touch()
    nested(tree, depth, name)
    nested(tree / "beside", depth, name)
    remove_tree(tree)
    assert not tree.exists()


def test_two_may_be_at_it_at_once(tmp_path: Path) -> None:
    with ThreadPoolExecutor(4) as threads:
        for number in range(10):
            tree = tmp_path / str(number)
            for directory in range(30):
                (tree / str(directory) / "in it").mkdir(parents=True)
                (tree / str(directory) / "in it" / "file").touch()
            for done in [threads.submit(remove_tree, tree) for _ in range(4)]:
                done.result()
            assert not tree.exists()


def test_somebody_who_goes_on_writing_in_it_holds_up_nobody(tmp_path: Path) -> None:
    tree, is_over = tmp_path / "tree", threading.Event()
    (tree / "below").mkdir(parents=True)

    def write() -> None:
        number = 0
        while not is_over.is_set():
            number += 1
            with contextlib.suppress(OSError):
                (tree / ("below" if number % 2 else ".") / str(number)).touch()

    with ThreadPoolExecutor(2) as threads:
        writing = [threads.submit(write) for _ in range(2)]
        try:
            remove_tree(tree)
        finally:
            is_over.set()
        for done in writing:
            done.result()
    remove_tree(tree)
    assert not tree.exists()
