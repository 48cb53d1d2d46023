"""Output under faults: steps print known bytes while something is harmed; then every byte is looked for everywhere.

Nothing may be lost and nothing doubled: what the step's end says, what every master answers, and what stands in the
files of every master is what was printed, and the indexes of the masters are the same.
"""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tests.chaos import disks
from tests.chaos.faults import Scene, caught_up
from tests.chaos.group import Group, Shape, until
from tests.chaos.network import Namespaces
from tests.e2e import printing
from tests.e2e.printing import Program, printed_by
from tests.e2e.readback import (
    STREAMS,
    Gap,
    gaps_in,
    wrong_as_reported,
    wrong_but_for_gaps,
    wrong_in_files,
    wrong_when_read,
    wrong_when_shown,
)

DOCKER: Final = "a1"
HOST: Final = "a2"
RUNTIMES: Final = {
    DOCKER: ("--runtime", "docker", "--labels", "me=a1"),
    HOST: ("--runtime", "host", "--allow-host-runtime", "--ignore-images", "--labels", "me=a2"),
}
#: Agents go on for longer than any link is cut.
SHAPE: Final = Shape(
    agents=2,
    master_flags=("--lease", "90s", "--heartbeat", "1s"),
    agent_flags=("--slots", "16", "--cpus", "16", "--memory", "8Gi", "--stop-grace", "1s", "--drain-timeout", "0s"),
    runtimes=RUNTIMES,
)
SMALL_DISK_MB: Final = 2_000
_BEGINS_WITHIN_S = 60.0
_ENDS_WITHIN_S = 240.0
_ALIKE_WITHIN_S = 120.0
_QUIET_S = 2.0  # of output after the fault


@dataclass(frozen=True, slots=True)
class Work:
    """A program and where it runs."""

    program: Program
    agent: str
    is_shared: bool = False

    def definition(self) -> dict[str, Any]:
        wanted = {"agent": f"me={self.agent}"}
        return (self.program.shared() if self.is_shared else self.program.own()) | wanted

    @property
    def title(self) -> str:
        where = "host" if self.agent == HOST else "shared container" if self.is_shared else "own container"
        return f"{self.program.title}, {where}"


def works(seconds: float) -> list[Work]:
    """What prints for so long, and a little more."""
    bursts = round((seconds + _QUIET_S) * 10)
    steady, flood = printing.at_length(bursts), printing.flood(bursts)
    return [
        *(Work(one, DOCKER) for one in (steady, flood)),
        *(Work(one, DOCKER, is_shared=True) for one in (steady, flood)),
        *(Work(one, HOST) for one in (steady, flood)),
    ]


# --- what is done ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Harm:
    """`do` harms for so many seconds, and mends; `seconds` in full. `costs`: why there may be gaps after it."""

    about: str
    do: Callable[[Scene, float], Awaitable[None]]
    seconds: float
    costs: str = ""


async def _kill_agent(scene: Scene, seconds: float) -> None:
    scene.group.kill(DOCKER)
    await asyncio.sleep(seconds)
    scene.group.start(DOCKER)


async def _kill_leader(scene: Scene, seconds: float) -> None:
    leader = await scene.group.leader()
    scene.group.kill(leader)
    await asyncio.sleep(seconds)
    scene.group.start(leader)


async def _kill_follower(scene: Scene, seconds: float) -> None:
    follower = await scene.follower()
    assert follower is not None
    scene.group.kill(follower)
    await asyncio.sleep(seconds)
    scene.group.start(follower)


async def _fill_leader(scene: Scene, seconds: float) -> None:
    await _lead(scene, _small(scene))
    await _fill(scene, seconds)


async def _fill_follower(scene: Scene, seconds: float) -> None:
    small = _small(scene)
    await _lead(scene, next(name for name in scene.group.masters if name != small))
    await _fill(scene, seconds)


async def _fill(scene: Scene, seconds: float) -> None:
    small = _small(scene)
    ballast = scene.group.data_dir(small) / "ballast"
    try:
        await asyncio.to_thread(disks.fill, ballast)
        free = shutil.disk_usage(ballast.parent).free
        scene.say(f"the disk of {small} is full ({free:,} B left), led by {await scene.leader()}")
        await asyncio.sleep(seconds)
    finally:
        ballast.unlink(missing_ok=True)


def _small(scene: Scene) -> str:
    return next(name for name in scene.group.masters if scene.group.data_dir(name).is_mount())


async def _lead(scene: Scene, name: str) -> None:
    """Let that master lead."""

    async def leads() -> bool:
        if await scene.leader() == name:
            return True
        await scene.group.verb("cluster", "transfer", scene.group.urls[name])
        return False

    await until(leads, 60.0)


async def _cut_agent(scene: Scene, seconds: float) -> None:
    await _cut(scene, DOCKER, seconds)


async def _cut_leader(scene: Scene, seconds: float) -> None:
    await _cut(scene, await scene.group.leader(), seconds)


async def _cut(scene: Scene, name: str, seconds: float) -> None:
    network = scene.network
    assert isinstance(network, Namespaces), "cuts need the namespaces"
    network.isolate(name)
    await asyncio.sleep(seconds)
    network.heal()


AGENT_KILLED: Final = Harm("the agent is killed -9", _kill_agent, 10.0)
LEADER_KILLED: Final = Harm("the leader is killed -9", _kill_leader, 5.0)
FOLLOWER_AWAY: Final = Harm("a follower is away", _kill_follower, 60.0)
LEADER_FULL: Final = Harm("the leader's disk is full", _fill_leader, 20.0)
FOLLOWER_FULL: Final = Harm("a follower's disk is full", _fill_follower, 20.0)
AGENT_CUT: Final = Harm("the agent is cut off", _cut_agent, 30.0)
LEADER_CUT: Final = Harm("the leader is cut off", _cut_leader, 30.0)
HARMS: Final = (AGENT_KILLED, LEADER_KILLED, FOLLOWER_AWAY, LEADER_FULL, FOLLOWER_FULL, AGENT_CUT, LEADER_CUT)


