"""What the options of `logs` ask for, and which of them contradict each other."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from pistage.cli import terminal
from pistage.cli.loglines import Shown
from pistage.client import Pattern


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """The options of `logs`, as they were given."""

    is_followed: bool
    since: str | None
    until: str | None
    tail: int | None
    limit: int | None
    grep: str | None
    is_regex: bool
    ignores_case: bool
    stream: str | None
    order: Literal["arrival", "time"] | None
    has_times: bool
    has_colours: bool
    is_raw: bool
    name: str | None
    state: str | None
    cursor: str | None
    fmt: Literal["text", "json"]

    @property
    def pattern(self) -> Pattern | None:
        """What a line must hold."""
        if self.grep is None:
            return None
        return Pattern(text=self.grep, is_regex=self.is_regex, ignores_case=self.ignores_case)

    @property
    def is_all(self) -> bool:
        """Whether nothing of the output is to be left out."""
        return not self.counts_lines and self.since is None and self.until is None

    @property
    def counts_lines(self) -> bool:
        """Whether the master is to tell lines apart: they are counted, or chosen by what they hold."""
        return self.tail is not None or self.limit is not None or self.grep is not None

    @property
    def of_lines(self) -> dict[str, Any]:
        """Which lines, as the client takes it."""
        return {
            "pattern": self.pattern, "tail": self.tail, "limit": self.limit, "is_followed": self.is_followed,
        }  # fmt: skip

    @property
    def shown(self) -> Shown:
        """What is left of a line of text."""
        if self.is_raw:
            return str
        return terminal.coloured if self.has_colours else terminal.clean

    def contradiction(self, *, has_run: bool) -> str | None:
        """What is wrong with the options, for whoever gave them."""
        if not has_run and self.grep is None:
            return "name a RUN, or search them all with --grep TEXT"
        of_one = {"--follow": self.is_followed, "--tail": self.tail is not None, "--order": self.order is not None}
        of_many = {"--name": self.name, "--state": self.state, "--cursor": self.cursor}
        if strange := [flag for flag, given in (of_many if has_run else of_one).items() if given]:
            return f"{strange[0]} is for {'a search over many, without RUN' if has_run else 'one RUN'}"
        return next((sentence for sentence, is_so in self._contradictions() if is_so), None)

    def _contradictions(self) -> Iterator[tuple[str, bool]]:
        is_styled = self.has_times or self.has_colours or self.is_raw
        yield "--regex and --ignore-case need --grep", (self.is_regex or self.ignores_case) and self.grep is None
        yield "--follow goes by arrival, and cannot by --order time", self.is_followed and self.order == "time"
        yield "--raw keeps everything, --ansi only colours: take one", self.is_raw and self.has_colours
        yield (
            "-o json has times and text as they are, without --timestamps, --ansi or --raw",
            (self.fmt == "json" and is_styled),
        )
        if self.since is not None and self.until is not None:  # both are UTC, to the same digit
            yield f"nothing is before {self.until} and not before {self.since}", self.since >= self.until
