"""Fields: one value of a document, checked to be of the kind its key wants; what is wrong goes to the page.

Each function gives None after an error, and silently for a value that is not known yet: its template lacks a
parameter.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection, Iterable
from enum import StrEnum
from typing import TypeVar

from pistage.core import limits
from pistage.core.definition.findings import Page
from pistage.core.definition.nodes import Kind, ListNode, MapNode, Node, Place, ScalarNode, is_null, is_true, shortened
from pistage.core.definition.units import seconds_of, words_of

T = TypeVar("T")
E = TypeVar("E", bound=StrEnum)

#: Keys of features that come later, refused rather than ignored: a run that silently lacks them would be wrong.
LATER = frozenset({"artifacts", "cache", "matrix", "outputs", "secrets", "strategy", "triggers"})

_RUN = "the whole definition"
_TASK = "a definition, a group or a task"
_STEP = "a step of the dialect with 'run' and 'uses', or a definition that is one"
#: Keys that have an effect in one kind of place only, and which.
ELSEWHERE = (
    dict.fromkeys(("priority", "queue", "concurrency", "inputs", "schedule", "after", "notify"), _RUN)
    | dict.fromkeys(("on_partition", "queue_timeout"), _TASK)
    | dict.fromkeys(("script", "requirements"), _STEP)
)


def came(node: Node) -> str:
    """What a node is, for a message."""
    match node:
        case MapNode():
            return "a mapping"
        case ListNode():
            return "a list"
        case ScalarNode(kind=Kind.NULL):
            return "nothing"
        case ScalarNode(kind=Kind.TEXT):
            return f"the text '{shortened(node.text, 40)}'" if node.text else "an empty text"
        case ScalarNode(kind=Kind.BOOLEAN):
            return f"the boolean {node.text}"
        case ScalarNode():
            return f"the number {node.text}"


def wrong_kind(page: Page, node: Node, label: str, expected: str, hint: str) -> None:
    """Note that `node` is not what `label` takes."""
    page.error(node, "wrong-kind", f"{label} must be {expected}, not {came(node)}", hint)


def _quoting(node: Node) -> str:
    return f"quote it: '{shortened(node.text, 40)}'" if isinstance(node, ScalarNode) else "write a single text there"


def text_field(page: Page, node: Node | None, label: str) -> str | None:
    """A text that is not empty."""
    if node is None or _is_unknown(node):
        return None
    if not isinstance(node, ScalarNode) or node.kind is not Kind.TEXT:
        wrong_kind(page, node, label, "a string", _quoting(node))
        return None
    if not node.text.strip():
        page.error(node, "empty", f"{label} is empty", f"write a value, or take '{label}' out")
        return None
    return node.text


def word_field(page: Page, node: Node | None, label: str) -> str | None:
    """A scalar of any kind, as it was written: numbers and booleans are text to an environment."""
    if node is None or _is_unknown(node):
        return None
    if not isinstance(node, ScalarNode):
        wrong_kind(page, node, label, "a single value", "write one text, number or boolean")
        return None
    if node.kind is Kind.BOOLEAN:
        return "true" if is_true(node) else "false"
    return "" if node.kind is Kind.NULL else node.text


def boolean_field(page: Page, node: Node | None, label: str, default: bool = False) -> bool:
    """`true` or `false`."""
    if node is None or _is_unknown(node):
        return default
    if not isinstance(node, ScalarNode) or node.kind is not Kind.BOOLEAN:
        wrong_kind(page, node, label, "true or false", "write it without quotes")
        return default
    return is_true(node)


def count_field(page: Page, node: Node | None, label: str, most: int, least: int = 0) -> int | None:
    """A whole number from `least` to `most`."""
    if node is None or _is_unknown(node):
        return None
    if isinstance(node, ScalarNode) and node.text.isascii() and node.text.isdigit() and len(node.text) < 10:
        number = int(node.text)
        if least <= number <= most:
            return number
    hint = f"write for example {least}" if least else "write digits only"
    wrong_kind(page, node, label, f"a whole number from {least} to {most}", hint)
    return None


def choice_field(page: Page, node: Node | None, label: str, choices: type[E]) -> E | None:
    """One of a few words."""
    if node is None or _is_unknown(node):
        return None
    known = [choice.value for choice in choices]
    if isinstance(node, ScalarNode) and node.text in known:
        return choices(node.text)
    near = difflib.get_close_matches(node.text[:60], known, 1, 0.7) if isinstance(node, ScalarNode) else []
    expected = f"{', '.join(known[:-1])} or {known[-1]}"
    wrong_kind(page, node, label, expected, f"did you mean '{near[0]}'?" if near else "write one of them")
    return None


def measure_field(
    page: Page, node: Node | None, label: str, parse: Callable[[str], T | None], *, expected: str, sample: str
) -> T | None:
    """A scalar that `parse` understands, as it does `sample`."""
    if node is None or _is_unknown(node):
        return None
    value = parse(node.text) if isinstance(node, ScalarNode) and node.kind not in (Kind.NULL, Kind.BOOLEAN) else None
    if value is None:
        wrong_kind(page, node, label, expected, f"write for example {sample}")
    return value


def duration_field(page: Page, node: Node | None, label: str) -> float | None:
    """A duration in seconds, more than none and at most limits.TASK_TIMEOUT_MAX_S."""

    def parse(text: str) -> float | None:
        seconds = seconds_of(text)
        return seconds if seconds is not None and 0 < seconds <= limits.TASK_TIMEOUT_MAX_S else None

    return measure_field(
        page, node, label, parse, expected="a duration up to 7d: 90s, 10m, 1h30m or a number of seconds", sample="10m"
    )


def words_field(page: Page, node: Node | None, label: str) -> tuple[str, ...] | None:
    """A command line: a list of words, or one text that is split as a shell would."""
    if node is None or _is_unknown(node):
        return None
    if isinstance(node, ListNode):
        words = [word_field(page, item, f"a word of {label}") for item in node.items]
        return None if None in words else tuple(word for word in words if word is not None)
    text = text_field(page, node, label)
    words_of_text = None if text is None else words_of(text)
    if text is not None and words_of_text is None:
        page.error(node, "bad-command", f"the quotes in {label} do not end", "close them, or write a list of words")
    return words_of_text


def map_field(page: Page, node: Node | None, label: str, expected: str = "a mapping") -> MapNode | None:
    """A mapping."""
    if node is None or isinstance(node, MapNode):
        return node
    if not _is_unknown(node):
        wrong_kind(page, node, label, expected, "write 'name: value' lines below it")
    return None


def list_field(page: Page, node: Node | None, label: str, expected: str = "a list") -> tuple[Node, ...]:
    """The items of a list; nothing for a node that is absent."""
    if node is None:
        return ()
    if isinstance(node, ListNode):
        return node.items
    if not _is_unknown(node):
        wrong_kind(page, node, label, expected, "write '- …' lines below it")
    return ()


def texts_field(page: Page, node: Node | None, label: str) -> tuple[str, ...] | None:
    """A text or a list of texts; None if it is absent or one of them is wrong or not known."""
    if node is None or _is_unknown(node):
        return None
    if isinstance(node, ListNode):
        texts = [text_field(page, item, f"a line of {label}") for item in node.items]
        if not texts:
            page.error(node, "empty", f"{label} is empty", f"write a value, or take '{label}' out")
        return tuple(text for text in texts if text is not None) if texts and None not in texts else None
    if not isinstance(node, ScalarNode) or node.kind is not Kind.TEXT:
        wrong_kind(page, node, label, "a string or a list of strings", _quoting(node))
        return None
    text = text_field(page, node, label)
    return None if text is None else (text,)


def name_field(page: Page, node: Node | None, owner: Place, label: str = "name") -> str | None:
    """A name: one line of at most limits.NAME_CHARS_MAX characters. Absent is an error at `owner`."""
    if node is None or (isinstance(node, ScalarNode) and node.kind is Kind.NULL):
        page.error(node or owner, "no-name", f"there is no '{label}'", f"begin with '{label}: …'")
        return None
    text = text_field(page, node, label)
    if text is not None and (problem := problem_of_name(text)):
        page.error(node, "bad-name", f"{label} {problem}", "a name is one line of printable characters")
        return None
    return text


def problem_of_name(text: str) -> str | None:
    """Why `text` cannot be a name, None if it can."""
    if len(text) > limits.NAME_CHARS_MAX:
        return f"has {len(text)} characters; at most {limits.NAME_CHARS_MAX} are allowed"
    if not text.isprintable():
        return "holds a character that cannot be shown on one line"
    if text != text.strip():
        return "begins or ends with a blank"
    return f"cannot be '{text}'" if text in ("", ".", "..") else None


def check_keys(page: Page, node: MapNode, known: Collection[str], what: str) -> None:
    """Warn about keys that mean nothing here, with the nearest known one; refuse those that a run needs to be right."""
    strange = [key for key in node.keys if key not in known and not key.startswith("x-")]
    for key in strange[: limits.FINDINGS_MAX]:
        place = node.keys[key]
        if key in LATER:
            page.error(place, "not-yet", f"'{key}' is not supported yet", "take it out; it comes with its own feature")
            continue
        if key in ELSEWHERE:
            _note_misplaced(page, place, key, what)
            continue
        near = difflib.get_close_matches(key[:60], known, 1, 0.7)
        hint = f"did you mean '{near[0]}'?" if near else f"{what} can have {', '.join(sorted(known))}"
        page.warn(place, "unknown-key", f"the key '{shortened(key)}' means nothing in {what} and is ignored", hint)


def respelled(page: Page, node: MapNode, spellings: Iterable[tuple[str, ...]]) -> MapNode:
    """The mapping with every key in the first spelling of its row; two spellings of one key are an error."""
    names = {other: row[0] for row in spellings for other in row}
    entries: dict[str, Node] = {}
    keys: dict[str, ScalarNode] = {}
    for key, item in node.entries.items():
        name = names.get(key, key)
        if name in entries and is_null(item):
            continue
        if name in entries and not is_null(entries[name]):
            page.error(
                node.keys[key],
                "repeated-key",
                f"'{keys[name].text}' and '{key}' are the same key",
                "keep one of them",
            )
            continue
        entries[name] = item
        keys[name] = node.keys[key]
    return MapNode(entries=entries, keys=keys, line=node.line, column=node.column, path=node.path)


def _note_misplaced(page: Page, at: Place, key: str, what: str) -> None:
    """A late run is still right; one that overlaps, or is killed or waits against its author's word, is not."""
    note = page.warn if key in ("priority", "queue") else page.error
    note(at, "misplaced-key", f"'{key}' has no effect in {what}: it belongs to {ELSEWHERE[key]}", "move it there")


def _is_unknown(node: Node) -> bool:
    return isinstance(node, ScalarNode) and node.is_unknown
