"""The one error type, its codes, and the table that maps each code to HTTP and to an exit code and back."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Code(StrEnum):
    """What went wrong, in a word that is the same in Python, JSON and on the command line."""

    INVALID = "invalid"  # the document or the request is wrong; trying again will not help
    USAGE = "usage"  # the command line or the configuration is wrong
    UNAUTHENTICATED = "unauthenticated"
    FORBIDDEN = "forbidden"
    NOT_FOUND = "not_found"
    CONFLICT = "conflict"  # the state moved on, or the same id came with another body
    STALE_FENCE = "stale_fence"  # a report about an attempt that is no longer the task's current one
    TOO_LARGE = "too_large"
    UNPLACEABLE = "unplaceable"  # no agent could ever take it
    UNAVAILABLE = "unavailable"  # no leader, unreachable, or not yet; trying again may help
    TIMEOUT = "timeout"
    STORAGE = "storage"  # the disk refused: full, or failing
    INTERNAL = "internal"  # a bug of ours


@dataclass(frozen=True, slots=True)
class _Mapping:
    http: int
    exit: int


#: One row a code. Exit codes are those of the command line: 0 ok, 1 run failed, 2 usage, 3 cancelled,
#: 4 not allowed, 5 not found, 6 cannot be placed, 7 no leader or unreachable, 8 wait timed out.
TABLE: dict[Code, _Mapping] = {
    Code.INVALID: _Mapping(422, 2),
    Code.USAGE: _Mapping(400, 2),
    Code.UNAUTHENTICATED: _Mapping(401, 4),
    Code.FORBIDDEN: _Mapping(403, 4),
    Code.NOT_FOUND: _Mapping(404, 5),
    Code.CONFLICT: _Mapping(409, 2),
    Code.STALE_FENCE: _Mapping(412, 2),
    Code.TOO_LARGE: _Mapping(413, 2),
    Code.UNPLACEABLE: _Mapping(424, 6),
    Code.UNAVAILABLE: _Mapping(503, 7),
    Code.TIMEOUT: _Mapping(504, 8),
    Code.STORAGE: _Mapping(507, 7),
    Code.INTERNAL: _Mapping(500, 70),
}


class PistageError(Exception):
    """Something a caller can act on: what was expected, what came, what to do.

    `message` is one sentence; `hint`, where there is one, says what to do next; `details` holds JSON values
    (a list of findings, say) that travel with the error over HTTP.
    """

    def __init__(
        self,
        code: Code | str,
        message: str,
        *,
        hint: str | None = None,
        details: dict[str, object] | None = None,
    ) -> None:
        super().__init__(message)
        self.code = Code(code)
        self.message = message
        self.hint = hint
        self.details = details or {}

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message

    @property
    def http_status(self) -> int:
        return TABLE[self.code].http

    @property
    def exit_code(self) -> int:
        return TABLE[self.code].exit

    def to_problem(self) -> dict[str, object]:
        """The error as an RFC 9457 problem+json body."""
        problem: dict[str, object] = {
            "type": f"urn:pistage:error:{self.code}",
            "title": self.code.replace("_", " "),
            "status": self.http_status,
            "code": str(self.code),
            "detail": self.message,
        }
        if self.hint:
            problem["hint"] = self.hint
        return problem | self.details

    @classmethod
    def from_problem(cls, problem: dict[str, object]) -> PistageError:
        """The error that a problem+json body describes; an unknown code becomes `internal`."""
        standard = {"type", "title", "status", "code", "detail", "hint"}
        code = problem.get("code")
        known = code if isinstance(code, str) and code in set(Code) else Code.INTERNAL
        hint = problem.get("hint")
        return cls(
            known,
            str(problem.get("detail", "the master answered with an error it did not explain")),
            hint=str(hint) if hint else None,
            details={key: value for key, value in problem.items() if key not in standard},
        )
