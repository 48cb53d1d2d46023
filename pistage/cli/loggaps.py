"""What bare bytes cannot say: that some of those which were printed are not among them."""

from __future__ import annotations

from collections.abc import Iterator

from pistage.cli.progress import OVER, Progress
from pistage.client import Run, Selection, Source, Step

_STREAMS = ("stdout", "stderr")


def told(run: Run, progress: Progress, selection: Selection, count: int | None) -> Iterator[str]:
    """A sentence for each stream that is not kept whole.

    `count` says how many bytes came of all that is selected; None where not all were asked for. Were it fewer than
    are kept of a run that is over, they are lost, and that is said, too.
    """
    kept: int | None = 0
    for place, step in _steps(run, selection):
        for stream in [name for name in _STREAMS if selection.stream in {None, name}]:
            printed, missing = _counts(step, stream)
            kept = None if kept is None or printed is None else kept + printed - missing
            if missing:
                yield (
                    f"{progress.label(place)}: {missing:,} of {printed or 0:,} bytes on {stream} are not here: "
                    "more was printed than is kept, or masters lost them; --timestamps shows where"
                )
    has_kept = any(task.get("kept_from") for task in run.get("tasks") or [])  # that run may be without its output
    if count is not None and kept is not None and count < kept and run["state"] in OVER and not has_kept:
        yield f"{kept - count:,} of {kept:,} bytes are lost: the masters that had them are gone"


def _steps(run: Run, selection: Selection) -> Iterator[tuple[Source, Step]]:
    for task in run.get("tasks") or []:
        for attempt in task.get("attempts") or []:
            for step in attempt.get("steps") or []:
                if selection.task in {None, task["name"]} and selection.step in {None, step["id"]}:
                    place = Source(task=task["name"], attempt=attempt["number"], step=step["id"], stream="", at="")
                    yield place, step


def _counts(step: Step, stream: str) -> tuple[int | None, int]:
    """How much the step printed, None where nobody knows, and how much of that is not kept."""
    if stream == "stdout":
        return step.get("stdout_bytes"), step.get("stdout_missing") or 0
    return step.get("stderr_bytes"), step.get("stderr_missing") or 0
