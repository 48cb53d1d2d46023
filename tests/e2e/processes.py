"""Masters and agents as processes of their own, started and killed the way their users' machines do it."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

from tests.master.fakes import Api

TOKEN = "token-of-the-end-to-end-tests"
PISTAGE = [sys.executable, "-m", "pistage"]


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


class Processes:
    """Starts, kills and starts again; whatever is left is ended by `stop_all`."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.running: dict[str, subprocess.Popen[bytes]] = {}
        clean = {key: value for key, value in os.environ.items() if not key.startswith("PISTAGE_")}
        self.environ = clean | {"PISTAGE_TOKEN": TOKEN, "PISTAGE_SERVER": self.url, "PISTAGE_DRAIN_TIMEOUT": "0s"}

    def start_master(self, *flags: str, name: str = "master") -> None:
        self._start(name, "serve", "--role", "master", "--listen", f"127.0.0.1:{self.port}", *flags)

    def start_agent(self, *flags: str, name: str = "agent", runtime: str = "docker") -> None:
        self._start(name, "serve", "--role", "agent", "--masters", self.url, "--runtime", runtime, *flags)

    def _start(self, name: str, *arguments: str) -> None:
        log = (self.directory / f"{name}.log").open("ab")
        command = [*PISTAGE, *arguments, "--data-dir", str(self.directory / name), "-v"]
        self.running[name] = subprocess.Popen(command, env=self.environ, stdout=log, stderr=log)
        log.close()

    def kill(self, name: str, number: signal.Signals = signal.SIGKILL) -> int:
        process = self.running.pop(name)
        process.send_signal(number)
        return process.wait(timeout=20)

    def stop_all(self) -> None:
        for process in self.running.values():
            process.send_signal(signal.SIGTERM)
        for process in self.running.values():
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def log_of(self, name: str) -> str:
        return (self.directory / f"{name}.log").read_text(errors="replace")

    async def cli(self, *arguments: str, stdin: bytes | None = None) -> tuple[int, bytes, bytes]:
        """Exit code, standard output and error of a verb."""
        process = await asyncio.create_subprocess_exec(
            *PISTAGE, *arguments, env=self.environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            stdin=subprocess.PIPE if stdin is not None else subprocess.DEVNULL, cwd=self.directory,
        )  # fmt: skip
        async with asyncio.timeout(90):
            out, err = await process.communicate(stdin)
        return process.returncode or 0, out, err


@asynccontextmanager
async def processes(directory: Path) -> AsyncIterator[tuple[Processes, Api]]:
    """No process yet, and an API client for the master to be."""
    owned = Processes(directory)
    timeout = aiohttp.ClientTimeout(total=100)
    headers = {"Authorization": f"Bearer {TOKEN}"}
    connector = aiohttp.TCPConnector(force_close=True)
    try:
        async with aiohttp.ClientSession(headers=headers, timeout=timeout, connector=connector) as session:
            yield owned, Api(session, owned.url)
    finally:
        owned.stop_all()


@asynccontextmanager
async def a_cluster(
    directory: Path, runtime: str = "docker", agent_flags: tuple[str, ...] = (), master_flags: tuple[str, ...] = ()
) -> AsyncIterator[tuple[Processes, Api]]:
    """One master and one agent, connected."""
    async with processes(directory) as (owned, api):
        owned.start_master(*master_flags)
        owned.start_agent(*agent_flags, runtime=runtime)
        try:
            await until(lambda: has_agent(api))
            yield owned, api
        except BaseException:
            for name in ("master", "agent"):
                print(f"--- {name}\n{owned.log_of(name)[-6000:]}")
            raise


async def has_agent(api: Api) -> bool:
    _, agents = await api.call("GET", "/api/v1/agents")
    return any(item["is_connected"] for item in agents["items"])


async def until(condition: Callable[[], Any], timeout_s: float = 30.0) -> Any:
    """What `condition` (which may be a coroutine function) gives, once that is true; a refused connection is false."""
    async with asyncio.timeout(timeout_s):
        while True:
            try:
                result = condition()
                if asyncio.iscoroutine(result):
                    result = await result
            except (aiohttp.ClientError, ConnectionError):
                result = None
            if result:
                return result
            await asyncio.sleep(0.05)  # polls another process, which has no event of ours to wait for


async def output_of(api: Api, run_id: str, **asked: str) -> bytes:
    """What a run printed, exactly: to standard output, unless another `stream` is asked for."""
    async with api.session.get(
        f"{api.url}/api/v1/runs/{run_id}/logs",
        params={"stream": "stdout"} | asked,
        headers={"Accept": "application/octet-stream"},
    ) as response:
        assert response.status == 200, await response.text()
        return await response.read()


async def ended(api: Api, run_id: str, timeout_s: float = 60.0) -> dict[str, Any]:
    """The run once it is over, however often the master goes away meanwhile."""

    async def over() -> dict[str, Any] | None:
        run = await api.run(run_id)
        return run if run["finished_at"] else None

    run: dict[str, Any] = await until(over, timeout_s)
    return run
