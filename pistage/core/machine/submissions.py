"""Submissions: runs come into being, one or many by one command, each in the state that its plan gives it at once.

Of a plan that many runs share, everything is made ready once; a run then costs its rows and no reading of them.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from pistage.core import codec, limits
from pistage.core import commands as c
from pistage.core.changes import TaskQueued, WaitingTask
from pistage.core.demand import demands_of
from pistage.core.machine import groups, notices
from pistage.core.machine.endings import note_end
from pistage.core.machine.outcome import ReleaseRun, Turn
from pistage.core.machine.settling import Move, Waiting, moves, run_state
from pistage.core.machine.waiting import expiry
from pistage.core.model import State, Trigger, check_transition
from pistage.core.plan import Concurrency, Plan, Task
from pistage.errors import Code, PistageError

_FORGOTTEN_AT_ONCE = 16  # old requests; more than one, so that fewer and fewer are left

_INSERT_RUN = """
INSERT INTO run (id, project, name, number, owner, started_by, schedule_id, nominal, state, reason, priority, queue,
                 concurrency, concurrency_limit, notes, is_pinned, output_dropped_reason, created_at, finished_at,
                 output_bytes, plan, source)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, '', ?, ?, ?, ?, '[]', 0, '', ?, ?, ?, ?, ?)
"""
_INSERT_TASK = """
INSERT INTO task (run_id, position, name, state, reason, needs, run_when, is_skip_planned, gang, has_volumes,
                  demand, queue_timeout_ms, cpus_milli, memory_bytes, gpus, ready_at, attempts, failures, finished_at,
                  spec)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 0, '{}', ?, ?)
"""
_TAKE_NUMBERS = """
INSERT INTO pipeline (project, name, last_number) VALUES (?, ?, ?)
ON CONFLICT (project, name) DO UPDATE SET last_number = last_number + excluded.last_number
RETURNING last_number
"""
_FORGET_REQUESTS = """
DELETE FROM request WHERE key IN (SELECT key FROM request WHERE at < ? ORDER BY at, key LIMIT ?)
"""
_REMEMBER_REQUEST = """
INSERT INTO request (key, sha256, at, runs) VALUES (?, ?, ?, ?)
ON CONFLICT (key) DO UPDATE SET sha256 = excluded.sha256, at = excluded.at, runs = excluded.runs
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """On whose behalf runs are made, of which document, and what started them."""

    project: str
    owner: str
    source: str
    trigger: Trigger = field(default_factory=Trigger)
    schedule_id: str | None = None


def submit(turn: Turn, command: c.SubmitRun) -> dict[str, object]:
    """Make the run and its tasks; a repeat of the same request is answered with the run it made."""
    made, is_new = _make_once(turn, command, (command.plan,), (c.NewRun(run_id=command.run_id, plan=0),))
    run_id, number = made[0]
    return {"run_id": run_id, "number": number, "is_new": is_new}


def submit_many(turn: Turn, command: c.SubmitRuns) -> dict[str, object]:
    """Make every run of the batch; a repeat of the same request is answered with the runs it made."""
    made, is_new = _make_once(turn, command, command.plans, command.runs)
    return {"items": [{"id": run_id, "number": number} for run_id, number in made], "is_new": is_new}


def _make_once(
    turn: Turn, command: c.SubmitRun | c.SubmitRuns, plans: Sequence[Plan], runs: Sequence[c.NewRun]
) -> tuple[list[tuple[str, int]], bool]:
    known = earlier(turn, command)
    if known is not None:
        return known, False
    drafts = [drafted(plan, turn.at) for plan in plans]
    origin = Origin(project=command.project, owner=command.owner, source=command.source)
    made = make(turn, origin, [(run.run_id, drafts[run.plan]) for run in runs])
    remember(turn, command, made)
    return made, True


