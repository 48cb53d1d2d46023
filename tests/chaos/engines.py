"""An engine that is stopped, or killed, and started again under containers that go on: `--live-restore`."""

from __future__ import annotations

import asyncio
import signal
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Final

from tests.chaos import output
from tests.chaos.faults import Scene
from tests.chaos.group import Shape
from tests.chaos.output import Harm
from tests.e2e.test_engine_killed import OwnEngine

_AWAY_S: Final = 0.5
_BACK_S: Final = 1.0


class LiveEngine(OwnEngine):
    """Its containers run on while it is away."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory, "--live-restore")

    def shape(self) -> Shape:
        """That of the trials, with this engine for the agent that has one."""
        runtimes = dict(output.RUNTIMES)
        runtimes[output.DOCKER] = (*runtimes[output.DOCKER], "--engine", f"unix://{self.socket}")
        return replace(output.SHAPE, runtimes=runtimes)

    def harms(self) -> tuple[Harm, Harm]:
        """What dockerd had read and not yet written is lost with it; so there may be gaps."""

        async def away(number: signal.Signals, seconds: float) -> None:
            """Again and again: what a single absence costs depends on what dockerd was at."""
            for _ in range(max(1, round(seconds / (_AWAY_S + _BACK_S)))):
                await asyncio.to_thread(self._end, number)
                await asyncio.sleep(_AWAY_S)
                await self.again()
                await asyncio.sleep(_BACK_S)

        async def restart(scene: Scene, seconds: float) -> None:
            await away(signal.SIGTERM, seconds)

        async def kill(scene: Scene, seconds: float) -> None:
            await away(signal.SIGKILL, seconds)

        return (
            Harm("the engine is restarted", restart, 6.0, costs="engine"),
            Harm("the engine is killed -9", kill, 6.0, costs="engine"),
        )


@asynccontextmanager
async def a_live_engine() -> AsyncIterator[LiveEngine]:
    """With images; removed with all it has."""
    engine = LiveEngine(
        Path(tempfile.mkdtemp(prefix="pistage-e-"))
    )  # short: a socket's path has 108 characters at most
    try:
        await engine.start()
        yield engine
    finally:
        await engine.remove()
