"""Nodes: a document as a tree that remembers line, column and path of everything, and how a plain scalar is typed.

Both readers, YAML and JSON, feed the one `TreeBuilder`, which holds every bound (R2): depth, nodes, repeated keys.
Nothing here recurses, so no document can exhaust the stack.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from enum import StrEnum

from pistage.core import limits


@dataclass(frozen=True, slots=True)
class Path:
    """A place in a document as a chain to its root: cheap to make, spelled out only when somebody asks."""

    parent: Path | None = None
    part: str | int = ""

    def __truediv__(self, part: str | int) -> Path:
        return Path(self, part)

    def __str__(self) -> str:
        parts: list[str | int] = []
        path: Path = self
        while path.parent is not None:
            parts.append(path.part)
            path = path.parent
        return "".join(_spelled(part) for part in reversed(parts)).removeprefix(".")


def _spelled(part: str | int) -> str:
    if isinstance(part, int):
        return f"[{part}]"
    if re.fullmatch(r"[\w-]+", part):
        return f".{shortened(part)}"
    return f'["{shortened(part)}"]'


def shortened(text: str, chars_max: int = 60) -> str:
    """`text` on one line and no longer than `chars_max`, for a message."""
    line = " ".join(text[: 4 * chars_max].split())
    return line if len(line) <= chars_max else line[: chars_max - 1] + "…"


class Kind(StrEnum):
    """What a scalar means by the core schema of YAML 1.2."""

    TEXT = "text"
    INTEGER = "integer"
    FLOAT = "float"
    BOOLEAN = "boolean"
    NULL = "null"


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A position: line and column from 1, and the path."""

    line: int = 1
    column: int = 1
    path: Path = field(default_factory=Path)


@dataclass(frozen=True, slots=True, kw_only=True)
class ScalarNode(Place):
    """A scalar: `text` is always as written, whatever it means. `is_unknown`: its template lacks a parameter."""

    text: str
    kind: Kind = Kind.TEXT
    is_unknown: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ListNode(Place):
    """A sequence."""

    items: tuple[Node, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class MapNode(Place):
    """A mapping in the order of the document; `keys` holds where each key stands."""

    entries: dict[str, Node]
    keys: dict[str, ScalarNode]

    def get(self, key: str) -> Node | None:
        """The value of `key`, or None where it is absent or null: null is absent everywhere (J2)."""
        node = self.entries.get(key)
        return None if node is None or is_null(node) else node

    def without(self, *keys: str) -> MapNode:
        """The mapping less `keys`."""
        return replace(self, entries={key: node for key, node in self.entries.items() if key not in keys})


Node = ScalarNode | ListNode | MapNode


def is_null(node: Node) -> bool:
    """Whether the node is a null."""
    return isinstance(node, ScalarNode) and node.kind is Kind.NULL


def below(root: Node) -> Iterator[Node]:
    """`root` and every node under it, in the order of the document."""
    pending: list[Node] = [root]
    while pending:
        node = pending.pop()
        yield node
        match node:
            case MapNode():
                pending += reversed(node.entries.values())
            case ListNode():
                pending += reversed(node.items)


_NULL = re.compile(r"null|Null|NULL|~|")
_BOOLEAN = re.compile(r"true|True|TRUE|false|False|FALSE")
_INTEGER = re.compile(r"[-+]?(?:0|[1-9][0-9]*)|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(
    r"[-+]?(?:\.[0-9]+|(?:0|[1-9][0-9]*)(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"
)
_NUMBER_CHARS_MAX = 64  # a longer row of digits is text: nobody counts with it


def kind_of(text: str) -> Kind:
    """What the plain scalar `text` means: YAML 1.2 core, but digits behind a leading zero stay text (R1)."""
    if _NULL.fullmatch(text):
        return Kind.NULL
    if _BOOLEAN.fullmatch(text):
        return Kind.BOOLEAN
    if len(text) > _NUMBER_CHARS_MAX:
        return Kind.TEXT
    if _INTEGER.fullmatch(text):
        return Kind.INTEGER
    return Kind.FLOAT if _FLOAT.fullmatch(text) else Kind.TEXT


def number_of(text: str) -> int | float:
    """The value of a scalar whose kind is a number."""
    if _INTEGER.fullmatch(text):
        digits = text.lstrip("+-")
        return int(text, 0) if digits.startswith(("0o", "0x")) else int(text)
    return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))


def is_true(node: ScalarNode) -> bool:
    """The value of a boolean scalar."""
    return node.text.lower() == "true"


class UnreadableError(Exception):
    """The text cannot be read at all: what becomes its one finding."""

    def __init__(self, code: str, message: str, hint: str | None, at: Place) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.hint = hint
        self.at = at


TOO_DEEP = f"the document is nested deeper than {limits.DOCUMENT_DEPTH_MAX} levels"


