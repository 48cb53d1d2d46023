"""YAML text -> tree, from the parser's events: bounds are held before anything is built (R2).

PyYAML's composers recurse and crash (25 KB of "[" kills the C one, 500 levels the other), so only its event level is
used, which is a state machine, and it is left at the first event that goes too deep. Scalars are typed by R1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import yaml

from pistage.core import limits
from pistage.core.definition.nodes import TOO_DEEP, Kind, Node, Place, TreeBuilder, UnreadableError, kind_of

try:
    from yaml._yaml import CParser

    _C_PARSER: Any = CParser
except ImportError:  # PyYAML without libyaml
    _C_PARSER = None


@dataclass(frozen=True, slots=True)
class Brace:
    """An unquoted `{{` where a value begins (R4): its line and column, and whether a flow collection is around it."""

    line: int
    column: int
    is_in_flow: bool


class NotYamlError(UnreadableError):
    """The parser gave up: `problem` in its own words, and and what was met before that."""

    problem: str = ""
    nodes: int = 0  # read before that: what the attempt cost
    braces: tuple[Brace, ...] = ()


@dataclass(frozen=True, slots=True)
class YamlText:
    """What was read: the tree (None for an empty document), and where a `{{` was not quoted."""

    root: Node | None
    braces: tuple[Brace, ...]
    nodes: int = 0


def read_yaml(text: str) -> YamlText:
    """The tree of a YAML document; UnreadableError, or NotYamlError for a fault of syntax."""
    return _YamlReader(text).read()


def events_of(text: str, parser: Any = None) -> Any:
    """The event-level parser: libyaml's where PyYAML has it (fifty times faster), its own otherwise."""
    kind = parser or _C_PARSER or yaml.Loader  # of the latter only get_event is called: nothing is constructed
    return kind(text)


class _YamlReader:
    def __init__(self, text: str, parser: Any = None) -> None:
        self._text = text
        self._builder = TreeBuilder()
        self._parser_kind = parser
        self._braces: list[Brace] = []
        self._flows: list[bool] = []
        self._last: Any = None
        self._documents = 0

    def read(self) -> YamlText:
        try:
            parser = events_of(self._text, self._parser_kind)
            while True:
                event = parser.get_event()
                if event is None or isinstance(event, yaml.StreamEndEvent):
                    return YamlText(self._builder.root, tuple(self._braces), self._builder.count)
                self._take(event, parser)
                self._last = event
        except yaml.YAMLError as error:
            raise self._fault(error) from None

    def _take(self, event: Any, parser: Any) -> None:
        line, column = event.start_mark.line + 1, event.start_mark.column + 1
        match event:
            case yaml.DocumentStartEvent():
                self._start_document(line, column)
            case yaml.AliasEvent():
                raise self._refused("alias", f"aliases ('*{event.anchor}') are not supported", line, column)
            case yaml.ScalarEvent():
                self._check_properties(event, line, column)
                kind = kind_of(event.value) if event.implicit[0] else Kind.TEXT
                self._builder.scalar(event.value, kind, line, column)
            case yaml.MappingStartEvent():
                self._check_properties(event, line, column)
                if self._is_double_brace(event):
                    self._skip_braces(parser)
                else:
                    self._start(event, line, column, is_map=True)
            case yaml.SequenceStartEvent():
                self._check_properties(event, line, column)
                self._start(event, line, column, is_map=False)
            case yaml.MappingEndEvent() | yaml.SequenceEndEvent():
                self._flows.pop()
                self._builder.end()

    def _start(self, event: Any, line: int, column: int, *, is_map: bool) -> None:
        self._flows.append(bool(event.flow_style))
        if is_map:
            self._builder.start_map(line, column)
        else:
            self._builder.start_list(line, column)

    def _start_document(self, line: int, column: int) -> None:
        self._documents += 1
        if self._documents > 1:
            raise self._refused(
                "several-documents", "the text holds more than one document", line, column, "keep one '---' part a file"
            )

    def _check_properties(self, event: Any, line: int, column: int) -> None:
        if event.anchor:
            raise self._refused("anchor", f"anchors ('&{event.anchor}') are not supported", line, column)
        if event.tag and not (isinstance(event, yaml.ScalarEvent) and event.tag == "!" and not event.implicit[0]):
            # `agent: !spot` is a demand to its author and a tag to YAML.
            hint = "put the value in quotes, or take the tag out" if event.tag[0] == "!" else "take the tag out"
            raise self._refused("tag", f"tags ('{event.tag}') are not supported", line, column, hint)

    def _refused(
        self, code: str, message: str, line: int, column: int, hint: str = "write the value out"
    ) -> UnreadableError:
        return UnreadableError(code, message, hint, Place(line=line, column=column, path=self._builder.path))

    def _is_double_brace(self, event: Any) -> bool:
        """Whether `event` is the second `{` of an unquoted `{{`: a flow mapping as the first key of another."""
        return (
            bool(event.flow_style)
            and isinstance(self._last, yaml.MappingStartEvent)
            and bool(self._last.flow_style)
            and _index_of(self._last) + 1 == _index_of(event)
            and self._text.startswith("{{", _index_of(self._last))  # and no `?`, with which a mapping of one key begins
        )

    def _skip_braces(self, parser: Any) -> None:
        """Note the `{{`, pass over its two mappings, and leave a text in their place so that reading can go on."""
        mark = self._last.start_mark
        line, column = mark.line + 1, mark.column + 1
        self._flows.pop()
        self._braces.append(Brace(line, column, any(self._flows)))
        depth = 2
        while depth:
            event = parser.get_event()
            if depth + len(self._flows) > limits.DOCUMENT_DEPTH_MAX:
                raise self._refused("too-deep", TOO_DEEP, line, column, "take it apart into actions")
            if isinstance(event, yaml.MappingStartEvent | yaml.SequenceStartEvent):
                depth += 1
            elif isinstance(event, yaml.MappingEndEvent | yaml.SequenceEndEvent):
                depth -= 1
        self._builder.abandon("{{ }}")

    def _fault(self, error: yaml.YAMLError) -> NotYamlError:
        mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
        problem = str(getattr(error, "problem", None) or "it cannot be read")
        line, column = (mark.line + 1, mark.column + 1) if mark is not None else (1, 1)
        begun = getattr(error, "context_mark", None)
        char = _char_at(self._text, line, column)
        message, hint = _phrase(problem, str(getattr(error, "context", "")), begun.line + 1 if begun else line, char)
        fault = NotYamlError("bad-yaml", message, hint, Place(line=line, column=column, path=self._builder.path))
        fault.problem = problem
        fault.nodes = self._builder.count
        fault.braces = tuple(self._braces)
        return fault


