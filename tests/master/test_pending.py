"""Who waits for the state to get somewhere: told once it is there, and forgotten once they have gone."""

from pistage.master.pending import Pending


async def test_who_has_given_up_waiting_is_forgotten() -> None:
    pending = Pending()
    staying = pending.until(5)
    for _ in range(10_000):
        pending.until(10**18).cancel()
    assert len(pending._waiters) < 200
    pending.installed(5)
    assert staying.done()


async def test_who_waits_is_told_however_many_do() -> None:
    pending = Pending()
    waiting = [pending.until(index) for index in range(1, 1_001)]
    pending.installed(400)
    assert [one.done() for one in waiting] == [True] * 400 + [False] * 600
    pending.installed(1_000)
    assert all(one.done() for one in waiting)
