"""Retries: `retry` as a number or a mapping -> how often a task is tried again, and after which wait."""

from __future__ import annotations

from dataclasses import dataclass

from pistage.core import limits
from pistage.core.definition.fields import check_keys, count_field, duration_field, map_field, measure_field
from pistage.core.definition.findings import Page
from pistage.core.definition.nodes import ListNode, MapNode, Node, ScalarNode
from pistage.core.plan import Backoff, FailureClass, Retry

_CLASSES = {
    "failure": FailureClass.FAILURE,
    "oom": FailureClass.OOM,
    "lost": FailureClass.LOST,
    "pull": FailureClass.PULL,
}
_COMMAND = (FailureClass.FAILURE, FailureClass.OOM)


@dataclass(frozen=True, slots=True)
class RetryAsked:
    """What `retry` says: as a task's policy, and as the plain number that a step understands."""

    task: Retry
    limit: int


def retry_field(page: Page, node: Node | None) -> RetryAsked | None:
    """A number: that many more tries of a failing command, infrastructure as by default. A mapping says more."""
    if node is None:
        return None
    if isinstance(node, MapNode):
        return _mapped(page, node)
    limit = count_field(page, node, "retry", limits.RETRY_MAX)
    return None if limit is None else RetryAsked(Retry(limits=_limits(limit, None)), limit)


def _mapped(page: Page, node: MapNode) -> RetryAsked | None:
    check_keys(page, node, {"limit", "backoff", "on"}, "retry")
    limit = limits.RETRY_FAILURE_DEFAULT
    if node.get("limit") is not None:
        limit = count_field(page, node.get("limit"), "retry.limit", limits.RETRY_MAX) or 0
    classes = _classes(page, node.get("on"))
    return RetryAsked(Retry(limits=_limits(limit, classes), backoff=_backoff(page, node.get("backoff"))), limit)


def _limits(limit: int, classes: list[FailureClass] | None) -> dict[FailureClass, int]:
    if classes is not None:
        return dict.fromkeys(classes, limit)
    return {**Retry().limits, **dict.fromkeys(_COMMAND, limit)}


def _classes(page: Page, node: Node | None) -> list[FailureClass] | None:
    if node is None:
        return None
    found = []
    for item in node.items if isinstance(node, ListNode) else (node,):
        if isinstance(item, ScalarNode) and item.text in _CLASSES:
            found.append(_CLASSES[item.text])
        else:
            known = ", ".join(_CLASSES)
            page.error(item, "wrong-kind", f"retry.on must list any of {known}", "write for example [failure, lost]")
    return found


def _backoff(page: Page, node: Node | None) -> Backoff:
    mapping = map_field(page, node, "retry.backoff")
    if mapping is None:
        return Backoff()
    check_keys(page, mapping, {"initial", "factor", "max", "jitter"}, "retry.backoff")
    default = Backoff()
    initial = duration_field(page, mapping.get("initial"), "retry.backoff.initial")
    most = duration_field(page, mapping.get("max"), "retry.backoff.max")
    factor = _number(page, mapping.get("factor"), "retry.backoff.factor", (1, 10))
    jitter = _number(page, mapping.get("jitter"), "retry.backoff.jitter", (0, 1))
    return Backoff(
        initial_s=default.initial_s if initial is None else initial,
        factor=default.factor if factor is None else factor,
        max_s=default.max_s if most is None else most,
        jitter=default.jitter if jitter is None else jitter,
    )


def _number(page: Page, node: Node | None, label: str, bounds: tuple[float, float]) -> float | None:
    least, most = bounds

    def parse(text: str) -> float | None:
        try:
            number = float(text)
        except ValueError:
            return None
        return number if least <= number <= most else None

    return measure_field(page, node, label, parse, expected=f"a number from {least} to {most}", sample=str(most))
