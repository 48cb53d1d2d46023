"""The brake of an attempt: whoever is in a scope leaves it, whatever else ends it in the same moment."""

import asyncio
import time

from pistage.agent.attempt.stop import Brake, Stop, StoppedError
from pistage.core.model import State

STOP = Stop(state=State.CANCELLED, reason="by somebody")


async def stopped_in(brake: Brake, deadline: float | None = None) -> Stop | None:
    try:
        async with brake.scope(deadline):
            await asyncio.sleep(60)
    except StoppedError as stopped:
        return stopped.stop
    raise AssertionError("nothing stopped it")


async def test_a_stop_may_come_in_the_moment_of_a_deadline() -> None:
    brake, loop = Brake(), asyncio.get_running_loop()
    async with asyncio.timeout(5), asyncio.TaskGroup() as group:
        timed = group.create_task(stopped_in(brake, loop.time() + 0.02))
        others = [group.create_task(stopped_in(brake)) for _ in range(5)]
        await asyncio.sleep(0)
        loop.call_at(loop.time() + 0.03, brake.request, STOP)
        time.sleep(0.1)  # noqa: ASYNC251 - the loop stands still until both are due
    assert [other.result() for other in others] == [STOP] * 5
    assert timed.done()
