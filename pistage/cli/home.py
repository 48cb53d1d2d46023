"""The directory of `dev` and of one-command runs: its lock, its token, and the file that says where its master is."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from pistage.errors import Code, PistageError

POLL_S: Final = 0.05
_START_S: Final = 15.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """Where the master of a home listens; `has_agent` is false while a verb only looks at what was kept."""

    url: str
    pid: int
    token_file: str
    has_agent: bool
    is_lasting: bool = False  # a `dev`, which may come back at its address


class Home:
    """One data directory. Whoever holds its lock owns the cluster in it; everybody else is a client of the owner."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.master_dir = path / "master"
        self.agent_dir = path / "agent"
        self.token_file = path / "token"
        self._endpoint_file = path / "endpoint.json"

    def is_used(self) -> bool:
        """Whether a cluster has ever run here."""
        return self.master_dir.exists()

    def lock(self) -> AbstractContextManager[bool]:
        """Try to become the owner; False if another process is. The lock goes with the process, however it ends."""
        return self._locked("lock", fcntl.LOCK_EX)

    def guest_lock(self) -> AbstractContextManager[bool]:
        """Say that the owner's cluster is in use; False if the owner is about to leave."""
        return self._locked("guests", fcntl.LOCK_SH)

    def try_leave(self) -> int | None:
        """For an owner that wants to leave: None while there are guests, else a descriptor that keeps new ones out."""
        return self._try_lock("guests", fcntl.LOCK_EX)

    def is_owned_at(self, endpoint: Endpoint) -> bool:
        """Whether there is an owner, and it is the one at `endpoint`."""
        with self.lock() as is_free:
            return not is_free and self._read() == endpoint

    async def endpoint(self, *, needs_agent: bool) -> Endpoint | None:
        """The owner's endpoint, once it has one; None as soon as there is no owner any more.

        An owner that only looks (no agent) is gone in a moment, so a caller that needs an agent waits for its end.
        """
        deadline = time.monotonic() + _START_S
        while time.monotonic() < deadline:
            with self.lock() as is_owner:
                if is_owner:
                    return None
            endpoint = self._read()
            if endpoint and (endpoint.has_agent or not needs_agent):
                return endpoint
            await asyncio.sleep(POLL_S)
        owner = self._read()
        who = f"process {owner.pid}, which only looks," if owner else "another pistage process"
        raise PistageError(
            Code.UNAVAILABLE, f"{who} holds {self.path} and does not leave", hint="end it, or use another --data-dir"
        )

    def publish(self, endpoint: Endpoint) -> None:
        """Tell other processes where the master is; call with the lock held."""
        scratch = self._endpoint_file.with_suffix(".new")
        scratch.write_text(json.dumps(asdict(endpoint)) + "\n", encoding="utf-8")
        scratch.replace(self._endpoint_file)

    def withdraw(self) -> None:
        """The master is no longer there."""
        self._endpoint_file.unlink(missing_ok=True)

    def token(self, given: str | None = None) -> str:
        """The token of this home: the one `given` from now on, else the one made at the first start.

        Only its user can read the file.
        """
        if given is None and self.token_file.exists():
            return self.token_file.read_text(encoding="utf-8").strip()
        token = given or secrets.token_urlsafe(32)
        scratch = self.token_file.with_suffix(".new")
        fd = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        with os.fdopen(fd, "w", encoding="utf-8") as file:
            file.write(token + "\n")
        scratch.replace(self.token_file)
        return token

    @contextmanager
    def _locked(self, name: str, operation: int) -> Iterator[bool]:
        fd = self._try_lock(name, operation)
        try:
            yield fd is not None
        finally:
            if fd is not None:
                os.close(fd)

    def _try_lock(self, name: str, operation: int) -> int | None:
        try:
            self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
            fd = os.open(self.path / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise PistageError(
                Code.STORAGE, f"cannot write to {self.path}: {error.strerror}", hint="set --data-dir"
            ) from None
        try:
            fcntl.flock(fd, operation | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            return None
        return fd

    def _read(self) -> Endpoint | None:
        try:
            return Endpoint(**json.loads(self._endpoint_file.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None
