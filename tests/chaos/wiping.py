"""Output that is truly lost: every master that had acknowledged it loses it, while it is printed or afterwards."""

from __future__ import annotations

import asyncio
import shutil
from dataclasses import replace
from typing import Final

from tests.chaos.faults import Scene, caught_up
from tests.chaos.group import Group, Shape, until
from tests.chaos.output import HOST, SHAPE, Harm, Trial, Work, ended, submit, trial
from tests.e2e import printing
from tests.e2e.readback import wrong_where_lost

_WORKS: Final = (Work(printing.at_length(25), HOST), Work(printing.flood(25), HOST))


def shape(replicas: int) -> Shape:
    """Three masters of which so many have a frame before it is acknowledged, and no engine."""
    return replace(SHAPE, master_flags=(*SHAPE.master_flags, "--log-replicas", str(replicas)))


async def _wipe(scene: Scene, replicas: int) -> None:
    """Kill the masters that have most, remove what they have, start them again."""
    group = scene.group
    names = sorted(group.masters, key=lambda name: _records(group, name))[-replicas:]
    for name in names:
        group.running[name].kill()
    for name in names:
        group.kill(name)
        shutil.rmtree(group.data_dir(name) / "logs")
    scene.say(f"{' and '.join(names)} {'have' if len(names) > 1 else 'has'} lost all output")
    for name in names:
        group.start(name)


def _records(group: Group, name: str) -> int:
    return sum(path.stat().st_size for path in (group.data_dir(name) / "logs").glob("*/index"))


async def while_printing(scene: Scene, replicas: int) -> Trial:
    """Copies are destroyed under steps that print; what was lost is a gap of so many bytes, for all to see."""

    async def do(scene: Scene, seconds: float) -> None:
        await asyncio.sleep(seconds)  # so that there is something to lose
        await _wipe(scene, replicas)

    harm = Harm(f"{replicas} of {replicas} copies are wiped", do, 1.0, costs="lost")
    found = await trial(scene, harm, harm.seconds, _WORKS)
    if not sum(gap.length for gap in found.gaps):
        scene.fail(f"{harm.about}: nothing was lost, so nothing is shown by this")
    return found


async def after_the_end(scene: Scene) -> None:
    """Every copy is destroyed once the step has ended: reading says what is missing."""
    group, work = scene.group, Work(printing.both(20_000), HOST)
    run = await ended(group, await submit(group, work.definition()))
    await _wipe(scene, len(group.masters))
    await until(group.is_whole, 60.0)
    for name in group.masters:
        await caught_up(group, name, 60.0)
    assert group.http is not None
    wrong = await wrong_where_lost(group.http, group.urls[await group.leader()], run, work.program)
    for what in wrong:
        scene.fail(f"all copies are wiped after the end: {what}")
    scene.say(f"all copies are wiped after the end: {'WRONG' if wrong else 'what is lost is shown'}")
