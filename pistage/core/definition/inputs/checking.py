"""Checking: values that were given -> values of the inputs declared, or every fault of them at once."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from math import isfinite

from pistage.core import limits
from pistage.core.definition.inputs.declaration import Domain, Inputs, InputType
from pistage.core.definition.nodes import Kind, kind_of, number_of, shortened
from pistage.core.definition.values import Number, Value

WRONG, MISSING, UNKNOWN, TOO_LARGE = "wrong-input", "missing-input", "unknown-input", "inputs-too-large"
FAULT_CODES = frozenset({WRONG, MISSING, UNKNOWN, TOO_LARGE})

At = tuple[str | int, ...]
_DIGITS_MAX = 63
_NEAR_MAX = 10  # names looked for, or options looked through, for the nearest: a third of a millisecond each pair
_FORBIDDEN = re.compile("[\0\ud800-\udfff]")
_JSON_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?")


@dataclass(frozen=True, slots=True)
class Fault:
    """What is wrong: `at` is the way to the value, `("ports", 2)`, empty where it is about all of them."""

    at: At
    code: str
    message: str
    hint: str


@dataclass(frozen=True, slots=True)
class Checked:
    """The value of each input that has a sound one, given or by default; nothing may be run while there are faults."""

    values: Mapping[str, Value]
    faults: tuple[Fault, ...]


def check_inputs(
    declared: Inputs, given: Mapping[str, object], *, pending: Collection[str] = (), whose: str = ""
) -> Checked:
    """Hold `given`, values as JSON or a document has them, against `declared`. Never raises for any value.

    Those of `pending` will have a value that is not known yet. `whose` stands behind an input's name in messages.
    At most limits.FINDINGS_MAX faults are told.
    """
    values: dict[str, Value] = {}
    faults: list[Fault] = []
    size = sum(chars_in(value) for name, value in given.items() if name in declared.entries)
    if size > limits.INPUTS_BYTES_MAX:  # to hold it all against patterns would take too long
        message = f"the inputs{whose} have {size} characters together; at most {limits.INPUTS_BYTES_MAX} are taken"
        faults.append(Fault((), TOO_LARGE, message, "keep data in files"))
        given, pending = {}, {*pending, *given}
    for name, one in declared.entries.items():
        label = f"the input '{shortened(name)}'{whose}"
        value = given.get(name)
        if value is not None:
            made, wrong = value_in(one.domain, value, label, (name,))
            faults += wrong
            if not wrong:
                values[name] = made
        elif name in pending:
            continue
        elif one.default is not None:
            values[name] = one.default
        elif one.is_required:
            what = expected(one.domain)
            faults.append(Fault((name,), MISSING, f"{label} is not given", f"give it: {what}"))
        if len(faults) >= limits.FINDINGS_MAX:
            break
    coming = [*(name for name, value in given.items() if value is not None), *pending]
    strange = [name for name in dict.fromkeys(coming) if name not in declared.entries]
    for number, name in enumerate(strange[: limits.FINDINGS_MAX]):
        faults.append(_unknown(name, declared, whose, looks_near=number < _NEAR_MAX))
    return Checked(values, tuple(faults[: limits.FINDINGS_MAX]))


def chars_in(value: object) -> int:
    """How much text a value holds, in itself or as a list."""
    if isinstance(value, str):
        return len(value)
    return sum(len(item) for item in value if isinstance(item, str)) if isinstance(value, list | tuple) else 0


def _unknown(name: str, declared: Inputs, whose: str, *, looks_near: bool) -> Fault:
    known = list(declared.entries)
    same = [other for other in known if other.casefold() == name.casefold()]
    if not same and looks_near:
        same = get_close_matches(name[:60], [other for other in known if len(other) <= 60], 1, 0.6)
    if same:
        hint = f"did you mean '{shortened(same[0], 40)}'?"
    elif name in declared.own_names:
        hint = "it is a value of the definition's own; move it from 'with' to 'inputs' to let it be given"
    elif known:
        hint = f"there are {_listed(known)}"
    else:
        hint = "there are none: 'inputs' is empty"
    return Fault((name,), UNKNOWN, f"there is no input '{shortened(name)}'{whose}", hint)


def value_in(domain: Domain, value: object, label: str, at: At = ()) -> tuple[Value, list[Fault]]:
    """`value` as one of `domain`, and what is wrong with it; the value counts only where nothing is."""
    problem = _problem_of(value)
    if problem is not None:
        return None, [Fault(at, WRONG, f"{label} {problem[0]}", problem[1])]
    match domain.type:
        case InputType.STRING | InputType.ENUM:
            return _text_in(domain, value, label, at)
        case InputType.NUMBER | InputType.INTEGER:
            return _number_in(domain, value, label, at)
        case InputType.BOOLEAN:
            return _boolean_in(domain, value, label, at)
        case InputType.LIST:
            return _list_in(domain, value, label, at)


def _problem_of(value: object) -> tuple[str, str] | None:
    """What no value of any type may be: too long, or not to be given to a command."""
    if not isinstance(value, str):
        return None
    if len(value) > limits.INPUT_VALUE_BYTES_MAX:
        return _too_long(f"{len(value)} characters")
    if _FORBIDDEN.search(value):
        return "holds a character that no command can take", "take it out"
    size = len(value.encode())
    return _too_long(f"{size} bytes") if size > limits.INPUT_VALUE_BYTES_MAX else None


def _too_long(came: str) -> tuple[str, str]:
    return f"has {came}; at most {limits.INPUT_VALUE_BYTES_MAX} bytes are taken", "keep data in a file"


# --- one value ---------------------------------------------------------------------------------------------


def _text_in(domain: Domain, value: object, label: str, at: At) -> tuple[Value, list[Fault]]:
    text = _written(value)
    if text is None:
        return None, [_wrong(domain, value, label, at, "write a single text")]
    faults = []
    if domain.options and text not in domain.options:
        faults.append(_wrong(domain, value, label, at, _nearest_option(text, domain)))
    if not _is_between(len(text), domain.length_min, domain.length_max):
        lengths = _span(domain.length_min, domain.length_max, "character")
        message = f"{label} must have {lengths}, not {len(text)}"
        faults.append(Fault(at, WRONG, message, f"it is {came_of(text)}"))
    if domain.pattern is not None and not domain.pattern.matches(text):
        message = f"{label} must match {shortened(domain.pattern.text)}, which {came_of(value)} does not"
        faults.append(Fault(at, WRONG, message, "give a text in which that is found"))
    return text, faults


def _number_in(domain: Domain, value: object, label: str, at: At) -> tuple[Value, list[Fault]]:
    number = _number_of(value)
    if number is not None and domain.type is InputType.INTEGER:
        number = _whole(number)
    if number is None:
        hint = "write it in digits" if domain.type is InputType.INTEGER else "write it in digits, as 3, 0.5 or 1e6"
        return None, [_wrong(domain, value, label, at, hint)]
    exact = number.value
    is_less = domain.least is not None and exact < domain.least.value
    is_more = domain.most is not None and exact > domain.most.value
    if is_less or is_more:
        return None, [_wrong(domain, value, label, at, "give a larger one" if is_less else "give a smaller one")]
    if domain.options:
        same = [option for option in domain.options if isinstance(option, Number) and option.value == exact]
        if not same:
            return None, [_wrong(domain, value, label, at, "choose one of them")]
        return same[0], []
    return number, []


def _boolean_in(domain: Domain, value: object, label: str, at: At) -> tuple[Value, list[Fault]]:
    if isinstance(value, bool):
        return value, []
    if isinstance(value, str) and kind_of(value.strip()) is Kind.BOOLEAN:
        return value.strip().lower() == "true", []
    return None, [_wrong(domain, value, label, at, "write true or false")]


def _list_in(domain: Domain, value: object, label: str, at: At) -> tuple[Value, list[Fault]]:
    items = _items_of(value)
    if items is None:
        hint = 'write items between commas, or as JSON: ["a", "b"]'
        return None, [_wrong(domain, value, label, at, hint)]
    faults = []
    most = limits.INPUT_ITEMS_MAX if domain.length_max is None else domain.length_max
    if not _is_between(len(items), domain.length_min, most):
        spoken = _span(domain.length_min, most if len(items) > most else domain.length_max, "item")
        faults.append(Fault(at, WRONG, f"{label} must have {spoken}, not {len(items)}", "give another number of them"))
    of_items = domain.items or Domain()
    values = []
    for number, item in enumerate(items[: limits.INPUT_ITEMS_MAX]):
        made, wrong = value_in(of_items, item, f"item {number + 1} of {label}", (*at, number))
        values.append(made)
        faults += wrong
        if len(faults) >= limits.FINDINGS_MAX:
            break
    if not faults and _size(values) > limits.INPUT_VALUE_BYTES_MAX:
        what, hint = _too_long(f"{_size(values)} bytes")
        faults.append(Fault(at, WRONG, f"{label} {what}", hint))
    return values, faults


# --- what was given, read ------------------------------------------------------------------------------------


def _written(value: object) -> str | None:
    """A single value as it was written."""
    match value:
        case str():
            return value
        case bool():
            return "true" if value else "false"
        case Number():
            return value.text
        case int() | float():
            number = _number_of(value)
            return None if number is None else number.text
        case _:
            return None


def _number_of(value: object) -> Number | None:
    """A number in the spelling that it came in, where JSON has the same."""
    match value:
        case Number():
            text = value.text
        case str():
            text = value.strip()
        case int() | float() if not isinstance(value, bool):
            text = _digits_of(value)
        case _:
            return None
    if kind_of(text) not in (Kind.INTEGER, Kind.FLOAT) or not isfinite(_as_float(text)):
        return None
    return Number(text if _JSON_NUMBER.fullmatch(text) else str(number_of(text)))


def _digits_of(value: float) -> str:
    if isinstance(value, int) and abs(value) >= 10**_DIGITS_MAX:
        return ""
    return str(value)


def _as_float(text: str) -> float:
    return float(number_of(text))


def _whole(number: Number) -> Number | None:
    """The number as an integer of at most 63 digits, if it is one; `3.0` is."""
    value = number.value
    if isinstance(value, float) and not value.is_integer():
        return None
    whole = int(value)
    return Number(str(whole)) if abs(whole) < 10**_DIGITS_MAX else None


def _items_of(value: object) -> Sequence[object] | None:
    if isinstance(value, str):
        return _items_in(value)
    return value if isinstance(value, Sequence) and not isinstance(value, bytes | bytearray) else None


def _items_in(text: str) -> Sequence[object] | None:
    """JSON where it begins as that, else what stands between commas and ends of lines; nothing between two is none."""
    if not text.lstrip().startswith("["):
        return [part for part in (piece.strip() for piece in re.split("[,\n]", text)) if part]
    try:
        loaded = json.loads(text, parse_int=Number, parse_float=Number, parse_constant=Number)
    except (ValueError, RecursionError):
        return None
    return loaded if isinstance(loaded, list) else None


def _size(value: Value) -> int:
    """Bytes of a sound value, about as many as it has in JSON."""
    match value:
        case str():
            return len(value.encode()) + 2
        case Number():
            return len(value.text)
        case Sequence():
            return sum(_size(item) + 2 for item in value)
        case _:
            return 5


# --- words -----------------------------------------------------------------------------------------------------


def expected(domain: Domain) -> str:  # noqa: PLR0911  # one return a form of domain
    """What a value must be, for a message."""
    match domain.type:
        case _ if domain.options:
            spelled = [f"'{shortened(_written(option) or '', 40)}'" for option in domain.options[:20]]
            more = f" or {len(domain.options) - 20} more" if len(domain.options) > 20 else ""
            return f"one of {', '.join(spelled)}{more}" if len(domain.options) > 1 else spelled[0]
        case InputType.NUMBER | InputType.INTEGER:
            word = "an integer" if domain.type is InputType.INTEGER else "a number"
            if _has_both(domain):
                assert domain.least is not None and domain.most is not None
                return f"{word} from {domain.least.text} to {domain.most.text}"
            if domain.least is not None:
                return f"{word} of at least {domain.least.text}"
            return f"{word} of at most {domain.most.text}" if domain.most is not None else word
        case InputType.BOOLEAN:
            return "true or false"
        case InputType.LIST:
            return "a list"
        case _:
            return "a string"


def came_of(value: object) -> str:  # noqa: PLR0911  # one return a kind of value
    """What was given, for a message."""
    match value:
        case None:
            return "nothing"
        case str():
            return f"the text '{shortened(value, 40)}'" if value else "an empty text"
        case bool():
            return f"the boolean {'true' if value else 'false'}"
        case Number():
            return f"the number {shortened(value.text, 40)}"
        case int() | float():
            return f"the number {shortened(_digits_of(value), 40) or 'of more than 63 digits'}"
        case Mapping():
            return "a mapping"
        case Sequence():
            return "a list"
        case _:
            return f"a {type(value).__name__}"


def _wrong(domain: Domain, value: object, label: str, at: At, hint: str) -> Fault:
    return Fault(at, WRONG, f"{label} must be {expected(domain)}, not {came_of(value)}", hint)


def _nearest_option(text: str, domain: Domain) -> str:
    options = [option for option in domain.options if isinstance(option, str)]
    same = [option for option in options if option.casefold() == text.strip().casefold()]
    if not same and len(options) <= _NEAR_MAX:
        same = get_close_matches(text[:60], [option for option in options if len(option) <= 60], 1, 0.6)
    return f"did you mean '{shortened(same[0], 40)}'?" if same else "choose one of them"


def _is_between(count: int, least: int | None, most: int | None) -> bool:
    return (least is None or count >= least) and (most is None or count <= most)


def _has_both(domain: Domain) -> bool:
    return domain.least is not None and domain.most is not None


def _span(least: int | None, most: int | None, what: str) -> str:
    if not least:
        return f"at most {most} {what}{'' if most == 1 else 's'}"
    if most is None:
        return f"at least {least} {what}{'' if least == 1 else 's'}"
    return f"{least} {what}{'' if least == 1 else 's'}" if least == most else f"{least} to {most} {what}s"


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - 20} more" if len(names) > 20 else ""
    return ", ".join(f"'{shortened(name, 40)}'" for name in names[:20]) + more
