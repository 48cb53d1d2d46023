"""JSON documents: read as JSON, with tabs, escapes and places; what is nearly JSON is read as YAML."""

import json
import random

import pytest

from pistage.core.definition.json_reader import read_json
from pistage.core.definition.nodes import Kind, ListNode, MapNode, ScalarNode, UnreadableError
from tests.core.definition.documents import only_step, plan_of, seed
from tests.core.definition.test_yaml_reader import plain


def test_tabs_may_indent_json() -> None:
    text = '{\n\t"name": "a",\n\t"image":\t"alpine",\n\t"run": "x"\n}\n'
    assert only_step(text).script == "x"


def test_escapes_and_pairs_are_read_as_json_has_them() -> None:
    root = read_json('{"a": "\\ud83d\\ude00 \\u00e9 \\/ \\n", "b": [1.50, -0, true, null]}')
    assert isinstance(root, MapNode)
    assert plain(root.entries["a"]) == ("text", "😀 é / \n")
    assert plain(root.entries["b"]) == [("float", "1.50"), ("integer", "-0"), ("boolean", "true"), ("null", "null")]


def test_places_are_those_of_the_text() -> None:
    root = read_json('{"a":\n  {"b": [1,\n "c"]}}')
    assert isinstance(root, MapNode)
    inner = root.entries["a"]
    assert isinstance(inner, MapNode)
    items = inner.entries["b"]
    assert isinstance(items, ListNode)
    assert (items.items[1].line, items.items[1].column, str(items.items[1].path)) == (3, 2, "a.b[1]")


def test_braces_without_quotes_are_yaml() -> None:
    assert only_step("{name: a, image: alpine, run: x}").script == "x"


def test_a_trailing_comma_is_forgiven_because_it_is_yaml() -> None:
    assert only_step('{"name": "a", "image": "alpine", "run": "x",}').script == "x"


def test_the_seed_is_the_same_in_json_and_in_yaml() -> None:
    text = seed("build-and-lint")
    actions = {"Clone Repo, Pistages if omitted": seed("clone-repo-or-pistages")}
    as_json = json.dumps(
        {
            "name": "Build and Lint",
            "uses": {
                "make": [{"dep": "Clone Repo, Pistages if omitted"}, {"run": "make build"}],
                "lint": [{"dep": "Clone Repo, Pistages if omitted"}, {"run": "make lint"}],
            },
        }
    )
    assert plan_of(as_json, actions) == plan_of(text, actions)


@pytest.mark.parametrize(
    "text", ["{", "[1,]", "{'a': 1}", "nul", "01", "1.", '"\\x"', '"a\nb"', '{"a" 1}', "{} {}", "\\"]
)
def test_what_is_not_json_is_refused(text: str) -> None:
    with pytest.raises(UnreadableError):
        read_json(text)


def test_it_agrees_with_the_standard_library() -> None:
    rng = random.Random(7)
    for _ in range(300):
        value = _random_value(rng, 4)
        text = json.dumps(value, ensure_ascii=rng.random() < 0.5, indent=rng.choice([None, 1, "\t"]))
        assert _loaded(read_json(text)) == value


def _random_value(rng: random.Random, depth: int) -> object:
    kind = rng.randrange(7 if depth else 5)
    match kind:
        case 0:
            return rng.choice([True, False, None])
        case 1:
            return rng.randrange(-(10**9), 10**9)
        case 2:
            return rng.random()
        case 3 | 4:
            return "".join(rng.choice('aé"\\/\n😀 {[:,') for _ in range(rng.randrange(6)))
        case 5:
            return [_random_value(rng, depth - 1) for _ in range(rng.randrange(4))]
        case _:
            return {f"k{number}": _random_value(rng, depth - 1) for number in range(rng.randrange(4))}


def _loaded(node: object) -> object:
    match node:
        case ScalarNode(kind=Kind.TEXT):
            return node.text
        case ScalarNode():
            return json.loads(node.text)
        case ListNode():
            return [_loaded(item) for item in node.items]
        case MapNode():
            return {key: _loaded(item) for key, item in node.entries.items()}
    raise AssertionError(node)
