"""What output is measured against: an attach with nothing around it, `docker logs -f`, and GNU grep on the plain file."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benches.logs_cluster import (
    FIRST_LINES,
    IMAGE,
    INSIDE,
    LINE_BYTES,
    CpuMeter,
    Gate,
    Text,
    engine_pid,
    engine_socket,
    written_bytes,
)  # fmt: skip

#: What agent/policy.py asks the engine for: one file without a bound, so that nothing rotates away.
LOG_CONFIG = {"Type": "local", "Config": {"max-size": "1048576g", "max-file": "1", "compress": "false"}}
_POLL_S = 0.005
_WAIT_S = 300.0


def printing(inside: str, gate: Gate, *, what: str = "rest", then: Gate | None = None) -> str:
    """A script: the first lines, then at the gate all that `what` holds; its end waits for another gate, if any.

    Who has the first lines is connected: what is timed begins with the gate.
    """
    script = f"cat {inside}/first; : <{inside}/{gate.path.name}; cat {inside}/{what}"
    return script + (f"; : <{inside}/{then.path.name}" if then is not None else "")


def _call(method: str, path: str, body: object = None) -> bytes:
    """One call to the engine; the answer's body."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(engine_socket())
        raw = b"" if body is None else json.dumps(body).encode()
        head = f"{method} /v1.41/{path} HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n"
        head += f"Content-Type: application/json\r\nContent-Length: {len(raw)}\r\n\r\n"
        connection.sendall(head.encode() + raw)
        answer = b""
        while piece := connection.recv(1 << 16):
            answer += piece
    status = int(answer[9:12])
    assert status < 300, answer
    return answer.partition(b"\r\n\r\n")[2]


@contextmanager
def a_container(text: Text, script: str) -> Iterator[str]:
    """One that prints, created and not started."""
    host = {"Binds": [f"{text.directory}:{INSIDE}"], "LogConfig": LOG_CONFIG}
    body = {"Image": IMAGE, "Entrypoint": ["/bin/sh", "-ec", script], "HostConfig": host}
    container = json.loads(_call("POST", "containers/create", body))["Id"]
    try:
        yield container
    finally:
        _call("DELETE", f"containers/{container}?force=1")


def start(container: str) -> None:
    _call("POST", f"containers/{container}/start")


def attach_client(container: str) -> None:
    """The program of the bare attach: from the socket to stdout, headers of the frames and all."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(engine_socket())
        head = f"POST /v1.41/containers/{container}/attach?stream=1&stdout=1&stderr=1 HTTP/1.1\r\nHost: bench\r\n"
        head += "Connection: Upgrade\r\nUpgrade: tcp\r\nContent-Length: 0\r\n\r\n"
        connection.sendall(head.encode())
        assert connection.recv(4096).startswith(b"HTTP/1.1 101")
        start(container)
        buffer = memoryview(bytearray(1 << 18))
        while count := connection.recv_into(buffer):
            os.write(1, buffer[:count])


def bare_attach(text: Text, gate: Gate) -> tuple[float, str]:
    """MB/s to /dev/null, and the CPU that it took."""
    with a_container(text, printing(INSIDE, gate)) as container:
        program = f"from benches.logs_floor import attach_client; attach_client({container!r})"
        environ = os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)}
        command = [sys.executable, "-c", program]
        return _timed(subprocess.Popen(command, env=environ, stdout=subprocess.DEVNULL), text, gate, "client")


def docker_logs(text: Text, gate: Gate) -> tuple[float, str]:
    """The same by `docker logs -f`."""
    with a_container(text, printing(INSIDE, gate)) as container:
        start(container)
        client = subprocess.Popen(["docker", "logs", "-f", container], stdout=subprocess.DEVNULL)
        return _timed(client, text, gate, "docker")


def _timed(client: subprocess.Popen[bytes], text: Text, gate: Gate, name: str) -> tuple[float, str]:
    try:
        until_written(client, FIRST_LINES * LINE_BYTES)
        meter = CpuMeter({"engine": engine_pid(), name: client.pid})
        begun = time.perf_counter()
        gate.open()
        until_written(client, text.length)
        taken = time.perf_counter() - begun
        used = meter.used()
        client.wait(timeout=30)
    finally:
        client.kill()
        client.wait()
    return text.length / 1e6 / taken, str(used)


def until_written(client: subprocess.Popen[bytes], count: int) -> int:
    """Until the program has written so much, by what the kernel counts, or has ended: how much it has written."""
    deadline = time.monotonic() + _WAIT_S
    while True:
        # In this order, for what has ended tells what it wrote until it is waited for.
        is_over = os.waitid(os.P_PID, client.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
        if (written := written_bytes(client.pid)) >= count or is_over:
            return written
        assert time.monotonic() < deadline, f"{written:,} of {count:,} bytes after {_WAIT_S:g} s"
        time.sleep(_POLL_S)
