"""Expressions: paths into a payload, and nothing that could compute, loop or fail."""

import json
import random
import string
from typing import Any

import pytest

from pistage.core import limits
from pistage.core.triggers.expressions import ExpressionError, Found, find, parse_expression

PAYLOAD = {
    "ref": "refs/heads/main",
    "commits": [{"id": "a1", "added": ["x", "y"]}, {"id": "b2"}],
    "n": 0, "no": False, "nothing": None, "a-b": {"$c_1": [[1, 2], [3]]}, "empty": "", "0": "zero",
}  # fmt: skip
ABSENT = Found(is_absent=True)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("ref", "refs/heads/main"),
        (" ref ", "refs/heads/main"),
        ("commits[1].id", "b2"),
        ("commits[0].added", ["x", "y"]),
        ("a-b.$c_1[0][1]", 2),
        ("n", 0),
        ("no", False),
        ("empty", ""),
        ("0", "zero"),
        ('n ?? "another"', 0),
        ('nothing ?? "another"', "another"),
        ("commits[2].id ?? null", None),
        ("a.b.c??-1.5", -1.5),
        ('a ?? "?? {{ b }}"', "?? {{ b }}"),
        ("ref.length ?? true", True),
    ],
)
def test_a_path_leads_to_a_value_or_to_its_default(text: str, value: object) -> None:
    found = find(parse_expression(text), PAYLOAD)
    assert (found, type(found.value)) == (Found(value), type(value))


@pytest.mark.parametrize(
    "text",
    [
        "nothing",
        "nobody",
        "ref.length",
        "ref[0]",
        "commits.id",
        "commits[2]",
        "commits[0].added[2]",
        "n.a",
        "__class__",
    ],
)
def test_what_is_not_there_is_absent(text: str) -> None:
    assert find(parse_expression(text), PAYLOAD) == ABSENT


@pytest.mark.parametrize("payload", [None, 1, "ref", [], [{"ref": 1}], {}])
def test_a_payload_of_any_kind_is_looked_into(payload: object) -> None:
    assert find(parse_expression("ref"), payload) == ABSENT


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "names nothing of the payload"),
        ("?? 1", "names nothing of the payload"),
        (".a", "has '.a' where a name is expected"),
        ("a.", "ends where a name is expected"),
        ("a b", "has 'b' where a dot, or a number in brackets is expected"),
        ("a[*]", "has '[*]' where a dot, or a number in brackets is expected"),
        ("a[-1]", "has '[-1]'"),
        ("a[01]", "has '[01]'"),
        ("a[1000000]", "has '[1000000]'"),
        ("a[٣]", "has '[٣]'"),
        ("[0]", "has '[0]' where a name is expected"),
        ("a[0]b", "has 'b'"),
        ("{{ a }}", "has '{{ a }}' where a name is expected"),
        ("a()", "has '()'"),
        ("a ?? b", "has no literal behind '??'"),
        ("a ??", "has no literal behind '??'"),
        ("a ?? [1]", "has no literal behind '??'"),
        ("a ?? 1e999", "has no literal behind '??'"),
        ("a ?? NaN", "has no literal behind '??'"),
        ("a ?? " + "[" * 400, "has no literal behind '??'"),
        ("a ?? 1 ?? 2", "has no literal behind '??'"),
        (".".join("a" * 17), "goes deeper than 16 levels"),
        ("a" + "[0]" * 16, "goes deeper than 16 levels"),
        ("a" * 501, "has 501 characters; at most 500 are taken"),
    ],
)
def test_what_is_no_expression_is_refused(text: str, message: str) -> None:
    with pytest.raises(ExpressionError) as refused:
        parse_expression(text)
    assert message in refused.value.message


def test_the_longest_and_the_deepest_are_taken() -> None:
    assert len(parse_expression("a" + "[0]" * 15).path) == limits.EXPRESSION_DEPTH_MAX
    assert parse_expression("a" * limits.EXPRESSION_CHARS_MAX).path == ("a" * 500,)


@pytest.mark.slow
def test_no_text_does_more_than_lead_to_a_value_or_be_refused() -> None:
    rng = random.Random(6)
    alphabet = string.printable + "?.[]{}\"'é\ud800\0"
    pieces = ["ref", "commits", "[0]", "[1]", ".", "??", " ", '"x"', "null", "1e999", "-0", "{{", "__class__", "\\"]
    taken = 0
    for _ in range(100_000):
        if rng.random() < 0.5:
            text = "".join(rng.choices(pieces, k=rng.randrange(12)))
        else:
            text = "".join(rng.choices(alphabet, k=rng.randrange(40)))
        try:
            expression = parse_expression(text)
        except ExpressionError as error:
            assert error.message
            continue
        taken += 1
        found = find(expression, PAYLOAD)
        assert found.is_absent or found.value == expression.default or _is_in(found.value, PAYLOAD)
    assert taken > 1_000


def _is_in(value: Any, payload: Any) -> bool:
    inner = payload.values() if isinstance(payload, dict) else payload if isinstance(payload, list) else ()
    return value is payload or any(_is_in(value, one) for one in inner)


@pytest.mark.parametrize("seed", range(200))
def test_each_value_of_a_payload_is_found_by_its_path(seed: int) -> None:
    rng = random.Random(seed)

    def made(depth: int) -> object:
        match rng.randrange(5 if depth < 4 else 3):
            case 0:
                return rng.randrange(100)
            case 1:
                return rng.choice(["", "x", "a.b", "{{ x }}"])
            case 2:
                return rng.choice([True, False])
            case 3:
                return [made(depth + 1) for _ in range(rng.randrange(4))]
            case _:
                return {rng.choice("abcdef-_$@0"): made(depth + 1) for _ in range(rng.randrange(4))}

    def paths(value: object, path: str) -> list[tuple[str, object]]:
        found = [(path, value)] if path else []
        if isinstance(value, dict):
            for key, inner in value.items():
                found += paths(inner, f"{path}.{key}" if path else key)
        if isinstance(value, list):
            for number, inner in enumerate(value):
                found += paths(inner, f"{path}[{number}]")
        return found

    payload = json.loads(json.dumps({"root": made(0)}))
    for path, value in paths(payload, ""):
        assert find(parse_expression(path), payload) == Found(value)
