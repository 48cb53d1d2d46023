"""Two hundred schedules that fire every second while the leader is killed every three: each second decided once.

Who tells is the state of every master, and the tasks themselves, a line each time that one is really carried out.
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Final

from pistage.core import limits
from tests.chaos.checks import tables_hash, until_quiet, wrong_with
from tests.chaos.faults import Scene
from tests.chaos.group import Group, Shape, until
from tests.chaos.starts import copy_state, digest_of
from tests.chaos.watch import Watch

SCHEDULES: Final = 200
KILLED_EVERY_S: Final = 3.0
KILLS: Final = 40
SHAPE: Final = Shape(agents=2, agent_flags=("--slots", "64", "--cpus", "64"))
_QUIET_S: Final = 120.0
_SECOND: Final = 1_000


async def measure(scene: Scene, kills: int) -> list[str]:
    """So many kills; what became of every second of every schedule."""
    assert kills * KILLED_EVERY_S < limits.FIRES_KEPT - 60, "the history would not hold all of it"
    group, watch = scene.group, Watch(scene.group, scene.timeline)
    side_file = group.directory / "carried-out"
    await _put_all(group, side_file)
    for number in range(kills):
        began = time.monotonic()
        leader = await group.leader()
        group.kill(leader)
        scene.say(f"{number + 1:3}: kill -9 {leader}")
        await asyncio.sleep(scene.chance.uniform(0.1, 1.5))
        group.start(leader)
        await asyncio.sleep(max(0.0, KILLED_EVERY_S - (time.monotonic() - began)))
    await until(group.is_whole, 60.0)
    await _pause_all(group)
    try:
        await until_quiet(group, watch, _QUIET_S)
        await until(lambda: not any(group.journal_bytes(agent) for agent in group.agents), 30.0)
    except AssertionError as late:
        scene.fail(str(late))
    for violation in watch.violations:
        scene.fail(violation)
    states = {name: group.directory / f"{name}.state" for name in group.masters}
    for name, path in states.items():
        copy_state(group, name, path)
    hashes = {name: (digest_of(path), tables_hash(path)) for name, path in states.items()}
    if len(set(hashes.values())) != 1:
        scene.fail(f"the states differ (index and digest, hash of all tables): {hashes}")
    state = next(iter(states.values()))
    for what in wrong_in(state, side_file):
        scene.fail(what)
    return _table(state)


async def _put_all(group: Group, side_file: Path) -> None:
    definition = (
        f"name: Tick\nimage: busybox\nretry: 0\nrun: echo \"$PISTAGE_RUN_ID $PISTAGE_FENCE\" >> '{side_file}'\n"
    )
    leader = await group.leader()
    for number in range(SCHEDULES):
        body = {"definition": definition, "schedule": {"cron": "* * * * * *"}}
        made = await group.call(leader, "PUT", f"/api/v1/schedules/s{number:03}", json=body, timeout_s=10.0)
        assert made is not None, f"{leader} does not take schedule {number}"


async def _pause_all(group: Group) -> None:
    for number in range(SCHEDULES):

        async def paused(name: str = f"s{number:03}") -> bool:
            leader = await group.leader()
            return await group.call(leader, "POST", f"/api/v1/schedules/{name}/pause", timeout_s=10.0) is not None

        await until(paused, 30.0)


def wrong_in(state: Path, side_file: Path) -> Iterator[str]:
    """What the state and the tasks themselves say that must not be."""
    executions: dict[str, list[tuple[str, int]]] = defaultdict(list)
    for line in side_file.read_text(encoding="ascii").splitlines():
        run_id, fence = line.split(" ")
        executions[run_id].append((run_id, int(fence)))
    with closing(sqlite3.connect(state)) as db:
        attempts: dict[str, list[tuple[int, str]]] = defaultdict(list)
        for run_id, fence, how in db.execute("SELECT run_id, fence, state FROM attempt ORDER BY fence"):
            attempts[run_id].append((fence, how))
        for run_id, how in db.execute("SELECT id, state FROM run").fetchall():
            yield from wrong_with(how, run_id, attempts[run_id], executions.pop(run_id, []))
        yield from (f"carried out, and in no state: {run_id}" for run_id in executions)
        for schedule in db.execute("SELECT id, name, created_at, decided_until FROM schedule").fetchall():
            yield from _wrong_with_schedule(db, *schedule)


def _wrong_with_schedule(
    db: sqlite3.Connection, schedule_id: str, name: str, created_at: int, decided_until: int
) -> Iterator[str]:
    runs = dict(db.execute("SELECT nominal, id FROM run WHERE schedule_id = ?", (schedule_id,)).fetchall())
    fires = db.execute(
        "SELECT nominal, until, count, outcome, run_id, reason FROM fire WHERE schedule_id = ? ORDER BY nominal",
        (schedule_id,),
    ).fetchall()
    due = created_at // _SECOND * _SECOND + _SECOND
    for nominal, until_ms, count, outcome, run_id, reason in fires:
        if nominal != due:
            yield f"{name}: {due} is followed by {nominal}"
        if (until_ms - nominal) // _SECOND + 1 != count or (count > 1 and outcome != "missed"):
            yield f"{name}: {nominal} to {until_ms} are {count}, {outcome}"
        if run_id != runs.pop(nominal, None) or (run_id is None) == (outcome == "ran"):
            yield f"{name}: {nominal} {outcome}, but its run is {run_id}"
        if not reason and outcome != "ran":
            yield f"{name}: {nominal} {outcome} for no reason"
        due = until_ms + _SECOND
    if due != decided_until // _SECOND * _SECOND + _SECOND:
        yield f"{name}: decided until {decided_until}, told of until {due}"
    if runs:
        yield f"{name}: runs for times that nobody decided: {runs}"


def _table(state: Path) -> Sequence[str]:
    with closing(sqlite3.connect(state)) as db:
        rows = db.execute("SELECT outcome, reason, count, at - nominal FROM fire").fetchall()
    counts: Counter[str] = Counter()
    for outcome, reason, count, _ in rows:
        counts[outcome + (f": {reason.partition(': ')[0]}" if reason else "")] += count
    late = sorted(after for outcome, _, _, after in rows if outcome == "ran")
    told: Mapping[str, int] = dict(sorted(counts.items()))
    lines = [
        f"seconds of {SCHEDULES} schedules: {sum(told.values())}",
        *(f"  {n:7} {what}" for what, n in told.items()),
    ]
    at = [late[len(late) * part // 1000] for part in (500, 990, 999)] + late[-1:]
    return [*lines, f"from the second to its run, ms: p50 {at[0]}, p99 {at[1]}, p99.9 {at[2]}, most {at[3]}"]
