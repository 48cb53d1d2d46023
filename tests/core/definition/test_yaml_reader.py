"""R1 and R2: what YAML means here, and the bounds that hold before anything is built."""

import pytest
import yaml

from pistage.core.definition.document import read_document
from pistage.core.definition.findings import Report
from pistage.core.definition.nodes import Kind, ListNode, MapNode, Node, ScalarNode, UnreadableError, number_of
from pistage.core.definition.yaml_reader import _YamlReader, read_yaml
from pistage.predefined import example, examples, predefined_actions
from tests.core.definition.documents import SEEDS, only_step, plan_of, refused
from tests.core.definition.wrong import WRONG


def plain(node: Node | None) -> object:
    """A tree without its places, for comparing."""
    match node:
        case None:
            return None
        case ScalarNode():
            return (node.kind.value, node.text)
        case ListNode():
            return [plain(item) for item in node.items]
        case MapNode():
            return {key: plain(item) for key, item in node.entries.items()}


def scalar(text: str) -> ScalarNode:
    root = read_yaml(f"a: {text}\n").root
    assert isinstance(root, MapNode)
    node = root.entries["a"]
    assert isinstance(node, ScalarNode)
    return node


@pytest.mark.parametrize(
    "text",
    [
        "on",
        "yes",
        "no",
        "off",
        "On",
        "y",
        "12:30:00",
        "22:22",
        "2024-01-01",
        "0755",
        "-012",
        "1_000",
        "0b1",
        "1e",
        "0o8",
        "'5'",
        '"true"',
        "0x",
        ".",
        "-",
        "=",
        "1.2.3",
        "+.inf.",
        "nan",
        "inf",
        "9" * 65,
        "truE",
    ],
)
def test_r1_is_a_string(text: str) -> None:
    node = scalar(text) if text not in ("-",) else scalar("'-'")
    assert node.kind is Kind.TEXT
    assert node.text == text.strip("'\"")


@pytest.mark.parametrize(
    ("text", "kind", "value"),
    [
        ("0", Kind.INTEGER, 0),
        ("-17", Kind.INTEGER, -17),
        ("+5", Kind.INTEGER, 5),
        ("0o14", Kind.INTEGER, 12),
        ("0x1F", Kind.INTEGER, 31),
        ("1.50", Kind.FLOAT, 1.5),
        (".5", Kind.FLOAT, 0.5),
        ("5.", Kind.FLOAT, 5.0),
        ("1e3", Kind.FLOAT, 1000.0),
        ("-.inf", Kind.FLOAT, float("-inf")),
        (".INF", Kind.FLOAT, float("inf")),
    ],
)
def test_r1_is_a_number_that_stays_as_written(text: str, kind: Kind, value: float) -> None:
    node = scalar(text)
    assert (node.kind, node.text, number_of(node.text)) == (kind, text, value)


def test_r1_nan_is_a_number() -> None:
    assert number_of(scalar(".nan").text) != number_of(scalar(".NaN").text)


@pytest.mark.parametrize("text", ["true", "True", "TRUE", "false", "False", "FALSE"])
def test_r1_is_a_boolean(text: str) -> None:
    assert scalar(text).kind is Kind.BOOLEAN


@pytest.mark.parametrize("text", ["null", "Null", "NULL", "~", ""])
def test_r1_is_null(text: str) -> None:
    assert scalar(text).kind is Kind.NULL


def test_r1_on_is_a_key_like_any_other() -> None:
    step = only_step("name: a\nimage: alpine\nrun: x\non: {retry: 2}\n")
    assert step.retries == 2


