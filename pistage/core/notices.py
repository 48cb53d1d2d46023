"""Notices: who is told of the end of a run, when it is tried again, and what is to be said of the outcome."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final
from urllib.parse import SplitResult, urlsplit

from pistage.core import limits
from pistage.core.addresses import literal_in


class End(StrEnum):
    """How a run ends; the same words as its states."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    LOST = "lost"


#: What is told of unless something else is said: a run that nobody can prove to have ended is a failure to its owner.
ENDS_DEFAULT: Final = (End.FAILED, End.LOST)


@dataclass(frozen=True, slots=True, kw_only=True)
class Notify:
    """What a definition says: to tell the receiver called `to`, or `url`, of these ends.

    Without `on` the receiver's own, or failed and lost; without `body` the receiver's, or all that there is in JSON.
    """

    to: str = ""
    url: str = field(default="", repr=False)
    on: tuple[End, ...] = ()
    body: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Receiver:
    """Who is told of runs of a project: of all (`pipelines` None), of these pipelines, and of those that name it.

    Its `url`, `headers` and `secret` may let anybody in who knows them: they are never logged or shown.
    """

    url: str = field(repr=False)
    on: tuple[End, ...] = ENDS_DEFAULT
    pipelines: tuple[str, ...] | None = None
    body: str = ""
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    secret: str = field(default="", repr=False)

    def is_told_of(self, pipeline: str, end: End) -> bool:
        """Whether it asks by itself to be told of that."""
        return end in self.on and (self.pipelines is None or pipeline in self.pipelines)


class Verdict(StrEnum):
    """What becomes of a notice after a try, and the states of one."""

    WAITING = "waiting"  # it is tried (again) when it is due
    DELIVERED = "delivered"
    GIVEN_UP = "given_up"


def verdict_on(status: int) -> Verdict:
    """What an answer means: 2xx is delivered; what may be better later is tried again, the rest never will be."""
    if 200 <= status < 300:
        return Verdict.DELIVERED
    return Verdict.WAITING if status >= 500 or status in (408, 425, 429) else Verdict.GIVEN_UP


def wait_ms(tries: int, share: float, asked_ms: int | None = None) -> int:
    """How long to wait after so many tries, 1 s to 10 min: four times as long each time, give or take a fifth.

    `share` is chance, 0 to 1; `asked_ms` is what the receiver asked for, which counts up to an hour.
    """
    longest: int = limits.NOTICE_WAIT_MIN_MS << 2 * min(tries - 1, 30)
    wait = round(min(limits.NOTICE_WAIT_MAX_MS, longest) * (0.8 + 0.4 * share))
    return wait if asked_ms is None else max(wait, min(asked_ms, limits.NOTICE_RETRY_AFTER_MAX_MS))


_NOT_IN_URL: Final = re.compile(r"[^\x21-\x7e]|[\"<>\\^`{|}]")
#: Stricter than any parser: what all of them read as the same host.
_PLACE: Final = re.compile(r"(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9_.-]+)(?::[0-9]{1,5})?")
_FIELD_NAME: Final = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,100}")
_FIELD_VALUE: Final = re.compile(r"[\x20-\x7e\t]*")
#: Of the connection or of us. Who could set these could make one request into two, or a notice of ours out of theirs.
_FIELDS_TAKEN: Final = frozenset(
    {"host", "content-length", "transfer-encoding", "connection", "keep-alive", "te", "trailer", "upgrade", "expect"}
)


def problem_of_url(url: str) -> str | None:
    """Why nothing can be sent there, None if something can; which addresses are allowed is not looked at."""
    if len(url) > limits.NOTICE_URL_CHARS_MAX:
        return f"has {len(url)} characters; at most {limits.NOTICE_URL_CHARS_MAX} are allowed"
    if _NOT_IN_URL.search(url):
        return "holds a character that does not belong into a URL"
    try:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            return "is not of the form https://host/path"
        return _problem_of_place(parts, parts.hostname)
    except ValueError:
        return "cannot be read as a URL"


def _problem_of_place(parts: SplitResult, host: str) -> str | None:
    if "@" in parts.netloc:
        return "holds a user or a password, which belong into a header"
    if parts.port == 0:
        return "has the port 0"
    if parts.fragment:
        return "has a fragment, which no server is sent"
    if not _PLACE.fullmatch(parts.netloc) or any(len(label) > 63 for label in host.split(".")):
        return "has no host in it"
    try:
        literal_in(host)
    except ValueError:
        return "has a host that is neither a name nor an address; write addresses as 192.0.2.7 or [2001:db8::7]"
    return None


def shown_url(url: str) -> str:
    """As much of it as people may see: the rest may be what lets one in."""
    parts = urlsplit(url)
    rest = "…" if parts.path.strip("/") or parts.query else ""
    return f"{parts.scheme}://{parts.netloc}/{rest}"


def problem_of_headers(headers: Mapping[str, str]) -> str | None:
    """Why these cannot be sent along, None if they can."""
    if len(headers) > limits.NOTICE_HEADERS_MAX:
        return f"there are {len(headers)} headers; at most {limits.NOTICE_HEADERS_MAX} are allowed"
    if sum(len(name) + len(value) for name, value in headers.items()) > limits.NOTICE_HEADERS_BYTES_MAX:
        return f"the headers are larger than {limits.NOTICE_HEADERS_BYTES_MAX} bytes"
    if len({name.lower() for name in headers}) < len(headers):
        return "two headers have one name"
    problems = (_problem_of_header(name, value) for name, value in headers.items())
    return next((problem for problem in problems if problem is not None), None)


def _problem_of_header(name: str, value: str) -> str | None:
    if not _FIELD_NAME.fullmatch(name):
        return f"{name[:40]!r} is not the name of a header"
    if name.lower() in _FIELDS_TAKEN or name.lower().startswith(("x-pistage-", "proxy-")):
        return f"the header {name} is not for you to set"
    return None if _FIELD_VALUE.fullmatch(value) else f"the header {name} holds a character that no header can hold"


def problem_of_secret(secret: str) -> str | None:
    """Why nothing can be signed with it, None if it can; "" is no secret."""
    if not secret:
        return None
    if not limits.MASK_CHARS_MIN <= len(secret) <= limits.NOTICE_SECRET_CHARS_MAX:
        return f"the secret must have {limits.MASK_CHARS_MIN} to {limits.NOTICE_SECRET_CHARS_MAX} characters"
    return None if secret.isprintable() else "the secret holds a character that cannot be shown on one line"
