"""Values: what a parameter can hold, how it is written into text, and the fuel that bounds all templates of a plan."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pistage.core import limits
from pistage.core.definition.nodes import Kind, ListNode, MapNode, Node, ScalarNode, is_true, number_of

FUEL_BYTES_MAX = 16 * limits.MIB  # of text that the templates of one plan may make on the way to their output
NODE_FUEL_BYTES = 32  # what looking at one part of an expression counts for


class TemplateError(Exception):
    """A template is wrong or cannot be rendered: a message, and what to do."""

    def __init__(self, message: str, hint: str | None = None, code: str = "bad-template") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.code = code


@dataclass(frozen=True, slots=True)
class Number:
    """A number that remembers how it was written: `1.50` stays `1.50` (P9)."""

    text: str

    @property
    def value(self) -> int | float:
        return number_of(self.text)


@dataclass(frozen=True, slots=True)
class Missing:
    """A parameter that has no value, by the name the template gave it."""

    name: str


Value = str | bool | int | float | Number | Missing | None | Sequence["Value"] | Mapping[str, "Value"]


class Fuel:
    """A supply of bytes that rendering uses up, so that time and memory are bounded without a clock."""

    def __init__(self, bytes_max: int = FUEL_BYTES_MAX) -> None:
        self._left = bytes_max

    def spend(self, size: int) -> None:
        """Use `size` bytes; TemplateError if one text or all of them together grow past the limit."""
        if size > limits.TEMPLATE_OUTPUT_BYTES_MAX:
            raise TemplateError(
                f"the template makes a text of more than {limits.TEMPLATE_OUTPUT_BYTES_MAX} bytes",
                "make the text in a step, into a file",
                "template-too-large",
            )
        self.burn(size)

    def burn(self, size: int) -> None:
        """Use as much as `size` bytes of text would, on other work; TemplateError if nothing is left."""
        self._left -= size
        if self._left < 0:
            raise TemplateError(
                f"the templates of this document make more than {FUEL_BYTES_MAX} bytes of text in all",
                "use fewer or smaller parameters",
                "template-too-large",
            )


def value_of(node: Node) -> Value:
    """The value that a node holds, its templates not rendered."""
    match node:
        case ScalarNode():
            return scalar_value(node.text, node.kind)
        case ListNode():
            return [value_of(item) for item in node.items]
        case MapNode():
            return {key: value_of(item) for key, item in node.entries.items()}


def scalar_value(text: str, kind: Kind) -> Value:
    """The value of a scalar of that kind."""
    match kind:
        case Kind.NULL:
            return None
        case Kind.BOOLEAN:
            return is_true(ScalarNode(text=text, kind=kind))
        case Kind.INTEGER | Kind.FLOAT:
            return Number(text)
        case Kind.TEXT:
            return text


def text_of(value: Value, fuel: Fuel) -> str:
    """How a value is written: numbers as they came, booleans as true and false, null as nothing, the rest as JSON."""
    match value:
        case Missing():
            raise TemplateError(f"the parameter '{value.name}' has no value", code="missing-parameter")
        case None:
            text = ""
        case str():
            text = value
        case Number():
            text = value.text
        case bool():
            text = "true" if value else "false"
        case int() | float():
            text = str(value)
        case _:
            text = json_of(value, fuel)
    fuel.spend(NODE_FUEL_BYTES + len(text))
    return text


def json_of(value: Value, fuel: Fuel) -> str:
    """A value as JSON, numbers as they came."""
    fuel.spend(NODE_FUEL_BYTES)
    match value:
        case None:
            return "null"
        case str():
            fuel.spend(len(value))
            return json.dumps(value, ensure_ascii=False)
        case Mapping():
            return (
                "{"
                + ", ".join(f"{json.dumps(k, ensure_ascii=False)}: {json_of(v, fuel)}" for k, v in value.items())
                + "}"
            )
        case Sequence():
            return "[" + ", ".join(json_of(item, fuel) for item in value) + "]"
        case _:
            return text_of(value, fuel)


def is_truthy(value: Value) -> bool:
    """Whether a condition holds: not for false, null, 0, nothing, and the text `false`, as a command line gives it."""
    match value:
        case Missing():
            raise TemplateError(f"the parameter '{value.name}' has no value", code="missing-parameter")
        case str():
            return value not in ("", "false")
        case Number():
            return bool(value.value)
        case _:
            return bool(value)
