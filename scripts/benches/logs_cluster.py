"""Three masters and an agent as processes of their own, what they are made to print, and the CPU that it takes."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import random
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benches.groups import TOKEN, Pistage, free_ports, running
from benches.load import ask, request

LINE_BYTES = 100
FIRST_LINES = 655  # 64 KiB: more than a client writes to its sockets before it prints anything
INSIDE = "/bench"  # where a container sees the directory of what is printed
IMAGE = "busybox"
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_QUIET_S = 12  # longer than what ended waits to be compressed
_WAIT_S = 120.0


@dataclass(frozen=True, slots=True)
class Options:
    """How often, how much, and which parts."""

    rounds: int
    lines: int
    followers: int
    parts: tuple[str, ...]
    directory: Path


# --- what is printed --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Text:
    """Numbered lines of 100 bytes in a directory that steps can read: `first` holds a few of them, `rest` the others."""

    directory: Path
    lines: int

    @property
    def length(self) -> int:
        return self.lines * LINE_BYTES

    @property
    def first(self) -> Path:
        return self.directory / "first"

    @property
    def rest(self) -> Path:
        return self.directory / "rest"

    def make(self) -> None:
        """Write it: lines as a service prints them, of which compression leaves about a fifth."""
        self.directory.mkdir(parents=True, exist_ok=True)
        chance = random.Random(5)
        with self.first.open("wb") as first, self.rest.open("wb") as rest:
            first.writelines(self._some(range(FIRST_LINES), chance))
            for start in range(FIRST_LINES, self.lines, 10_000):
                rest.writelines(self._some(range(start, min(start + 10_000, self.lines)), chance))

    def _some(self, numbers: range, chance: random.Random) -> Iterator[bytes]:
        raw = chance.randbytes(12 * len(numbers)).hex()
        yield "".join(self._line(n, raw[24 * i : 24 * i + 24]) for i, n in enumerate(numbers)).encode()

    def _line(self, number: int, raw: str) -> str:
        level = "WARN " if raw[0] == "7" else "INFO "
        place = ("queue", "store", "serve", "fetch")[int(raw[1], 16) % 4]
        text = f"{number:010d} 2026-10-07T08:{raw[2:4]}Z {level}{place} request={raw[4:20]} took={raw[20:24]} us"
        return f"{text:<99.99}\n"

    def part(self, lines: int) -> str:
        """The name of a file beside that holds so many of the lines of `rest`."""
        path = self.directory / f"part-{lines}"
        if not path.exists():
            with self.rest.open("rb") as file:
                path.write_bytes(file.read(lines * LINE_BYTES))
        return path.name

    def digest(self) -> str:
        """The SHA-256 of `first` and `rest`."""
        digest = hashlib.sha256(self.first.read_bytes())
        with self.rest.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
        return digest.hexdigest()


class Gate:
    """A FIFO: whoever opens it to read waits until the gate is opened, all of them for the same moment."""

    def __init__(self, directory: Path, name: str) -> None:
        self.path = directory / name
        os.mkfifo(self.path, 0o666)
        self._descriptor = -1

    def open(self) -> None:
        """Let through who waits, and who comes."""
        if self._descriptor < 0:
            self._descriptor = os.open(self.path, os.O_RDWR)  # which does not wait for a reader

    def write(self, text: str) -> None:
        """To whoever reads it."""
        os.write(self._descriptor, text.encode())

    def close(self) -> None:
        """Remove it; who reads it is at its end."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
        self.path.unlink(missing_ok=True)


@contextmanager
def gates(directory: Path, *names: str) -> Iterator[list[Gate]]:
    """Closed ones; opened and removed at the end, that nothing waits for ever."""
    made = [Gate(directory, name) for name in names]
    try:
        yield made
    finally:
        for gate in made:
            if gate.path.exists():
                gate.open()
        for gate in made:
            gate.close()


# --- processes --------------------------------------------------------------------------------------------------------


class Masters(Pistage):
    """Three of them, with `log_replicas` 2."""

    def __init__(self, directory: Path, *, run_log_max: str = "2Gi") -> None:
        super().__init__(directory, free_ports(3))
        self._options = ["--log-replicas", "2", "--run-log-max", run_log_max]

    def pid(self, node: int) -> int:
        return self._processes[node].pid


