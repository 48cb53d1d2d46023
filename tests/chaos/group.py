"""A group of masters and its agents as processes of their own, started, stopped and killed by name: m1, m2, a1."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol

import aiohttp

from tests.e2e.processes import free_port

TOKEN: Final = "token-of-the-chaos"
ROOT: Final = Path(__file__).parent.parent.parent
PISTAGE: Final = (sys.executable, "-m", "pistage")
_END_S = 20.0
_VERB_S = 90.0
_HOST: Final = ("--runtime", "host", "--allow-host-runtime", "--ignore-images")


class Network(Protocol):
    """Where masters listen, and what a process must be started with to be there."""

    def address(self, name: str) -> str:
        """HOST:PORT of a master."""

    def prefix(self, name: str) -> tuple[str, ...]:
        """What stands before the command of a process; nothing for one that has no place of its own."""


class Loopback:
    """All masters on this machine's loopback, a port each."""

    def __init__(self) -> None:
        self._ports: dict[str, int] = {}

    def address(self, name: str) -> str:
        return f"127.0.0.1:{self._ports.setdefault(name, free_port())}"

    def prefix(self, name: str) -> tuple[str, ...]:
        return ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """How many there are, and what they are started with beside what they need."""

    masters: int = 3
    agents: int = 2
    master_flags: tuple[str, ...] = ()
    agent_flags: tuple[str, ...] = ("--slots", "16")
    runtimes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # of agents that are not of the host


