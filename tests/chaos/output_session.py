"""The session `output`: every harm in full, with an engine of its own, and copies that are wiped; what came of each."""

from __future__ import annotations

import random
from pathlib import Path

from tests.chaos import output, wiping
from tests.chaos.disks import small_disk
from tests.chaos.engines import a_live_engine
from tests.chaos.faults import Scene
from tests.chaos.group import a_group
from tests.chaos.network import namespaces
from tests.chaos.watch import Timeline

_MASTERS = ("m1", "m2", "m3")


async def session(directory: Path, timeline: Timeline, seed: int, rounds: int) -> tuple[list[str], list[str]]:
    """What is to be printed, and the violations."""
    harmed, wiped = directory / "harmed", directory / "wiped"
    done: list[output.Trial] = []
    problems: list[str] = []
    async with a_live_engine() as engine:
        with (
            small_disk(harmed / _MASTERS[-1], output.SMALL_DISK_MB),
            namespaces([*_MASTERS, output.DOCKER, output.HOST]) as network,
        ):
            async with a_group(harmed, engine.shape(), network) as group:
                scene = Scene(group, random.Random(seed), timeline, network)
                for harm in (*output.HARMS, *engine.harms()) * rounds:
                    done.append(await output.trial(scene, harm, harm.seconds))
                problems += scene.problems
    for replicas in (1, 2):
        below = wiped / str(replicas)
        below.mkdir(parents=True)
        async with a_group(below, wiping.shape(replicas)) as group:
            scene = Scene(group, random.Random(seed), timeline)
            done += [await wiping.while_printing(scene, replicas) for _ in range(rounds)]
            await wiping.after_the_end(scene)
            problems += scene.problems
    return [output.told(one) for one in done], problems
