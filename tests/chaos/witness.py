"""What a step runs to show that it is there: a sign every 5 ms in a file of its own, until it is told to end.

Run as a program it imports nothing of ours and little else, so that its first sign comes soon after its start. Times
are seconds since the machine was started, the same in every namespace.
"""

from __future__ import annotations

import os
import shlex
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

EVERY_S = 0.005
_LIFE_MAX_S = 90.0  # it ends by itself if nobody ends it


def now_s() -> float:
    """The clock of the signs."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def script(directory: Path, *, is_stubborn: bool) -> str:
    """The command of a step; a stubborn one does not heed the stop signal."""
    words = [sys.executable, "-I", "-S", __file__, str(directory), "stubborn" if is_stubborn else "meek"]
    return f"exec {shlex.join(words)}"


@dataclass(frozen=True, slots=True)
class Signs:
    """What one execution has left so far. `started_s` is the kernel's, at most 10 ms before the truth, never after."""

    fence: int
    agent: str
    pid: int
    started_s: float
    last_s: float

    @property
    def is_alive(self) -> bool:
        """Whether its process is there; a number that a stranger has now does not count."""
        return _started_s(self.pid) == self.started_s


def seen(directory: Path) -> list[Signs]:
    """Every execution, the oldest fence first."""
    found = [signs for file in directory.glob("*.signs") if (signs := _read(file)) is not None]
    return sorted(found, key=lambda signs: signs.fence)


def tell_to_end(directory: Path, fence: int) -> None:
    """The execution ends with success within a few milliseconds."""
    (directory / f"{fence}.end").touch()


def _read(file: Path) -> Signs | None:
    head, _, rest = file.read_text(encoding="ascii").partition("\n")
    words, signs = head.split(" "), rest.split("\n")[:-1]
    if len(words) != 3:  # it is being written
        return None
    started_s = float(words[2])
    return Signs(int(file.stem), words[0], int(words[1]), started_s, float(signs[-1]) if signs else started_s)


def _started_s(pid: int) -> float:
    """When the process was started, as the kernel counts it: in hundredths; 0 if there is none, or a dead one."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return 0.0
    fields = text.rpartition(")")[2].split()
    return 0.0 if fields[0] in "ZX" else int(fields[19]) / os.sysconf("SC_CLK_TCK")


def _witness(directory: Path, *, is_stubborn: bool) -> int:
    if is_stubborn:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    fence, agent = os.environ["PISTAGE_FENCE"], os.environ["PISTAGE_AGENT"]
    end = directory / f"{fence}.end"
    # Not to be there twice under one fence is part of what is shown: the second one fails.
    file = os.open(directory / f"{fence}.signs", os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o600)
    os.write(file, f"{agent} {os.getpid()} {_started_s(os.getpid())}\n".encode())
    until_s = now_s() + _LIFE_MAX_S
    while not end.exists():
        os.write(file, f"{now_s():.6f}\n".encode())
        if now_s() > until_s:
            return 1
        time.sleep(EVERY_S)
    return 0


if __name__ == "__main__":
    sys.exit(_witness(Path(sys.argv[1]), is_stubborn=sys.argv[2] == "stubborn"))
