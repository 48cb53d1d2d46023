"""python -m tests.sim run|replay|shrink|mutants: seeds by hand; with --mutant NAME on a core with that fault."""

from __future__ import annotations

import argparse
import subprocess
import sys
import time

from tests.sim import mutants


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.sim", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    for verb, what in (("run", "FIRST:END"), ("replay", "a seed that failed"), ("shrink", "a seed that failed")):
        sub = verbs.add_parser(verb)
        sub.add_argument("seeds", help=what)
        sub.add_argument("--events", type=int, default=2_000)
        sub.add_argument("--mutant", choices=sorted(mutants.BY_NAME))
    table = verbs.add_parser("mutants")
    table.add_argument("names", nargs="*", metavar="NAME", help="all unless named")
    table.add_argument("--seeds", type=int, default=500)
    table.add_argument("--events", type=int, default=5_000)
    options = parser.parse_args()
    if options.verb == "mutants":
        return _table(options.names or list(mutants.BY_NAME), options.seeds, options.events)
    if options.mutant:
        mutants.BY_NAME[options.mutant].install()  # before anything imports the core
    first, _, end = options.seeds.partition(":")
    if options.verb == "shrink":
        return _shrink(int(first), options.events)
    return _run(range(int(first), int(end or int(first) + 1)), options.events)


def _run(seeds: range, events_max: int) -> int:
    from tests.sim import runs

    start = time.process_time()
    report = runs.run(seeds, events_max)
    print(report)
    print(f"{report.events / (time.process_time() - start):,.0f} events/s", file=sys.stderr)
    return 1 if report.failures else 0


def _shrink(seed: int, events_max: int) -> int:
    from tests.sim import runs

    print(runs.shrink(seed, events_max))
    return 1


def _table(names: list[str], seeds: int, events_max: int) -> int:
    """Each mutant in a process of its own: what is imported cannot be taken back."""
    print(f"{'mutant':32} {'seed':>5}  fell")
    alive = []
    for name in names:
        command = [sys.executable, "-m", "tests.sim", "run", f"0:{seeds}", "--events", str(events_max)]
        done = subprocess.run([*command, "--mutant", name], capture_output=True, text=True, timeout=3_600, check=False)
        found = [line for line in done.stdout.splitlines() if line.startswith("seed ")]
        if not found:
            alive.append(name)
        seed, _, rest = found[0].removeprefix("seed ").partition(": ") if found else ("-", "", "ALIVE")
        print(f"{name:32} {seed:>5}  {rest.partition(':')[0]:16} {mutants.BY_NAME[name].bug}", flush=True)
    print(f"{len(names) - len(alive)} of {len(names)} killed within {seeds} seeds of {events_max} events")
    return 1 if alive else 0


if __name__ == "__main__":
    raise SystemExit(main())
