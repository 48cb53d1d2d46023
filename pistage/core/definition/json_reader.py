"""JSON text -> tree, with the line and column of everything; iterative, so depth cannot exhaust the stack."""

from __future__ import annotations

import re
from json.decoder import JSONDecodeError, scanstring  # type: ignore[attr-defined]  # typeshed leaves it out

from pistage.core.definition.nodes import Kind, Node, Place, TreeBuilder, UnreadableError, kind_of

_BLANK = re.compile(r"[ \t\n\r]*")
_WORD = re.compile(r"-?[A-Za-z0-9_.+-]+")
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?")
_WORDS = {"true": Kind.BOOLEAN, "false": Kind.BOOLEAN, "null": Kind.NULL}


def read_json(text: str) -> Node:
    """The tree of a JSON document; UnreadableError says what was expected at which character."""
    return _JsonReader(text).read()


class _JsonReader:
    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._line = 1
        self._line_start = 0
        self._seen = 0
        self._builder = TreeBuilder()
        self._closers: list[str] = []
        self._fresh = False  # the innermost collection has nothing in it yet

    def read(self) -> Node:
        self._value()
        while self._closers:
            self._step()
        self._skip()
        if self._at < len(self._text):
            raise self._wrong("the end of the document")
        assert self._builder.root is not None
        return self._builder.root

    def _step(self) -> None:
        """One member or item of the innermost collection, or its end."""
        closer = self._closers[-1]
        is_first = self._fresh
        self._fresh = False
        self._skip()
        if self._peek() == closer:
            self._at += 1
            self._closers.pop()
            self._builder.end()
            return
        if not is_first:
            self._take(",", f"',' or '{closer}'")
            self._skip()
        if closer == "}":
            self._key()
        self._value()

    def _key(self) -> None:
        if self._peek() != '"':
            raise self._wrong("a key in double quotes")
        self._string()
        self._skip()
        self._take(":", "':' after the key")

    def _value(self) -> None:
        self._skip()
        char = self._peek()
        line, column = self._position()
        if char in "{[" and char:
            self._at += 1
            self._closers.append("}" if char == "{" else "]")
            self._fresh = True
            if char == "{":
                self._builder.start_map(line, column)
            else:
                self._builder.start_list(line, column)
        elif char == '"':
            self._string()
        else:
            self._word(line, column)

    def _word(self, line: int, column: int) -> None:
        found = _WORD.match(self._text, self._at)
        word = found.group() if found else ""
        if word in _WORDS:
            kind = _WORDS[word]
        elif _NUMBER.fullmatch(word):
            kind = kind_of(word)
        else:
            raise self._wrong("a value")
        self._at += len(word)
        self._builder.scalar(word, kind, line, column)

    def _string(self) -> None:
        line, column = self._position()
        try:
            text, self._at = scanstring(self._text, self._at + 1, True)
        except JSONDecodeError as error:
            self._at = error.pos
            raise self._wrong("a text in double quotes that ends on its line") from None
        self._builder.scalar(text, Kind.TEXT, line, column)

    def _take(self, char: str, expected: str) -> None:
        if self._peek() != char:
            raise self._wrong(expected)
        self._at += 1

    def _peek(self) -> str:
        return self._text[self._at : self._at + 1]

    def _skip(self) -> None:
        found = _BLANK.match(self._text, self._at)
        assert found is not None
        self._at = found.end()

    def _position(self) -> tuple[int, int]:
        """Line and column, from 1, of the current character; counted forward once."""
        self._line += self._text.count("\n", self._seen, self._at)
        newline = self._text.rfind("\n", self._seen, self._at)
        if newline >= 0:
            self._line_start = newline + 1
        self._seen = self._at
        return self._line, self._at - self._line_start + 1

    def _wrong(self, expected: str) -> UnreadableError:
        self._at = min(self._at, len(self._text))
        if self._at < self._seen:
            self._seen, self._line, self._line_start = 0, 1, 0
        line, column = self._position()
        char = self._text[self._at : self._at + 1]  # no more than that: what follows may be a password
        came = f"'{char}'" if char.isprintable() and char else "the end of the line" if char else "the end"
        at = Place(line=line, column=column, path=self._builder.path)
        hint = "texts and keys stand in double quotes, and no ',' stands before a closing bracket"
        return UnreadableError("bad-json", f"not valid JSON: expected {expected}, got {came}", hint, at)
