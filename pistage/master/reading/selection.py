"""Which output is asked for: the runs that hold it, the streams in them, and the times."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from pistage.master.records import StreamKey

#: Of one run's index: beyond it begin the numbers of the next source. Record `n` of source `i` has the number
#: `i * SOURCE_RECORDS_MAX + n`: numbers grow, and never change.
SOURCE_RECORDS_MAX: Final = 1 << 40
FOREVER: Final = 1 << 63  # milliseconds UTC: later than anything


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What of a run's output: None stands for all. `since` <= at < `until`, milliseconds UTC."""

    task: str | None = None
    step: str | None = None
    attempt: str | None = None  # its id, or its number
    stream: int | None = None
    since: int = 0
    until: int = FOREVER

    @property
    def is_timed(self) -> bool:
        """Whether not all times are wanted."""
        return self.since > 0 or self.until < FOREVER

    def has(self, at: int) -> bool:
        """Whether that time is a wanted one."""
        return self.since <= at < self.until


class Selection:
    """Learns of attempts as they come.

    `sources` are the runs that hold the output: those that tasks were kept from, then the run itself, which grows.
    """

    def __init__(self, run_id: str, sources: Sequence[str], wanted: Wanted) -> None:
        self.run_id = run_id
        self.sources = tuple(sources)
        self.wanted = wanted
        self.attempts: Mapping[str, tuple[str, int]] = {}  # id -> task, number
        self._taken: dict[StreamKey, bool] = {}

    def learn(self, attempts: Mapping[str, tuple[str, int]]) -> None:
        """These are the attempts that there are by now."""
        self.attempts = attempts
        self._taken = {}

    def origin(self, attempt_id: str) -> tuple[str, int]:
        """The task of an attempt, and its number there."""
        return self.attempts.get(attempt_id, ("", 0))

    def takes(self, source: int, key: StreamKey) -> bool:
        """Whether a stream in that source is wanted."""
        taken = self._taken.get(key)
        if taken is None:
            taken = self._taken[key] = self._is_wanted(source, key)
        return taken

    def _is_wanted(self, source: int, key: StreamKey) -> bool:
        attempt_id, step, stream = key
        if self.sources[source] != self.run_id and attempt_id not in self.attempts:
            return False  # of a task that was not kept from there
        wanted = self.wanted
        task, number = self.origin(attempt_id)
        return (
            (wanted.task is None or wanted.task == task)
            and (wanted.step is None or wanted.step == step)
            and (wanted.attempt is None or wanted.attempt in {attempt_id, str(number)})
            and (wanted.stream is None or wanted.stream == stream)
        )
