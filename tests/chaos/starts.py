"""The leader killed while two hundred tasks are being started: each is there, done once, accepted once, everywhere.

Who tells is the tasks themselves (a line each time that one is really carried out), the attempts in the state of every
master, and the journals of the agents.
"""

from __future__ import annotations

import asyncio
import json
import sqlite3
import statistics
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tests.chaos.checks import tables_hash, until_quiet, wrong_with
from tests.chaos.faults import Scene
from tests.chaos.group import Group, Shape, until
from tests.chaos.watch import Watch

TASKS: Final = 200
SHAPE: Final = Shape(agents=4, agent_flags=("--slots", "64", "--cpus", "64", "--drain-timeout", "0s"))
#: Cores that a task asks for, in turn: all find room at once and are decided together, or 32 at a time.
_CORES: Final = (1, 8)
_KILLED_BY: Final = TASKS * 4 // 5  # so many starts at the latest: there is to be something left
_QUIET_S: Final = 120.0
_LOOK_EVERY_S: Final = 0.002


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """A task that was carried out; when, by the clock of the machine."""

    key: str
    run_id: str
    fence: int
    at_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """What came of one kill: counts, and seconds from the kill on."""

    leader: str
    started: int  # when the leader was killed
    assigned: int  # by then, in the state that the next leader found
    next_s: float | None  # until anything was started: agents go on with what they were told
    decided_s: float | None  # until something was started that the killed leader had not decided
    told_late_s: float | None  # until what it had decided had been started, all of it
    all_s: float  # until the last start
    executions: int
    lost: int


def definition(side_file: Path, cores: int) -> str:
    """A run that leaves one line for each time that it is really carried out: key, run, fence, nanoseconds."""
    line = r'printf "%s %s %s %s\n" "$PISTAGE_PARAM_KEY" "$PISTAGE_RUN_ID" "$PISTAGE_FENCE" "$(date +%s%N)"'
    return json.dumps(
        {
            "name": "Start",
            "with": {"key": None},
            "image": "busybox",
            "resources": {"cpus": cores},
            "retry": 0,
            "run": f"{line} >> '{side_file}'",
        }
    )


def starts_in(side_file: Path) -> list[Start]:
    """In their order."""
    if not side_file.exists():
        return []
    words = [line.split(" ") for line in side_file.read_text(encoding="ascii").split("\n")[:-1]]
    found = [Start(key=w[0], run_id=w[1], fence=int(w[2]), at_s=int(w[3]) / 1e9) for w in words]
    return sorted(found, key=lambda start: start.at_s)


async def measure(scene: Scene, trials: int) -> list[str]:
    """So many kills; the table."""
    done = []
    watch = Watch(scene.group, scene.timeline)
    for number in range(trials):
        done.append(await trial(scene, watch, number))
    for violation in watch.violations:
        scene.fail(violation)
    return table(done)


async def trial(scene: Scene, watch: Watch, number: int) -> Trial:
    """Submit all at once, kill the leader when chance's choice of them have started, start it again, look."""
    group = scene.group
    await until(group.is_whole, 60.0)
    side_file = group.directory / f"starts-{number}"
    leader = await group.leader()
    made = await _submit(group, leader, side_file, number)
    await _until_started(side_file, scene.chance.randrange(_KILLED_BY))
    await asyncio.sleep(scene.chance.uniform(0.0, 0.02))
    killed_s = time.time()
    group.kill(leader)
    started = len(starts_in(side_file))
    await asyncio.sleep(scene.chance.uniform(0.0, 2.0))
    group.start(leader)
    try:
        await until_quiet(group, watch, _QUIET_S)
        await until(lambda: not any(group.journal_bytes(agent) for agent in group.agents), 30.0)
    except AssertionError as late:
        scene.fail(f"trial {number}: {late}")
    states = {name: group.directory / f"{name}-{number}.db" for name in group.masters}
    for name, path in states.items():
        copy_state(group, name, path)
    starts = starts_in(side_file)
    for what in _wrong(states, made, starts):
        scene.fail(f"trial {number}: {what}")
    found = _measured(states[leader], leader, killed_s, started, starts)
    scene.say(f"{number + 1:3}: {_line(found)}")
    for path in states.values():
        path.unlink()
    return found


async def _submit(group: Group, leader: str, side_file: Path, number: int) -> dict[str, str]:
    """Run by key, as acknowledged."""
    keys = [f"{number}-{n}" for n in range(TASKS)]
    body = {
        "definition": definition(side_file, _CORES[number % len(_CORES)]),
        "runs": [{"with": {"key": key}} for key in keys],
    }
    made = await group.call(leader, "POST", "/api/v1/runs/batch", json=body, timeout_s=20.0)
    assert made is not None, f"{leader} does not take the batch"
    return dict(zip(keys, (item["id"] for item in made["items"]), strict=True))


async def _until_started(side_file: Path, wanted: int) -> None:
    deadline = time.monotonic() + 60
    while wanted and (not side_file.exists() or side_file.read_bytes().count(b"\n") < wanted):
        assert time.monotonic() < deadline, f"{wanted} of {TASKS} have not started within a minute"
        await asyncio.sleep(_LOOK_EVERY_S)


# --- what must hold --------------------------------------------------------------------------------------------------


