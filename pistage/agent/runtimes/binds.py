"""Binds: which directories of the host a task may mount, and how a path is held still between the check and the mount.

A task that can write next to a directory could replace it by a link to somewhere else after it was checked. So the path
is opened component by component without following links, and what was opened is itself mounted at a place of the
agent's own, which is what the engine is given. Where the agent may not mount (it is not root), only the allowed
directories themselves can be bound, whose names no task can change.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import posixpath
import stat
from collections.abc import Collection, Sequence
from pathlib import Path

from pistage.agent.runtimes.base import ExecutionError
from pistage.core import ids
from pistage.core.plan import FailureClass

_MS_BIND = 4096
_MNT_DETACH = 2
_libc = ctypes.CDLL(None, use_errno=True)


class BindPolicy:
    """The directories that the configuration allows, and the mounts that hold what attempts use of them."""

    def __init__(self, allowed: Sequence[str], pins: Path, engine_socket: str | None) -> None:
        self._allowed = [posixpath.normpath(path) for path in allowed]
        self._pins = pins
        self._engine_socket = engine_socket

    def pin(self, attempt_id: str, source: str) -> str:
        """A path that the engine may mount for `source`; ExecutionError `refused` unless the policy allows it."""
        path = posixpath.normpath(source)
        root = next((root for root in self._allowed if path == root or path.startswith(root.rstrip("/") + "/")), None)
        if not path.startswith("/") or root is None:
            raise _refused(
                f"{source} of the host is not open to tasks: list it, or a directory above it, in bind_paths"
            )
        if self._engine_socket is None:
            raise _refused("the engine is on another machine, whose directories this agent cannot check")
        descriptor = _open_beneath(root, posixpath.relpath(path, root), source)
        try:
            self._refuse_engine_socket(descriptor, source)
            if path == root:
                return str(Path(f"/proc/self/fd/{descriptor}").readlink())
            return self._mount(attempt_id, descriptor, source)
        finally:
            os.close(descriptor)

    def _refuse_engine_socket(self, descriptor: int, source: str) -> None:
        opened = os.fstat(descriptor)
        if not (stat.S_ISDIR(opened.st_mode) or stat.S_ISREG(opened.st_mode)):
            raise _refused(f"{source} is neither a directory nor a file: sockets and devices are never mounted")
        # By what they are, not by what they are called: names may change while we look.
        socket = Path(os.path.realpath(self._engine_socket or ""))
        if any(above.exists() and os.path.samestat(opened, above.stat()) for above in socket.parents):
            raise _refused(f"{source} holds the engine's own socket, which would be the whole machine")

    def _mount(self, attempt_id: str, descriptor: int, source: str) -> str:
        assert ids.is_id(attempt_id), "the directory is named by an id of ours"
        directory = self._pins / attempt_id
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        target = directory / str(len(list(directory.iterdir())))
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            target.mkdir()
        else:
            target.touch()
        if _libc.mount(f"/proc/self/fd/{descriptor}".encode(), os.fsencode(target), None, _MS_BIND, None) != 0:
            cause = os.strerror(ctypes.get_errno())
            raise _refused(f"{source} cannot be held still ({cause}): bind the directory of bind_paths itself instead")
        return str(target)

    def unpin(self, attempt_id: str) -> None:
        """The attempt's containers have what they mounted, or are gone."""
        directory = self._pins / attempt_id
        if not directory.is_dir():
            return
        for target in directory.iterdir():
            _libc.umount2(os.fsencode(target), _MNT_DETACH)
            # Only what is empty goes: if the mount were still there, nothing beneath it may be touched.
            with contextlib.suppress(OSError):
                target.rmdir() if target.is_dir() else _remove_empty(target)
        with contextlib.suppress(OSError):
            directory.rmdir()

    def sweep(self, attempts: Collection[str]) -> None:
        """Let go of what attempts of an earlier process held."""
        if self._pins.is_dir():
            for directory in list(self._pins.iterdir()):
                if ids.is_id(directory.name) and directory.name not in attempts:
                    self.unpin(directory.name)


def _open_beneath(root: str, below: str, source: str) -> int:
    """Open `below` under `root` without following any link in it; the root's own links are its administrator's."""
    flags = os.O_PATH | os.O_CLOEXEC
    try:
        descriptor = os.open(root, flags | os.O_DIRECTORY)
        for part in [] if below == "." else below.split("/"):
            parent = descriptor
            try:
                descriptor = os.open(part, flags | os.O_NOFOLLOW, dir_fd=parent)
            finally:
                os.close(parent)
            # With O_PATH the link itself is opened; it is refused here, whether it is the last part or not.
            if stat.S_ISLNK(os.fstat(descriptor).st_mode):
                os.close(descriptor)
                raise _refused(f"{source} leads through a symbolic link ({part}), which is not followed")
    except OSError as error:
        raise _refused(f"{source} cannot be mounted: {error.strerror}") from None
    return descriptor


def _remove_empty(file: Path) -> None:
    if file.stat().st_size == 0:
        file.unlink()


def _refused(reason: str) -> ExecutionError:
    return ExecutionError(FailureClass.REFUSED, reason)