def earlier(turn: Turn, command: c.SubmitRun | c.SubmitRuns | c.RetryRun) -> list[tuple[str, int]] | None:
    """Id and number of each run that the same request has made; None if it came with no key, or for the first time."""
    if command.request_key is None:
        return None
    # What is kept is forgotten by the clock of the log, never by a local one (dissertation §6.3).
    kept_since = command.at - limits.IDEMPOTENCY_KEPT_MS
    turn.db.execute(_FORGET_REQUESTS, (kept_since, _FORGOTTEN_AT_ONCE))
    row = turn.db.execute(
        "SELECT sha256, runs FROM request WHERE key = ? AND at >= ?", (command.request_key, kept_since)
    ).fetchone()
    if row is None:
        return None
    if row[0] != command.request_sha256:
        raise PistageError(
            Code.CONFLICT,
            "this Idempotency-Key came before with another body",
            hint="use a new key for a new submission",
        )
    return [(run_id, number) for run_id, number in json.loads(row[1])]


def make(turn: Turn, origin: Origin, runs: Sequence[tuple[str, Draft]]) -> list[tuple[str, int]]:
    """Runs with these ids; their ids and numbers. PistageError `conflict`, and nothing is made, where a group is full.

    A draft is `drafted` in the same turn.
    """
    groups.refuse_if_full(turn, origin.project, [draft.concurrency for _, draft in runs])
    made = _numbered(turn, origin.project, runs)
    turn.db.executemany(_INSERT_RUN, [_run_row(origin, turn.at, *one) for one in made])
    turn.db.executemany(_INSERT_TASK, [(run_id, *task) for run_id, _, draft in made for task in draft.tasks])
    for run_id, number, draft in made:
        turn.changes.extend([TaskQueued(_waiting(origin, turn.at, run_id, draft, task)) for task in draft.queued])
        turn.record(run_id, "run_submitted", name=draft.name, number=number, owner=origin.owner)
        for kind, fields in draft.events:
            turn.record_text(run_id, kind, fields)
        if draft.state.is_terminal:
            turn.effects.append(ReleaseRun(run_id=run_id, agent_ids=()))
            note_end(turn, run_id)
            notices.run_ended(turn, run_id)
    if made:
        newest = f"{made[-1][2].name}#{made[-1][1]}"
        groups.cancel_what_is_too_much(turn, origin.project, [draft.concurrency for _, draft in runs], newest)
    return [(run_id, number) for run_id, number, _ in made]


def remember(turn: Turn, command: c.SubmitRun | c.SubmitRuns | c.RetryRun, answer: Sequence[tuple[str, int]]) -> None:
    """Answer a repeat of the request with the same runs; one without a key is not repeated."""
    if command.request_key is not None:
        row = (command.request_key, command.request_sha256, command.at, codec.canonical_json(answer))
        turn.db.execute(_REMEMBER_REQUEST, row)


def take_numbers(turn: Turn, project: str, name: str, count: int) -> int:
    """The last of so many numbers for runs of that name; the others stand before it."""
    (last,) = turn.db.execute(_TAKE_NUMBERS, (project, name, count)).fetchone()
    return int(last)


def _numbered(turn: Turn, project: str, runs: Sequence[tuple[str, Draft]]) -> list[tuple[str, int, Draft]]:
    """Each run with the number it gets among those of its name."""
    next_of: dict[str, int] = {}
    for name, count in Counter(draft.name for _, draft in runs).items():
        next_of[name] = take_numbers(turn, project, name, count) - count + 1
    numbered = []
    for run_id, draft in runs:
        numbered.append((run_id, next_of[draft.name], draft))
        next_of[draft.name] += 1
    return numbered


@dataclass(frozen=True, slots=True)
class _Queued:
    """A task that waits for a place from the start."""

    position: int
    name: str
    demand: str
    gang: str | None
    timeout_ms: int | None


@dataclass(frozen=True, slots=True)
class Draft:
    """What all runs of one plan have in common that are submitted at one time."""

    plan: Plan
    concurrency: Concurrency | None  # of its runs: the plan's, or what is put in its place
    head: str  # JSON of the plan without its tasks
    state: State
    finished_at: int | None
    tasks: tuple[tuple[object, ...], ...]  # rows without the id of the run
    events: tuple[tuple[str, str], ...]  # kind and fields of what follows run_submitted
    queued: tuple[_Queued, ...]

    @property
    def name(self) -> str:
        return self.plan.name


