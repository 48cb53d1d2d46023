"""Schema: inputs as JSON Schema (2020-12), from which a form can be made.

What the schema lets through, `check_inputs` does, but for sizes and for patterns that mean something else to RE2 than
to ECMA-262. The check lets through more, since it reads texts as numbers, booleans and lists.
"""

from __future__ import annotations

from collections.abc import Sequence

from pistage.core import limits
from pistage.core.definition.inputs.declaration import Domain, Input, Inputs, InputType
from pistage.core.definition.values import Number, Value

_DIALECT = "https://json-schema.org/draft/2020-12/schema"
_TYPES = {InputType.ENUM: "string", InputType.LIST: "array"}


def schema_of(name: str, description: str, inputs: Inputs | None) -> dict[str, object]:
    """The schema of what a definition takes; any object where it declares no inputs."""
    schema: dict[str, object] = {"$schema": _DIALECT, "title": name}
    if description:
        schema["description"] = description
    schema["type"] = "object"
    if inputs is None:
        return schema | {"additionalProperties": True}
    schema["properties"] = {one.name: _property(one) for one in inputs.entries.values()}
    schema["required"] = [one.name for one in inputs.entries.values() if one.is_required]
    return schema | {"additionalProperties": False}


def _property(one: Input) -> dict[str, object]:
    about = {"title": one.title, "description": one.description}
    schema = {key: text for key, text in about.items() if text} | _values(one.domain)
    return schema if one.default is None else schema | {"default": _plain(one.default)}


def _values(domain: Domain) -> dict[str, object]:
    made: dict[str, object] = {"type": _TYPES.get(domain.type, domain.type.value)}
    if domain.options:
        made["enum"] = [_plain(option) for option in domain.options]
    if domain.pattern is not None:
        made["pattern"] = domain.pattern.text
    if domain.type is InputType.LIST:
        made["items"] = _values(domain.items or Domain())
        most = limits.INPUT_ITEMS_MAX if domain.length_max is None else domain.length_max
        bounds: dict[str, object] = {"minItems": domain.length_min, "maxItems": most}
    else:
        bounds = {
            "minimum": _plain(domain.least),
            "maximum": _plain(domain.most),
            "minLength": domain.length_min,
            "maxLength": domain.length_max,
        }
    return made | {key: bound for key, bound in bounds.items() if bound is not None}


def _plain(value: Value) -> object:
    match value:
        case Number():
            return value.value
        case str() | bool() | None:
            return value
        case Sequence():
            return [_plain(item) for item in value]
        case _:
            return value
