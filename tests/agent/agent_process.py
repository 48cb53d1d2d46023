"""An agent as a process of its own, for tests that kill it: `python -m tests.agent.agent_process SETTINGS-AS-JSON`."""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator

from pistage.agent.service import Agent
from pistage.config import AgentConfig
from tests.agent.fake_master import TOKEN


class AgentProcess:
    """Starts agents on one directory; `kill` is the power cord."""

    def __init__(self, settings: dict[str, object]) -> None:
        self._settings = settings
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        words = [sys.executable, "-m", "tests.agent.agent_process", json.dumps(self._settings, default=str)]
        self._process = subprocess.Popen(words)

    def kill(self) -> None:
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        self._end(signal.SIGTERM)

    def _end(self, number: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(number)
            self._process.wait(timeout=30)
            self._process = None


@contextlib.contextmanager
def agent_process(settings: dict[str, object]) -> Iterator[AgentProcess]:
    process = AgentProcess(settings)
    try:
        yield process
    finally:
        process.stop()


async def main(settings: dict[str, object]) -> None:
    agent = Agent(AgentConfig.model_validate(settings), token=TOKEN)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, agent.request_stop)
    await agent.run()


if __name__ == "__main__":
    os.umask(0o022)
    asyncio.run(main(json.loads(sys.argv[1])))
