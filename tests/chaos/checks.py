"""What must hold at the end, by what the masters say, by their files, and by what the steps themselves left behind."""

from __future__ import annotations

import asyncio
import hashlib
import json
import shutil
import sqlite3
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tests.chaos.group import Group, until
from tests.chaos.load import NAME
from tests.chaos.watch import Watch

_STATES_LEFT = ("pending", "queued", "running")


@dataclass(slots=True)
class Findings:
    """What is wrong, and what was counted on the way."""

    violations: list[str] = field(default_factory=list)
    runs: int = 0
    executions: int = 0
    attempts: Counter[str] = field(default_factory=Counter)  # by state
    applied_index: int = 0
    tables: str = ""  # the hash of all tables, equal on every master
    idle_s: float = 0.0  # the longest time in which no step was started although runs waited


async def until_quiet(group: Group, watch: Watch, timeout_s: float) -> None:
    """Wait until every run has ended and all masters are at the same index; AssertionError if that never comes."""
    deadline = time.monotonic() + timeout_s
    await until(lambda: _no_run_is_left(group), timeout_s)
    before: set[object] = set()
    while True:
        found = await watch.look()
        indexes = {one["applied_index"] for one in found.values()}
        is_whole = len(found) == len(group.masters) and len(indexes) == 1
        if is_whole and indexes == before:
            return
        before = indexes if is_whole else set()
        if time.monotonic() > deadline:
            raise AssertionError(f"the masters do not come to rest at one index: {found}")
        await asyncio.sleep(1.0)  # long enough for what is on its way to arrive


async def _no_run_is_left(group: Group) -> bool:
    text = await group.call(await group.leader(), "GET", "/metrics")
    if text is None:
        return False
    left = [line for line in text.splitlines() if line.startswith("pistage_runs{")]
    return all(line.endswith(" 0") for line in left if any(f'"{state}"' in line for state in _STATES_LEFT))


def check_files(group: Group, acknowledged: Mapping[str, str], side_file: Path) -> Findings:
    """After every master was killed: their states against each other, and one against what was acknowledged."""
    findings = Findings()
    try:
        states = {name: _copied(group, name) for name in group.masters}
    except sqlite3.DatabaseError as error:
        return Findings([f"a master has no state: {error}"])
    hashes = {name: (*_position(path), tables_hash(path)) for name, path in states.items()}
    if len(set(hashes.values())) != 1:
        findings.violations.append(f"the states differ (index, digest, hash of all tables): {hashes}")
        findings.violations += _parted_tables(states)
    first = group.masters[0]
    findings.applied_index, _, findings.tables = hashes[first]
    check_runs(states[first], acknowledged, executions_in(side_file), findings)
    return findings


def _copied(group: Group, name: str) -> Path:
    """The state of a master that does not run, as its next start would find it."""
    raft = _opened(group.data_dir(name) / "raft.db", group.directory / f"{name}-raft.db")
    generation = raft.execute("SELECT generation FROM node").fetchone()[0]
    raft.close()
    target = group.directory / f"{name}-state.db"
    _opened(group.data_dir(name) / "state" / str(generation) / "state.db", target).close()
    return target


def _opened(path: Path, target: Path) -> sqlite3.Connection:
    """A copy, with its write-ahead log: opening the file itself would change it."""
    for suffix in ("", "-wal"):
        target.with_name(target.name + suffix).unlink(missing_ok=True)
        if (source := path.with_name(path.name + suffix)).exists():
            shutil.copyfile(source, target.with_name(target.name + suffix))
    return sqlite3.connect(target)


def _position(path: Path) -> tuple[int, str]:
    db = sqlite3.connect(path)
    meta = dict(db.execute("SELECT key, value FROM meta"))
    db.close()
    return int(meta["applied_index"]), str(meta["digest"])


def tables_hash(path: Path) -> str:
    """Of every row of every table, whatever the order they lie in."""
    hashes = _table_hashes(path)
    return hashlib.sha256(json.dumps(hashes, sort_keys=True).encode()).hexdigest()[:16]