def test_r2_25_kb_of_brackets_never_reach_a_recursion() -> None:
    for bracket in ("[", "{", "[{a: ", "- ", "? ", "{{", "[["):
        (finding,) = refused(bracket * (25_000 // len(bracket)))
        assert finding["severity"] == "error"


def test_r2_64_levels_are_read_and_65_are_not() -> None:
    assert read_yaml("[" * 64 + "]" * 64).root is not None
    with pytest.raises(UnreadableError, match="deeper than 64 levels"):
        read_yaml("[" * 65 + "]" * 65)


def test_r2_20_000_nodes_are_read_and_one_more_is_not() -> None:
    assert read_yaml("[" + "1," * 19_999 + "]").root is not None
    with pytest.raises(UnreadableError, match="more than 20000"):
        read_yaml("[" + "1," * 20_000 + "]")


def test_r2_a_document_of_more_than_a_mebibyte_is_refused_unread() -> None:
    (finding,) = refused("name: a\nimage: alpine\nrun: '" + "x" * 2**20 + "'\n")
    assert finding["code"] == "too-large"


def test_r2_an_alias_bomb_is_refused_at_its_first_anchor() -> None:
    bomb = "a: &a [x, x]\n" + "".join(f"{b}: &{b} [*{a}, *{a}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True))
    (finding,) = refused(bomb)
    assert (finding["code"], finding["line"], finding["column"]) == ("anchor", 1, 4)


def test_a_byte_order_mark_and_windows_line_ends_are_fine() -> None:
    text = "\ufeffname: a\r\nimage: alpine\r\nrun: |\r\n  one\r\n  two\r\n"
    assert only_step(text).script == "one\ntwo\n"
    assert plan_of(text.encode("utf-8")) == plan_of(text)


def test_every_node_knows_its_line_column_and_path() -> None:
    root = read_yaml("name: a\nuses:\n  my group:\n    - run: x\n      with: {a-b: [1, 2]}\n").root
    assert isinstance(root, MapNode)
    places = {}
    pending: list[Node] = [root]
    while pending:
        node = pending.pop()
        places[str(node.path)] = (node.line, node.column)
        pending += node.entries.values() if isinstance(node, MapNode) else ()
        pending += node.items if isinstance(node, ListNode) else ()
    assert places == {
        "": (1, 1),
        "name": (1, 7),
        "uses": (3, 3),
        'uses["my group"]': (4, 5),
        'uses["my group"][0]': (4, 7),
        'uses["my group"][0].run': (4, 12),
        'uses["my group"][0].with': (5, 13),
        'uses["my group"][0].with.a-b': (5, 19),
        'uses["my group"][0].with.a-b[0]': (5, 20),
        'uses["my group"][0].with.a-b[1]': (5, 23),
    }


SOUND = [
    *(file.read_text() for file in sorted(SEEDS.iterdir())),
    *(example(name) for name in examples()),
    *predefined_actions().values(),
]


@pytest.mark.parametrize("number", range(len(SOUND)))
def test_both_parsers_of_pyyaml_read_the_same(number: int) -> None:
    read = [_outcome(SOUND[number], parser) for parser in (None, yaml.Loader)]
    assert read[0] == read[1]


#: libyaml itself refuses half of a surrogate pair, so that one is worded differently.
WORDED_APART = {"json_half_a_pair"}


@pytest.mark.parametrize("wrong", [w for w in WRONG if w.name not in WORDED_APART], ids=lambda wrong: wrong.name)
def test_both_parsers_of_pyyaml_complain_the_same(wrong: object) -> None:
    text = wrong.text  # type: ignore[attr-defined]
    if isinstance(text, str) and "\x07" not in text:
        assert _outcome(text, None) == _outcome(text, yaml.Loader)


def _outcome(text: str, parser: object) -> object:
    try:
        return plain(_YamlReader(text, parser).read().root)
    except UnreadableError as error:
        return (error.message, error.hint, error.at.line, error.at.column)


def test_a_document_is_never_rewritten_when_it_is_valid() -> None:
    for text in SOUND:
        report = Report()
        document = read_document(text, report)
        assert document is not None
        assert (document.normalised is None) == (not report.findings)
