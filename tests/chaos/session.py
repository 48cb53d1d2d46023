"""One session of chaos: a load, faults beside it, healing, quiet, and the checks; `Report` is what came of it."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.chaos.checks import Findings, check_files, until_quiet
from tests.chaos.faults import Fault, Scene
from tests.chaos.group import Group
from tests.chaos.load import Load
from tests.chaos.network import Namespaces
from tests.chaos.watch import Timeline, Watch

_QUIET_S = 180.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Script:
    """How long, how much, and what goes wrong: a fault every `every_s`, or after a pause of chance's choosing."""

    seed: int
    faults: Mapping[str, Fault] = field(default_factory=dict)
    duration_s: float = 60.0
    rate: float = 50.0
    count: int | None = None  # of submissions; the session ends with the last one
    every_s: float | None = None
    at_once: int = 1
    wants_all: bool = False  # a submission that was given up is a violation too


@dataclass(slots=True)
class Report:
    """What came of it; `violations` is empty where all is well."""

    violations: list[str]
    load: Load
    findings: Findings
    watch: Watch
    counts: dict[str, int]

    def lines(self) -> list[str]:
        waits = self.load.waits()
        at = {name: f"{1000 * waits[int(share * (len(waits) - 1))]:.0f}" for name, share in _QUANTILES} if waits else {}
        quantiles = ", ".join(f"{name} {value}" for name, value in at.items())
        gap_s, gap_at = self.load.longest_gap()
        gap_at -= self.watch.timeline.begun
        tries = sum(self.load.tries.reasons.values())
        return [
            f"faults        {', '.join(f'{name} {n}' for name, n in sorted(self.counts.items())) or 'none'}",
            f"submissions   {len(self.load.submissions)}, acknowledged {len(self.load.acknowledged)},"
            f" given up {len(self.load.refused)}",
            *(f"given up      {one.key}: {one.refusal}" for one in self.load.refused[:3]),
            f"answers       {quantiles} ms; longest gap {gap_s:.2f} s, from {gap_at:.2f} s on",
            f"tried in vain {tries}: {self._reasons()}",
            f"runs          {self.findings.runs}, executions {self.findings.executions},"
            f" attempts {dict(self.findings.attempts)}; longest wait for any start {self.findings.idle_s:.1f} s",
            f"masters       {len(self.watch.leaders)} terms with a leader seen, index {self.findings.applied_index},"
            f" tables {self.findings.tables}, worst loop lag of a leader {self.watch.worst_lag_ms} ms",
            *(f"VIOLATION     {one}" for one in self.violations[:20]),
            f"{len(self.violations)} violations" if self.violations else "all is well",
        ]

    def _reasons(self) -> str:
        told = sorted(self.load.tries.reasons.items(), key=lambda item: -item[1])
        return ", ".join(f"{reason} {count}" for reason, count in told) or "none"


_QUANTILES = (("p50", 0.5), ("p99", 0.99), ("max", 1.0))
Beside = Callable[[Scene], Coroutine[Any, Any, None]]


async def play(
    group: Group,
    script: Script,
    *,
    timeline: Timeline,
    network: Namespaces | None = None,
    beside: Beside | None = None,
) -> Report:
    """`beside` takes the place of the random faults. The masters are dead afterwards; their files are there."""
    chance = random.Random(script.seed)
    side_file = group.directory / "executions"
    load = Load(list(group.urls.values()), side_file, script.rate, random.Random(script.seed), script.count)
    scene = Scene(group, chance, timeline, network)
    watch = Watch(group, timeline)
    async with asyncio.TaskGroup() as tasks:
        watching = tasks.create_task(watch.serve())
        loading = tasks.create_task(load.run())
        harming: list[asyncio.Task[None]] = [tasks.create_task(one) for one in _harm(scene, script, beside, loading)]
        await asyncio.gather(*harming)
        timeline.say(f"no more faults; {len(load.submissions)} submissions so far")
        load.stop()
        await heal(scene)
        await loading
        timeline.say(f"{len(load.acknowledged)} of {len(load.submissions)} submissions are acknowledged")
        violations = list(scene.problems)
        try:
            await until_quiet(group, watch, _QUIET_S)
            timeline.say("quiet")
        except AssertionError as late:
            violations.append(f"liveness: {late}")
        watching.cancel()
    violations += [f"{name} ended by itself" for name in group.running if group.has_ended(name)]
    group.kill_masters()
    findings = check_files(group, load.acknowledged, side_file)
    violations += watch.violations + findings.violations
    if script.wants_all:
        violations += [f"{one.key} was given up: {one.refusal}" for one in load.refused]
    return Report(violations, load, findings, watch, scene.counts)


def _harm(
    scene: Scene, script: Script, beside: Beside | None, loading: asyncio.Task[None]
) -> Sequence[Coroutine[Any, Any, None]]:
    if beside is not None:
        return [beside(scene)]
    if not script.faults:
        return [_until_end(script, loading)]
    return [_misbehave(scene, script, loading) for _ in range(script.at_once)]


async def _until_end(script: Script, loading: asyncio.Task[None]) -> None:
    await asyncio.wait([loading], timeout=None if script.count else script.duration_s)


async def _misbehave(scene: Scene, script: Script, loading: asyncio.Task[None]) -> None:
    """One fault after the other, until it is time or the load has ended."""
    end = time.monotonic() + script.duration_s
    names = sorted(script.faults)
    while not loading.done() and (script.count is not None or time.monotonic() < end):
        due = time.monotonic() + (script.every_s or scene.chance.uniform(0.5, 4.0))
        name = scene.chance.choice(names)
        scene.counts[name] = scene.counts.get(name, 0) + 1
        await script.faults[name](scene)
        _revive(scene)
        await asyncio.wait([loading], timeout=max(0.0, due - time.monotonic()))


def _revive(scene: Scene) -> None:
    """A master that has ended by itself is worth knowing of, and is started again."""
    group = scene.group
    for name in group.masters:
        if name not in scene.hurt and group.has_ended(name):
            code = group.running.pop(name).returncode
            scene.fail(f"{name} ended by itself with {code}")
            group.start(name)


async def heal(scene: Scene) -> None:
    """Everything that was broken is whole again, and every process runs."""
    if scene.network is not None:
        scene.network.heal()
    for name in [*scene.group.masters, *scene.group.agents]:
        if name in scene.group.running:
            scene.group.resume(name)
        else:
            scene.group.start(name)