class Cluster:
    """Masters and an agent of one runtime, `docker` or `host`, that may bind the directory of what is printed."""

    def __init__(self, masters: Masters, runtime: str, text: Text) -> None:
        self.masters, self.runtime, self.text = masters, runtime, text
        self.agent_pid = 0
        self.leader = 0
        self.kept_run_id = ""  # of which several things are asked

    @property
    def url(self) -> str:
        return self.masters.urls[self.leader]

    async def find_leader(self) -> None:
        """See who leads now, and say so if it is another one than before."""
        before, self.leader = self.leader, await self.masters.leader()
        if self.leader != before:
            print("    another master leads now", flush=True)

    @property
    def pids(self) -> dict[str, int]:
        """Of the agent, the leader and the two others."""
        others = [node for node in range(self.masters.nodes) if node != self.leader]
        named = {"agent": self.agent_pid, "leader": self.masters.pid(self.leader)}
        return named | {f"follower {n}": self.masters.pid(node) for n, node in enumerate(others, 1)}

    @property
    def inside(self) -> str:
        """Where a step sees the directory of what is printed."""
        return INSIDE if self.runtime == "docker" else str(self.text.directory)

    def definition(self, scripts: Sequence[str]) -> bytes:
        """A task for each script, all at once."""
        step: dict[str, Any] = {"image": IMAGE}
        if self.runtime == "docker":
            step["volumes"] = [f"{self.text.directory}:{INSIDE}"]
        uses = {f"t{number}": [step | {"run": script}] for number, script in enumerate(scripts)}
        return json.dumps({"name": "Printer", "retry": 0, "uses": uses}).encode()

    async def submit(self, *scripts: str) -> str:
        """The run's id."""
        answer = await ask(self.url, request("POST", "/api/v1/runs", self.definition(scripts), token=TOKEN))
        return str(json.loads(answer)["id"])

    async def run(self, run_id: str) -> dict[str, Any]:
        return dict(json.loads(await ask(self.url, request("GET", f"/api/v1/runs/{run_id}", token=TOKEN), 60.0)))

    async def ended(self, run_id: str, wait_s: float = _WAIT_S) -> dict[str, Any]:
        """The run once it is over; AssertionError unless it succeeded."""
        async with asyncio.timeout(wait_s):
            while (run := await self.run(run_id))["state"] in {"pending", "queued", "running"}:
                await asyncio.sleep(0.1)
        assert run["state"] == "succeeded", run
        return run

    def follow(self, run_id: str, stdout: Any, *, asks_leader: bool = True) -> subprocess.Popen[bytes]:
        """`pistage logs -f`, which asks the leader first, or last."""
        others = [url for url in self.masters.urls if url != self.url]
        servers = [self.url, *others] if asks_leader else [*others, self.url]
        environ = self.masters.environ() | {"PISTAGE_TOKEN": TOKEN, "PISTAGE_SERVER": ",".join(servers)}
        return subprocess.Popen([sys.executable, "-m", "pistage", "logs", run_id, "-f"], env=environ, stdout=stdout)

    async def calm(self) -> None:
        """Once nobody does much: what was printed before is copied and compressed."""
        async with asyncio.timeout(_WAIT_S):
            quiet_s = 0
            while quiet_s < _QUIET_S:
                meter = CpuMeter(self.pids)
                await asyncio.sleep(1)
                used_s = sum(sum(times) for name, times in meter.used() if name != "rest")
                quiet_s = quiet_s + 1 if used_s < 0.15 else 0

    async def has_printed(self, run_id: str, count: int, wait_s: float = _WAIT_S) -> None:
        """Once so many bytes of stdout are in the leader's files."""
        async with asyncio.timeout(wait_s):
            while sum(path.stat().st_size for path in self.logs_of(run_id).glob("*/*.1")) < count:
                await asyncio.sleep(0.05)

    def resident_kib(self, *, peak: bool = False) -> dict[int, int]:
        """Of each master: now, or at most since `forget_peaks`."""
        key = "VmHWM:" if peak else "VmRSS:"
        pids = [self.masters.pid(node) for node in range(self.masters.nodes)]
        return {pid: int(Path(f"/proc/{pid}/status").read_text().split(key)[1].split()[0]) for pid in pids}

    def forget_peaks(self) -> None:
        """What `resident_kib` says of the peak begins now."""
        for node in range(self.masters.nodes):
            Path(f"/proc/{self.masters.pid(node)}/clear_refs").write_text("5")

    def logs_of(self, run_id: str, node: int | None = None) -> Path:
        """Where a master keeps the run's output: the leader, unless said."""
        return self.masters.directory / str(self.leader if node is None else node) / "logs" / run_id


