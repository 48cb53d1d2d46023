"""Counting: how large a plan will be, known before anything is expanded.

One action that uses another twice doubles at each level, so sixteen small documents could ask for 65,536 steps. Counts
add up over the graph of actions, each action counted once, in time that does not depend on the answer.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from pistage.core import limits
from pistage.core.definition.findings import StopError
from pistage.core.definition.library import Library
from pistage.core.definition.nodes import ScalarNode
from pistage.core.definition.pistages import Definition

NODES_MAX = 500_000  # keys and values of all the documents that expansion goes through, each use counted


@dataclass(frozen=True, slots=True)
class Count:
    """What one use of a definition comes to: steps, and keys and values to look at."""

    steps: int
    nodes: int


@dataclass(slots=True)
class Counter:
    """Counts definitions; remembers each."""

    library: Library
    _counts: dict[str, Count] = field(default_factory=dict)

    def check(self, definition: Definition) -> None:
        """StopError, after an error on the document's page, if a plan of `definition` would be too large."""
        total = Count(0, 0)
        for step in (step for group in definition.groups for step in group.steps):
            added = self._step(step.dep, definition, ())
            total = Count(total.steps + added.steps, total.nodes + added.nodes)
            if total.steps > limits.PLAN_STEPS_MAX:
                message = f"with this step the plan has more than {limits.PLAN_STEPS_MAX} steps"
            elif total.nodes > NODES_MAX:
                message = f"with this step the plan goes through more than {NODES_MAX} keys and values of actions"
            else:
                continue
            definition.page.error(step.node, "plan-too-large", message, "take the work apart into several runs")
            raise StopError

    def _step(self, dep: ScalarNode | None, definition: Definition, chain: tuple[str, ...]) -> Count:
        if dep is None:
            return Count(1, 0)
        if dep.text in self._counts and dep.text not in chain:
            return self._counts[dep.text]
        used = self.library.definition_of(dep, definition.page, chain)
        if used is None:
            return Count(1, 1)
        inner = [self._step(step.dep, used, (*chain, dep.text)) for group in used.groups for step in group.steps]
        count = Count(
            min(sum(each.steps for each in inner), limits.PLAN_STEPS_MAX + 1),
            min(sum(each.nodes for each in inner) + used.node_count, NODES_MAX + 1),
        )
        self._counts[dep.text] = count
        return count
