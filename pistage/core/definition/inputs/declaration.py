"""Declaration: what a definition says of the inputs it takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from pistage.core.definition.inputs.pattern import Pattern
from pistage.core.definition.nodes import Place
from pistage.core.definition.values import Number, Value


class InputType(StrEnum):
    """What kind of value an input takes."""

    STRING = "string"
    NUMBER = "number"
    INTEGER = "integer"
    BOOLEAN = "boolean"
    ENUM = "enum"
    LIST = "list"


@dataclass(frozen=True, slots=True, kw_only=True)
class Domain:
    """The values that an input, or an item of a list, can have. `length_min` and `length_max` count characters of a
    text, or items of a list."""

    type: InputType = InputType.STRING
    options: tuple[Value, ...] = ()  # texts, or numbers where the type is one
    pattern: Pattern | None = None
    least: Number | None = None
    most: Number | None = None
    length_min: int | None = None
    length_max: int | None = None
    items: Domain | None = None  # of a list alone

    @property
    def is_matched(self) -> bool:
        """Whether a pattern goes through what is given."""
        return self.pattern is not None or (self.items is not None and self.items.is_matched)


@dataclass(frozen=True, slots=True, kw_only=True)
class Input:
    """One input. `default` is of its domain, None where there is none; `place` is that of its name."""

    name: str
    domain: Domain = Domain()
    is_required: bool = False
    default: Value = None
    title: str = ""
    description: str = ""
    place: Place = field(default_factory=Place)


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """All inputs of a definition by name, in its order.

    `own_names` are those of its `with`, which nobody can give; `is_sound` is false after an error in the declaration,
    against which nothing is checked then.
    """

    entries: Mapping[str, Input] = field(default_factory=dict)
    own_names: frozenset[str] = frozenset()
    is_sound: bool = True
    place: Place = field(default_factory=Place)
