"""Retries: `retry` as a number or a mapping -> how often a task is tried again, when, with how much memory."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from pistage.core import limits
from pistage.core.definition.fields import check_keys, count_field, duration_field, map_field, measure_field
from pistage.core.definition.findings import Page
from pistage.core.definition.nodes import ListNode, MapNode, Node, Place, ScalarNode, shortened
from pistage.core.definition.units import bytes_of
from pistage.core.plan import Backoff, Context, FailureClass, MemoryGrowth, Retry

_CLASSES = {
    "failure": FailureClass.FAILURE,
    "oom": FailureClass.OOM,
    "lost": FailureClass.LOST,
    "pull": FailureClass.PULL,
}
_COMMAND = (FailureClass.FAILURE, FailureClass.OOM)
_GROWTH_DEFAULT = 2.0


@dataclass(frozen=True, slots=True)
class RetryAsked:
    """What `retry` says: as a task's policy, and as the plain number that a step understands."""

    task: Retry
    limit: int
    memory_at: Place | None = None  # where `memory` stands, for what can be said once the containers are known


def retry_field(page: Page, node: Node | None, *, in_place: bool = False) -> RetryAsked | None:
    """A number: that many more tries of a failing command, infrastructure as by default. A mapping says more.

    `in_place` is said of a step, whose tries are made in a container that is there already.
    """
    if node is None:
        return None
    if isinstance(node, MapNode):
        asked = _mapped(page, node)
        _check_memory(page, asked, in_place)
        return asked
    limit = count_field(page, node, "retry", limits.RETRY_MAX)
    return None if limit is None else RetryAsked(Retry(limits=_limits(limit, None)), limit)


def _mapped(page: Page, node: MapNode) -> RetryAsked:
    check_keys(page, node, {"limit", "backoff", "on", "memory"}, "retry")
    limit = limits.RETRY_FAILURE_DEFAULT
    if node.get("limit") is not None:
        limit = count_field(page, node.get("limit"), "retry.limit", limits.RETRY_MAX) or 0
    classes = _classes(page, node.get("on"))
    memory = _memory(page, node.get("memory"))
    task = Retry(limits=_limits(limit, classes), backoff=_backoff(page, node.get("backoff")), memory=memory)
    return RetryAsked(task, limit, None if memory is None else node.keys["memory"])


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
        number = _float_of(text)
        return number if number is not None and least <= number <= most else None

    return measure_field(page, node, label, parse, expected=f"a number from {least} to {most}", sample=str(most))


def _float_of(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _memory(page: Page, node: Node | None) -> MemoryGrowth | None:
    """`memory: 2` or `{factor: 2, max: 8Gi}`; None after an error too."""
    if not isinstance(node, MapNode):
        alone = _factor(page, node, "retry.memory", ", or a mapping with 'factor' and 'max'")
        return None if alone is None else MemoryGrowth(factor=alone)
    check_keys(page, node, {"factor", "max"}, "retry.memory")
    factor = _factor(page, node.get("factor"), "retry.memory.factor")
    most = measure_field(
        page, node.get("max"), "retry.memory.max", bytes_of, expected="a size of at least 6m", sample="8Gi"
    )
    if (factor is None and node.get("factor") is not None) or (most is None and node.get("max") is not None):
        return None
    return MemoryGrowth(factor=_GROWTH_DEFAULT if factor is None else factor, most=most)


def _factor(page: Page, node: Node | None, label: str, alternative: str = "") -> float | None:
    most = limits.RETRY_MEMORY_FACTOR_MAX

    def parse(text: str) -> float | None:
        number = _float_of(text)
        return number if number is not None and 1 < number <= most else None

    expected = f"a number above 1 and up to {most}{alternative}"
    return measure_field(page, node, label, parse, expected=expected, sample="2")


def _check_memory(page: Page, asked: RetryAsked, in_place: bool) -> None:
    """Warn where no attempt could ever have more memory, whatever the containers are."""
    if asked.memory_at is None:
        return
    if in_place:
        page.warn(
            asked.memory_at,
            "misplaced-key",
            "'memory' has no effect in the retry of a step: its tries are made in the container that is there",
            "move it to the retry of a definition, a group or a task",
        )
    elif not asked.task.limits.get(FailureClass.OOM):
        reason = "'on' leaves out oom" if asked.limit else "'limit' is 0"
        page.warn(
            asked.memory_at,
            "no-growth",
            f"retry.memory has no effect: {reason}, so no attempt follows one that ran out of memory",
            "list oom in 'on'" if asked.limit else "raise 'limit'",
        )


def check_growth(page: Page, asked: RetryAsked | None, name: str, contexts: Iterable[Context]) -> None:
    """Warn where the task `name`, made of `contexts`, has no memory limit that `retry.memory` could raise."""
    if asked is None or asked.memory_at is None or asked.task.memory is None:
        return
    held = [context.resources.memory_bytes for context in contexts]
    bounded = [size for size in held if size is not None]
    most = asked.task.memory.most
    if held and not bounded:
        page.warn(
            asked.memory_at,
            "no-growth",
            f"retry.memory has nothing to raise: no container of '{shortened(name)}' has a memory limit",
            "set resources: {memory: …}",
        )
    elif bounded and most is not None and min(bounded) >= most:
        page.warn(
            asked.memory_at,
            "no-growth",
            f"retry.memory.max is not above any memory limit of '{shortened(name)}'",
            "raise 'max', or lower resources.memory",
        )
