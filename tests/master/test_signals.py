"""Signals: who asked is woken, once; who has gone leaves nothing."""

import asyncio

from pistage.master.signals import Signals


async def test_everybody_who_asked_is_woken_and_who_asks_later_waits_for_later_news() -> None:
    signals = Signals()
    first, second, other = signals.changed("a"), signals.changed("a"), signals.changed("b")
    signals.wake("a")
    assert (first.is_set(), second.is_set(), other.is_set()) == (True, True, False)
    assert not signals.changed("a").is_set()


async def test_who_looked_and_went_away_leaves_nothing() -> None:
    signals = Signals()
    for run in range(1_000):
        signals.changed(str(run))
    assert len(signals._events) == 0
    async with asyncio.timeout(5), asyncio.TaskGroup() as group:
        group.create_task(signals.changed("a").wait())
        await asyncio.sleep(0)
        signals.wake("a")
