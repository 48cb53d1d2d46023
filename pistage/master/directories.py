"""Directories of a master: held by one process, and durable."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pistage.config import MasterConfig
from pistage.errors import Code, PistageError


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Hold the directory, made if need be, for this process alone."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        fd = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise PistageError(
            Code.USAGE, f"cannot use the data directory {directory}: {error.strerror}", hint="set data_dir"
        ) from None
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise PistageError(
                Code.CONFLICT, f"another master has {directory} open", hint="stop it, or set another data_dir"
            ) from None
        yield
    finally:
        os.close(fd)


def refuse_unless_space(settings: MasterConfig) -> None:
    """PistageError `storage` while the disk has less free than `disk_free_min`: what runs needs the rest."""
    if shutil.disk_usage(settings.data_dir).free < settings.disk_free_min:
        raise PistageError(
            Code.STORAGE, "the master's disk is nearly full", hint="free some space, or lower disk_free_min"
        )


def sync_directory(directory: Path) -> None:
    """Make durable which files the directory holds."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
