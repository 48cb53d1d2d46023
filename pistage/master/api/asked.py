"""A request for output, read from its query and its headers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from enum import Enum, auto
from typing import Final

from aiohttp import web

from pistage.errors import Code, PistageError
from pistage.master.api import http
from pistage.master.reading.locate import By
from pistage.master.reading.pattern import Pattern
from pistage.master.reading.selection import FOREVER, Wanted

STREAMS: Final = {"stdout": 1, "stderr": 2}
OFFSET_MAX: Final = 1 << 53  # bytes, lines or records; more is no place in any file
_EVENT_ID = re.compile(r"(\d{1,18})(?:\.(\d{1,18}))?", re.ASCII)
WITHOUT_LIMIT: Final = 1 << 62
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_OFFSET = re.compile(r"-?\d{1,18}", re.ASCII)


class Form(Enum):
    """What an answer looks like."""

    BYTES = auto()
    TEXT = auto()
    JSON = auto()
    EVENTS = auto()


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What of the output, and how. `offset` and `limit` count `by`; `part` bytes of the piece at `offset` were had."""

    form: Form
    wanted: Wanted
    by: By
    offset: int
    limit: int
    part: int = 0
    has_kept: bool = False
    pattern: Pattern | None = None  # only lines that match; `limit` counts them
    has_controls: bool = False
    has_times: bool = False
    is_by_time: bool = False
    is_followed: bool = False
    is_stale: bool = False

    @property
    def has_lines(self) -> bool:
        """Whether the answer is made of lines, and not of pieces as they came."""
        if self.pattern is not None:
            return True
        is_by_line = self.by is By.LINE
        return (self.form is Form.JSON and is_by_line) or (self.form is Form.TEXT and (is_by_line or self.has_times))

    @property
    def counts_lines(self) -> bool:
        """Whether `limit` is one of lines."""
        return self.by is By.LINE or self.pattern is not None

    @property
    def is_simple_stream(self) -> bool:
        """Whether it is what follows a piece, as events: nothing must be looked up to begin."""
        is_all = self.by is By.PIECE and self.offset >= 0 and self.limit == WITHOUT_LIMIT
        return self.form is Form.EVENTS and is_all and not self.wanted.since


def asked_in(request: web.Request) -> Asked:
    """PistageError `usage` for what cannot be asked."""
    query = request.query
    form = _form(request.headers.get("Accept", ""))
    usual = By.BYTE if form in {Form.BYTES, Form.TEXT} else By.PIECE
    asked = Asked(
        form=form,
        wanted=wanted_in(request),
        by=By(_one_of(request, "by", [str(by) for by in By], usual)),
        offset=_offset(query.get("offset", "0")),
        limit=http.number_in(request, "limit", WITHOUT_LIMIT, least=1),
        has_kept="kept" not in query or http.is_set(request, "kept"),
        pattern=pattern_in(request),
        has_controls=http.is_set(request, "ansi"),
        has_times=http.is_set(request, "timestamps"),
        is_by_time=_one_of(request, "order", ["arrival", "time"], "arrival") == "time",
        is_followed=http.is_set(request, "follow"),
        is_stale=http.is_set(request, "stale"),
    )
    return _as_events(request, asked) if form is Form.EVENTS else _possible(asked)


def wanted_in(request: web.Request) -> Wanted:
    """Which of the output."""
    query = request.query
    stream = query.get("stream")
    if stream is not None and stream not in STREAMS:
        raise PistageError(Code.USAGE, f"stream: expected stdout or stderr, got {stream[:50]!r}")
    return Wanted(
        task=query.get("task"),
        step=query.get("step"),
        attempt=query.get("attempt"),
        stream=STREAMS.get(stream or ""),
        since=_moment(request, "since", 0),
        until=_moment(request, "until", FOREVER),
    )


def pattern_in(request: web.Request) -> Pattern | None:
    """What lines must match; None where nothing is searched for."""
    text = request.query.get("grep")
    if text is None:
        return None
    return Pattern(text, is_regex=http.is_set(request, "regex"), ignores_case=http.is_set(request, "ignore_case"))


def last_event(request: web.Request) -> tuple[int, int] | None:
    """The last event that was had, and how many bytes of it, 0 for all; None where that is not said, or not by us."""
    match = _EVENT_ID.fullmatch(request.headers.get("Last-Event-ID", request.query.get("after", "")))
    return None if match is None else (min(int(match[1]), OFFSET_MAX), int(match[2] or 0))


def _as_events(request: web.Request, asked: Asked) -> Asked:
    if asked.counts_lines or asked.is_by_time:
        raise PistageError(
            Code.USAGE, "events are pieces in the order in which they come: without by=line, grep and order=time"
        )
    asked = replace(asked, is_followed=True)
    last = last_event(request)
    if last is None:
        return asked
    number, part = last
    return replace(asked, by=By.PIECE, offset=number if part else number + 1, part=part)


def _possible(asked: Asked) -> Asked:
    if asked.is_by_time and asked.is_followed:
        raise PistageError(Code.USAGE, "order=time sorts what there is: it cannot follow")
    return asked


def _form(accept: str) -> Form:
    if "text/event-stream" in accept:
        return Form.EVENTS
    if "json" in accept:
        return Form.JSON
    return Form.BYTES if "application/octet-stream" in accept else Form.TEXT


def _one_of(request: web.Request, name: str, known: Sequence[str], default: str) -> str:
    text = request.query.get(name, default)
    if text not in known:
        raise PistageError(Code.USAGE, f"{name}: expected {' or '.join(known)}, got {text[:50]!r}")
    return text


def _offset(text: str) -> int:
    if not _OFFSET.fullmatch(text) or abs(int(text)) > OFFSET_MAX:
        raise PistageError(Code.USAGE, f"offset: expected a whole number up to {OFFSET_MAX}, got {text[:50]!r}")
    return int(text)


def _moment(request: web.Request, name: str, default: int) -> int:
    """Milliseconds UTC."""
    text = request.query.get(name)
    if text is None:
        return default
    if text.isascii() and text.isdigit() and len(text) <= 15:
        return int(text)
    try:
        moment = datetime.fromisoformat(text.replace(" ", "+"))  # which is what becomes of a bare + in a query
    except ValueError:
        moment = None
    if moment is None or moment.tzinfo is None or moment < _EPOCH:
        raise PistageError(
            Code.USAGE,
            f"{name}: expected a time, got {text[:50]!r}",
            hint="as 2026-10-07T08:00:00Z, or in milliseconds since 1970 UTC",
        )
    return (moment - _EPOCH) // timedelta(milliseconds=1)
