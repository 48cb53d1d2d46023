"""Many seeds: run, and report what was reached."""

from __future__ import annotations

import traceback
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from tests.fleet.world import World
from tests.sim.violation import Violation


def storm_of(seed: int) -> float:
    """Seconds of faults: in some worlds so long that agents are kept free for those who wait."""
    return 700.0 if seed % 6 == 5 else 240.0


@dataclass(slots=True)
class Failure:
    """What fell in which seed, and the one command that shows it again."""

    seed: int
    invariant: str
    what: str
    storm_s: float
    agents: int | None

    def __str__(self) -> str:
        agents = "" if self.agents is None else f" --agents {self.agents}"
        again = f"python -m tests.fleet --seeds {self.seed} --storm {self.storm_s:g}{agents}"
        return f"seed {self.seed}: {self.invariant}: {self.what}\n  again: {again}"


@dataclass(slots=True)
class Report:
    """Idle seeds do not count: what was reached does."""

    seeds: int = 0
    events: int = 0
    hours: float = 0.0  # of simulated time
    reached: Counter[str] = field(default_factory=Counter)
    failures: list[Failure] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [f"{self.seeds} seeds, {self.events} events, {self.hours:.1f} h, {len(self.failures)} failures"]
        lines += [f"  {count:>9} {what}" for what, count in sorted(self.reached.items(), key=lambda x: (-x[1], x[0]))]
        return "\n".join(lines + [str(failure) for failure in self.failures])


def run(
    seeds: Iterable[int], *, storm_s: float | None = None, agents: int | None = None, failures_max: int = 1
) -> Report:  # fmt: skip
    """Run seeds until so many have failed."""
    report = Report()
    for seed in seeds:
        world = World(seed, agents=agents)
        failure = failure_of(world, storm_s or storm_of(seed), agents)
        report.seeds += 1
        report.events += world.loop.events
        report.hours += world.now_s / 3600
        report.reached.update(world.counts)
        if failure is not None:
            report.failures.append(failure)
            if len(report.failures) >= failures_max:
                break
    return report


def failure_of(world: World, storm_s: float, agents: int | None = None) -> Failure | None:
    """Run one world to its end; whatever the program raises is a failure, too."""
    try:
        world.run(storm_s)
    except Violation as violation:
        return Failure(world.seed, violation.invariant, str(violation).partition(": ")[2], storm_s, agents)
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        what = f"{type(error).__name__}: {error} ({where.filename.rpartition('/')[2]}:{where.lineno})"
        return Failure(world.seed, "exception", what, storm_s, agents)
    return None
