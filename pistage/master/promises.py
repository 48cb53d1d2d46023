"""Promises: the term of the latest leader that the output here was promised to; it outlives a crash."""

from __future__ import annotations

import os
from pathlib import Path

from pistage.errors import Code, PistageError
from pistage.master.directories import sync_directory


def promised_term(directory: Path) -> int:
    """The highest term of a leader that this output is known to; PistageError `storage` where that is damaged."""
    path = directory / "term"
    try:
        return int(path.read_text())
    except FileNotFoundError:
        return 0
    except (OSError, ValueError) as error:
        raise PistageError(Code.STORAGE, f"{path} is damaged: {error}") from None


def write_promise(directory: Path, term: int) -> None:
    """Make it this one, durably; OSError where the disk does not let it."""
    fresh = directory / "term.new"
    with fresh.open("w") as file:
        file.write(f"{term}\n")
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(directory / "term")
    sync_directory(directory)
