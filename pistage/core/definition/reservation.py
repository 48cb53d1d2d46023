"""Reservation: the most that a task's containers ask for at one time.

A container is held from its first step to its last, steps that are skipped aside. In a sequence the steps come one
after another; branches of a parallel block, and an async step with all that follows it in its sequence, are taken to
run at once. CPU, memory and GPUs are each counted at their own worst moment, so the reservation is never too small.
"""

from __future__ import annotations

from collections.abc import Callable

from pistage.core import limits
from pistage.core.plan import Block, Context, Node, Resources, Step


def reservation_of(body: Block, contexts: tuple[Context, ...]) -> Resources:
    """What to reserve on the agent for a task; None where no container asks."""
    cpus = _peak_of(body, contexts, lambda asked: asked.cpus_milli or 0)
    memory = _peak_of(body, contexts, lambda asked: asked.memory_bytes or 0)
    gpus = _peak_of(body, contexts, lambda asked: asked.gpus)
    return Resources(cpus_milli=cpus or None, memory_bytes=memory or None, gpus=gpus)


def _peak_of(body: Block, contexts: tuple[Context, ...], weigh: Callable[[Resources], int]) -> int:
    weights = {context.id: weigh(context.resources) for context in contexts if weigh(context.resources)}
    return min(_weight(_peak(body, weights), weights), limits.AMOUNT_MAX) if weights else 0


def _weight(names: frozenset[str], weights: dict[str, int]) -> int:
    return sum(weights[name] for name in names)


def _held(node: Node, weights: dict[str, int]) -> frozenset[str]:
    """Every weighty container that `node` uses."""
    if isinstance(node, Step):
        return frozenset({node.context} & weights.keys() if node.skip_reason is None else ())
    return frozenset().union(*(_held(child, weights) for child in node.children))


def _peak(node: Node, weights: dict[str, int]) -> frozenset[str]:
    """The containers at the worst moment of `node`."""
    match node:
        case Step():
            return _held(node, weights)
        case Block(kind="parallel"):
            return frozenset().union(*(_peak(child, weights) for child in node.children))
        case Block():
            return _peak_in_order(node, weights)


def _peak_in_order(node: Block, weights: dict[str, int]) -> frozenset[str]:
    uses = [_held(child, weights) for child in node.children]
    last = {name: index for index, names in enumerate(uses) for name in names}
    worst: frozenset[str] = frozenset()
    reused: frozenset[str] = frozenset()  # used before, and needed again
    running: frozenset[str] = frozenset()  # of async steps, until the end of the sequence
    for index, child in enumerate(node.children):
        moment = _peak(child, weights) | reused | running
        worst = max(worst, moment, key=lambda names: _weight(names, weights))
        reused = frozenset(name for name in reused | uses[index] if last[name] > index)
        running = running | uses[index] if child.is_async else running
    return worst
