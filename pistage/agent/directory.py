"""The agent's directory: held by one process at a time, and where the agent's id is kept."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager

from pistage.config import AgentConfig
from pistage.core import ids
from pistage.errors import Code, PistageError
from pistage.wire import new_id


@contextmanager
def held(settings: AgentConfig) -> Iterator[str]:
    """Hold the directory; the agent's id, which is made if there is none."""
    directory = settings.data_dir
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise PistageError(
            Code.USAGE, f"cannot use the agent's directory {directory}: {error.strerror}", hint="set data_dir"
        ) from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        raise PistageError(
            Code.CONFLICT, f"another agent is using {directory}", hint="give each agent a data_dir of its own"
        ) from None
    try:
        yield _agent_id(settings)
    finally:
        os.close(lock)


def _agent_id(settings: AgentConfig) -> str:
    file = settings.data_dir / "id"
    if file.exists():
        known = file.read_text(encoding="ascii").strip()
        if ids.is_id(known):
            return known
        raise PistageError(Code.STORAGE, f"{file} does not hold an agent's id", hint="remove it to become a new agent")
    fresh = new_id()
    draft = file.with_suffix(".new")
    with draft.open("w", encoding="ascii") as stream:
        stream.write(fresh)
        stream.flush()
        os.fsync(stream.fileno())
    draft.replace(file)
    return fresh
