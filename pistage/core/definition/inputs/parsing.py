"""Parsing: `inputs` of a document -> the declaration, each input held against itself: its default, its options."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from difflib import get_close_matches
from math import isfinite

from pistage.core import limits
from pistage.core.definition.fields import (
    boolean_field,
    came,
    check_keys,
    count_field,
    list_field,
    map_field,
    respelled,
    text_field,
    word_field,
    wrong_kind,
)
from pistage.core.definition.findings import Page
from pistage.core.definition.inputs.checking import value_in
from pistage.core.definition.inputs.declaration import Domain, Input, Inputs, InputType
from pistage.core.definition.inputs.pattern import Pattern, PatternError
from pistage.core.definition.nodes import Kind, ListNode, MapNode, Node, ScalarNode, below, is_null, shortened
from pistage.core.definition.scope import Entry, Scope, check_names
from pistage.core.definition.templates import is_template
from pistage.core.definition.values import Number, Value, value_of

#: The other spellings of a key, each read as the first of its row: JSON Schema's, mostly.
_SPELLINGS = (
    ("options", "enum"),
    ("min", "minimum"),
    ("max", "maximum"),
    ("min_length", "minLength"),
    ("max_length", "maxLength"),
    ("min_items", "minItems"),
    ("max_items", "maxItems"),
)
#: What else is called a type elsewhere: these two are read as ours, the others are told what they are called here.
_SAME = {"choice": InputType.ENUM, "array": InputType.LIST}
_ELSEWHERE = {
    "text": "string", "str": "string", "int": "integer", "float": "number", "double": "number", "bool": "boolean",
    "select": "enum", "options": "enum", "sequence": "list",
}  # fmt: skip
_ABOUT = frozenset({"type", "title", "description", "required", "default"})
_OF_NUMBERS = frozenset({"min", "max", "options"})
#: The keys that each type has beside those of all.
_KEYS: Mapping[InputType, frozenset[str]] = {
    InputType.STRING: frozenset({"pattern", "options", "min_length", "max_length"}),
    InputType.NUMBER: _OF_NUMBERS,
    InputType.INTEGER: _OF_NUMBERS,
    InputType.BOOLEAN: frozenset(),
    InputType.ENUM: frozenset({"options"}),
    InputType.LIST: frozenset({"items", "min_items", "max_items"}),
}
_ALL_KEYS = frozenset().union(*_KEYS.values())
_TYPES = [one.value for one in InputType]


def inputs_field(page: Page, node: Node | None, with_: MapNode | None = None) -> Inputs | None:
    """The inputs that a document declares, beside its own `with`; None where it declares none, or no mapping."""
    mapping = map_field(page, node, "inputs", "a mapping of inputs by name")
    if mapping is None:
        return None
    before = page.report.errors_count
    if len(mapping.entries) > limits.INPUTS_MAX:
        page.error(mapping, "too-many-inputs", f"there are more than {limits.INPUTS_MAX} inputs", "use a list")
        return Inputs(is_sound=False, place=mapping)
    unusable = check_names(Scope({name: Entry("", "inputs") for name in mapping.entries}), page, mapping)
    own_names = frozenset(name for name, item in with_.entries.items() if not is_null(item)) if with_ else frozenset()
    for name in mapping.entries:
        if with_ is not None and name in with_.entries:
            page.error(
                with_.keys[name],
                "repeated-name",
                f"'{shortened(name)}' is both in 'inputs' and in 'with'",
                f"keep the input; its 'default' says what 'with' did: inputs.{shortened(name, 40)}.default",
            )
    entries = {name: _input(page, name, mapping) for name in mapping.entries if name not in unusable}
    is_sound = page.report.errors_count == before
    return Inputs(entries=entries, own_names=own_names, is_sound=is_sound, place=mapping)


def _input(page: Page, name: str, mapping: MapNode) -> Input:
    node, place = mapping.entries[name], mapping.keys[name]
    label = f"inputs.{shortened(name, 40)}"
    if is_null(node):
        return Input(name=name, place=place)
    if not isinstance(node, MapNode):
        hint = f"write {{default: {shortened(node.text, 40)}}}" if isinstance(node, ScalarNode) else None
        if isinstance(node, ScalarNode) and (node.text in _TYPES or node.text in _SAME):
            hint = f"write {{type: {node.text}}}"
        wrong_kind(page, node, label, "a mapping", hint or "give it 'type', 'default', 'description' and so on")
        return Input(name=name, place=place)
    node = respelled(page, node, _SPELLINGS)
    check_keys(page, node, _ABOUT | _ALL_KEYS, "an input")
    domain = _domain(page, node, label)
    default = None if domain is None else _default(page, node.get("default"), domain, label)
    is_required = boolean_field(page, node.get("required"), f"{label}.required")
    if is_required and node.get("default") is not None:
        page.warn(
            node.keys["required"],
            "no-effect",
            f"{label} has a default, so that it need not be given, although it is 'required'",
            "take one of them out",
        )
    return Input(
        name=name,
        domain=domain or Domain(),
        is_required=is_required and default is None,
        default=default,
        title=word_field(page, node.get("title"), f"{label}.title") or "",
        description=word_field(page, node.get("description"), f"{label}.description") or "",
        place=place,
    )


# --- what values there can be ----------------------------------------------------------------------------------


def _domain(page: Page, node: MapNode, label: str, *, of_items: bool = False) -> Domain | None:
    """The values that an input or an item can have; None after an error about its type."""
    type_ = _type_of(page, node, label)
    if type_ is None:
        return None
    if of_items and type_ is InputType.LIST:
        page.error(node.entries["type"], "wrong-kind", f"{label} cannot be lists again", "take a list of strings")
        return None
    own = _KEYS[type_]
    for key in node.keys.keys() & (_ALL_KEYS - own):
        if node.get(key) is not None:
            _note_without_effect(page, node, key, type_, label)
    domain = Domain(type=type_)
    match type_:
        case InputType.LIST:
            low, high = _counts(page, node, label, "items", limits.INPUT_ITEMS_MAX)
            return replace(domain, items=_items(page, node.get("items"), label), length_min=low, length_max=high)
        case InputType.NUMBER | InputType.INTEGER:
            least, most = (_bound(page, node.get(key), f"{label}.{key}", type_) for key in ("min", "max"))
            if least is not None and most is not None and least.value > most.value:
                _note_crossed(page, node, label, "min", "max")
            domain = replace(domain, least=least, most=most)
        case InputType.STRING:
            low, high = _counts(page, node, label, "length", limits.INPUT_VALUE_BYTES_MAX)
            pattern = _pattern(page, node.get("pattern"), f"{label}.pattern")
            domain = replace(domain, pattern=pattern, length_min=low, length_max=high)
        case InputType.ENUM if node.get("options") is None:
            at = node.keys.get("type") or node
            page.error(at, "no-options", f"{label} is an enum without 'options'", "give it 'options: [a, b]'")
    return replace(domain, options=_options(page, node, domain, label)) if "options" in own else domain


def _type_of(page: Page, node: MapNode, label: str) -> InputType | None:
    item = node.get("type")
    if item is None:
        return InputType.STRING
    if isinstance(item, ScalarNode):
        if item.text in _TYPES:
            return InputType(item.text)
        if item.text in _SAME:
            return _SAME[item.text]
    word = item.text[:60].lower() if isinstance(item, ScalarNode) else ""
    near = _ELSEWHERE.get(word) or next(iter(get_close_matches(word, _TYPES, 1, 0.7)), None)
    expected = f"{', '.join(_TYPES[:-1])} or {_TYPES[-1]}"
    wrong_kind(page, item, f"{label}.type", expected, f"did you mean '{near}'?" if near else "write one of them")
    return None


def _note_without_effect(page: Page, node: MapNode, key: str, type_: InputType, label: str) -> None:
    """A bound that binds nothing would let through what its author wants kept out."""
    own = _KEYS[type_]
    article = "an" if type_.value[0] in "aeiou" else "a"
    twins = {"min": ("min_length", "min_items"), "max": ("max_length", "max_items")}
    near = [other for other in twins.get(key, ()) if other in own]
    if near:
        hint = f"did you mean '{near[0]}'?"
    elif type_ is InputType.LIST and key in {"pattern", "options", "min", "max", "min_length", "max_length"}:
        hint = f"put it under 'items', where it is about each of them: items: {{{key}: …}}"
    elif type_ is InputType.STRING and key in {"items", "min_items", "max_items"}:
        hint = "write 'type: list'"
    else:
        hint = (
            f"{article} {type_} has {', '.join(sorted(own))}" if own else f"{article} {type_} has nothing of the kind"
        )
    page.error(node.keys[key], "no-effect", f"'{node.keys[key].text}' means nothing for {article} {type_}", hint)


def _items(page: Page, node: Node | None, label: str) -> Domain:
    """`items: integer`, or a mapping as of an input."""
    if node is None:
        return Domain()
    if isinstance(node, ScalarNode):
        at = {"type": node}
        node = MapNode(entries=dict(at), keys=dict(at), line=node.line, column=node.column, path=node.path)
    mapping = map_field(page, node, f"{label}.items", "a type or a mapping")
    if mapping is None:
        return Domain()
    mapping = respelled(page, mapping, _SPELLINGS)
    check_keys(page, mapping, {"type", "title", "description"} | _ALL_KEYS, "the items of an input")
    return _domain(page, mapping, f"{label}.items", of_items=True) or Domain()


def _counts(page: Page, node: MapNode, label: str, what: str, most: int) -> tuple[int | None, int | None]:
    keys = (f"min_{what}", f"max_{what}")
    low, high = (count_field(page, node.get(key), f"{label}.{key}", most) for key in keys)
    if low is not None and high is not None and low > high:
        _note_crossed(page, node, label, *keys)
    return low, high


def _note_crossed(page: Page, node: MapNode, label: str, low: str, high: str) -> None:
    page.error(node.entries[low], "crossed", f"{label}.{low} is more than {label}.{high}", "no value could be right")


def _bound(page: Page, node: Node | None, label: str, type_: InputType) -> Number | None:
    if node is None:
        return None
    if isinstance(node, ScalarNode) and node.kind in (Kind.INTEGER, Kind.FLOAT):
        number = Number(node.text)
        if isfinite(float(number.value)) and (type_ is InputType.NUMBER or float(number.value).is_integer()):
            return number
    wrong_kind(page, node, label, "an integer" if type_ is InputType.INTEGER else "a number", "write it in digits")
    return None


def _pattern(page: Page, node: Node | None, label: str) -> Pattern | None:
    text = text_field(page, node, label)
    if text is None or node is None:
        return None
    try:
        return Pattern(text)
    except PatternError as error:
        page.error(node, "bad-pattern", f"{label} {error.message}", error.hint)
        return None


def _options(page: Page, node: MapNode, domain: Domain, label: str) -> tuple[Value, ...]:
    """The options, each a value that the input could have but for them."""
    item = node.get("options")
    if item is None:
        return ()
    label = f"{label}.{node.keys['options'].text}"
    options = list_field(page, item, label, "a list of values")
    if not options and isinstance(item, ListNode):
        page.error(item, "empty", f"{label} is empty", "give it a value, or take it out")
    if len(options) > limits.INPUT_OPTIONS_MAX:
        page.error(item, "too-many-options", f"{label} has more than {limits.INPUT_OPTIONS_MAX}", "use a pattern")
        return ()
    found: dict[object, Value] = {}
    for option in options:
        if not isinstance(option, ScalarNode) or is_null(option):
            wrong_kind(page, option, f"an item of {label}", "a single value", "write one text, number or boolean")
            continue
        value, faults = value_in(domain, value_of(option), f"an item of {label}")
        for fault in faults:
            page.error(option, "bad-option", fault.message, fault.hint)
        key = value.value if isinstance(value, Number) else value
        if not faults and key in found:
            page.error(option, "repeated-option", f"{came(option)} is twice in {label}", "keep one of them")
        elif not faults:
            found[key] = value
    return tuple(found.values())


# --- what it is unless it is given -------------------------------------------------------------------------------


def _default(page: Page, node: Node | None, domain: Domain, label: str) -> Value:
    if node is None:
        return None
    for scalar in below(node):
        if isinstance(scalar, ScalarNode) and scalar.kind is Kind.TEXT and is_template(scalar.text):
            page.warn(
                scalar,
                "literal-template",
                f"{label}.default is taken as it is: the template in it is not rendered",
                "make such a value in 'with', of inputs",
            )
    value, faults = value_in(domain, value_of(node), f"{label}.default")
    for fault in faults:
        page.error(_item_at(node, fault.at), "bad-default", fault.message, fault.hint)
    return None if faults else value


def _item_at(node: Node, at: tuple[str | int, ...]) -> Node:
    for part in at:
        if not isinstance(node, ListNode) or not isinstance(part, int):
            break
        node = node.items[part]
    return node
