"""What a follower knows of a run: built from the run and its plan, kept up to date by its events."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

from pistage.cli import output, terminal
from pistage.client import Event, Run, Source, Task

TAIL_LINES: Final = 200
LABEL_CHARS_MAX: Final = 32
OVER: Final = frozenset({"succeeded", "failed", "cancelled", "lost", "skipped"})


@dataclass(slots=True)
class Work:
    """A task or a step: its name, its state, and when."""

    name: str
    state: str = "pending"
    reason: str = ""
    exit_code: int | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None

    def elapsed(self, now: datetime) -> str:
        """How long it took, or has taken up to `now`; empty before its start."""
        if self.started_at is None:
            return ""
        return output.duration(((self.finished_at or now) - self.started_at).total_seconds())


@dataclass(slots=True)
class Row:
    """A line of a task's body: a step, or the heading of a branch (`step` is None)."""

    depth: int
    label: str
    step: str | None = None


@dataclass(slots=True)
class TaskProgress(Work):
    """A task with its current attempt."""

    needs: Sequence[str] = ()
    rows: Sequence[Row] = ()
    steps: dict[str, Work] = field(default_factory=dict)
    attempts: int = 0


class Progress:
    """The run as far as it is known; `apply` takes each event once, in order."""

    def __init__(self, run: Run, plan: Mapping[str, Any]) -> None:
        self.id = run["id"]
        self.title = f"{terminal.one_line(run['name'])}#{run['number']}"
        self.run = Work(self.title, state="queued", started_at=output.parse_time(run.get("created_at")))
        self.notes: list[str] = [terminal.one_line(note) for note in run.get("notes") or []]
        self.tasks = {task["name"]: _task(task) for task in plan["tasks"]}
        for task in run.get("tasks") or []:
            if task.get("kept_from") and task["name"] in self.tasks:
                _keep(self.tasks[task["name"]], task)
        self.tail: deque[str] = deque(maxlen=TAIL_LINES)

    @property
    def is_over(self) -> bool:
        return self.run.state in OVER

    def apply(self, event: Event) -> None:
        """Change what is known by what happened; kinds of a newer master change nothing."""
        fields = event.fields
        at = output.parse_time(fields.get("at")) or datetime.now(UTC)
        task = self.tasks.get(str(fields.get("task", "")))
        match event.kind:
            case "run_started":
                self.run.state = "running"
            case "run_finished":
                self._end(self.run, fields, at)
            case "run_cancelling":
                self.run.reason = "being cancelled"
            case _ if task is None:
                return
            case "task_queued":
                task.state = "queued"
            case "task_assigned":
                self._assign(task, at)
            case "attempt_accepted":
                self._note(fields.get("notes") or [])
            case "step_started":
                step = task.steps.setdefault(str(fields["step"]), Work(str(fields.get("step_name") or fields["step"])))
                step.state, step.started_at, step.finished_at = "running", at, None
            case "step_finished":
                step = task.steps.setdefault(str(fields["step"]), Work(str(fields.get("step_name") or fields["step"])))
                self._end(step, fields, at)
            case "task_retried":
                task.state, task.reason = "queued", str(fields.get("reason") or "")
            case "task_finished":
                self._end(task, fields, at)

    def label(self, chunk: Source) -> str:
        """`task/step` for the output of a step; the number of the attempt too from the second one on."""
        if not chunk.step:  # what is said of a task and all its steps
            return shortened(chunk.task)
        task = self.tasks.get(chunk.task)
        step = task.steps.get(chunk.step) if task else None
        again = f" (attempt {chunk.attempt})" if chunk.attempt > 1 else ""
        return f"{shortened(chunk.task)}/{shortened(step.name if step else chunk.step)}{again}"

    def step_count(self) -> int:
        """How many steps the plan has."""
        return sum(len(task.steps) for task in self.tasks.values())

    def levels(self) -> list[list[TaskProgress]]:
        """Tasks by the length of the longest chain of needs before them: those of one level may run side by side."""
        depth: dict[str, int] = {}
        for _ in self.tasks:  # a plan has no cycles, so this settles within as many passes as there are tasks
            before = dict(depth)
            for name, task in self.tasks.items():
                depth[name] = 1 + max((depth.get(need, 0) for need in task.needs), default=0)
            if depth == before:
                break
        rows: dict[int, list[TaskProgress]] = {}
        for name, task in self.tasks.items():
            rows.setdefault(depth[name], []).append(task)
        return [rows[level] for level in sorted(rows)]

    def _assign(self, task: TaskProgress, at: datetime) -> None:
        task.attempts += 1
        task.state, task.reason, task.started_at, task.finished_at = "running", "", at, None
        for step in task.steps.values():
            step.state, step.started_at, step.finished_at, step.exit_code, step.reason = "pending", None, None, None, ""

    def _note(self, notes: Sequence[str]) -> None:
        self.notes += [clean for note in notes if (clean := terminal.one_line(str(note))) not in self.notes]

    def _end(self, work: Work, fields: Mapping[str, Any], at: datetime) -> None:
        work.state, work.finished_at = str(fields.get("state", "")), at
        work.reason = terminal.one_line(str(fields.get("reason") or ""))
        work.exit_code = fields.get("exit_code")


def shortened(name: str) -> str:
    """A name fit to stand before every line: a step without one is called by its whole script."""
    clean = terminal.one_line(name)
    return clean if len(clean) <= LABEL_CHARS_MAX else f"{clean[: LABEL_CHARS_MAX - 1]}…"


def waits(reason: str) -> str:
    """Why a task waits, as said after its name."""
    clean = terminal.one_line(reason)
    return clean if clean.startswith("waits ") else f"waits: {clean}"


def _task(plan: Mapping[str, Any]) -> TaskProgress:
    rows = list(_rows(plan["body"], 0))
    steps = {row.step: Work(row.label) for row in rows if row.step is not None}
    return TaskProgress(name=str(plan["name"]), needs=tuple(plan.get("needs") or ()), rows=rows, steps=steps)


def _keep(task: TaskProgress, kept: Task) -> None:
    """Its steps are those of the attempt that is kept; no event of this run will tell of them."""
    last = (kept.get("attempts") or [{}])[-1]
    for step in last.get("steps") or []:
        if (known := task.steps.get(step["id"])) is not None:
            known.state, known.exit_code = step["state"], step.get("exit_code")
            known.started_at = output.parse_time(step.get("started_at"))
            known.finished_at = output.parse_time(step.get("finished_at"))


def _rows(node: Mapping[str, Any], depth: int) -> Iterator[Row]:
    for child in node["children"]:
        if child["kind"] == "step":
            yield Row(depth, terminal.one_line(child["name"]), child["id"])
        elif child["kind"] == "parallel":
            yield Row(depth, f"{terminal.one_line(child.get('name') or '')} ‖".strip())
            yield from _rows(child, depth + 1)
        elif node["kind"] == "parallel":
            yield Row(depth, terminal.one_line(child.get("name") or "branch"))
            yield from _rows(child, depth + 1)
        else:
            yield from _rows(child, depth)
