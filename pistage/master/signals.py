"""Signals: wake everybody who waits for news of a key; one event a key, and only while somebody waits."""

from __future__ import annotations

import asyncio
from weakref import WeakValueDictionary


class Signals:
    """Owned by one loop."""

    def __init__(self) -> None:
        # Weak: who only looks once, at a run that is over, leaves nothing behind that no news would ever remove.
        self._events: WeakValueDictionary[str, asyncio.Event] = WeakValueDictionary()

    def changed(self, key: str) -> asyncio.Event:
        """An event that the next news of `key` sets; ask for it before reading what there is, so none is missed."""
        return self._events.setdefault(key, asyncio.Event())

    def wake(self, key: str) -> None:
        """Wake everybody who asked since the last time."""
        if event := self._events.pop(key, None):
            event.set()
