"""python -m tests.sim run|replay|shrink: seeds by hand; with --mutant NAME on a core with that fault."""

from __future__ import annotations

import argparse
import sys
import time

from tests.sim import mutants


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.sim", description=__doc__)
    parser.add_argument("verb", choices=("run", "replay", "shrink"))
    parser.add_argument("seeds", help="one seed, or FIRST:END")
    parser.add_argument("--events", type=int, default=2_000)
    parser.add_argument("--mutant", choices=sorted(mutants.BY_NAME))
    options = parser.parse_args()
    first, _, end = options.seeds.partition(":")
    if options.mutant:
        mutants.install(options.mutant)  # before anything imports the core
    from tests.sim import runs

    if options.verb == "shrink":
        mix, skip, events, failure = runs.shrink(int(first), options.events)
        print(f"{failure}\n  within {events} events, without {len(skip)} deeds of the nemesis: {sorted(skip)}\n  {mix}")
        return 1
    start = time.process_time()
    report = runs.run(range(int(first), int(end or int(first) + 1)), options.events)
    print(report)
    print(f"{report.events / (time.process_time() - start):,.0f} events/s", file=sys.stderr)
    return 1 if report.failures else 0


if __name__ == "__main__":
    raise SystemExit(main())