def _table_hashes(path: Path) -> dict[str, str]:
    db = sqlite3.connect(path)
    tables = [row[0] for row in db.execute("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name")]
    hashes = {}
    for table in tables:
        rows = sorted(repr(row) for row in db.execute(f'SELECT * FROM "{table}"'))
        hashes[table] = hashlib.sha256("\n".join(rows).encode()).hexdigest()[:16]
    db.close()
    return hashes


def _parted_tables(states: Mapping[str, Path]) -> Iterator[str]:
    hashes = {name: _table_hashes(path) for name, path in states.items()}
    for table in sorted({table for one in hashes.values() for table in one}):
        told = {name: one.get(table, "none") for name, one in hashes.items()}
        if len(set(told.values())) > 1:
            yield f"table {table} differs: {told}"


def executions_in(side_file: Path) -> dict[str, list[tuple[str, int]]]:
    """By key: run and fence of each time that a step was really carried out."""
    found: dict[str, list[tuple[str, int]]] = defaultdict(list)
    if side_file.exists():
        for line in side_file.read_text(encoding="utf-8").splitlines():
            key, run_id, fence = line.split(" ")
            found[key].append((run_id, int(fence)))
    return found


def check_runs(
    state: Path, acknowledged: Mapping[str, str], executions: Mapping[str, list[tuple[str, int]]], findings: Findings
) -> None:
    db = sqlite3.connect(state)
    asked = {key.rpartition("/")[2]: json.loads(runs) for key, runs in db.execute("SELECT key, runs FROM request")}
    states = dict(db.execute("SELECT id, state FROM run WHERE name = ?", (NAME,)))
    attempts: dict[str, list[tuple[int, str]]] = defaultdict(list)
    for run_id, fence, how in db.execute("SELECT run_id, fence, state FROM attempt ORDER BY fence"):
        attempts[run_id].append((fence, how))
    findings.idle_s = _longest_idle_s(db)
    db.close()
    made = {key: runs[0][0] for key, runs in asked.items()}
    wrong = findings.violations
    wrong += [f"{key}: acknowledged, and lost" for key in acknowledged if key not in made]
    for key, run_id in acknowledged.items():
        if made.get(key, run_id) != run_id:
            wrong.append(f"{key}: acknowledged as {run_id}, is {made[key]}")
    wrong += [f"{key}: made {len(runs)} runs" for key, runs in asked.items() if len(runs) != 1]
    wrong += [f"run {run_id}: no submission made it" for run_id in states.keys() - made.values()]
    for key, run_id in made.items():
        told = wrong_with(states.get(run_id), run_id, attempts[run_id], executions.get(key, []))
        wrong += [f"{key}: {what}" for what in told]
    wrong += [f"{key}: carried out, but never submitted" for key in executions.keys() - made.keys()]
    findings.runs = len(states)
    findings.executions = sum(len(found) for found in executions.values())
    findings.attempts = Counter(how for one in attempts.values() for _, how in one)


def _longest_idle_s(db: sqlite3.Connection) -> float:
    """The longest time between two starts of attempts in which the later one's run was waiting."""
    longest, before = 0, None
    rows = db.execute(
        "SELECT run.created_at, MIN(attempt.started_at) AS at FROM run JOIN attempt ON attempt.run_id = run.id"
        " GROUP BY run.id ORDER BY at"
    )
    for created_at, started_at in rows:
        if before is not None:
            longest = max(longest, started_at - max(before, created_at))
        before = started_at
    return longest / 1000


def wrong_with(
    state: str | None, run_id: str, attempts: list[tuple[int, str]], executions: list[tuple[str, int]]
) -> Iterator[str]:
    """More than one execution is right only where the state says that the attempt before was lost."""
    if state != "succeeded":
        yield f"its run {run_id} is {state}, not succeeded: attempts {attempts}"
    good = [fence for fence, how in attempts if how == "succeeded"]
    if len(good) != 1:
        yield f"its run {run_id} has {len(good)} attempts that succeeded: {attempts}"
    fences = [fence for _, fence in executions]
    if len(fences) != len(set(fences)):
        yield f"an attempt of {run_id} was carried out twice: fences {fences}"
    if strangers := [one for one in executions if one[0] != run_id or one[1] not in dict(attempts)]:
        yield f"carried out for a run or an attempt that the state does not know: {strangers}"
    if not set(good) <= set(fences):
        yield f"the attempt of {run_id} that succeeded was never carried out: fences {fences}"
