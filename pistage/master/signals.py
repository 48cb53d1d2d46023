"""Signals: wake everybody who waits for news of a key; one event a key, and only while somebody waits."""

from __future__ import annotations

import asyncio


class Signals:
    """Owned by one loop."""

    def __init__(self) -> None:
        self._events: dict[str, asyncio.Event] = {}

    def changed(self, key: str) -> asyncio.Event:
        """An event that the next news of `key` sets; ask for it before reading what there is, so none is missed."""
        return self._events.setdefault(key, asyncio.Event())

    def wake(self, key: str) -> None:
        """Wake everybody who asked since the last time."""
        if event := self._events.pop(key, None):
            event.set()
