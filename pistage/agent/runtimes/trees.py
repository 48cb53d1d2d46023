"""Trees: directories that a pipeline could write to are removed, whatever it made of them."""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
from pathlib import Path

_PASSES_MAX = 1_000_000  # each takes away a level; what is deeper than that stays


def remove_tree(root: Path) -> None:
    """Remove a directory: whatever modes are in it, however deep it is, and never through a link.

    Several may be at it at once. What cannot be removed stays.
    """
    try:
        top = _opened(root)
    except OSError:
        return
    try:
        for _ in range(_PASSES_MAX):
            if not _is_shallower(top):
                break
    finally:
        os.close(top)
    with contextlib.suppress(OSError):
        root.rmdir()


def _is_shallower(top: int) -> bool:
    """Remove what is in a directory, but bring the directories of its directories up into it; whether any of it worked.

    So neither how deep a tree is nor how long its paths are matters, and two descriptors are enough.
    """
    count = 0
    for name in os.listdir(top):
        with contextlib.suppress(OSError):  # it stays, or somebody else has removed it
            if not _is_unlinked(name, top):
                count += _emptied(name, top)
                os.rmdir(name, dir_fd=top)
            count += 1
    return count > 0


def _emptied(name: str, top: int) -> int:
    """Remove the files of a directory in `top`, and move its directories there; how many there were."""
    directory: int = _opened(name, top)
    count = 0
    try:
        for below in os.listdir(directory):
            with contextlib.suppress(OSError):
                if not _is_unlinked(below, directory):
                    os.close(_opened(below, directory))  # one that cannot be written to cannot be moved
                    os.rename(below, secrets.token_hex(16), src_dir_fd=directory, dst_dir_fd=top)
                count += 1
    finally:
        os.close(directory)
    return count


def _is_unlinked(name: str, directory: int) -> bool:
    """Remove anything but a directory."""
    try:
        os.unlink(name, dir_fd=directory)
    except IsADirectoryError:
        return False
    return True


def _opened(path: Path | str, directory: int | None = None) -> int:
    """A directory itself, never what a link names, opened up so that it can be read and written to."""
    here = os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    found = os.open(path, os.O_PATH | here, dir_fd=directory)
    try:
        if stat.S_IMODE(os.fstat(found).st_mode) & stat.S_IRWXU != stat.S_IRWXU:
            os.chmod(f"/proc/self/fd/{found}", stat.S_IRWXU)  # noqa: PTH101 - by what was opened, not by its name
        return os.open(".", os.O_RDONLY | here, dir_fd=found)
    finally:
        os.close(found)
