"""Evaluation: the value of a checked expression, each operation paid for with fuel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from jinja2 import nodes

from pistage.core.definition.filters import FILTERS, TESTS
from pistage.core.definition.values import (
    NODE_FUEL_BYTES,
    Fuel,
    Missing,
    Number,
    TemplateError,
    Value,
    is_truthy,
    text_of,
)


def evaluate(  # noqa: PLR0911  # one return a construct
    tree: nodes.Expr, names: Mapping[str, Value], fuel: Fuel
) -> Value:
    """The value of `tree`, which may be Missing: what a parameter without a value is until something uses it."""
    fuel.spend(NODE_FUEL_BYTES)
    match tree:
        case nodes.Const():
            return tree.value if isinstance(tree.value, str | bool | int | float) else None
        case nodes.Name():
            return names.get(tree.name, Missing(tree.name))
        case nodes.Getattr():
            return _item(tree.node, evaluate(tree.node, names, fuel), tree.attr)
        case nodes.Getitem():
            return _item(tree.node, evaluate(tree.node, names, fuel), _present(evaluate(tree.arg, names, fuel)))
        case nodes.List() | nodes.Tuple():
            return [_present(evaluate(item, names, fuel)) for item in tree.items]
        case nodes.Filter():
            return _filtered(tree, names, fuel)
        case nodes.Test():
            return _tested(tree, names, fuel)
        case nodes.CondExpr():
            branch = tree.expr1 if is_truthy(evaluate(tree.test, names, fuel)) else tree.expr2
            return "" if branch is None else evaluate(branch, names, fuel)
        case _:
            return _operation(tree, names, fuel)


def _operation(  # noqa: PLR0911  # one return an operation
    tree: nodes.Expr, names: Mapping[str, Value], fuel: Fuel
) -> Value:
    match tree:
        case nodes.Not():
            return not is_truthy(evaluate(tree.node, names, fuel))
        case nodes.And() | nodes.Or():
            left = evaluate(tree.left, names, fuel)
            is_decided = is_truthy(left) is isinstance(tree, nodes.Or)
            return left if is_decided else _present(evaluate(tree.right, names, fuel))
        case nodes.Compare():
            return _compared(tree, names, fuel)
        case nodes.Concat():
            texts = [text_of(evaluate(item, names, fuel), fuel) for item in tree.nodes]
            fuel.spend(sum(map(len, texts)))
            return "".join(texts)
        case nodes.Add() | nodes.Sub():
            return _sum(tree, names, fuel)
        case nodes.Neg():
            return -_number(evaluate(tree.node, names, fuel), "-")
        case nodes.Pos():
            return _number(evaluate(tree.node, names, fuel), "+")
        case _:
            raise AssertionError(f"{type(tree).__name__} was not refused")


def _item(tree: nodes.Expr, owner: Value, key: Value) -> Value:
    name = key.text if isinstance(key, Number) else str(key)
    missing = Missing(f"{_spelled(tree)}.{name}")
    match owner:
        case Missing():
            return missing
        case Mapping():
            return owner.get(name, missing)
        case str() | None:
            pass
        case Sequence():
            index = key.value if isinstance(key, Number) else key
            if isinstance(index, bool) or not isinstance(index, int):
                raise TemplateError(f"the list '{_spelled(tree)}' is indexed by a number, not by '{name}'")
            return owner[index] if -len(owner) <= index < len(owner) else missing
    raise TemplateError(
        f"'{name}' is asked of '{_spelled(tree)}', which is neither a mapping nor a list", f"take '.{name}' out"
    )


def _spelled(tree: nodes.Node) -> str:
    match tree:
        case nodes.Name():
            return tree.name
        case nodes.Getattr():
            return f"{_spelled(tree.node)}.{tree.attr}"
        case nodes.Getitem(arg=nodes.Const(value=key)):
            return f"{_spelled(tree.node)}.{key}"
        case _:
            return "(…)"


def _present(value: Value) -> Value:
    if isinstance(value, Missing):
        raise TemplateError(f"the parameter '{value.name}' has no value", code="missing-parameter")
    return value


def _filtered(tree: nodes.Filter, names: Mapping[str, Value], fuel: Fuel) -> Value:
    assert tree.node is not None, "a filter without a value was not refused"
    value = evaluate(tree.node, names, fuel)
    arguments = [_present(evaluate(argument, names, fuel)) for argument in tree.args]
    if tree.name in ("default", "d"):
        return _default(value, *arguments[:2])
    try:
        return FILTERS[tree.name](fuel, _present(value), *arguments)
    except TypeError:
        raise TemplateError(f"the filter '{tree.name}' does not take {len(arguments)} arguments") from None


def _default(value: Value, instead: Value = "", is_for_false: Value = False) -> Value:
    is_wanted = isinstance(value, Missing) or value is None or (is_truthy(is_for_false) and not is_truthy(value))
    return instead if is_wanted else value


def _tested(tree: nodes.Test, names: Mapping[str, Value], fuel: Fuel) -> bool:
    value = evaluate(tree.node, names, fuel)
    return TESTS[tree.name](value if tree.name in ("defined", "undefined") else _present(value))


def _compared(tree: nodes.Compare, names: Mapping[str, Value], fuel: Fuel) -> bool:
    left = _plain(evaluate(tree.expr, names, fuel), fuel)
    for operand in tree.ops:
        right = _plain(evaluate(operand.expr, names, fuel), fuel)
        try:
            holds = _holds(operand.op, left, right)
        except TypeError:
            raise TemplateError("values of these kinds cannot be compared") from None
        if not holds:
            return False
        left = right
    return True


def _holds(operator: str, left: Value, right: Value) -> bool:  # noqa: PLR0911  # one return an operator
    match operator:
        case "eq":
            return left == right
        case "ne":
            return left != right
        case "in":
            return left in right  # type: ignore[operator]  # a TypeError becomes the reader's
        case "notin":
            return left not in right  # type: ignore[operator]
        case "lt":
            return left < right  # type: ignore[operator]
        case "lteq":
            return left <= right  # type: ignore[operator]
        case "gt":
            return left > right  # type: ignore[operator]
        case _:
            return left >= right  # type: ignore[operator]


def _plain(value: Value, fuel: Fuel) -> Value:
    """The value as Python compares it: numbers by what they are worth, however they were written."""
    match _present(value):
        case Number() as number:
            return number.value
        case str() as text:
            fuel.spend(len(text))
            return text
        case Mapping() as mapping:
            return {key: _plain(item, fuel) for key, item in mapping.items()}
        case Sequence() as items:
            fuel.spend(NODE_FUEL_BYTES * len(items))
            return [_plain(item, fuel) for item in items]
        case other:
            return other


def _sum(tree: nodes.Add | nodes.Sub, names: Mapping[str, Value], fuel: Fuel) -> Value:
    left, right = evaluate(tree.left, names, fuel), evaluate(tree.right, names, fuel)
    if isinstance(tree, nodes.Add):
        if isinstance(left, str) and isinstance(right, str):
            fuel.spend(len(left) + len(right))
            return left + right
        return _number(left, "+") + _number(right, "+")
    return _number(left, "-") - _number(right, "-")


def _number(value: Value, sign: str) -> int | float:
    match _present(value):
        case bool():
            pass
        case Number() as number:
            return number.value
        case (int() | float()) as number:
            return number
    raise TemplateError(f"'{sign}' in a template takes numbers", "use the filter 'int' on a text, '~' to join texts")
