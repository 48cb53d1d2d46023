"""Document: bytes or text -> a tree of nodes, with what had to be tolerated to read it."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from pistage.core import limits
from pistage.core.definition.findings import Report
from pistage.core.definition.json_reader import read_json
from pistage.core.definition.nodes import ListNode, MapNode, Node, Path, Place, ScalarNode, UnreadableError, below
from pistage.core.definition.repair import Change, brace_of, deeper_keys, quote_template
from pistage.core.definition.yaml_reader import NotYamlError, YamlText, read_yaml

_REPAIR_NODES_MAX = 100_000  # each repair reads the text again: this is the end of it, after about half a second
_REPAIR_CHARS_MAX = 16 * limits.MIB
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\x80-\x84\x86-\x9f\ud800-\udfff\ufffe\uffff]")
_JSON_START = re.compile(r'\s*\{\s*["}]')


@dataclass(frozen=True, slots=True)
class Document:
    """A text that could be read. `normalised` is the text after repairs, None where it needed none."""

    root: MapNode
    normalised: str | None = None
    changes: tuple[Change, ...] = ()
    shifts: dict[int, int] = field(default_factory=dict)


def read_document(
    text: str | bytes, report: Report, action: str | None = None, *, bytes_max: int = limits.DOCUMENT_BYTES_MAX
) -> Document | None:
    """The document in `text`, its repairs noted as warnings; None once an error says why it cannot be read."""
    try:
        document = _read(_decoded(text, bytes_max))
    except UnreadableError as error:
        report.page(action).error(error.at, error.code, error.message, error.hint)
        return None
    page = report.page(action)
    for change in document.changes:
        place = Place(line=change.line, column=change.column, path=_path_at(document.root, change))
        page.warn(place, change.code, change.message, change.hint)
    return document


def _decoded(text: str | bytes, bytes_max: int) -> str:
    """The text, its size, encoding and characters checked, lines ended by a newline alone."""
    size = len(text) if isinstance(text, bytes) else len(text.encode("utf-8", "surrogatepass"))
    if size > bytes_max:
        raise UnreadableError(
            "too-large",
            f"the document has {size} bytes; at most {bytes_max} are read",
            "take it apart into actions, and keep data in files",
            Place(),
        )
    if isinstance(text, bytes):
        text = _utf8(text)
    text = text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
    found = _CONTROL.search(text)
    if found:
        raise UnreadableError(
            "bad-character",
            f"the document holds the control character U+{ord(found.group()):04X}",
            "take it out, or write it as an escape inside double quotes",
            _place_after(text[: found.start()]),
        )
    return text


def _utf8(text: bytes) -> str:
    try:
        return text.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UnreadableError(
            "bad-encoding",
            f"the document is not UTF-8: byte 0x{text[error.start]:02X} cannot stand there",
            "save it as UTF-8",
            _place_after(text[: error.start].decode("utf-8")),
        ) from None


def _place_after(before: str) -> Place:
    return Place(line=before.count("\n") + 1, column=len(before) - (before.rfind("\n") + 1) + 1)


def _read(text: str) -> Document:
    fault: UnreadableError | None = None
    if _JSON_START.match(text):
        try:
            return Document(_root(read_json(text)))
        except UnreadableError as error:
            if error.code != "bad-json":
                raise
            fault = error
    try:
        return _read_tolerant(text)
    except NotYamlError:
        raise fault or _strict_fault(text) from None


def _strict_fault(text: str) -> UnreadableError:
    """The fault that the text as it came has, rather than that of a text half repaired."""
    try:
        read = read_yaml(text)
    except UnreadableError as fault:
        return fault
    brace = read.braces[0]  # without one it would not have been repaired: `{a: {{}, b}}` is worse for quotes
    return _unclosed(brace.line, brace.column)


def _read_tolerant(text: str) -> Document:
    """Strictly first; then one repair after another for as long as each is of R3 or R4 and reading stays cheap."""
    lines = text.split("\n")
    changes: list[Change] = []
    nodes_left, chars_left = _REPAIR_NODES_MAX, _REPAIR_CHARS_MAX
    while True:
        try:
            read = read_yaml("\n".join(lines) if changes else text)
        except NotYamlError as fault:
            nodes_left, chars_left = nodes_left - fault.nodes, chars_left - len(text)
            new = _repairs_of_fault(lines, fault) if min(nodes_left, chars_left) >= 0 else []
            if not new:
                raise
        else:
            nodes_left, chars_left = nodes_left - read.nodes, chars_left - len(text)
            if not read.braces:
                return _document(read, lines, changes)
            new = _quoted(lines, read) if min(nodes_left, chars_left) >= 0 else []
            if not new:
                brace = read.braces[0]
                raise _unclosed(brace.line, brace.column)
        changes += new


def _repairs_of_fault(lines: list[str], fault: NotYamlError) -> list[Change]:
    change = deeper_keys(lines, fault)
    if change is not None:
        return [change]
    brace = brace_of(lines, fault)
    braces = [*fault.braces, *([brace] if brace else [])]
    return _quoted(lines, YamlText(None, tuple(dict.fromkeys(braces))))


def _quoted(lines: list[str], read: YamlText) -> list[Change]:
    from_the_right = sorted({(brace.line, -brace.column): brace for brace in read.braces}.items())
    changes = [quote_template(lines, brace) for _, brace in from_the_right]
    return [change for change in changes if change is not None]


def _unclosed(line: int, column: int) -> UnreadableError:
    return UnreadableError(
        "unquoted-template",
        "a value begins with '{{' without quotes, which is a mapping to YAML",
        "put the value in quotes",
        Place(line=line, column=column),
    )


def _document(read: YamlText, lines: list[str], changes: list[Change]) -> Document:
    shifts: dict[int, int] = {}
    for change in changes:
        for line, shift in change.shifts.items():
            shifts[line] = shifts.get(line, 0) + shift
    normalised = "\n".join(lines) if changes else None
    return Document(_root(read.root), normalised, tuple(changes), shifts)


def _root(node: Node | None) -> MapNode:
    if isinstance(node, MapNode) and node.entries:
        return node
    if node is None or (isinstance(node, MapNode | ScalarNode) and not getattr(node, "text", "")):
        raise UnreadableError("empty", "the document is empty", "a definition has at least 'name' and 'run'", Place())
    came = "a list" if isinstance(node, ListNode) else "a text"
    raise UnreadableError(
        "not-a-mapping", f"a definition must be a mapping, not {came}", "begin it with 'name: …'", Place(line=node.line)
    )


def _path_at(root: Node, change: Change) -> Path:
    """The path of the value (R4), or of the mapping (R3), that a change is about; quotes may have moved it right."""
    near = [node for node in below(root) if node.line == change.line and node.column >= change.column]
    return min(near, key=lambda node: node.column).path if near else Path()
