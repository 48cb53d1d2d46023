"""Three masters of each kind as processes of their own: Pistage, etcd, PySyncObj behind aiohttp."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from benches.load import RefusedError, ask, request

TOKEN = "bench"
NODES = 3
_HERE = Path(__file__).parent
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_READY_S = 60.0


_ports = iter(range(19_000 + os.getpid() % 1_000 * 10, 32_000))


def free_ports(count: int) -> list[int]:
    """Ports that nobody has just now, below those that connections get by themselves; never the same twice."""
    ports: list[int] = []
    while len(ports) < count:
        port = next(_ports)
        with socket.socket() as taken, suppress(OSError):
            taken.bind(("127.0.0.1", port))
            ports.append(port)
    return ports


class Group(ABC):
    """Three processes, started and killed here and nowhere else."""

    name: str

    def __init__(self, directory: Path, ports: list[int], *, nodes: int = NODES) -> None:
        self.directory = directory
        self.ports = ports
        self.nodes = nodes
        self.urls = [f"http://127.0.0.1:{port}" for port in ports[:nodes]]
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        directory.mkdir(parents=True)

    @abstractmethod
    def command(self, node: int) -> list[str]:
        """How that node is started."""

    @abstractmethod
    async def leads(self, node: int) -> bool:
        """Whether it says that it leads, and that the others have all that it has."""

    @abstractmethod
    def put(self, number: int) -> bytes:
        """The smallest write, its text different for each number."""

    @abstractmethod
    def put_many(self, number: int) -> bytes:
        """A hundred of them in one request."""

    def environ(self) -> dict[str, str]:
        return {key: value for key, value in os.environ.items() if not key.startswith(("PISTAGE_", "ETCD_"))}

    def start(self, node: int) -> None:
        log = (self.directory / f"{node}.log").open("ab")
        with log:
            command, environ = self.command(node), self.environ()
            self._processes[node] = subprocess.Popen(command, env=environ, stdout=log, stderr=log)

    def kill(self, node: int) -> None:
        """kill -9."""
        self._processes[node].kill()
        self._processes.pop(node).wait()

    def stop(self) -> None:
        for process in self._processes.values():
            process.send_signal(signal.SIGTERM)
        for process in self._processes.values():
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._processes.clear()

    async def leader(self) -> int:
        """The node that leads, once the group is healthy."""
        until = time.monotonic() + _READY_S
        while time.monotonic() < until:
            leading = []
            for node in range(self.nodes):
                try:
                    if await self.leads(node):
                        leading.append(node)
                except (OSError, TimeoutError, RefusedError, ValueError, KeyError):
                    pass
            if len(leading) == 1:
                return leading[0]
            await asyncio.sleep(0.1)
        logs = "".join(f"--- node {path.stem}\n{path.read_text()[-2000:]}" for path in self.directory.glob("*.log"))
        raise TimeoutError(f"{self.name} has no leader\n{logs}")

    def cpu_s(self) -> float:
        """User and system time of the three, since each began."""
        return sum(map(self.cpu_of, self._processes))

    def cpu_of(self, node: int) -> float:
        """The same, of one."""
        fields = Path(f"/proc/{self._processes[node].pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS_PER_S

    def memory_mib(self, node: int) -> tuple[float, float]:
        """Resident now, and at most."""
        status = Path(f"/proc/{self._processes[node].pid}/status").read_text()
        now, most = (int(status.split(key)[1].split()[0]) / 1024 for key in ("VmRSS:", "VmHWM:"))
        return now, most


class Pistage(Group):
    """Masters of this checkout."""

    def __init__(
        self, directory: Path, ports: list[int], *, election_timeout: str | None = None, nodes: int = NODES
    ) -> None:
        self.name = "Pistage" + (f", election timeout {election_timeout}" if election_timeout else "")
        self._options = ["--election-timeout", election_timeout] if election_timeout else []
        super().__init__(directory, ports, nodes=nodes)

    def environ(self) -> dict[str, str]:
        return super().environ() | {"PISTAGE_TOKEN": TOKEN}

    def command(self, node: int) -> list[str]:
        listen, peers = f"127.0.0.1:{self.ports[node]}", ",".join(self.urls)
        where = ["--data-dir", str(self.directory / str(node)), "--listen", listen]
        where += ["--peers", peers] if self.nodes > 1 else []
        # To see where time goes, a file that begins a profiler and then calls pistage.__main__.main.
        wrapper = os.environ.get("BENCH_PYTHON_OPTIONS", "-m pistage").split()
        return [sys.executable, *wrapper, "serve", "--role", "master", *where, *self._options]

    async def cluster(self, node: int) -> dict[str, Any]:
        """What that master says of itself and the others."""
        answer = await ask(self.urls[node], request("GET", "/api/v1/cluster", token=TOKEN))
        return dict(json.loads(answer))

    async def leads(self, node: int) -> bool:
        said = await self.cluster(node)
        others = [master for master in said["masters"] if master["id"] != said["node"]]
        are_well = all(
            one["last_heard_ms"] is not None
            and one["last_heard_ms"] < 1_000
            and one["match_index"] >= said["applied_index"]
            for one in others
        )
        return said["role"] == "leader" and len(others) == self.nodes - 1 and are_well

    def put(self, number: int) -> bytes:
        name = f"w{number % 1000}"
        return request("PUT", f"/api/v1/actions/{name}", definition(name, number).encode(), token=TOKEN)

    def put_many(self, number: int) -> bytes:
        return self.submit_many(100)

    def submit(self, number: int) -> bytes:
        """A run of a registered action."""
        return request("POST", "/api/v1/runs", b'{"action": "w0"}', token=TOKEN)

    def submit_many(self, count: int, text: str | None = None) -> bytes:
        """So many runs, in one request: of that definition, or of a registered action."""
        what = {"action": "w0"} if text is None else {"definition": text}
        body = json.dumps(what | {"runs": [{}] * count}).encode()
        return request("POST", "/api/v1/runs/batch", body, token=TOKEN)


def definition(name: str, number: int) -> str:
    """A small document, different for each number."""
    return json.dumps({"name": name, "uses": {"main": [{"run": f"echo {number:012d}", "image": "busybox"}]}})


class Etcd(Group):
    """Debian's etcd 3.4 over its JSON gateway, with its own defaults: heartbeat 100 ms, election 1,000 ms."""

    name = "etcd"

    def command(self, node: int) -> list[str]:
        peers = [f"http://127.0.0.1:{port}" for port in self.ports[NODES:]]
        members = ",".join(f"n{n}={url}" for n, url in enumerate(peers))
        options = {
            "name": f"n{node}",
            "data-dir": self.directory / str(node),
            "listen-client-urls": self.urls[node],
            "advertise-client-urls": self.urls[node],
            "listen-peer-urls": peers[node],
            "initial-advertise-peer-urls": peers[node],
            "initial-cluster": members,
            "initial-cluster-state": "new",
            "logger": "zap",
            "log-level": "error",
        }
        return ["etcd", *(f"--{key}={value}" for key, value in options.items())]

    async def _status(self, node: int) -> dict[str, Any]:
        return dict(json.loads(await ask(self.urls[node], request("POST", "/v3/maintenance/status", b"{}"))))

    async def leads(self, node: int) -> bool:
        said = await self._status(node)
        if said["leader"] != said["header"]["member_id"]:
            return False
        others = [await self._status(other) for other in range(NODES) if other != node]
        index = int(said["raftIndex"])
        return all(one["leader"] == said["leader"] and int(one["raftAppliedIndex"]) + 10 >= index for one in others)

    def put(self, number: int) -> bytes:
        return request("POST", "/v3/kv/put", json.dumps(_etcd_put(number)).encode())

    def put_many(self, number: int) -> bytes:
        puts = [{"requestPut": _etcd_put(number * 100 + n)} for n in range(100)]
        return request("POST", "/v3/kv/txn", json.dumps({"success": puts}).encode())


