"""Trees: directories that a pipeline could write to are removed, whatever it made of them."""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
import time
from pathlib import Path

_PASSES_S = 60.0


def remove_tree(root: Path) -> None:
    """Remove a directory: whatever modes are in it, however deep it is, and never through a link.

    Several may be at it at once. What cannot be removed stays, and so does what somebody goes on making in it, or more
    levels than can be taken away in a minute.
    """
    try:
        top = _opened(root)
    except OSError:
        return
    deadline = time.monotonic() + _PASSES_S
    try:
        with contextlib.suppress(OSError):
            while _has_lifted(top) and time.monotonic() < deadline:
                pass
    finally:
        os.close(top)
    with contextlib.suppress(OSError):
        root.rmdir()


def _has_lifted(top: int) -> bool:
    """Remove what is in a directory, but bring the directories of its directories up into it; whether there were any.

    So neither how deep a tree is nor how long its paths are matters, and two descriptors are enough.
    """
    count = 0
    for name in os.listdir(top):
        with contextlib.suppress(OSError):  # it stays, or somebody else has removed it
            if not _is_unlinked(name, top):
                count += _lifted(name, top)
                os.rmdir(name, dir_fd=top)
    return count > 0


def _lifted(name: str, top: int) -> int:
    """Remove the files of a directory in `top`, and move its directories there; how many of these there were."""
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
