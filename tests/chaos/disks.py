"""Disks that are slow, that fail, and that are full: what the system calls of one master meet, and a mount of its own.

`strace` stands between a master and the kernel: it delays the calls that make data durable, or answers them with EIO.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Final

from tests.chaos.faults import Fault, Scene, caught_up

_CALLS: Final = "fdatasync,fsync"
_ENDS_WITHIN_S: Final = 30.0


@contextlib.asynccontextmanager
async def _traced(pid: int, injection: str) -> AsyncIterator[None]:
    command = ["strace", "-f", "-qq", "-e", f"trace={_CALLS}", "-e", f"inject={_CALLS}:{injection}", "-o", "/dev/null"]
    tracer = await asyncio.create_subprocess_exec(*command, "-p", str(pid), stderr=asyncio.subprocess.DEVNULL)
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):  # it ends with whom it traces
            tracer.terminate()
        await tracer.wait()


async def slow_fsync(scene: Scene) -> None:
    """Every flush of the leader's, or a follower's, takes longer for a while: 5 ms to 1 s."""
    victim = await (scene.leader() if scene.chance.random() < 0.6 else scene.follower())
    with scene.harming(victim) as name:
        if name is None:
            return
        delay_ms = round(5 * 200 ** scene.chance.random())
        seconds = scene.chance.uniform(3.0, 10.0)
        scene.say(f"fsync of {name} takes {delay_ms} ms longer for {seconds:.1f} s")
        async with _traced(scene.group.pid(name), f"delay_enter={1000 * delay_ms}"):
            await asyncio.sleep(seconds)
        scene.say(f"fsync of {name} is fast again")


async def failing_fsync(scene: Scene) -> None:
    """One flush fails with EIO: the master must end at once, with an error, and is started again."""
    victim = await (scene.leader() if scene.chance.random() < 0.6 else scene.follower())
    with scene.harming(victim) as name:
        if name is None:
            return
        scene.say(f"the next fsync of {name} fails with EIO")
        loop = asyncio.get_running_loop()
        begun = loop.time()
        async with _traced(scene.group.pid(name), "error=EIO"):
            try:
                code = await scene.group.exit_of(name, _ENDS_WITHIN_S)
            except AssertionError:
                scene.fail(f"{name} goes on {_ENDS_WITHIN_S:g} s after an fsync failed")
                return
        scene.say(f"{name} ended with {code} after {loop.time() - begun:.1f} s")
        if code == 0:
            scene.fail(f"{name} ended with 0 after an fsync failed")
        await asyncio.sleep(scene.chance.uniform(0.2, 2.0))
        scene.group.start(name)
        await _back(scene, name)


async def full_disk(scene: Scene) -> None:
    """The disk of the one master that has a small one of its own is filled to the last byte, and freed later."""
    name = next((one for one in scene.group.masters if os.path.ismount(scene.group.data_dir(one))), None)
    assert name is not None, "full-disk needs a master with `small_disk`"
    with scene.harming(name) as taken:
        if taken is None:
            return
        if scene.chance.random() < 0.5:
            await scene.group.verb("cluster", "transfer", scene.group.urls[name])
        leader = await scene.leader()
        ballast = scene.group.data_dir(name) / "ballast"
        seconds = scene.chance.uniform(3.0, 10.0)
        free = shutil.disk_usage(scene.group.data_dir(name)).free
        scene.say(f"the disk of {name}{' (leader)' if name == leader else ''} is full for {seconds:.1f} s ({free:,} B)")
        try:
            await asyncio.to_thread(fill, ballast)
            await asyncio.sleep(seconds)
        finally:
            ballast.unlink(missing_ok=True)
        scene.say(f"the disk of {name} has space again")
        await _back(scene, name)


def fill(ballast: Path) -> None:
    """To the last byte of its file system."""
    with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
        for size in (1 << 20, 4096, 1):
            with contextlib.suppress(OSError):
                while file.write(bytes(size)):
                    pass


async def _back(scene: Scene, name: str) -> None:
    try:
        await caught_up(scene.group, name, 60.0)
    except AssertionError as late:
        scene.fail(str(late))


@contextlib.contextmanager
def small_disk(directory: Path, megabytes: int) -> Iterator[None]:
    """A file system of its own at `directory`, as long as the block runs."""
    directory.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", directory], check=True)
    try:
        yield
    finally:
        kept = directory.with_name(f"{directory.name}-kept")
        shutil.copytree(directory, kept, ignore=shutil.ignore_patterns("ballast"))
        subprocess.run(["umount", "-l", directory], check=False)


FAULTS: Final[dict[str, Fault]] = {
    "slow-fsync": slow_fsync,
    "failing-fsync": failing_fsync,
    "full-disk": full_disk,
}
