"""Templates: a text with `{{ … }}` and `{% if … %}` in it -> segments, rendered once against names (P9).

Everything else is left as it is: `${VAR}`, `$(…)`, `${#VAR}`, `{%s}`. A `-` inside braces eats the blanks beside them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from pistage.core import limits
from pistage.core.definition.evaluation import evaluate
from pistage.core.definition.expressions import Expression, parse_expression
from pistage.core.definition.values import Fuel, Missing, TemplateError, Value, is_truthy, text_of

#: Words that make a `{%` a tag: Jinja2's, of which only `if`, `elif`, `else`, `endif` and `raw` are allowed.
_TAGS = "if|elif|else|import|from|include|extends|(?:end)?(?:if|raw|for|set|macro|call|filter|block|with|autoescape)"
_OPEN = re.compile(r"\{\{|\{%(?=[-+]?\s*(?:" + _TAGS + r")\b)")
_PART = re.compile(r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|[^'"%}]+|[%}]""", re.DOTALL)
_ENDRAW = re.compile(r"\{%(-?)\s*endraw\s*(-?)%\}")
_BRANCHES_MAX = 16
_RAW_HINT = "to keep braces as they are, write {% raw %}…{% endraw %} around them"


@dataclass(frozen=True, slots=True)
class Branching:
    """An `if` with its branches: the first whose condition holds is rendered; `None` is `else`."""

    branches: list[tuple[Expression | None, list[Segment]]]


Segment = str | Expression | Branching


@dataclass(frozen=True, slots=True)
class Template:
    """A parsed text. `names` are the parameters it may need, without those it can do without."""

    segments: list[Segment]
    names: frozenset[str]

    @property
    def expression(self) -> Expression | None:
        """The one expression that the template consists of, if it does."""
        only = self.segments[0] if len(self.segments) == 1 else None
        return only if isinstance(only, Expression) else None


def is_template(text: str) -> bool:
    """Whether there is anything to render in `text`."""
    return "{" in text and _OPEN.search(text) is not None


def parse_template(text: str, fuel: Fuel | None = None) -> Template:
    """The template in `text`; TemplateError says what is wrong with it. Parsing costs fuel."""
    if len(text) > limits.TEMPLATE_BYTES_MAX:
        raise TemplateError(
            f"a text with templates has {len(text)} characters; at most {limits.TEMPLATE_BYTES_MAX} are read",
            "keep long scripts in a file of the image or the repository",
            "template-too-large",
        )
    return _Parser(text, fuel or Fuel()).parse()


def render(template: Template, names: Mapping[str, Value], fuel: Fuel) -> str:
    """The text that the template makes; TemplateError, with code `missing-parameter` where a name has no value."""
    pieces: list[str] = []
    _render(template.segments, names, fuel, pieces)
    fuel.spend(sum(map(len, pieces)))
    return "".join(pieces)


def value_of_expression(expression: Expression, names: Mapping[str, Value], fuel: Fuel) -> Value:
    """The value of a lone expression, its type kept; TemplateError if it is missing."""
    value = evaluate(expression.tree, names, fuel)
    if isinstance(value, Missing):
        raise TemplateError(f"the parameter '{value.name}' has no value", code="missing-parameter")
    return value


def _render(segments: list[Segment], names: Mapping[str, Value], fuel: Fuel, pieces: list[str]) -> None:
    for segment in segments:
        match segment:
            case str():
                pieces.append(segment)
            case Expression():
                pieces.append(text_of(evaluate(segment.tree, names, fuel), fuel))
            case Branching():
                for condition, body in segment.branches:
                    if condition is None or is_truthy(evaluate(condition.tree, names, fuel)):
                        _render(body, names, fuel, pieces)
                        break