def copy_state(group: Group, name: str, target: Path) -> None:
    """The state of a master that runs, and rests."""
    data = group.data_dir(name)
    with closing(_opened(data / "raft.db")) as raft:
        generation = raft.execute("SELECT generation FROM node").fetchone()[0]
    source = _opened(data / "state" / str(generation) / "state.db")
    with closing(source), closing(sqlite3.connect(target)) as copy:
        source.backup(copy)


def _opened(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"file:{path}?mode=ro", uri=True)


def _wrong(states: Mapping[str, Path], made: Mapping[str, str], starts: Sequence[Start]) -> Iterator[str]:
    hashes = {name: (digest_of(path), tables_hash(path)) for name, path in states.items()}
    if len(set(hashes.values())) != 1:
        yield f"the states differ (index and digest, hash of all tables): {hashes}"
    for name, path in states.items():
        for what in wrong_in(path, made, starts):
            yield f"by {name}, {what}"


def wrong_in(state: Path, made: Mapping[str, str], starts: Sequence[Start]) -> Iterator[str]:
    """What a state and the tasks themselves say that must not be; `made` is what was acknowledged, run by key."""
    with closing(sqlite3.connect(state)) as db:
        runs = dict(db.execute("SELECT id, state FROM run"))
        attempts: dict[str, list[tuple[int, str]]] = defaultdict(list)
        for run_id, fence, how in db.execute("SELECT run_id, fence, state FROM attempt ORDER BY fence"):
            attempts[run_id].append((fence, how))
        live = db.execute("SELECT id FROM attempt WHERE state IN ('queued', 'running')").fetchall()
    if live:
        yield f"attempts are left live: {live}"
    executions: dict[str, list[tuple[str, int]]] = defaultdict(list)
    for start in starts:
        executions[start.key].append((start.run_id, start.fence))
    for key, run_id in made.items():
        if run_id not in runs:
            yield f"{key}: acknowledged as {run_id}, and lost"
        yield from (
            f"{key}: {what}" for what in wrong_with(runs.get(run_id), run_id, attempts[run_id], executions[key])
        )
        # Every agent lives all the time, so none of its attempts may be lost, nor its task done twice for that.
        if len(attempts[run_id]) != 1 or len(executions[key]) != 1:
            yield f"{key}: attempts {attempts[run_id]}, carried out under {executions[key]}"


def digest_of(state: Path) -> tuple[str, str]:
    """The index up to which it is applied, and its digest."""
    with closing(sqlite3.connect(state)) as db:
        meta = dict(db.execute("SELECT key, value FROM meta"))
    return meta["applied_index"], meta["digest"]


# --- what is told ----------------------------------------------------------------------------------------------------


def _measured(state: Path, leader: str, killed_s: float, started: int, starts: Sequence[Start]) -> Trial:
    with closing(sqlite3.connect(state)) as db:
        ours = {start.run_id for start in starts}
        rows = db.execute("SELECT run_id, fence, state, assigned_at FROM attempt").fetchall()
    rows = [row for row in rows if row[0] in ours]
    by_then = {fence for _, fence, _, assigned_at in rows if assigned_at / 1000 <= killed_s}
    after = [start for start in starts if start.at_s > killed_s]
    return Trial(
        leader=leader,
        started=started,
        assigned=sum(1 for _, fence, _, _ in rows if fence in by_then),
        next_s=min((one.at_s - killed_s for one in after), default=None),
        decided_s=min((one.at_s - killed_s for one in after if one.fence not in by_then), default=None),
        told_late_s=max((one.at_s - killed_s for one in after if one.fence in by_then), default=None),
        all_s=max((one.at_s - killed_s for one in starts), default=0.0),
        executions=len(starts),
        lost=sum(1 for _, _, how, _ in rows if how == "lost"),
    )


def _line(one: Trial) -> str:
    return (
        f"kill -9 {one.leader} with {one.started} started and {one.assigned} assigned; next start after"
        f" {_ms(one.next_s)}, first of the next leader's after {_ms(one.decided_s)}, last after {_ms(one.all_s)};"
        f" {one.executions} executions, {one.lost} lost"
    )


def table(done: Sequence[Trial]) -> list[str]:
    """Sums, and least, median and most of the times."""
    times: list[tuple[str, list[Any]]] = [
        ("kill to the next start", [one.next_s for one in done]),
        ("kill to the next start that the next leader decided", [one.decided_s for one in done]),
        ("kill to the last start that the killed leader decided", [one.told_late_s for one in done]),
        ("kill to the last start of all", [one.all_s for one in done]),
    ]
    spread = [sorted(one.started for one in done), sorted(one.assigned for one in done)]
    lines = [
        f"kills of the leader {len(done)}, tasks {TASKS * len(done)}, executions {sum(one.executions for one in done)},"
        f" attempts lost {sum(one.lost for one in done)}",
        f"at the kill: started {spread[0][0]} to {spread[0][-1]}, assigned {spread[1][0]} to {spread[1][-1]}",
    ]
    for what, found in times:
        known = [one for one in found if one is not None]
        if known:
            told = "/".join(_ms(one) for one in (min(known), statistics.median(known), max(known)))
            lines.append(f"{what:55} {told} (least/median/most, n={len(known)})")
    return lines


def _ms(seconds: float | None) -> str:
    return "-" if seconds is None else f"{1000 * seconds:.0f} ms"
