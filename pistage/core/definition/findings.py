"""Findings: what is wrong or odd in a document, each with its place, and the report that gathers them."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal

from pistage.core import limits
from pistage.core.definition.nodes import Place
from pistage.errors import Code, PistageError


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One remark on a document: what was expected and what came, what to do, and where.

    `path` is the place in the document (`uses.main[0].run`), `line` and `column` count from 1, and `action` names the
    action whose text it is about, None for the document itself. About an input that was given to a run, `path` is the
    place in what was given (`with.port`), `line` and `column` are those of the input's declaration.
    """

    severity: Literal["error", "warning"]
    code: str
    message: str
    hint: str | None = None
    path: str = ""
    line: int = 1
    column: int = 1
    action: str | None = None

    def to_plain(self) -> dict[str, object]:
        """The finding as JSON values."""
        return asdict(self)

    def __str__(self) -> str:
        inside = f"action {self.action}, " if self.action else ""
        path = f", {self.path}" if self.path else ""
        return f"{inside}line {self.line}, column {self.column}{path}: {self.message}"


class StopError(Exception):
    """Nothing more can be found, or enough was: a reader fixes ten at a time."""


class Report:
    """The findings of one document and of the actions it uses, in the order they were met, each once."""

    def __init__(self) -> None:
        self._findings: dict[Finding, None] = {}
        self._errors = 0

    @property
    def findings(self) -> tuple[Finding, ...]:
        return tuple(self._findings)

    @property
    def errors(self) -> tuple[Finding, ...]:
        return tuple(finding for finding in self._findings if finding.severity == "error")

    @property
    def errors_count(self) -> int:
        return self._errors

    @property
    def warnings(self) -> tuple[Finding, ...]:
        return tuple(finding for finding in self._findings if finding.severity == "warning")

    def add(self, finding: Finding) -> None:
        """Keep `finding`; StopError once limits.FINDINGS_MAX errors are here. Warnings past that are dropped."""
        if finding in self._findings:
            return
        if finding.severity == "error":
            self._findings[finding] = None
            self._errors += 1
            if self._errors >= limits.FINDINGS_MAX:
                raise StopError
        elif len(self._findings) - self._errors < limits.FINDINGS_MAX:
            self._findings[finding] = None

    def page(self, action: str | None = None, shifts: dict[int, int] | None = None) -> Page:
        """Where findings about one document go: the root (None) or an action's."""
        return Page(self, action, shifts or {})

    def refusal(self) -> PistageError:
        """The error to raise when there are errors: the first in its message, all of them in its details."""
        first, *others = self.errors
        more = f" (and {len(others)} more)" if others else ""
        return PistageError(
            Code.INVALID,
            f"{first}{more}",
            hint=first.hint,
            details={"findings": [finding.to_plain() for finding in self._findings]},
        )


class Page:
    """The part of a report that is about one document: it knows the action's name and how its lines were shifted."""

    def __init__(self, report: Report, action: str | None, shifts: dict[int, int]) -> None:
        self.report = report
        self.action = action
        self._shifts = shifts

    def error(self, at: Place, code: str, message: str, hint: str | None = None) -> None:
        """Note that the document is wrong at `at`."""
        self._add("error", at, code, message, hint)

    def warn(self, at: Place, code: str, message: str, hint: str | None = None) -> None:
        """Note something odd at `at` that does not stop the document."""
        self._add("warning", at, code, message, hint)

    def _add(self, severity: Literal["error", "warning"], at: Place, code: str, message: str, hint: str | None) -> None:
        self.report.add(
            Finding(
                severity=severity,
                code=code,
                message=message,
                hint=hint,
                path=str(at.path),
                line=at.line,
                column=at.column + self._shifts.get(at.line, 0),
                action=self.action,
            )
        )
