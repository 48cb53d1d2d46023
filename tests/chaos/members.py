"""Masters that are replaced while the group works: taken out, their data thrown away, brought back as new members."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path
from typing import Final

from tests.chaos.faults import Fault, Scene, caught_up
from tests.chaos.group import until


async def replace(scene: Scene) -> None:
    """`pistage cluster remove`, an empty directory, `pistage cluster join`: it votes again at the end."""
    group = scene.group
    victim = await (scene.leader() if scene.chance.random() < 0.4 else scene.follower())
    with scene.harming(victim) as name:
        if name is None:
            return
        code, said = await group.verb("cluster", "remove", group.urls[name])
        if code and "no master" not in said:  # what a second try says where the first one's answer was lost
            scene.say(f"{name} is not taken out: {said}")  # another one is away, and too few would be left
            return
        scene.say(f"{name} is taken out")
        group.kill(name)
        _empty(group.data_dir(name))
        await asyncio.sleep(scene.chance.uniform(0.0, 2.0))
        code, said = await group.verb("cluster", "join", *group.master_flags(name), prefix=group.prefix(name))
        if code:
            scene.fail(f"cluster join of {name} failed: {said}")
        group.start(name)
        try:
            await until(lambda: _votes(scene, name), 40.0)
            await caught_up(group, name, 40.0)
            scene.say(f"{name} is a new member and votes")
        except AssertionError as late:
            scene.fail(f"{name} was replaced and does not vote: {late}")


async def _votes(scene: Scene, name: str) -> bool:
    leader = await scene.leader()
    view = await scene.group.status(leader) if leader else None
    here = scene.group.urls[name]
    return view is not None and any(one["url"] == here and one["is_voter"] for one in view["masters"])


def _empty(directory: Path) -> None:
    """What is in it, not itself: it may be a file system of its own."""
    for inside in directory.iterdir():
        shutil.rmtree(inside) if inside.is_dir() else inside.unlink()


FAULTS: Final[dict[str, Fault]] = {"replace": replace}
