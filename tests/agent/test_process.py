"""Plain processes: their output comes to an end, whatever they leave behind."""

import asyncio
import os
from pathlib import Path

import pytest

from pistage.agent.runtimes.process import ChildProcess, Launch
from tests.waiting import until


class Heard:
    is_deaf = False

    def __init__(self) -> None:
        self.data = b""

    async def write(self, stream: int, offset: int, chunk: bytes) -> None:
        self.data += chunk

    def length_of(self, stream: int) -> int:
        return len(self.data)

    async def note_gap(self, stream: int, offset: int) -> None:
        raise AssertionError


@pytest.mark.slow
@pytest.mark.parametrize("is_signalled", [True, False])
async def test_what_is_killed_ends_though_one_that_left_it_prints_on(tmp_path: Path, is_signalled: bool) -> None:
    left = tmp_path / "left"
    text = f"setsid sh -c 'echo $$ >{left}; while :; do echo x; sleep 0.1; done' & echo on; exec sleep 100"
    child = await ChildProcess.launch(Launch(argv=["sh", "-c", text], env=dict(os.environ), directory=tmp_path))
    heard = Heard()
    async with asyncio.TaskGroup() as group:
        ended = group.create_task(child.ended(heard))
        await until(lambda: b"x" in heard.data and b"on" in heard.data)
        try:
            await (child.signal("KILL") if is_signalled else child.kill())
            assert (await ended).code == 137
        finally:
            os.kill(int(left.read_text()), 9)


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def test_what_could_not_be_connected_to_leaves_no_descriptor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(child: ChildProcess, number: int, read_end: int) -> None:
        os.close(read_end)
        raise OSError("no")

    monkeypatch.setattr(ChildProcess, "_connect", broken)
    before = descriptors()
    with pytest.raises(OSError, match="no"):
        await ChildProcess.launch(Launch(argv=["true"], env=dict(os.environ), directory=tmp_path))
    await until(lambda: descriptors() == before)
