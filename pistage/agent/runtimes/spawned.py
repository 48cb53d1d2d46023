"""A child process and its end, told by the kernel's handle of it (a pidfd).

asyncio's own takes, before Python 3.12, a thread for each child, and more of the loop's time than making the child.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path


class Spawned:
    """Runs from the moment it is made; OSError if there is no such program or directory."""

    def __init__(
        self, argv: Sequence[str], *, env: Mapping[str, str], directory: Path, stdout: int, stderr: int
    ) -> None:
        self._popen = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr, env=env, cwd=directory, start_new_session=True
        )
        self._loop = asyncio.get_running_loop()
        self._ended: asyncio.Future[int] = self._loop.create_future()
        try:
            self._handle = os.pidfd_open(self.pid)
        except (AttributeError, OSError):  # a kernel before 5.3, or something that forbids it
            threading.Thread(target=self._wait, name=f"wait for {self.pid}", daemon=True).start()
        else:
            self._loop.add_reader(self._handle, self._reap)

    @property
    def pid(self) -> int:
        return self._popen.pid

    @property
    def returncode(self) -> int | None:
        """How it ended, -n by signal n; None while it runs, and its number is its own."""
        return self._popen.returncode

    async def wait(self) -> int:
        """Wait until it has ended; as often as one likes."""
        await asyncio.wait([self._ended])
        return self._ended.result()

    def _reap(self) -> None:
        self._loop.remove_reader(self._handle)
        os.close(self._handle)
        self._ended.set_result(self._popen.wait())

    def _wait(self) -> None:
        code = self._popen.wait()
        self._loop.call_soon_threadsafe(self._ended.set_result, code)