# --- one trial -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """What came of one harm: bytes printed, and of those missing as gaps say (0 where one does not know how many);
    seconds from the first submission to the last end, and to alike copies."""

    about: str
    printed: int
    gaps: Sequence[Gap]
    ended_s: float
    alike_s: float
    wrong: Sequence[str]


async def trial(scene: Scene, harm: Harm, seconds: float, todo: Sequence[Work] = ()) -> Trial:
    """Programs print, harm is done for so long and mended, they end, all masters have all of it."""
    group = scene.group
    await until(group.is_whole, 60.0)
    began = time.monotonic()
    todo = todo or works(seconds)
    run_ids = [await submit(group, work.definition()) for work in todo]
    for run_id in run_ids:
        await until(lambda run_id=run_id: _has_printed(group, run_id), _BEGINS_WITHIN_S)  # type: ignore[misc]
    scene.say(f"{harm.about} for {seconds:g} s")
    await harm.do(scene, seconds)
    scene.say("mended")
    runs = [await ended(group, run_id) for run_id in run_ids]
    ended_s = time.monotonic() - began
    for name in group.masters:
        await caught_up(group, name, 60.0)
    wrong = [f"{run['id']} {run['state']}: {run['reason']}" for run in runs if run["state"] != "succeeded"]
    wrong += await _until_alike(group, run_ids)
    alike_s = time.monotonic() - began
    gaps: list[Gap] = []
    for run, work in zip(runs, todo, strict=True):
        wrong += [f"{work.title}: {what}" for what in await _wrong_with(group, run, work.program, harm.costs, gaps)]
    for what in wrong:
        scene.fail(f"{harm.about}: {what}")
    printed = sum(printed_by(work.program, stream).length for work in todo for stream in STREAMS)
    found = Trial(about=harm.about, printed=printed, gaps=gaps, ended_s=ended_s, alike_s=alike_s, wrong=wrong)
    scene.say(told(found))
    return found


def told(one: Trial) -> str:
    outcome = f"{len(one.wrong)} WRONG" if one.wrong else "all there, once, everywhere"
    if one.gaps and not one.wrong:
        missing = sum(gap.length for gap in one.gaps)
        outcome = f"all else there, once, everywhere; {len(one.gaps)} gaps, of {missing:,} B that are known"
    times = f"ended {one.ended_s:5.1f} s, alike {one.alike_s:5.1f} s"
    return f"{one.about:28} {one.printed:>13,} B printed, {times}: {outcome}"


async def submit(group: Group, definition: dict[str, Any]) -> str:
    """Its id."""
    run = await group.call(await group.leader(), "POST", "/api/v1/runs", json=definition, timeout_s=20.0)
    assert run is not None, f"{definition['name']} is not taken"
    return str(run["id"])


async def _has_printed(group: Group, run_id: str) -> bool:
    path = f"/api/v1/runs/{run_id}/logs?limit=1"
    return bool(await group.call(await group.leader(), "GET", path, timeout_s=10.0))


async def ended(group: Group, run_id: str) -> dict[str, Any]:
    """The run, once it is over, as whoever leads then has it."""

    async def over() -> dict[str, Any] | None:
        run = await group.call(await group.leader(), "GET", f"/api/v1/runs/{run_id}", timeout_s=10.0)
        return run if run and run["finished_at"] else None

    return dict(await until(over, _ENDS_WITHIN_S))


async def _until_alike(group: Group, run_ids: Sequence[str]) -> list[str]:
    """Wait until every master has the same records of these runs."""

    def are_alike() -> bool:
        return all(len({_records(group, name, run_id) for name in group.masters}) == 1 for run_id in run_ids)

    try:
        await until(are_alike, _ALIKE_WITHIN_S)
    except AssertionError:
        return [f"the masters' copies do not become alike within {_ALIKE_WITHIN_S:g} s"]
    return []


def _records(group: Group, name: str, run_id: str) -> bytes:
    path = logs_dir(group, name, run_id) / "index"
    return path.read_bytes() if path.exists() else b""


def logs_dir(group: Group, name: str, run_id: str) -> Path:
    """Where that master has the output of the run."""
    return group.data_dir(name) / "logs" / run_id


async def _wrong_with(group: Group, run: dict[str, Any], program: Program, costs: str, gaps: list[Gap]) -> list[str]:
    attempts = [attempt["state"] for task in run["tasks"] for attempt in task["attempts"]]
    if attempts != ["succeeded"]:
        return [f"its attempts are {attempts}"]
    assert group.http is not None
    directories = {name: logs_dir(group, name, run["id"]) for name in group.masters}
    if costs:
        wrong = await asyncio.to_thread(wrong_but_for_gaps, directories, run, program, costs)
        if not wrong:
            found = await asyncio.to_thread(gaps_in, directories[group.masters[0]], run)
            gaps += [gap for of_stream in found.values() for gap in of_stream]
            wrong += await wrong_when_shown(group.http, group.urls[group.masters[0]], run, found)
        return wrong
    wrong = wrong_as_reported(run, program)
    wrong += await wrong_when_read(group.http, group.urls[await group.leader()], run, program)
    for url in group.urls.values():
        wrong += await wrong_when_read(group.http, url, run, program, stale="1")  # of its own copy
    return wrong + await asyncio.to_thread(wrong_in_files, directories, run, program)
