"""What a client sends to be run, planned or checked: a definition, or the name of an action, with parameters."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import sqlite3
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pistage.core import limits
from pistage.core.definition import Actions, ActionText, Finding, Lint, Planned, inputs_schema, lint, make_plan
from pistage.core.languages import DEFAULTS, Language
from pistage.errors import Code, PistageError
from pistage.master.api.batches import Batch, parse_batch, plan_batch
from pistage.predefined import predefined_actions

T = TypeVar("T")
log = logging.getLogger(__name__)

_PLANNING_AT_ONCE = 2  # planning is our own CPU time, at most a fraction of a second each
_SMALL_BYTES = 16 * limits.KIB  # of a document: read in a few milliseconds, but for templates that make much of it
_TOGETHER_MAX = 32
_MOMENT_S = 0.005  # then those that are done are answered, and the others wait anew


class _Envelope(BaseModel):
    """`{"action": name, "with": {...}}` or `{"definition": text, "with": {...}}`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    # With a limit of its length a string is also looked at: half a surrogate pair is refused.
    action: str | None = Field(None, max_length=limits.NAME_CHARS_MAX)
    definition: str | None = Field(None, max_length=limits.DOCUMENT_BYTES_MAX)
    parameters: dict[str, Any] = Field(default_factory=dict, alias="with")
    start_node: str | None = Field(None, max_length=limits.NAME_CHARS_MAX)


@dataclass(frozen=True, slots=True)
class Submission:
    """A definition's text, or the name of the action that it is, and what was given to it."""

    text: str | bytes = b""
    action: str | None = None
    parameters: dict[str, Any] = field(default_factory=dict)
    start_node: str | None = None
    bytes_max: int = limits.DOCUMENT_BYTES_MAX


def parse_submission(body: bytes, content_type: str) -> Submission:
    """A JSON envelope if the body is one, else the definition itself; nothing else is looked at here."""
    if content_type == "application/json" or body.lstrip()[:1] == b"{":
        try:
            loaded = json.loads(body)
        except (ValueError, RecursionError):
            loaded = None  # the definition's own reader says where and why
        if isinstance(loaded, dict) and ("action" in loaded or "definition" in loaded):
            return _from_envelope(loaded)
    if not body.strip():
        raise PistageError(Code.INVALID, "the body is empty", hint="send a definition in YAML or JSON")
    return Submission(text=body)


def _from_envelope(loaded: dict[str, Any]) -> Submission:
    try:
        envelope = _Envelope.model_validate(loaded)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise PistageError(
            Code.INVALID, f"{where}: {first['msg']}", hint='send {"action": name, "with": {…}} or {"definition": text}'
        ) from None
    if (envelope.action is None) == (envelope.definition is None):
        raise PistageError(Code.INVALID, "expected one of action and definition", hint="name an action or send a text")
    return Submission(envelope.definition or "", envelope.action, envelope.parameters, envelope.start_node)


