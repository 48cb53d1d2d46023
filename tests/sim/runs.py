"""Many seeds: run, report what was reached, and shrink one that failed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, fields, replace

from tests.sim.checker import Violation
from tests.sim.clients import KEYS
from tests.sim.faults import Mix
from tests.sim.linearizable import is_linearizable
from tests.sim.world import World

HISTORY_OPERATIONS_MAX = 60  # of one key: the search must not take longer than the run


@dataclass(slots=True)
class Failure:
    """What fell in which seed, and the one command that shows it again."""

    seed: int
    events_max: int
    invariant: str
    what: str

    def __str__(self) -> str:
        again = f"python -m tests.sim replay {self.seed} --events {self.events_max}"
        return f"seed {self.seed}: {self.invariant}: {self.what}\n  again: {again}"


@dataclass(slots=True)
class Report:
    """Idle seeds do not count: what was reached does."""

    seeds: int = 0
    events: int = 0
    reached: Counter[str] = field(default_factory=Counter)
    failures: list[Failure] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [f"{self.seeds} seeds, {self.events} events, {len(self.failures)} failures"]
        lines += [f"  {count:>9} {what}" for what, count in sorted(self.reached.items(), key=lambda x: (-x[1], x[0]))]
        return "\n".join(lines + [str(failure) for failure in self.failures])


def run(seeds: Iterable[int], events_max: int, *, failures_max: int = 1) -> Report:
    """Run seeds until so many have failed."""
    report = Report()
    for seed in seeds:
        world = World(seed)
        failure = failure_of(world, events_max)
        report.seeds += 1
        report.events += world.events
        report.reached.update(world.counts)
        if failure is not None:
            report.failures.append(failure)
            if len(report.failures) >= failures_max:
                break
    return report


def failure_of(world: World, events_max: int) -> Failure | None:
    """Run one world to its end; whatever the core raises is a failure, too."""
    try:
        world.run(events_max)
        for key in KEYS:
            history = [operation for operation in world.history if operation.key == key]
            if not is_linearizable(history[:HISTORY_OPERATIONS_MAX]):
                raise Violation("linearizability", f"no order explains what clients saw of {key}")
    except Violation as violation:
        return Failure(world.seed, events_max, violation.invariant, str(violation).partition(": ")[2])
    except Exception as error:
        return Failure(world.seed, events_max, "exception", f"{type(error).__name__}: {error}")
    return None


def shrink(seed: int, events_max: int) -> tuple[Mix, frozenset[int], int, Failure]:
    """Leave out kinds of faults, deeds of the nemesis and events, as long as the same invariant falls."""
    world = World(seed)
    failure = failure_of(world, events_max)
    if failure is None:
        raise ValueError(f"seed {seed} does not fail within {events_max} events")
    mix, skip, events = world.mix, frozenset[int](), min(events_max, world.events)

    def still_fails(mix: Mix, skip: frozenset[int], events: int) -> bool:
        again = failure_of(World(seed, mix=mix, skip=skip), events)
        return again is not None and again.invariant == failure.invariant

    for name in [each.name for each in fields(Mix)][:4]:
        if getattr(mix, name) and still_fails(without := replace(mix, **{name: 0.0}), skip, events_max):
            mix = without
    deeds = list(range(len(world.nemesis.deeds)))
    size = max(1, len(deeds) // 2)
    while deeds:
        chunks = [frozenset(deeds[n : n + size]) for n in range(0, len(deeds), size)]
        for chunk in chunks:
            if still_fails(mix, skip | chunk, events_max):
                skip |= chunk
        deeds = [deed for deed in deeds if deed not in skip]
        if size == 1:
            break
        size = max(1, size // 2)
    step = max(1, events // 2)
    while step >= 10:
        while events > step and still_fails(mix, skip, events - step):
            events -= step
        step //= 2
    return mix, skip, events, failure
