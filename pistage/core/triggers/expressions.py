"""Expressions: where in a payload a value stands. A path and a default, and nothing that computes.

    path [?? literal]        head_commit.id     commits[0].author.name     release.tag_name ?? "none"

A path is names between dots, each with whole numbers in brackets behind it, which count from 0. A literal is a JSON
text, number, boolean or null. Absent is what is not there, and null, as everywhere.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from math import isfinite
from typing import Final, NoReturn

from pistage.core import limits
from pistage.core.definition.nodes import shortened

_NAME: Final = re.compile(r"[A-Za-z0-9_$@-]+")
_INDEX: Final = re.compile(r"\[(0|[1-9][0-9]{0,5})\]")
_SAMPLE: Final = 'write for example commits[0].id, or ref ?? "main"'

Scalar = str | int | float | bool | None


class ExpressionError(Exception):
    """Not an expression: `message` says what is wrong with it, as the end of a sentence; `hint` what to write."""

    def __init__(self, message: str, hint: str = _SAMPLE) -> None:
        super().__init__(message)
        self.message, self.hint = message, hint


@dataclass(frozen=True, slots=True)
class Expression:
    """A path, and what stands for a value that is not there: None, unless there is a default."""

    path: tuple[str | int, ...]
    has_default: bool = False
    default: Scalar = None


@dataclass(frozen=True, slots=True)
class Found:
    """What an expression is of a payload; `is_absent` where nothing is there and it has no default."""

    value: object = None
    is_absent: bool = False


def parse_expression(text: str) -> Expression:
    """Read an expression; ExpressionError if it is none."""
    if len(text) > limits.EXPRESSION_CHARS_MAX:
        raise ExpressionError(f"has {len(text)} characters; at most {limits.EXPRESSION_CHARS_MAX} are taken")
    path, mark, literal = text.partition("??")
    parts = _path(path.strip())
    return Expression(parts, True, _literal(literal.strip())) if mark else Expression(parts)


def find(expression: Expression, payload: object) -> Found:
    """What the expression is of `payload`, JSON as Python has it. Never raises."""
    value: object = payload
    for part in expression.path:
        match value:
            case dict() if isinstance(part, str):
                value = value.get(part)
            case list() if isinstance(part, int) and part < len(value):
                value = value[part]
            case _:
                value = None
        if value is None:
            break
    if value is not None:
        return Found(value)
    return Found(expression.default) if expression.has_default else Found(is_absent=True)


def _path(text: str) -> tuple[str | int, ...]:
    if not text:
        raise ExpressionError("names nothing of the payload")
    parts: list[str | int] = []
    position = 0
    while True:
        if (name := _NAME.match(text, position)) is None:
            raise ExpressionError(_unexpected(text, position, "a name"))
        parts.append(name[0])
        position = name.end()
        while (index := _INDEX.match(text, position)) is not None:
            parts.append(int(index[1]))
            position = index.end()
        if len(parts) > limits.EXPRESSION_DEPTH_MAX:
            raise ExpressionError(f"goes deeper than {limits.EXPRESSION_DEPTH_MAX} levels")
        if position == len(text):
            return tuple(parts)
        if text[position] != ".":
            raise ExpressionError(_unexpected(text, position, "a dot, or a number in brackets"))
        position += 1


def _unexpected(text: str, position: int, expected: str) -> str:
    came = shortened(text[position:], 20)
    return f"has {came!r} where {expected} is expected" if came else f"ends where {expected} is expected"


def _literal(text: str) -> Scalar:
    try:
        value = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        value = _NO_LITERAL
    if value is None or isinstance(value, str | int) or (isinstance(value, float) and isfinite(value)):
        return value
    raise ExpressionError(
        "has no literal behind '??'", 'a literal is a JSON text, number, boolean or null: ?? "main", ?? 0, ?? null'
    )


_NO_LITERAL: Final = object()


def _refuse_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not JSON")