def _index_of(event: Any) -> int:
    return int(event.start_mark.index)


def _char_at(text: str, line: int, column: int) -> str:
    lines = text.split("\n")
    return lines[line - 1][column - 1 : column] if line <= len(lines) else ""


def _phrase(problem: str, context: str, begun: int, char: str) -> tuple[str, str | None]:  # noqa: PLR0911  # a table
    """The parser's complaint in words that a reader can act on."""
    indent = "give keys of one mapping, and '-' of one list, the same indentation"
    if problem.startswith("mapping values are not allowed"):
        return (
            "not valid YAML: a ':' makes a key here, but the text before it already has its value",
            "check the indentation of this line, or quote a text that holds ': '",
        )
    if "cannot start any token" in problem and char == "\t":
        return "not valid YAML: a tab stands where only spaces may", "indent with spaces"
    if "cannot start any token" in problem:
        return f"not valid YAML: a text cannot begin with '{char}'", "quote the text"
    if "quoted scalar" in context and "end of stream" not in problem and "document separator" not in problem:
        return f"not valid YAML: the quoted text that begins on line {begun} holds a wrong escape", "write a \\ as \\\\"
    if "quoted scalar" in context:
        return f"not valid YAML: the quoted text that begins on line {begun} does not end", "close the quotes"
    if "could not find expected ':'" in problem:
        return "not valid YAML: expected ':' after a key", indent
    if "expected key" in problem or "expected <block end>" in problem or "'-' indicator" in problem:
        return f"not valid YAML: this does not fit the block that begins on line {begun}", indent
    if "',' or" in problem:
        closer = "]" if "]" in problem else "}"
        return f"not valid YAML: expected ',' or '{closer}' in what begins on line {begun}", f"close it with '{closer}'"
    if "node content" in problem:
        return "not valid YAML: a value is expected here", "write one, or close what is open"
    return f"not valid YAML: {problem}", "quote the text, or check the indentation"
