"""Scope: the parameters that one place of a document sees, each with its origin, and rendering in it (P6, P9)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from math import isfinite

from pistage.core import limits
from pistage.core.definition.findings import Page
from pistage.core.definition.nodes import Kind, ListNode, MapNode, Node, Place, ScalarNode, is_null, shortened
from pistage.core.definition.templates import Template, is_template, parse_template, render, value_of_expression
from pistage.core.definition.values import Fuel, Number, TemplateError, Value, scalar_value, text_of
from pistage.core.plan import Parameter


@dataclass(frozen=True, slots=True)
class Entry:
    """A parameter's value and origin. `is_binding`: it came from beside a `dep`, so a step's `with` yields to it."""

    value: Value
    origin: str
    is_binding: bool = False
    is_unknown: bool = False  # lint: it will have a value, but not yet


@dataclass(frozen=True, slots=True)
class Scope:
    """What templates of one place see. `is_root` is false inside an action; `is_skipped` where nothing will run.

    `declared` are the names of the definition's inputs: nothing else can be given; None where it declares none.
    """

    entries: Mapping[str, Entry] = field(default_factory=dict)
    is_root: bool = True
    is_skipped: bool = False
    declared: frozenset[str] | None = None

    @property
    def values(self) -> Mapping[str, Value]:
        """The values that are known, by name."""
        return _Values(self.entries)

    def with_entries(self, entries: Mapping[str, Entry]) -> Scope:
        """The scope with `entries` above its own, except where its own are binding."""
        kept = {name: entry for name, entry in entries.items() if not self._is_bound(name)}
        return replace(self, entries={**self.entries, **kept}) if kept else self

    def may_take(self, name: str) -> bool:
        """Whether a parameter of that name can be given."""
        return self.declared is None or name in self.declared

    def _is_bound(self, name: str) -> bool:
        return name in self.entries and self.entries[name].is_binding


class _Values(Mapping[str, Value]):
    """A view, so that a template pays for the names it takes and not for all there are."""

    def __init__(self, entries: Mapping[str, Entry]) -> None:
        self._entries = entries

    def __getitem__(self, name: str) -> Value:
        entry = self._entries[name]
        if entry.is_unknown:
            raise KeyError(name)
        return entry.value

    def __iter__(self) -> Iterator[str]:
        return (name for name, entry in self._entries.items() if not entry.is_unknown)

    def __len__(self) -> int:
        return sum(1 for _ in self)


@dataclass(slots=True)
class Renderer:
    """Renders nodes; one for a whole plan, so that its fuel bounds all of it.

    With `is_strict` a missing parameter is an error; without, as in lint, it is noted in `needed` (at the root) or
    warned about (in an action), and what it would have made is unknown.
    """

    is_strict: bool
    fuel: Fuel = field(default_factory=Fuel)
    needed: dict[str, None] = field(default_factory=dict)
    _templates: dict[str, Template] = field(default_factory=dict)
    _parameters: dict[int, tuple[Mapping[str, Entry], tuple[Parameter, ...]]] = field(default_factory=dict)

    def node(self, node: Node, scope: Scope, page: Page) -> Node:
        """`node` with the templates in all its texts rendered."""
        match node:
            case ScalarNode():
                return self.scalar(node, scope, page)
            case ListNode():
                return replace(node, items=tuple(self.node(item, scope, page) for item in node.items))
            case MapNode():
                return self.map(node, scope, page)

    def map(self, node: MapNode, scope: Scope, page: Page) -> MapNode:
        """A mapping with the templates in its values rendered; its keys are never templates."""
        if not node.entries:
            return node
        return replace(node, entries={key: self.node(item, scope, page) for key, item in node.entries.items()})

    def scalar(self, node: ScalarNode, scope: Scope, page: Page) -> ScalarNode:
        """A scalar rendered to text."""
        if node.kind is not Kind.TEXT or not is_template(node.text):
            return node
        try:
            return replace(node, text=render(self._template(node.text), scope.values, self.fuel))
        except TemplateError as error:
            return self._failed(node, scope, page, error)

    def value(self, node: Node, scope: Scope, page: Page) -> tuple[Value, bool]:
        """The value of a node for a parameter, and whether it is known; a lone `{{ .x }}` keeps the type of x."""
        match node:
            case ScalarNode(kind=Kind.TEXT) if is_template(node.text):
                return self._lone_value(node, scope, page)
            case ScalarNode():
                return scalar_value(node.text, node.kind), True
            case ListNode():
                items = [self.value(item, scope, page) for item in node.items]
                return [value for value, _ in items], all(is_known for _, is_known in items)
            case MapNode():
                parts = {key: self.value(item, scope, page) for key, item in node.entries.items()}
                return {key: value for key, (value, _) in parts.items()}, all(known for _, known in parts.values())

    def condition(self, source: ScalarNode, scope: Scope, page: Page) -> Value:
        """The value of a bare expression, or True after an error or where it is not known yet."""
        wrapped = replace(source, text="{{" + source.text + "}}")
        value, is_known = self._lone_value(wrapped, scope, page)
        return value if is_known else True

    def entries(
        self, node: MapNode | None, scope: Scope, page: Page, origin: str, *, is_binding: bool = False
    ) -> dict[str, Entry]:
        """The parameters of a `with`, rendered in `scope`; null is absent."""
        found: dict[str, Entry] = {}
        for name, item in node.entries.items() if node is not None else ():
            if is_null(item):
                continue
            value, is_known = self.value(item, scope, page)
            found[name] = Entry(value, origin, is_binding, not is_known)
        return found

    def defaults(self, node: MapNode | None, given: Scope, page: Page, origin: str) -> Scope:
        """The scope of a document: its `with` below what it was given; a default sees those before it and these."""
        entries = dict(given.entries)
        scope = replace(given, entries=entries)
        for name, item in node.entries.items() if node is not None else ():
            if name not in given.entries and not is_null(item) and len(entries) <= limits.PARAMETERS_MAX:
                value, is_known = self.value(item, scope, page)
                entries[name] = Entry(value, origin, False, not is_known)
        check_names(scope, page, node)
        return scope

    def parameters(self, scope: Scope, page: Page, at: Place) -> tuple[Parameter, ...]:
        """The parameters of a scope as a step carries them, by name; made once for all steps that share the scope."""
        made = self._parameters.get(id(scope.entries))
        if made is None or made[0] is not scope.entries:
            made = (scope.entries, self._written(scope, page, at))
            self._parameters[id(scope.entries)] = made
        return made[1]

    def _written(self, scope: Scope, page: Page, at: Place) -> tuple[Parameter, ...]:
        try:
            return tuple(
                Parameter(name=name, value=text_of(entry.value, self.fuel), origin=entry.origin)
                for name, entry in sorted(scope.entries.items())
                if not entry.is_unknown
            )
        except TemplateError as error:
            page.error(at, error.code, error.message, error.hint)
            return ()

    def _lone_value(self, node: ScalarNode, scope: Scope, page: Page) -> tuple[Value, bool]:
        try:
            template = self._template(node.text)
            if template.expression is not None:
                return value_of_expression(template.expression, scope.values, self.fuel), True
            return render(template, scope.values, self.fuel), True
        except TemplateError as error:
            self._failed(node, scope, page, error)
            return "", False

    def _template(self, text: str) -> Template:
        if text not in self._templates:
            self._templates[text] = parse_template(text, self.fuel)
        return self._templates[text]

    def _failed(self, node: ScalarNode, scope: Scope, page: Page, error: TemplateError) -> ScalarNode:
        """What a template that cannot be rendered leaves: a text not known yet, and a finding unless that is fine."""
        unknown = replace(node, text=f"<{shortened(node.text, 40)}>", is_unknown=True)
        if error.code != "missing-parameter":
            page.error(node, error.code, error.message, error.hint or "correct the template")
            return unknown
        names = self._template(node.text).names
        if scope.is_skipped or any(scope.entries[name].is_unknown for name in names if name in scope.entries):
            return unknown
        missing = sorted(names - scope.entries.keys())
        if scope.is_root and not self.is_strict and all(map(scope.may_take, missing)):
            self.needed.update(dict.fromkeys(missing))
            return unknown
        subject = f"the parameter '{missing[0]}' has no value" if missing else error.message
        if len(missing) > 1:
            subject = f"the parameters {_listed(missing)} have no values"
        known = f"known are {_listed(sorted(scope.entries))}" if scope.entries else "no parameter is known here"
        hint = _giving(missing, scope)
        if missing and missing[0][:1].isupper():
            hint = f"{hint}; around braces meant for a command write {{% raw %}}…{{% endraw %}}"
        if missing and (near := get_close_matches(missing[0], sorted(scope.entries), n=1, cutoff=0.75)):
            hint = f"{hint}; '{near[0]}' is given: was '{missing[0]}' meant?"
        note = page.error if self.is_strict else page.warn
        note(node, "missing-parameter", f"{subject}; {known}", hint)
        return unknown


def _giving(missing: Iterable[str], scope: Scope) -> str:
    """How a parameter that is missing can be had."""
    strange = [name for name in missing if not scope.may_take(name)]
    if strange:
        return f"declare '{shortened(strange[0], 40)}' in 'inputs', or make it of them in 'with'"
    where = "when the run is started" if scope.is_root else "in 'with' beside the 'dep'"
    if scope.declared is not None:
        return f"give it {where}, or give the input a 'default', or make it 'required'"
    return f"give it {where}, or in 'with'" if scope.is_root else f"give it {where}"


def _listed(names: Iterable[str]) -> str:
    names = list(names)
    more = f" and {len(names) - 20} more" if len(names) > 20 else ""
    return ", ".join(f"'{shortened(name, 40)}'" for name in names[:20]) + more


def check_names(scope: Scope, page: Page, node: MapNode | None) -> frozenset[str]:
    """Every parameter needs a name of its own in the environment, PISTAGE_PARAM_<NAME>; those that have none."""
    if len(scope.entries) > limits.PARAMETERS_MAX:
        page.error(
            node or Place(),
            "too-many-parameters",
            f"there are more than {limits.PARAMETERS_MAX} parameters",
            "use a list",
        )
        return frozenset(scope.entries)
    seen: dict[str, str] = {}
    unusable = set()
    for name in scope.entries:
        variable = _variable_of(name)
        at: Place = node.keys[name] if node is not None and name in node.keys else node or Place()
        if problem := _problem_of_parameter(name):
            page.error(at, "bad-parameter", problem, "a parameter's name is one short line")
            unusable.add(name)
        elif variable in seen:
            page.error(
                at,
                "parameter-collision",
                f"the parameters '{seen[variable]}' and '{name}' are both {variable} in the environment",
                "rename one of them",
            )
            unusable.add(name)
        seen.setdefault(variable, name)
    return frozenset(unusable)


def _variable_of(name: str) -> str:
    plain = "".join(char if char.isascii() and char.isalnum() else "_" for char in name)
    return f"PISTAGE_PARAM_{plain.upper()}"


def _problem_of_parameter(name: str) -> str | None:
    if not name or len(name) > limits.NAME_CHARS_MAX or not name.isprintable():
        return f"'{shortened(name)}' cannot be the name of a parameter"
    return None


def given_value(value: object, depth: int = 0) -> Value:
    """A parameter given by a program, as a value; TemplateError if it is of no kind that a document could hold."""
    match value:
        case None | bool():
            return value
        case str():
            if "\0" in value or any("\ud800" <= char <= "\udfff" for char in value):
                raise TemplateError("holds a character that no command can take", code="bad-parameter")
            if len(value) > limits.TEMPLATE_OUTPUT_BYTES_MAX:
                raise TemplateError(f"has more than {limits.TEMPLATE_OUTPUT_BYTES_MAX} bytes", code="bad-parameter")
            return value
        case int() if abs(value) >= 10**63:
            raise TemplateError("is a number of more than 63 digits", code="bad-parameter")
        case int() | float():
            return Number(str(value)) if isfinite(value) else str(value)
        case list() | tuple() if depth < limits.DOCUMENT_DEPTH_MAX:
            return [given_value(item, depth + 1) for item in value]
        case dict() if depth < limits.DOCUMENT_DEPTH_MAX and all(isinstance(key, str) for key in value):
            return {key: given_value(item, depth + 1) for key, item in value.items()}
        case _:
            raise TemplateError("must be a text, a number, a boolean, a list or a mapping", code="bad-parameter")
