"""Conditions: `when` as a word, or as an expression that is decided while planning."""

from __future__ import annotations

from dataclasses import dataclass

from pistage.core.definition.fields import wrong_kind
from pistage.core.definition.findings import Page
from pistage.core.definition.nodes import Kind, Node, ScalarNode, is_true, shortened
from pistage.core.definition.scope import Renderer, Scope
from pistage.core.definition.templates import is_template
from pistage.core.definition.values import is_truthy
from pistage.core.plan import When

_WORDS = frozenset(When)
_EXPECTED = "success, failure, always or a condition"
_HINT = "a condition names parameters that are known, as in .branch == 'main'"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What `when` came to: a word for the run to heed, or a reason to skip; neither where it says nothing or holds."""

    when: When | None = None
    skip_reason: str | None = None


def verdict_of(  # noqa: PLR0911  # one return a form of `when`
    node: Node | None, scope: Scope, renderer: Renderer, page: Page
) -> Verdict:
    """The verdict of a `when` in its scope."""
    match node:
        case None:
            return Verdict()
        case ScalarNode(kind=Kind.BOOLEAN):
            return _decided(is_true(node), node)
        case ScalarNode() if node.text in _WORDS:
            return Verdict(when=When(node.text))
        case ScalarNode() if (
            node.text.isidentifier() and node.text not in scope.entries and not _may_come(scope, renderer)
        ):
            wrong_kind(page, node, "when", _EXPECTED, _HINT)
            return Verdict()
        case ScalarNode() if is_template(node.text):
            value, is_known = renderer.value(node, scope, page)
            if isinstance(value, str) and value in _WORDS:
                return Verdict(when=When(value))
            return _decided(not is_known or is_truthy(value), node)
        case ScalarNode() if node.text.strip():
            return _decided(is_truthy(renderer.condition(node, scope, page)), node)
        case _:
            wrong_kind(page, node, "when", _EXPECTED, _HINT)
            return Verdict()


def _may_come(scope: Scope, renderer: Renderer) -> bool:
    """Whether a parameter that is not here may still be given."""
    return scope.is_root and not renderer.is_strict


def _decided(holds: bool, node: ScalarNode) -> Verdict:
    return Verdict() if holds else Verdict(skip_reason=f"its condition is false: {shortened(node.text)}")