class Group:
    """Whatever it has started is ended by `end`."""

    def __init__(self, directory: Path, shape: Shape, network: Network | None = None) -> None:
        self.directory, self.shape = directory, shape
        self._network = network or Loopback()
        self.masters = [f"m{n}" for n in range(1, shape.masters + 1)]
        self.agents = [f"a{n}" for n in range(1, shape.agents + 1)]
        self.urls = {name: f"http://{self._network.address(name)}" for name in self.masters}
        self.running: dict[str, subprocess.Popen[bytes]] = {}
        self._paused: set[str] = set()
        clean = {key: value for key, value in os.environ.items() if not key.startswith("PISTAGE_")}
        self.environ = clean | {"PISTAGE_TOKEN": TOKEN}
        self.http: aiohttp.ClientSession | None = None

    # --- processes -----------------------------------------------------------------------------------------------

    def data_dir(self, name: str) -> Path:
        return self.directory / name

    def start(self, name: str) -> None:
        assert name not in self.running, f"{name} runs already"
        flags = ("master", *self.master_flags(name)) if name in self.urls else ("agent", *self._agent_flags(name))
        command = [*self.prefix(name), *PISTAGE, "serve", "--role", *flags, "-v"]
        with self.log_path(name).open("ab") as log:
            self.running[name] = subprocess.Popen(
                command, env=self.environ, stdout=log, stderr=log, cwd=ROOT, start_new_session=True
            )

    def master_flags(self, name: str) -> tuple[str, ...]:
        """The configuration of a master, for `serve` and for `cluster join`."""
        where = ("--data-dir", str(self.data_dir(name)), "--listen", self._network.address(name))
        peers = ("--peers", ",".join(self.urls.values()))
        return (*where, *peers, "--disk-free-min", "0", *self.shape.master_flags)

    def _agent_flags(self, name: str) -> tuple[str, ...]:
        where = ("--data-dir", str(self.data_dir(name)), "--name", name, "--masters", ",".join(self.urls.values()))
        return (*where, *self.shape.runtimes.get(name, _HOST), *self.shape.agent_flags)

    def prefix(self, name: str) -> tuple[str, ...]:
        """What stands before the command of a process that is to be where this one is."""
        return self._network.prefix(name)

    async def verb(self, *arguments: str, prefix: Sequence[str] = ()) -> tuple[int, str]:
        """A verb of the command line: exit code, and what it says on standard error."""
        process = await asyncio.create_subprocess_exec(
            *prefix, *PISTAGE, *arguments, env=self.environ | {"PISTAGE_SERVER": ",".join(self.urls.values())},
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, cwd=ROOT,
        )  # fmt: skip
        async with asyncio.timeout(_VERB_S):
            _, told = await process.communicate()
        return process.returncode or 0, told.decode(errors="replace").strip()

    def pid(self, name: str) -> int:
        return self.running[name].pid

    def kill(self, name: str) -> None:
        """SIGKILL, and gone when this returns."""
        process = self.running.pop(name)
        self._paused.discard(name)
        process.kill()
        process.wait(_END_S)

    def pause(self, name: str) -> None:
        self._paused.add(name)
        self.running[name].send_signal(signal.SIGSTOP)

    def resume(self, name: str) -> None:
        if name in self._paused:
            self._paused.discard(name)
            self.running[name].send_signal(signal.SIGCONT)

    async def stop(self, name: str) -> int:
        """As an operator stops it; the exit code."""
        self.running[name].send_signal(signal.SIGTERM)
        return await self.exit_of(name, _END_S)

    async def exit_of(self, name: str, timeout_s: float) -> int:
        """Wait until the process has ended by itself; its exit code."""
        process = self.running[name]
        code = await until(process.poll, timeout_s, is_there=lambda code: code is not None)
        del self.running[name]
        return int(code)

    def has_ended(self, name: str) -> bool:
        return name in self.running and self.running[name].poll() is not None

    def log_path(self, name: str) -> Path:
        return self.directory / f"{name}.log"

    def journal_bytes(self, agent: str) -> int:
        """What the agent still remembers of attempts; 0 once each has ended, is acknowledged and removed."""
        sizes = []
        for file in (self.data_dir(agent) / "journal").glob("*"):
            with contextlib.suppress(FileNotFoundError):
                sizes.append(file.stat().st_size)
        return sum(sizes)

    def kill_masters(self) -> None:
        """All at once: the signals go out before the first end is waited for."""
        for name in self.masters:
            if name in self.running:
                self.running[name].kill()
        for name in self.masters:
            if name in self.running:
                self.kill(name)

    def end(self) -> None:
        """End what is left; agents first, so that they end their steps."""
        for name in list(self._paused):
            self.resume(name)
        for name in [*self.agents, *self.masters]:
            process = self.running.pop(name, None)
            if process is None:
                continue
            process.send_signal(signal.SIGTERM if name in self.agents else signal.SIGKILL)
            try:
                process.wait(_END_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    # --- what they say -------------------------------------------------------------------------------------------

    async def call(self, name: str, method: str, path: str, *, timeout_s: float = 2.0, **given: Any) -> Any:
        """The JSON (or text) that a master answers; None where it does not, or refuses."""
        assert self.http is not None, "used within `a_group`"
        timeout = aiohttp.ClientTimeout(total=timeout_s)
        try:
            async with self.http.request(method, self.urls[name] + path, timeout=timeout, **given) as response:
                if response.status >= 300:
                    return None
                return await (response.json() if "json" in response.content_type else response.text())
        except (aiohttp.ClientError, OSError, TimeoutError):
            return None

    async def status(self, name: str) -> dict[str, Any] | None:
        """What a master says of the cluster, without asking the others."""
        if name not in self.running or name in self._paused:
            return None
        body: dict[str, Any] | None = await self.call(name, "GET", "/api/v1/cluster", timeout_s=1.0)
        return body

    async def statuses(self, names: Sequence[str] = ()) -> dict[str, dict[str, Any]]:
        """Of those that answer."""
        names = names or self.masters
        found = await asyncio.gather(*(self.status(name) for name in names))
        return {name: one for name, one in zip(names, found, strict=True) if one is not None}

    async def leader(self, timeout_s: float = 30.0) -> str:
        """The name of the master that leads; waits for one."""

        async def leading() -> str | None:
            found = await self.statuses()
            claims = [(one["term"], name) for name, one in found.items() if one["role"] == "leader"]
            return max(claims)[1] if claims else None

        return str(await until(leading, timeout_s))

    async def start_all(self) -> None:
        """Masters and agents; returns once there is a leader, every master follows it, and every agent is linked."""
        for name in [*self.masters, *self.agents]:
            self.start(name)
        await until(self.is_whole, 60.0)

    async def is_whole(self) -> bool:
        """Whether every master follows a leader and has every agent linked."""
        found = await self.statuses()
        if len(found) < len(self.masters) or not all(one["leader"] for one in found.values()):
            return False
        listed = await self.call(await self.leader(), "GET", "/api/v1/agents")
        return listed is not None and sum(one["is_connected"] for one in listed["items"]) >= len(self.agents)


@asynccontextmanager
async def a_group(directory: Path, shape: Shape, network: Network | None = None) -> AsyncIterator[Group]:
    """A group whose processes end with the block, however that ends."""
    group = Group(directory, shape, network)
    connector = aiohttp.TCPConnector(force_close=True, limit=0)
    try:
        headers = {"Authorization": f"Bearer {TOKEN}"}
        async with aiohttp.ClientSession(headers=headers, connector=connector) as group.http:
            await group.start_all()
            yield group
    finally:
        group.end()


async def until(condition: Callable[[], Any], timeout_s: float, *, is_there: Callable[[Any], bool] = bool) -> Any:
    """What `condition` (which may be a coroutine function) gives once that is there; AssertionError if it never is."""
    deadline = time.monotonic() + timeout_s
    while True:
        result = condition()
        if asyncio.iscoroutine(result):
            result = await result
        if is_there(result):
            return result
        if time.monotonic() > deadline:
            raise AssertionError(f"{condition} did not come true within {timeout_s:g} s: {result!r}")
        await asyncio.sleep(0.05)  # polls another process, which has no event of ours to wait for
