"""Many seeds: run, report what was reached, and shrink one that failed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

from tests.sim.clients import KEYS
from tests.sim.faults import CHANCES, Mix
from tests.sim.linearizable import is_linearizable
from tests.sim.machine import Registers
from tests.sim.sqlite_machine import SqliteMachine
from tests.sim.violation import Violation
from tests.sim.world import World

HISTORY_OPERATIONS_MAX = 200  # of one key: the search must not take longer than the run


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
        world = world_of(seed)
        failure = failure_of(world, events_max)
        report.seeds += 1
        report.events += world.events
        report.reached.update(world.counts)
        if failure is not None:
            report.failures.append(failure)
            if len(report.failures) >= failures_max:
                break
    return report


def world_of(
    seed: int, mix: Mix | None = None, skip: frozenset[int] = frozenset(), *, is_traced: bool = False
) -> World:
    """One seed in ten runs the real state machine."""
    machine = SqliteMachine if seed % 10 == 9 else Registers
    return World(seed, mix=mix, skip=skip, machine=machine, is_traced=is_traced)


def failure_of(world: World, events_max: int) -> Failure | None:
    """Run one world to its end; whatever the core raises is a failure, too."""
    try:
        world.run(events_max)
        for key in KEYS:
            history = [operation for operation in world.history if operation.key == key]
            if not is_linearizable(history[:HISTORY_OPERATIONS_MAX]):
                raise Violation("linearizability", f"no order explains what clients saw of {key}")
        _compare_tables(world)
    except Violation as violation:
        return Failure(world.seed, events_max, violation.invariant, str(violation).partition(": ")[2])
    except Exception as error:
        return Failure(world.seed, events_max, "exception", f"{type(error).__name__}: {error}")
    return None


def _compare_tables(world: World) -> None:
    machines = [host.machine for host in world.members_within_reach()]
    tables = {machine.contents() for machine in machines if isinstance(machine, SqliteMachine)}
    if len(tables) > 1:
        raise Violation("I5", "equal digests, and tables that differ")
    if tables:
        world.count("seed on SQLite")


@dataclass(frozen=True, slots=True)
class Shrunk:
    """The least that still fails."""

    failure: Failure
    mix: Mix
    skip: frozenset[int]
    deeds: tuple[str, ...]  # of the nemesis, that are left
    events_max: int

    def __str__(self) -> str:
        again = (
            f"World({self.failure.seed}, mix={self.mix}, skip=frozenset({sorted(self.skip)})).run({self.events_max})"
        )
        return f"{self.failure}\n  least: {len(self.deeds)} deeds {self.deeds}, {self.events_max} events\n  {again}"


def shrink(seed: int, events_max: int) -> Shrunk:
    """Leave out chances, deeds of the nemesis and events, as long as the same invariant falls."""
    world = world_of(seed)
    failure = failure_of(world, events_max)
    if failure is None:
        raise ValueError(f"seed {seed} does not fail within {events_max} events")

    def still_fails(mix: Mix, skip: frozenset[int], events: int) -> bool:
        again = failure_of(world_of(seed, mix, skip), events)
        return again is not None and again.invariant == failure.invariant

    mix, events = world.mix, events_max
    for name in CHANCES:
        if getattr(mix, name) and still_fails(without := replace(mix, **{name: 0.0}), frozenset(), events):
            mix = without
    last = world_of(seed, mix)
    failure_of(last, events)
    skip = _fewest(len(last.nemesis.deeds), lambda skip: still_fails(mix, skip, events))
    for step in (1_000, 300, 100, 30, 10):
        while events > step and still_fails(mix, skip, events - step):
            events -= step
    last = world_of(seed, mix, skip)
    failure_of(last, events)
    left = tuple(deed for number, deed in enumerate(last.nemesis.deeds) if number not in skip)
    return Shrunk(failure, mix, skip, left, events)


def _fewest(count: int, still_fails: Callable[[frozenset[int]], bool]) -> frozenset[int]:
    """Which of so many deeds can be left out, halves first (delta debugging)."""
    skip: frozenset[int] = frozenset()
    size = count
    while size > 1:
        size = (size + 1) // 2
        left = [deed for deed in range(count) if deed not in skip]
        for start in range(0, len(left), size):
            without = skip | frozenset(left[start : start + size])
            if still_fails(without):
                skip = without
    return skip
