"""Batches: many runs of one definition in one submission; each set of parameters is planned once."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pistage import wire
from pistage.core import codec, limits
from pistage.core.definition import Actions, Finding, make_plan
from pistage.core.definition.inputs import FAULT_CODES
from pistage.core.definition.scope import given_value
from pistage.core.definition.values import TemplateError
from pistage.core.languages import DEFAULTS, Language
from pistage.core.plan import Plan
from pistage.errors import Code, PistageError

_EXPECTED = 'send {"action": name or "definition": text, "runs": [{"with": {…}}, …]}'
_RUN_BYTES = 64  # of an entry: a run's id, and which plan it has
#: Findings that are about what was given to the run, not about the document.
_GIVEN: Final[Mapping[str, str]] = {"missing-parameter": ".with", "unknown-start": ".start_node"}


class _Run(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    parameters: dict[str, Any] = Field(default_factory=dict, alias="with")
    start_node: str | None = Field(None, max_length=limits.NAME_CHARS_MAX)


class _Envelope(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    action: str | None = Field(None, max_length=limits.NAME_CHARS_MAX)
    definition: str | None = Field(None, max_length=limits.DOCUMENT_BYTES_MAX)
    runs: list[_Run] = Field(min_length=1, max_length=limits.BATCH_RUNS_MAX)


@dataclass(frozen=True, slots=True)
class Given:
    """What one run of the batch was given."""

    parameters: dict[str, Any]
    start_node: str | None


@dataclass(frozen=True, slots=True)
class BatchRequest:
    """A definition's text, or the name of the action that it is, and what was given to each run."""

    text: str
    action: str | None
    runs: tuple[Given, ...]


@dataclass(frozen=True, slots=True)
class Batch:
    """Different plans, which of them each run executes, and the text that they were made from."""

    plans: tuple[Plan, ...]
    plan_of: tuple[int, ...]
    source: str
    findings: tuple[Finding, ...]


def parse_batch(body: bytes) -> BatchRequest:
    """What was sent; PistageError `invalid` names the place: `runs[3].with`."""
    try:
        envelope = _Envelope.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in first["loc"])[1:]
        raise PistageError(Code.INVALID, f"{where or 'the body'}: {first['msg']}", hint=_EXPECTED) from None
    if (envelope.action is None) == (envelope.definition is None):
        raise PistageError(Code.INVALID, "expected one of action and definition", hint=_EXPECTED)
    runs = tuple(Given(run.parameters, run.start_node) for run in envelope.runs)
    return BatchRequest(envelope.definition or "", envelope.action, runs)


def plan_batch(
    text: str | bytes, runs: Sequence[Given], actions: Actions, languages: Mapping[str, Language] = DEFAULTS
) -> Batch:
    """Plan the text for each different run; `invalid` names the first run that is wrong, `too_large` the limit."""
    source = text.decode() if isinstance(text, bytes) else text
    made = _Made(source)
    planned: dict[str, int] = {}
    plan_of = []
    for number, run in enumerate(runs):
        # As it was written: in a text that a template makes of a mapping, its order shows.
        given = json.dumps([run.parameters, run.start_node])
        if given not in planned:
            made.refuse_unless_readable(len(planned) + 1)
            planned[given] = made.add(_plan(source, number, run, actions, languages))
        made.count(planned[given])
        plan_of.append(planned[given])
    return Batch(tuple(made.plans), tuple(plan_of), source, tuple(made.findings))


def _plan(
    source: str, number: int, run: Given, actions: Actions, languages: Mapping[str, Language]
) -> tuple[Plan, tuple[Finding, ...]]:
    for name, value in run.parameters.items():
        try:
            given_value(value)
        except TemplateError as error:
            raise PistageError(Code.INVALID, f"runs[{number}].with.{name}: it {error.message}") from None
    try:
        planned = make_plan(
            source, actions=actions, parameters=run.parameters, start_node=run.start_node, languages=languages
        )
    except PistageError as error:
        where = f"runs[{number}]{next(_places(error), '')}"
        details = error.details | {"run": number}
        raise PistageError(error.code, f"{where}: {error.message}", hint=error.hint, details=details) from None
    return planned.plan, planned.findings


def _places(error: PistageError) -> Iterator[str]:
    findings = error.details.get("findings")
    for finding in findings if isinstance(findings, list) else []:
        if finding["severity"] == "error":
            yield _GIVEN.get(finding["code"], "") or (".with" if _is_of_given_input(finding) else "")


def _is_of_given_input(finding: Mapping[str, Any]) -> bool:
    """The same is said of what a document gives to an action, but there the path leads to a step."""
    return finding["code"] in FAULT_CODES and str(finding["path"]).startswith("with")


class _Made:
    """The different plans of a batch as they come, held against the limits of one entry."""

    def __init__(self, source: str) -> None:
        self.plans: list[Plan] = []
        self.findings: dict[Finding, None] = {}
        self._source_bytes = len(source.encode())
        self._sizes: list[int] = []
        self._entry_bytes = self._source_bytes
        self._rows_bytes = 0
        self._tasks = 0

    def add(self, planned: tuple[Plan, tuple[Finding, ...]]) -> int:
        """The plan's index."""
        plan, findings = planned
        self.findings |= dict.fromkeys(findings[: limits.FINDINGS_MAX - len(self.findings)])
        size = len(wire.pack_value(codec.to_plain(Plan, plan)))
        self.plans.append(plan)
        self._sizes.append(size)
        self._entry_bytes += size
        return len(self.plans) - 1

    def count(self, index: int) -> None:
        """One more run has this plan."""
        self._entry_bytes += _RUN_BYTES
        self._rows_bytes += self._sizes[index] + self._source_bytes
        self._tasks += len(self.plans[index].tasks)
        _refuse_over(self._entry_bytes, limits.ENTRY_BYTES_MAX, "of different plans")
        _refuse_over(self._rows_bytes, limits.BATCH_ROWS_BYTES_MAX, "of plans and documents")
        if self._tasks > limits.BATCH_TASKS_MAX:
            raise _too_large(f"the runs have more than {limits.BATCH_TASKS_MAX:,} tasks together")

    def refuse_unless_readable(self, times: int) -> None:
        """`too_large` if the document is too long to be planned so many times."""
        _refuse_over(times * self._source_bytes, limits.BATCH_TEXT_BYTES_MAX, "of document, planned for each of them")


def _refuse_over(size: int, most: int, what: str) -> None:
    if size > most:
        raise _too_large(f"the runs are more than {most // limits.MIB} MiB {what}")


def _too_large(message: str) -> PistageError:
    return PistageError(Code.TOO_LARGE, message, hint="submit fewer runs at a time")
