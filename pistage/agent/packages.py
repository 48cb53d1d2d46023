"""Packages: the sets of requirements that an agent has installed, each under a key, and which of them are in use."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

from pistage.core import limits

_READY = ".ready"


class Packages:
    """A set is made once, whoever asks at the same time, and is known as whole by a file that is written last.

    `remove` removes what was made under a key; False if something still uses it.
    """

    def __init__(self, root: Path, remove: Callable[[str], Awaitable[bool]]) -> None:
        self._root = root
        self._remove = remove
        self._locks: dict[str, asyncio.Lock] = {}
        self._holders: dict[str, set[str]] = {}

    async def ensure(
        self, key: str, holder: str, *, is_there: Callable[[], Awaitable[bool]], make: Callable[[], Awaitable[None]]
    ) -> None:
        """Have the set of this key, made by `make` unless it is there; until `holder` lets go it stays."""
        self._holders.setdefault(key, set()).add(holder)
        async with self._locks.setdefault(key, asyncio.Lock()):
            mark = self._mark(key)
            if mark.exists() and await is_there():
                mark.touch()
                return
            mark.unlink(missing_ok=True)
            await self._remove(key)  # what an agent that was killed has left of it
            await make()
            self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
            mark.touch()
        await self._forget_old()

    def let_go(self, holder: str) -> None:
        """`holder` uses none of them any more."""
        for key, holders in list(self._holders.items()):
            holders.discard(holder)
            if not holders:
                del self._holders[key]
                if (lock := self._locks.get(key)) is not None and not lock.locked():
                    del self._locks[key]

    async def _forget_old(self) -> None:
        marks = sorted(self._root.glob(f"*{_READY}"), key=lambda mark: mark.stat().st_mtime, reverse=True)
        for mark in marks[limits.PACKAGES_KEPT_MAX :]:
            key = mark.name.removesuffix(_READY)
            lock = self._locks.setdefault(key, asyncio.Lock())
            if key not in self._holders and not lock.locked():
                async with lock:  # who asks for it meanwhile waits, and makes it anew
                    await self._forget(key)
            if key not in self._holders and not lock.locked():
                self._locks.pop(key, None)

    async def _forget(self, key: str) -> None:
        mark = self._mark(key)
        mark.unlink(missing_ok=True)  # what is removed in part is not whole
        is_removed = False
        try:
            is_removed = await self._remove(key)
        finally:
            if not is_removed:
                mark.touch()  # else nobody would look at it again

    def _mark(self, key: str) -> Path:
        return self._root / f"{key}{_READY}"