@asynccontextmanager
async def a_cluster(directory: Path, runtime: str, text: Text) -> AsyncIterator[Cluster]:
    """Healthy, and stopped at the end."""
    masters = Masters(directory)
    cluster = Cluster(masters, runtime, text)
    async with running(masters):
        cluster.leader = await masters.leader()
        where = ["--data-dir", str(directory / "agent"), "--masters", ",".join(masters.urls), "--slots", "128"]
        how = {
            "docker": ["--bind-paths", str(text.directory)],
            "host": ["--runtime", "host", "--allow-host-runtime", "--ignore-images"],
        }[runtime]
        wrapper = os.environ.get("BENCH_PYTHON_OPTIONS", "-m pistage").split()
        command = [sys.executable, *wrapper, "serve", "--role", "agent", *where, *how]
        with (directory / "agent.log").open("wb") as log:
            process = subprocess.Popen(command, env=masters.environ(), stdout=log, stderr=log)
        cluster.agent_pid = process.pid
        try:
            async with asyncio.timeout(_WAIT_S):
                while not json.loads(await ask(cluster.url, request("GET", "/api/v1/agents", token=TOKEN)))["items"]:
                    await asyncio.sleep(0.05)
            yield cluster
        finally:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


# --- what it takes ----------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Cpu:
    """Seconds of user and system time, by name; `rest` is what the whole machine was busy with beside those."""

    seconds: dict[str, tuple[float, float]] = field(default_factory=dict)

    def __str__(self) -> str:
        return ", ".join(f"{name} {user + system:.1f} ({user:.1f}+{system:.1f})" for name, (user, system) in self)

    def __iter__(self) -> Iterator[tuple[str, tuple[float, float]]]:
        return iter(self.seconds.items())


class CpuMeter:
    """Begins when it is made."""

    def __init__(self, pids: Mapping[str, int]) -> None:
        self._pids = dict(pids)
        self._before = {name: _times(pid) for name, pid in self._pids.items()}
        self._machine = _machine_busy_s()

    def used(self) -> Cpu:
        """Since then."""
        cpu = Cpu()
        for name, pid in self._pids.items():
            user, system = _times(pid)
            cpu.seconds[name] = (user - self._before[name][0], system - self._before[name][1])
        known = [sum(times) for times in zip(*cpu.seconds.values(), strict=True)]
        user, system = (now - before for now, before in zip(_machine_busy_s(), self._machine, strict=True))
        cpu.seconds["rest"] = (max(0.0, user - known[0]), max(0.0, system - known[1]))
        return cpu


def _times(pid: int) -> tuple[float, float]:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0, 0.0
    return int(fields[11]) / _TICKS_PER_S, int(fields[12]) / _TICKS_PER_S


def _machine_busy_s() -> tuple[float, float]:
    user, nice, system, _, _, irq, softirq = map(int, Path("/proc/stat").read_text().split()[1:8])
    return (user + nice) / _TICKS_PER_S, (system + irq + softirq) / _TICKS_PER_S


def written_bytes(pid: int) -> int:
    """How much a process has handed to write(2) so far; 0 if it is gone."""
    try:
        text = Path(f"/proc/{pid}/io").read_text()
    except OSError:
        return 0
    return int(text.split("wchar: ")[1].split()[0])


def engine_socket() -> str:
    """The path of the engine's socket."""
    return os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock").removeprefix("unix://")


def engine_pid() -> int:
    """The process that listens at the engine's socket."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(engine_socket())
        raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return int(struct.unpack("3i", raw)[0])