class Planner:
    """Makes plans from submissions and the actions of the state, off the loop."""

    def __init__(self, state_path: Callable[[], Path], languages: Mapping[str, Language] = DEFAULTS) -> None:
        self._languages = languages
        self._state_path = state_path  # moves when another master's snapshot is taken over
        self._waiting: deque[_Job] = deque()
        self._at_work = 0

    async def plan(self, submission: Submission, project: str) -> tuple[Planned, str]:
        """The plan and the text it was made from; PistageError `invalid` with every finding."""

        def work(actions: Actions) -> tuple[Planned, str]:
            text = _text_of(submission, actions)
            planned = make_plan(
                text,
                actions=actions,
                parameters=submission.parameters,
                start_node=submission.start_node,
                languages=self._languages,
                bytes_max=submission.bytes_max,
            )
            return planned, text.decode() if isinstance(text, bytes) else text

        return await self._with_actions(project, work, size=len(submission.text))

    async def plan_unattended(self, submission: Submission, project: str) -> tuple[Planned, str] | PistageError:
        """As `plan`, where nobody waits: why there is no plan is a result, also where the fault is ours.

        What a leader cannot plan would else end one leader after the other. PistageError `unavailable` where it may be
        better later.
        """
        try:
            return await self.plan(submission, project)
        except PistageError as refusal:
            return refusal
        except sqlite3.Error as error:
            raise PistageError(Code.UNAVAILABLE, f"the actions cannot be read now: {error}") from None
        except Exception as bug:
            log.exception("no plan can be made")
            return PistageError(Code.INTERNAL, f"its plan cannot be made: {type(bug).__name__}")

    async def plan_batch(self, body: bytes, project: str) -> Batch:
        """The plans of many runs of one text; PistageError names the first run that is wrong, or the limit."""

        def work(actions: Actions) -> Batch:
            asked = parse_batch(body)
            text = _text_of(Submission(asked.text, asked.action), actions)
            return plan_batch(text, asked.runs, actions, self._languages)

        return await self._with_actions(project, work, size=limits.REQUEST_BODY_BYTES_MAX)

    async def lint(self, submission: Submission, project: str) -> Lint:
        """What is wrong with the definition, as far as can be said without its parameters."""

        def work(actions: Actions) -> Lint:
            return lint(_text_of(submission, actions), actions=actions, languages=self._languages)

        return await self._with_actions(project, work, size=len(submission.text))

    async def find_action(self, name: str, project: str) -> ActionText:
        """The newest text of a registered action, else the predefined one; `not_found` otherwise."""
        return await self._with_actions(project, lambda actions: _action_named(name, actions))

    async def inputs_schema(self, name: str, project: str) -> dict[str, object]:
        """The JSON Schema of what an action takes; `not_found` without it."""
        return await self._with_actions(project, lambda actions: inputs_schema(_action_named(name, actions).text))

    async def _with_actions(self, project: str, work: Callable[[Actions], T], *, size: int = 0) -> T:
        answer: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Job(project, work, answer, size <= _SMALL_BYTES))
        self._begin()
        return await answer

    def _begin(self) -> None:
        """Small documents go together: one hop to a thread, and what comes of them meets in one write of the log."""
        while self._waiting and self._at_work < _PLANNING_AT_ONCE:
            jobs = [self._waiting.popleft()]
            while jobs[0].is_small and self._waiting and self._waiting[0].is_small and len(jobs) < _TOGETHER_MAX:
                jobs.append(self._waiting.popleft())
            self._at_work += 1
            working = asyncio.get_running_loop().run_in_executor(None, self._work_through, jobs)
            working.add_done_callback(partial(self._done, jobs))

    def _work_through(self, jobs: Sequence[_Job]) -> list[_Result]:
        """The results of as many as fit into a moment, at least one. Never raises."""
        until, results = time.monotonic() + _MOMENT_S, []
        with ExitStack() as stack:

            @cache
            def opened() -> sqlite3.Connection:  # most documents name no action
                db = sqlite3.connect(f"file:{self._state_path()}?mode=ro", uri=True, isolation_level=None)
                stack.callback(db.close)
                db.execute("PRAGMA wal_autocheckpoint = 0")
                return db

            for job in jobs:
                results.append(job.result(opened))
                if time.monotonic() > until:
                    break
        return results

    def _done(self, jobs: Sequence[_Job], working: asyncio.Future[list[_Result]]) -> None:
        self._at_work -= 1
        results = working.result()
        for job, result in zip(jobs, results, strict=False):
            job.settle(result)
        self._waiting.extendleft(reversed(jobs[len(results) :]))
        self._begin()


@dataclass(frozen=True, slots=True)
class _Result:
    value: Any
    error: Exception | None = None


@dataclass(frozen=True, slots=True)
class _Job:
    project: str
    work: Callable[[Actions], Any]
    answer: asyncio.Future[Any]
    is_small: bool

    def result(self, opened: Callable[[], sqlite3.Connection]) -> _Result:
        if self.answer.done():  # the client hung up
            return _Result(None)
        try:
            return _Result(self.work(lambda name: _registered(opened(), self.project, name) or predefined_action(name)))
        except Exception as error:
            return _Result(None, error)

    def settle(self, result: _Result) -> None:
        if self.answer.done():
            return
        if result.error is not None:
            self.answer.set_exception(result.error)
        else:
            self.answer.set_result(result.value)


def _registered(db: sqlite3.Connection, project: str, name: str) -> ActionText | None:
    row = db.execute(
        "SELECT name, text, version, sha256 FROM action WHERE project = ? AND name = ? ORDER BY version DESC LIMIT 1",
        (project, name),
    ).fetchone()
    return row and ActionText(name=row[0], text=row[1], version=row[2], sha256=row[3], is_predefined=False)


def predefined_action(name: str) -> ActionText | None:
    """An action that ships with the program; None if there is none of that name."""
    text = predefined_actions().get(name)
    if text is None:
        return None
    sha256 = hashlib.sha256(text.encode()).hexdigest()
    return ActionText(name=name, text=text, version=0, sha256=sha256, is_predefined=True)


def _action_named(name: str, actions: Actions) -> ActionText:
    if (found := actions(name)) is None:
        raise PistageError(Code.NOT_FOUND, f"no action {name!r}", hint="pistage action ls lists them")
    return found


def _text_of(submission: Submission, actions: Actions) -> str | bytes:
    return submission.text if submission.action is None else _action_named(submission.action, actions).text


def finding_view(finding: Finding) -> dict[str, Any]:
    """A finding in JSON."""
    return asdict(finding)
