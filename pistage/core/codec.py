"""Frozen dataclasses <-> plain values (dict, list, str, int, float, bool, bytes, None), checked on the way in."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

from pydantic import TypeAdapter, ValidationError

from pistage.errors import Code, PistageError

# Made once: json.dumps makes an encoder for each call that says how it wants its JSON.
_CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False)


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def to_plain(kind: Any, value: Any) -> Any:
    """`value`, an instance of `kind` (a dataclass or a union of them), as plain values; `bytes` stay bytes."""
    return _adapter(kind).dump_python(value, mode="python")


def from_plain(kind: Any, plain: Any) -> Any:
    """The instance of `kind` that `plain` describes; PistageError `invalid` names the first field that is wrong."""
    try:
        return _adapter(kind).validate_python(plain)
    except ValidationError as error:
        raise _refusal(kind, error) from None


def to_json(kind: Any, value: Any) -> str:
    """`value` as canonical JSON: the same value gives the same text on every machine."""
    return canonical_json(_adapter(kind).dump_python(value, mode="json"))


def canonical_json(plain: object) -> str:
    """Plain values as JSON without a space, keys sorted."""
    return _CANONICAL.encode(plain)


def to_jsonable(kind: Any, value: Any) -> Any:
    """`value` as plain values that JSON can hold."""
    return _adapter(kind).dump_python(value, mode="json")


def from_json(kind: Any, text: str | bytes) -> Any:
    """The instance of `kind` that `to_json` wrote as `text`; PistageError `internal` if it cannot be read any more."""
    try:
        return _adapter(kind).validate_json(text)
    except ValidationError as error:
        raise _refusal(kind, error, Code.INTERNAL) from None


def readable(kind: Any, text: str | bytes) -> Any:
    """As `from_json`, or None: for a row that must keep no other from what it is to be (S8)."""
    try:
        return from_json(kind, text)
    except PistageError:
        return None


def _refusal(kind: Any, error: ValidationError, code: Code = Code.INVALID) -> PistageError:
    first = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(str(part) for part in first["loc"]) or "the value"
    name = getattr(kind, "__name__", str(kind))
    return PistageError(code, f"not a valid {name}: {where}: {first['msg']}")
