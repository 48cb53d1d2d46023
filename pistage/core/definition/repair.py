"""Repair: the two tolerances for texts that strict YAML refuses or misreads, each told to the reader (R3, R4).

Both work on lines and keep the number of lines, so a finding's line is the line of the text as it came.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from pistage.core.definition.yaml_reader import Brace, NotYamlError

_ITEM = re.compile(r"(?P<lead> *- +)(?P<key>[^\s:#'\"{\[&*!|>%@`-][^:#]*?) *: +(?P<value>[^\s#|>&*!].*)")
_KEY = re.compile(r" *(?:[^\s:#'\"{\[-][^:#]*?|\"[^\"]*\"|'[^']*') *:(?: .*)?")
_VALUE_BRACE = re.compile(r" *(?:- +)*(?:(?:\"[^\"]*\"|'[^']*'|[^\s'\"{\[#:-][^:#]*?) *: +)?(?=\{\{)")
_TEMPLATE = re.compile(r"\{\{.*?\}\}")


@dataclass(frozen=True, slots=True)
class Change:
    """One repair: its place (lines and columns from 1), what to tell, and how far which lines moved left."""

    line: int
    column: int
    code: str
    message: str
    hint: str
    shifts: dict[int, int]


def deeper_keys(lines: list[str], fault: NotYamlError) -> Change | None:
    """R3: keys under `- key: scalar` that are indented deeper than that key become its siblings, in `lines`.

    None, and nothing changed, unless that is what the fault is about.
    """
    if not (fault.problem.startswith("mapping values are not allowed") or _is_block_in_value(fault.problem)):
        return None
    deeper = fault.at.line - 1
    item = _item_above(lines, deeper)
    if item is None:
        return None
    found = _ITEM.fullmatch(lines[item])
    assert found is not None
    column = len(found["lead"])
    depth = _indent(lines[deeper])
    end = _block_end(lines, deeper, column)
    if end is None or any(_indent(line) < depth for line in lines[deeper:end] if _counts(line)):
        return None
    shift = depth - column
    for number in range(deeper, end):
        lines[number] = lines[number][min(shift, _indent(lines[number])) :]
    last = max(number for number in range(deeper, end) if _counts(lines[number])) + 1
    span = f"line {deeper + 1} is" if last == deeper + 1 else f"lines {deeper + 1} to {last} are"
    key = found["key"]
    return Change(
        line=item + 1,
        column=column + 1,
        code="deeper-keys",
        message=f"{span} indented deeper than '{key}' on line {item + 1}; read as keys beside '{key}'",
        hint=f"indent them by {column} spaces, as '{key}' is",
        shifts={number + 1: shift for number in range(deeper, end)},
    )


def _is_block_in_value(problem: str) -> bool:
    """The same slip below a quoted scalar, as the parser words it."""
    return "found '<block mapping start>'" in problem or problem.startswith("did not find expected key")


def _item_above(lines: list[str], deeper: int) -> int | None:
    """The line of the `- key: scalar` directly above line `deeper`, comments and blank lines aside."""
    if deeper >= len(lines) or not _KEY.fullmatch(lines[deeper]):
        return None
    for number in range(deeper - 1, -1, -1):
        if not _counts(lines[number]):
            continue
        found = _ITEM.fullmatch(lines[number])
        is_above = found is not None and len(found["lead"]) < _indent(lines[deeper])
        return number if is_above else None
    return None


def _block_end(lines: list[str], start: int, column: int) -> int | None:
    """The first line after `start` that is indented no deeper than `column`; None if a tab is in the way."""
    for number in range(start, len(lines)):
        line = lines[number]
        if line.lstrip(" ").startswith("\t") and line.strip():
            return None
        if _counts(line) and _indent(line) <= column:
            return number
    return len(lines)


def _counts(line: str) -> bool:
    stripped = line.strip()
    return bool(stripped) and not stripped.startswith("#")


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip(" "))


def brace_of(lines: list[str], fault: NotYamlError) -> Brace | None:
    """R4: where on the line of the fault a value begins with `{{`, if it does."""
    number = fault.at.line - 1
    if number >= len(lines):
        return None
    found = _VALUE_BRACE.match(lines[number])
    return Brace(fault.at.line, found.end() + 1, is_in_flow=False) if found else None


def quote_template(lines: list[str], brace: Brace) -> Change | None:
    """R4: the value that begins with an unquoted `{{` becomes a quoted text, in `lines`; None if it does not end."""
    line = lines[brace.line - 1]
    start = brace.column - 1
    end = _value_end(line, start, brace.is_in_flow)
    if end is None:
        return None
    value = line[start:end].rstrip()
    quoted = "'" + value.replace("'", "''") + "'"
    lines[brace.line - 1] = line[:start] + quoted + line[start + len(value) :]
    return Change(
        line=brace.line,
        column=brace.column,
        code="unquoted-template",
        message=f"a value that begins with '{{{{' is a mapping to YAML; read as the text {value}",
        hint=f"put it in quotes: {quoted}",
        shifts={},
    )


def _value_end(line: str, start: int, is_in_flow: bool) -> int | None:
    at = start
    while at < len(line):
        found = _TEMPLATE.match(line, at)
        if found:
            at = found.end()
        elif line.startswith("{{", at):
            return None
        elif (is_in_flow and line[at] in ",]}") or line.startswith(" #", at):
            return at
        else:
            at += 1
    return at
