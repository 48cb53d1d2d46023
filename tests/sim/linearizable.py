"""Is there an order of operations that explains a history? After Wing and Gong, with Lowe's memory of what was tried.

The simulator's own oracle knows the order that the log gave and is linear in time; this one knows nothing but what
clients saw, and so does not share the oracle's mistakes. It is exponential at worst: use it for one key at a time.
"""

from __future__ import annotations

from collections.abc import Sequence

from tests.sim.clients import Operation

STATES_MAX = 20_000  # then nobody knows, and the linear oracle has the word


def is_linearizable(history: Sequence[Operation]) -> bool:
    """Whether one register, first "", could have given this; a write without an end may happen late or never."""
    operations = [op for op in history if op.is_write or op.end is not None]
    never = max((op.end or op.start for op in operations), default=0) + 1
    ends = [never if op.end is None else op.end for op in operations]
    open_reads = {n for n, op in enumerate(operations) if op.end is not None}
    seen: set[tuple[frozenset[int], str]] = set()
    stack: list[tuple[frozenset[int], str]] = [(frozenset(), "")]
    while stack and len(seen) < STATES_MAX:
        done, value = stack.pop()
        if open_reads <= done:
            return True
        # Nothing may come next that began after something else, still to come, had ended.
        first_end = min(ends[n] for n in range(len(operations)) if n not in done)
        for n, op in enumerate(operations):
            if n in done or op.start > first_end or not (op.is_write or op.value == value):
                continue
            after = (done | {n}, op.value)
            if after not in seen:
                seen.add(after)
                stack.append(after)
    return bool(stack)