@dataclass(slots=True)
class _Open:
    place: Place
    is_map: bool
    items: list[Node] = field(default_factory=list)
    entries: dict[str, Node] = field(default_factory=dict)
    keys: dict[str, ScalarNode] = field(default_factory=dict)
    key: ScalarNode | None = None


class TreeBuilder:
    """Makes the tree from a reader's events, in order: `start_map`, `start_list`, `end`, `scalar`.

    In a mapping keys and values alternate. UnreadableError says which limit the document broke, and where.
    """

    def __init__(self) -> None:
        self.root: Node | None = None
        self._open: list[_Open] = []
        self._count = 0

    def start_map(self, line: int, column: int) -> None:
        """A mapping begins."""
        self._start(line, column, is_map=True)

    def start_list(self, line: int, column: int) -> None:
        """A sequence begins."""
        self._start(line, column, is_map=False)

    def end(self) -> None:
        """What began last ends."""
        top = self._open.pop()
        place = top.place
        node: Node
        if top.is_map:
            node = MapNode(line=place.line, column=place.column, path=place.path, entries=top.entries, keys=top.keys)
        else:
            node = ListNode(line=place.line, column=place.column, path=place.path, items=tuple(top.items))
        self._add(node)

    def scalar(self, text: str, kind: Kind, line: int, column: int) -> None:
        """A scalar: a value, or where a mapping waits for one, a key."""
        self._count_node(line, column)
        _check_characters(text, Place(line=line, column=column, path=self._path_of_next()))
        top = self._open[-1] if self._open else None
        if top is not None and top.is_map and top.key is None:
            self._take_key(top, ScalarNode(text=text, kind=kind, line=line, column=column, path=top.place.path / text))
        else:
            self._add(ScalarNode(text=text, kind=kind, line=line, column=column, path=self._path_of_next()))

    def abandon(self, text: str) -> None:
        """Forget the collection that began last; a text stands in its place."""
        place = self._open.pop().place
        self._add(ScalarNode(text=text, line=place.line, column=place.column, path=place.path))

    @property
    def expects_key(self) -> bool:
        """Whether the next scalar would be a key."""
        return bool(self._open) and self._open[-1].is_map and self._open[-1].key is None

    @property
    def count(self) -> int:
        """How many keys and values have been met."""
        return self._count

    @property
    def path(self) -> Path:
        """Where the next node will stand."""
        return self._path_of_next()

    def _start(self, line: int, column: int, *, is_map: bool) -> None:
        self._count_node(line, column)
        place = Place(line=line, column=column, path=self._path_of_next())
        if self.expects_key:
            raise UnreadableError(
                "bad-key",
                "a key must be a text, not a mapping or a list",
                "quote the key if it is meant as text",
                place,
            )
        if len(self._open) >= limits.DOCUMENT_DEPTH_MAX:
            raise UnreadableError(
                "too-deep",
                TOO_DEEP,
                "take it apart into actions",
                place,
            )
        self._open.append(_Open(place, is_map))

    def _take_key(self, top: _Open, key: ScalarNode) -> None:
        if key.text == "<<":
            raise UnreadableError("merge-key", "merge keys ('<<') are not supported", "write the keys out", key)
        if not key.text:
            raise UnreadableError("bad-key", "a key is empty", "write a key before the ':'", key)
        if key.text in top.keys:
            first = top.keys[key.text]
            raise UnreadableError(
                "repeated-key",
                f"the key '{shortened(key.text)}' is there twice: first on line {first.line}",
                "keep one of them",
                key,
            )
        top.keys[key.text] = key
        top.key = key

    def _add(self, node: Node) -> None:
        if not self._open:
            self.root = node
            return
        top = self._open[-1]
        if top.is_map:
            assert top.key is not None, "a mapping's value came before its key"
            top.entries[top.key.text] = node
            top.key = None
        else:
            top.items.append(node)

    def _path_of_next(self) -> Path:
        if not self._open:
            return Path()
        top = self._open[-1]
        if top.is_map:
            return top.place.path if top.key is None else top.place.path / top.key.text
        return top.place.path / len(top.items)

    def _count_node(self, line: int, column: int) -> None:
        self._count += 1
        if self._count > limits.DOCUMENT_NODES_MAX:
            raise UnreadableError(
                "too-many-nodes",
                f"the document holds more than {limits.DOCUMENT_NODES_MAX} keys and values",
                "take it apart into actions",
                Place(line=line, column=column),
            )


_FORBIDDEN = re.compile("[\x00\ud800-\udfff]")


def _check_characters(text: str, at: Place) -> None:
    found = _FORBIDDEN.search(text)
    if found:
        raise UnreadableError(
            "bad-character",
            f"a text holds the character U+{ord(found.group()):04X}, which no command or file can hold",
            "take the escape out",
            at,
        )
