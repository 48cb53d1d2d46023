"""Filters and tests that templates may use: a closed list, each output paid for before it is made."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from math import isnan

from pistage.core.definition.nodes import Kind, kind_of
from pistage.core.definition.values import Fuel, Missing, Number, TemplateError, Value, json_of, text_of

Filter = Callable[..., Value]


def _sized(value: Value, name: str) -> str | Sequence[Value] | Mapping[str, Value]:
    if isinstance(value, str | Sequence | Mapping):
        return value
    raise TemplateError(f"the filter '{name}' takes a text, a list or a mapping")


def _length(fuel: Fuel, value: Value) -> Value:
    return len(_sized(value, "length"))


def _first(fuel: Fuel, value: Value) -> Value:
    return _end(value, "first", 0)


def _last(fuel: Fuel, value: Value) -> Value:
    return _end(value, "last", -1)


def _end(value: Value, name: str, index: int) -> Value:
    sized = _sized(value, name)
    if isinstance(sized, Mapping) or not sized:
        raise TemplateError(f"the filter '{name}' takes a list or a text that is not empty")
    return sized[index]


def _join(fuel: Fuel, value: Value, separator: Value = "") -> Value:
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise TemplateError("the filter 'join' takes a list")
    between = text_of(separator, fuel)
    parts = [text_of(item, fuel) for item in value]
    fuel.spend(sum(map(len, parts)) + len(between) * len(parts))
    return between.join(parts)


def _replace(fuel: Fuel, value: Value, old: Value, new: Value) -> Value:
    text, before, after = text_of(value, fuel), text_of(old, fuel), text_of(new, fuel)
    if not before:
        raise TemplateError("the filter 'replace' cannot replace an empty text")
    fuel.spend(len(text) + text.count(before) * max(0, len(after) - len(before)))
    return text.replace(before, after)


def _split(fuel: Fuel, value: Value, separator: Value = None) -> Value:
    text = text_of(value, fuel)
    between = None if separator is None else text_of(separator, fuel)
    if between == "":
        raise TemplateError("the filter 'split' cannot split at an empty text")
    fuel.spend(2 * len(text))
    return list(text.split(between))


def _number(fuel: Fuel, value: Value) -> int | float:
    if isinstance(value, Number):
        return value.value
    if isinstance(value, int | float):
        return value
    text = text_of(value, fuel).strip()
    if kind_of(text) in (Kind.INTEGER, Kind.FLOAT):
        return Number(text).value
    raise TemplateError(f"'{text[:40]}' is not a number")


def _int(fuel: Fuel, value: Value) -> Value:
    number = _number(fuel, value)
    if isnan(number) or abs(number) > 10**64:
        raise TemplateError("the filter 'int' takes a number of at most 64 digits")
    return int(number)


def _float(fuel: Fuel, value: Value) -> Value:
    return float(_number(fuel, value))


def _on_text(change: Callable[[str], str], growth: int = 3) -> Filter:
    """A filter that changes a text; `growth` bounds how much longer it may become (`ß` has two capitals)."""

    def apply(fuel: Fuel, value: Value) -> Value:
        text = text_of(value, fuel)
        fuel.spend(len(text))
        changed = change(text)
        assert len(changed) <= growth * len(text) + 2
        fuel.spend(len(changed))
        return changed

    return apply


#: `default` is not here: it is part of evaluation, for it alone may see what is missing.
FILTERS: Mapping[str, Filter] = {
    "q": _on_text(shlex.quote, 5),
    "quote": _on_text(shlex.quote, 5),
    "upper": _on_text(str.upper),
    "lower": _on_text(str.lower),
    "capitalize": _on_text(str.capitalize),
    "title": _on_text(str.title),
    "trim": _on_text(str.strip),
    "string": _on_text(str),
    "replace": _replace,
    "join": _join,
    "split": _split,
    "length": _length,
    "count": _length,
    "first": _first,
    "last": _last,
    "int": _int,
    "float": _float,
    "tojson": lambda fuel, value: json_of(value, fuel),
}

TESTS: Mapping[str, Callable[[Value], bool]] = {
    "defined": lambda value: not isinstance(value, Missing),
    "undefined": lambda value: isinstance(value, Missing),
    "none": lambda value: value is None,
    "string": lambda value: isinstance(value, str),
    "number": lambda value: isinstance(value, Number | int | float) and not isinstance(value, bool),
    "boolean": lambda value: isinstance(value, bool),
    "true": lambda value: value is True,
    "false": lambda value: value is False,
    "mapping": lambda value: isinstance(value, Mapping),
    "sequence": lambda value: isinstance(value, Sequence) and not isinstance(value, str),
}