@dataclass(slots=True)
class _Parser:
    text: str
    fuel: Fuel
    names: set[str] = field(default_factory=set)
    guarded: set[str] = field(default_factory=set)
    segments: list[Segment] = field(default_factory=list)
    _open: list[Branching] = field(default_factory=list)

    def parse(self) -> Template:
        at = 0
        eats_blanks = False
        while True:
            found = _OPEN.search(self.text, at)
            literal = self.text[at : found.start() if found else len(self.text)]
            self._literal(literal.lstrip() if eats_blanks else literal, found)
            if found is None:
                break
            at, eats_blanks = self._braces(found)
        if self._open:
            raise TemplateError("a '{% if %}' has no '{% endif %}'", "end it with {% endif %}")
        return Template(self.segments, frozenset(self.names - self.guarded))

    def _literal(self, literal: str, following: re.Match[str] | None) -> None:
        if following is not None and self.text.startswith("-", following.end()):
            literal = literal.rstrip()
        if literal:
            self._target.append(literal)

    @property
    def _target(self) -> list[Segment]:
        return self._open[-1].branches[-1][1] if self._open else self.segments

    def _braces(self, found: re.Match[str]) -> tuple[int, bool]:
        """One `{{ … }}` or `{% … %}`: where it ends, and whether the blanks behind it go."""
        is_tag = found.group() != "{{"
        end = self._end_of(found.end(), "%}" if is_tag else "}}")
        inner = self.text[found.end() : end]
        eats_blanks = inner.endswith("-") and len(inner) > 1
        inner = inner[1:] if inner.startswith(("-", "+") if is_tag else "-") else inner
        inner = inner[:-1] if eats_blanks else inner
        if is_tag:
            word, _, rest = inner.strip().partition(" ")
            if word == "raw":
                return self._raw(end + 2, eats_blanks)
            self._tag(word, rest)
        else:
            self._target.append(self._expression(inner, "{{ }}"))
        return end + 2, eats_blanks

    def _end_of(self, start: int, closer: str) -> int:
        at = start
        while at < len(self.text):
            if self.text.startswith(closer, at):
                return at
            found = _PART.match(self.text, at)
            if found is None:
                break
            at = found.end()
        begun = self.text[start - 2 : start + 30].split("\n")[0]
        raise TemplateError(f"the template that begins with '{begun}' does not end with '{closer}'", _RAW_HINT)

    def _raw(self, start: int, eats_blanks: bool) -> tuple[int, bool]:
        end = _ENDRAW.search(self.text, start)
        if end is None:
            raise TemplateError("a '{% raw %}' has no '{% endraw %}'", "end it with {% endraw %}")
        literal = self.text[start : end.start()]
        literal = literal.lstrip() if eats_blanks else literal
        self._target.append(literal.rstrip() if end.group(1) else literal)
        return end.end(), bool(end.group(2))

    def _tag(self, word: str, rest: str) -> None:
        match word:
            case "if":
                if len(self._open) >= _BRANCHES_MAX:
                    raise TemplateError(
                        f"'{{% if %}}' is nested deeper than {_BRANCHES_MAX} levels", "use {% elif … %}"
                    )
                branching = Branching([(self._expression(rest, "{% if %}"), [])])
                self._target.append(branching)
                self._open.append(branching)
            case "elif" | "else":
                condition = self._expression(rest, "{% elif %}") if word == "elif" else None
                branches = self._innermost(word).branches
                if branches[-1][0] is None:
                    raise TemplateError(f"'{{% {word} %}}' stands behind '{{% else %}}'", "put it before {% else %}")
                branches.append((condition, []))
            case "endif":
                self._innermost(word)
                self._open.pop()
            case _:
                raise TemplateError(
                    f"'{{% {word} %}}' is not allowed in templates: there are only 'if', 'elif', 'else' and 'raw'",
                    _RAW_HINT,
                    "template-not-allowed",
                )

    def _innermost(self, word: str) -> Branching:
        if not self._open:
            raise TemplateError(f"'{{% {word} %}}' has no '{{% if %}}'", "begin with {% if … %}")
        return self._open[-1]

    def _expression(self, source: str, where: str) -> Expression:
        if not source.strip():
            raise TemplateError(f"a '{where}' is empty", _RAW_HINT)
        expression = parse_expression(source, self.fuel)
        self.names |= expression.names
        self.guarded |= expression.guarded
        return expression
