"""python -m tests.fleet --seeds FIRST[:END]: seeds by hand; with --mutant NAME on a program with that fault.

With `mutants [NAME...]` each known fault in a process of its own: which seed shows it, and what falls.
"""

from __future__ import annotations

import argparse
import logging
import subprocess
import sys
import time

from tests.fleet import mutants


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fleet", description=__doc__)
    parser.add_argument("mutants", nargs="*", metavar="mutants [NAME]", help="the table of mutants, all unless named")
    parser.add_argument("--seeds", default="0:200", metavar="FIRST[:END]")
    parser.add_argument("--storm", type=float, metavar="SECONDS", help="of faults, in simulated time")
    parser.add_argument("--agents", type=int, help="so many, where the seed would say")
    parser.add_argument("--failures", type=int, default=1, help="stop after so many")
    parser.add_argument("--mutant", choices=sorted(mutants.BY_NAME))
    options = parser.parse_args()
    if options.mutants:
        return _table(options.mutants[1:] or list(mutants.BY_NAME), options.seeds)
    if options.mutant:
        mutants.BY_NAME[options.mutant].install()  # before anything imports the program
    logging.disable(logging.CRITICAL)  # of the program under test, which has reason for many
    return _run(options)


def _run(options: argparse.Namespace) -> int:
    from tests.fleet import runs

    first, _, end = options.seeds.partition(":")
    start = time.process_time()
    seeds = range(int(first), int(end or int(first) + 1))
    report = runs.run(seeds, storm_s=options.storm, agents=options.agents, failures_max=options.failures)
    print(report)
    took_s = time.process_time() - start
    print(f"{took_s:.1f} s, {report.events / took_s:,.0f} events/s", file=sys.stderr)
    return 1 if report.failures else 0


def _table(names: list[str], seeds: str) -> int:
    """Each mutant in a process of its own: what is imported cannot be taken back."""
    print(f"{'mutant':36} {'seed':>5}  fell")
    alive = []
    for name in names:
        command = [sys.executable, "-m", "tests.fleet", "--seeds", seeds, "--mutant", name]
        done = subprocess.run(command, capture_output=True, text=True, timeout=3_600, check=False)
        found = [line for line in done.stdout.splitlines() if line.startswith("seed ")]
        if not found:
            alive.append(name)
        seed, _, rest = found[0].removeprefix("seed ").partition(": ") if found else ("-", "", "ALIVE")
        print(f"{name:36} {seed:>5}  {rest.partition(':')[0]:10} {mutants.BY_NAME[name].bug}", flush=True)
        if done.returncode not in (0, 1):
            print(done.stderr)
    print(f"{len(names) - len(alive)} of {len(names)} killed by seeds {seeds}")
    return 1 if alive else 0


if __name__ == "__main__":
    raise SystemExit(main())
