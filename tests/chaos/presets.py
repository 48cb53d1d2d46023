"""The sessions that have a name: which group, which load, which faults."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from tests.chaos import cutting, disks, measures, members, output_session, schedules, starts
from tests.chaos.faults import BASIC, NEEDS_NETWORK, Fault, Scene, upgrade
from tests.chaos.group import Shape, a_group
from tests.chaos.network import namespaces
from tests.chaos.session import Beside, Report, Script, play
from tests.chaos.watch import Timeline

FAULTS: Final[Mapping[str, Fault]] = BASIC | disks.FAULTS | members.FAULTS
_SMALL_DISK_MB: Final = 96


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """`faults` by name; `script` with the rest; `beside` in place of the faults; `measure` in place of all that.

    What measures is given the scene and how many trials there are to be, `trials` unless a count is asked for. A
    `session` is given the seed and that number, and makes what it needs by itself.
    """

    about: str
    faults: tuple[str, ...] = ()
    shape: Shape = field(default_factory=Shape)
    script: Script = field(default_factory=lambda: Script(seed=0))
    beside: Callable[[], Beside] | None = None
    measure: Callable[[Scene, int], Awaitable[list[str]]] | None = None
    session: Callable[[Path, Timeline, int, int], Awaitable[tuple[list[str], list[str]]]] | None = None
    trials: int = 30
    cuts_agents: bool = False


_SHOWN = Script(seed=0, rate=50.0, count=2_000, every_s=5.0, wants_all=True)


def _catching_up(entries: int) -> Callable[[], Beside]:
    return lambda: measures.CatchUp(entries).run


async def _rolling(scene: Scene) -> None:
    for _ in range(3):
        await upgrade(scene)


async def _failover(scene: Scene, trials: int) -> list[str]:
    gaps = await measures.failover_gaps(scene.group, trials, scene.timeline)
    return [f"leader kill -9 to the next write: {measures.in_short(gaps)}"]


PRESETS: Final[Mapping[str, Preset]] = {
    "kill": Preset(about="kill -9 of the leader every 5 s", faults=("kill-leader",), script=_SHOWN),
    "stop": Preset(about="SIGSTOP of the leader, 0.2 to 30 s", faults=("stop-leader",), script=_SHOWN),
    "partition": Preset(
        about="partitions both ways, one way and between two, every 5 s",
        faults=("partition", "partition-one-way", "partition-bridge"),
        script=_SHOWN,
    ),
    "disk": Preset(
        about="flushes that are slow or fail, and a full disk",
        faults=("slow-fsync", "failing-fsync", "full-disk"),
        script=Script(seed=0, duration_s=90.0),
    ),
    "behind": Preset(
        about="a follower that missed 100,000 changes catches up from the log",
        shape=Shape(master_flags=("--log-entries-kept", "300000")),
        script=Script(seed=0, rate=20.0, wants_all=True),
        beside=_catching_up(100_000),
    ),
    "snapshot": Preset(
        about="a follower that missed more than the log keeps catches up by a snapshot",
        shape=Shape(master_flags=("--log-entries-kept", "5000")),
        script=Script(seed=0, rate=20.0, wants_all=True),
        beside=_catching_up(30_000),
    ),
    "rolling": Preset(
        about="every master stopped and started in turn, three times over",
        script=Script(seed=0, wants_all=True),
        beside=lambda: _rolling,
    ),
    "replace": Preset(
        about="a master taken out, emptied and brought back, again and again",
        faults=("replace",),
        script=Script(seed=0, duration_s=60.0, wants_all=True),
    ),
    "failover": Preset(about="kill -9 of the leader to the next write, 30 times", measure=_failover),
    "agents-cut": Preset(
        about="agents cut off, stopped, killed: the old execution's end and the new one's start, 50 cuts",
        shape=cutting.SHAPE,
        measure=cutting.measure,
        trials=50,
        cuts_agents=True,
    ),
    "starts": Preset(
        about="kill -9 of the leader while 200 tasks are being started, 30 times",
        shape=starts.SHAPE,
        measure=starts.measure,
    ),
    "schedules": Preset(
        about="kill -9 of the leader every 3 s under 200 schedules that fire every second, for 2 minutes",
        shape=schedules.SHAPE,
        measure=schedules.measure,
        trials=schedules.KILLS,
    ),
    "output": Preset(
        about="steps print while agent, engine, masters, a disk and links fail: each byte once, on every master",
        session=output_session.session,
        trials=1,
    ),
    "all": Preset(
        about="everything at once, of two kinds at a time",
        faults=tuple(sorted(FAULTS)),
        script=Script(seed=0, duration_s=120.0, at_once=2, rate=30.0),
    ),
}


async def run(preset: Preset, directory: Path, timeline: Timeline) -> tuple[list[str], list[str]]:
    """What is to be printed, and the violations."""
    if preset.session is not None:
        lines, problems = await preset.session(
            directory, timeline, preset.script.seed, preset.script.count or preset.trials
        )
        return _with_outcome(lines, problems)
    masters = [f"m{n}" for n in range(1, preset.shape.masters + 1)]
    with ExitStack() as stack:
        apart = [*masters, *(f"a{n}" for n in range(1, preset.shape.agents + 1))] if preset.cuts_agents else masters
        needs_network = preset.cuts_agents or NEEDS_NETWORK & set(preset.faults)
        network = stack.enter_context(namespaces(apart)) if needs_network else None
        if "full-disk" in preset.faults:
            stack.enter_context(disks.small_disk(directory / masters[-1], _SMALL_DISK_MB))
        async with a_group(directory, preset.shape, network) as group:
            timeline.say(f"{preset.shape.masters} masters and {preset.shape.agents} agents are up")
            if preset.measure is not None:
                scene = Scene(group, random.Random(preset.script.seed), timeline, network)
                return await _measured(preset, scene)
            script = replace(preset.script, faults={name: FAULTS[name] for name in preset.faults})
            beside = preset.beside() if preset.beside else None
            report: Report = await play(group, script, timeline=timeline, network=network, beside=beside)
            return report.lines(), report.violations


async def _measured(preset: Preset, scene: Scene) -> tuple[list[str], list[str]]:
    assert preset.measure is not None
    return _with_outcome(await preset.measure(scene, preset.script.count or preset.trials), scene.problems)


def _with_outcome(lines: list[str], problems: list[str]) -> tuple[list[str], list[str]]:
    told = [f"VIOLATION     {one}" for one in problems[:20]]
    last = f"{len(problems)} violations" if problems else "all is well"
    return [*lines, *told, last], problems
