"""Expressions: what stands between `{{` and `}}`, parsed by Jinja2 and checked here.

Jinja2's own sandbox keeps templates from Python but bounds neither time nor memory, so nothing is ever compiled:
what is not on the list of allowed constructs is refused before anything runs, and `evaluation` walks what remains.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from jinja2 import StrictUndefined, TemplateSyntaxError, nodes
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from pistage.core.definition.filters import FILTERS, TESTS
from pistage.core.definition.values import Fuel, TemplateError

_TOKENS_MAX = 200  # longer than anybody reads, and short enough for the parser's recursion
_NESTING_MAX = 16
_PARSE_FUEL_BYTES = 128  # a character, so that all fuel is spent in about half a second of parsing
_ENVIRONMENT = ImmutableSandboxedEnvironment(undefined=StrictUndefined, autoescape=False)
_TOKEN = re.compile(
    r"""(?P<text>'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")|(?P<word>[^\W\d]\w*)|(?P<number>\d[\w.]*)|(?P<space>\s+)|(?P<sign>.)""",
    re.DOTALL,
)
_ESCAPE = re.compile(r"\\(?![\\'\"nrt])", re.DOTALL)
_OPERATORS = frozenset({"not", "and", "or", "if", "else", "in", "is"})
_RESERVED = _OPERATORS | {"true", "false", "none", "True", "False", "None"}
_NAME = re.compile(r"\s*(?P<dot>\.?)(?P<path>[^\W\d]\w*(?:\.[^\W\d]\w*){0,16})\s*")
_ALLOWED = (
    nodes.Const,
    nodes.Name,
    nodes.Getattr,
    nodes.Getitem,
    nodes.Filter,
    nodes.Test,
    nodes.CondExpr,
    nodes.Compare,
    nodes.Operand,
    nodes.And,
    nodes.Or,
    nodes.Not,
    nodes.Concat,
    nodes.Add,
    nodes.Sub,
    nodes.Neg,
    nodes.Pos,
    nodes.List,
    nodes.Tuple,
)
_REFUSED: dict[type[nodes.Node], str] = {
    nodes.Call: "calls are",
    nodes.Mul: "'*' is",
    nodes.Pow: "'**' is",
    nodes.Mod: "'%' is",
    nodes.Div: "'/' is",
    nodes.FloorDiv: "'//' is",
    nodes.Slice: "slices are",
    nodes.Dict: "mappings are",
}


@dataclass(frozen=True, slots=True)
class Expression:
    """A checked expression, and the names it takes its values from."""

    tree: nodes.Expr
    names: frozenset[str]
    guarded: frozenset[str]  # names that it can do without: `| default(…)`, `is defined`


def parse_expression(source: str, fuel: Fuel) -> Expression:
    """The expression in `source`, with or without Go's leading dots; TemplateError if it is wrong or not allowed."""
    if (found := _NAME.fullmatch(source)) and (found["dot"] or found["path"] not in _RESERVED):
        return _plain_name(found["path"].split("."))
    fuel.spend(len(source) * _PARSE_FUEL_BYTES)
    python = _without_dots(source)
    try:
        parser = Parser(_ENVIRONMENT, python, state="variable")
        tree = parser.parse_expression()
        if not parser.stream.eos:
            raise TemplateError(f"the template '{source.strip()[:60]}' is not one expression", _BRACES_HINT)
    except TemplateSyntaxError as error:
        raise TemplateError(f"the template '{source.strip()[:60]}' is wrong: {error.message}", _BRACES_HINT) from None
    _check_allowed(tree)
    return Expression(tree, _names(tree), _guarded(tree))


def _plain_name(parts: list[str]) -> Expression:
    """`.a.b`, which most templates are, without the parser: it costs twenty times as much."""
    tree: nodes.Expr = nodes.Name(parts[0], "load")
    for part in parts[1:]:
        tree = nodes.Getattr(tree, part, "load")
    return Expression(tree, frozenset(parts[:1]), frozenset())


_BRACES_HINT = "to keep braces as they are, write {% raw %}…{% endraw %} around them"


def _without_dots(source: str) -> str:
    """`.a.b` -> `a.b`: a dot that begins an operand is dropped; texts are left alone, bounds are checked."""
    pieces: list[str] = []
    is_operand_before = False
    depth = count = 0
    for found in _TOKEN.finditer(source):
        kind, token = found.lastgroup, found.group()
        if kind == "space":
            pieces.append(token)
            continue
        count += 1
        depth += (token in ("(", "[", "{")) - (token in (")", "]", "}"))
        _check_token(kind, token, count, depth, source)
        is_root_dot = token == "." and not is_operand_before and source[found.end() : found.end() + 1].isidentifier()
        pieces.append("" if is_root_dot else token)
        is_operand_before = (
            (kind == "word" and token not in _OPERATORS) or kind in ("text", "number") or token in (")", "]", "}")
        )
    return "".join(pieces)


def _check_token(kind: str | None, token: str, count: int, depth: int, source: str) -> None:
    if count > _TOKENS_MAX or depth > _NESTING_MAX:
        raise TemplateError(
            f"the template '{source.strip()[:40]}…' is too long or too deeply nested",
            f"an expression has at most {_TOKENS_MAX} words and signs",
        )
    if kind == "number" and len(token) > 64:
        raise TemplateError("a number in a template has more than 64 digits")
    if kind == "sign" and token in "'\"":
        raise TemplateError("a text in a template does not end", "close its quotes")
    if kind == "text" and _ESCAPE.search(token.replace("\\\\", "")):
        raise TemplateError("a text in a template holds an escape other than \\\\ \\' \\\" \\n \\r \\t")


def _check_allowed(tree: nodes.Node) -> None:
    for node in _walk(tree):
        if not isinstance(node, _ALLOWED):
            refused = _REFUSED.get(type(node), f"'{type(node).__name__.lower()}' is")
            raise TemplateError(
                f"{refused} not allowed in templates",
                "use a filter, or do it in the step's script",
                "template-not-allowed",
            )
        if isinstance(node, nodes.Filter):
            _check_filter(node)
        if isinstance(node, nodes.Test) and (node.name not in TESTS or node.args or node.kwargs):
            raise TemplateError(
                f"there is no test '{node.name}' in templates",
                f"there are {', '.join(sorted(TESTS))}",
                "template-not-allowed",
            )


def _check_filter(node: nodes.Filter) -> None:
    known = {*FILTERS, "default", "d"}
    if node.name not in known or node.node is None or node.dyn_args or node.dyn_kwargs or node.kwargs:
        raise TemplateError(
            f"there is no filter '{node.name}' in templates" if node.name not in known else f"bad use of '{node.name}'",
            f"there are {', '.join(sorted(known))}",
            "template-not-allowed",
        )


def _walk(tree: nodes.Node) -> Iterator[nodes.Node]:
    pending = [tree]
    while pending:
        node = pending.pop()
        yield node
        pending += node.iter_child_nodes()


def _names(tree: nodes.Node) -> frozenset[str]:
    return frozenset(node.name for node in _walk(tree) if isinstance(node, nodes.Name))


def _guarded(tree: nodes.Node) -> frozenset[str]:
    """The names that stand directly under `default` or `is defined`."""
    names: frozenset[str] = frozenset()
    for node in _walk(tree):
        is_default = isinstance(node, nodes.Filter) and node.name in ("default", "d")
        is_test = isinstance(node, nodes.Test) and node.name in ("defined", "undefined")
        if isinstance(node, nodes.Filter | nodes.Test) and node.node is not None and (is_default or is_test):
            names |= _names(node.node)
    return names