def _etcd_put(number: int) -> dict[str, str]:
    name = f"w{number % 1000}"
    value = definition(name, number).encode()
    return {"key": base64.b64encode(name.encode()).decode(), "value": base64.b64encode(value).decode()}


class PySyncObj(Group):
    """A replicated dict behind aiohttp. It has a journal on the disk, and never syncs it."""

    name = "PySyncObj"

    def __init__(self, directory: Path, ports: list[int], python: Path) -> None:
        self._python = python
        super().__init__(directory, ports)

    def command(self, node: int) -> list[str]:
        members = [f"127.0.0.1:{port}" for port in self.ports[NODES:]]
        others = [member for n, member in enumerate(members) if n != node]
        server = [str(self._python), str(_HERE / "pysyncobj_server.py")]
        return [*server, str(self.ports[node]), str(self.directory / f"{node}.journal"), members[node], *others]

    async def leads(self, node: int) -> bool:
        said = json.loads(await ask(self.urls[node], request("GET", "/status")))
        return bool(said["is_leading"] and said["is_ready"])

    def put(self, number: int) -> bytes:
        name = f"w{number % 1000}"
        return request("PUT", f"/kv/{name}", definition(name, number).encode())

    def put_many(self, number: int) -> bytes:
        numbers = range(number * 100, number * 100 + 100)
        return request("POST", "/batch", json.dumps({f"w{n % 1000}": definition("w", n) for n in numbers}).encode())


@asynccontextmanager
async def running(*groups: Group) -> AsyncIterator[None]:
    """All of them, healthy; stopped at the end."""
    async with AsyncExitStack() as stack:
        for group in groups:
            stack.callback(group.stop)
            for node in range(group.nodes):
                group.start(node)
        for group in groups:
            await group.leader()
        yield


def need_etcd() -> None:
    """Install Debian's package where the program is missing and this is root."""
    if shutil.which("etcd"):
        return
    if os.getuid() != 0 or shutil.which("apt-get") is None:
        raise SystemExit("etcd is missing; on Debian: apt-get install --no-install-recommends etcd-server")
    environ = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    for command in (["update", "-qq"], ["install", "-y", "-qq", "--no-install-recommends", "etcd-server"]):
        subprocess.run(["apt-get", *command], env=environ, check=True, stdout=subprocess.DEVNULL, timeout=300)


def make_pysyncobj_venv(directory: Path) -> Path:
    """The Python of a virtual environment that has PySyncObj; made anew for each run of the bench."""
    subprocess.run([sys.executable, "-m", "venv", str(directory)], check=True, timeout=120)
    python = directory / "bin" / "python"
    install = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "pysyncobj==0.3.17", "aiohttp"]
    subprocess.run([str(python), *install], check=True, timeout=300)
    return python