def _run_row(origin: Origin, at: int, run_id: str, number: int, draft: Draft) -> tuple[object, ...]:
    plan, trigger = draft.plan, origin.trigger
    head = (run_id, origin.project, plan.name, number, origin.owner)
    started_by = (codec.to_json(Trigger, trigger), origin.schedule_id, trigger.nominal)
    group = (groups.group_of(origin.project, draft.concurrency), _limit_of(draft.concurrency))
    output_bytes = None if draft.finished_at is None else 0
    end = (at, draft.finished_at, output_bytes, draft.head, origin.source)
    return (*head, *started_by, draft.state, plan.priority, plan.queue, *group, *end)


def _waiting(origin: Origin, at: int, run_id: str, draft: Draft, task: _Queued) -> WaitingTask:
    plan = draft.plan
    return WaitingTask(
        run_id=run_id, position=task.position, name=task.name, queue=plan.queue, owner=origin.owner,
        priority=plan.priority, created_at=at, ready_at=at, demand=task.demand,
        expires_at=expiry(at, task.timeout_ms), gang=task.gang,
        group=groups.group_of(origin.project, draft.concurrency), group_limit=_limit_of(draft.concurrency),
    )  # fmt: skip


def _limit_of(concurrency: Concurrency | None) -> int:
    return 0 if concurrency is None else concurrency.limit


def drafted(plan: Plan, at: int) -> Draft:
    """What its runs have in common that are made at `at`, milliseconds UTC."""
    states = {task.name: State.PENDING for task in plan.tasks}
    moved = {move.name: move for move in _first_moves(plan, states)}
    for move in moved.values():
        check_transition(f"task {move.name!r}", State.PENDING, move.to)
    state = run_state(State.QUEUED, states.values())
    events = [_event_of(move) for move in moved.values()]
    asked = demands_of(plan)
    if state is not State.QUEUED:
        check_transition("a new run", State.QUEUED, state)
        events.append(("run_finished", {"state": state, "reason": ""}))
    return Draft(
        plan=plan,
        concurrency=plan.concurrency,
        head=codec.to_json(Plan, replace(plan, tasks=())),
        state=state,
        finished_at=at if state.is_terminal else None,
        tasks=tuple(_task_row(n, task, moved.get(task.name), asked[n], at) for n, task in enumerate(plan.tasks)),
        events=tuple((kind, codec.canonical_json(fields)) for kind, fields in events),
        queued=tuple(
            _Queued(move.position, move.name, asked[move.position], task.gang, _timeout_ms(task))
            for move in moved.values()
            if move.to is State.QUEUED and (task := plan.tasks[move.position])
        ),
    )


def _first_moves(plan: Plan, states: dict[str, State]) -> Iterator[Move]:
    """What the plan skips by itself, then what can start or never will; `states` follows."""
    excused = set()
    for position, task in enumerate(plan.tasks):
        if task.skip_reason is not None:
            states[task.name] = State.SKIPPED
            excused.add(task.name)
            yield Move(position, task.name, State.SKIPPED, task.skip_reason)
    waiting = [Waiting(position, task.name, task.needs, task.when) for position, task in enumerate(plan.tasks)]
    yield from moves(waiting, states, excused)


def _event_of(move: Move) -> tuple[str, dict[str, object]]:
    if move.to is State.QUEUED:
        return "task_queued", {"task": move.name}
    return "task_finished", {"task": move.name, "state": move.to, "reason": move.reason}


def _timeout_ms(task: Task) -> int | None:
    return None if task.queue_timeout_s is None else round(task.queue_timeout_s * 1000)


def _task_row(position: int, task: Task, move: Move | None, demand: str, at: int) -> tuple[object, ...]:
    state = State.PENDING if move is None else move.to
    needs = codec.canonical_json(task.needs)
    is_skip_planned = int(task.skip_reason is not None)
    room = task.resources
    wanted = (room.cpus_milli or 0, room.memory_bytes or 0, room.gpus)
    ready_at = at if state is State.QUEUED else 0
    finished_at = at if state.is_terminal else None
    reason = "" if move is None else move.reason
    head = (position, task.name, state, reason, needs, task.when, is_skip_planned, task.gang)
    has_volumes = int(any(mount.kind == "volume" for context in task.contexts for mount in context.mounts))
    return (*head, has_volumes, demand, _timeout_ms(task), *wanted, ready_at, finished_at, codec.to_json(Task, task))
