"""`python -m tests.chaos [PRESET]`: see scripts/chaos."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import random
import shutil
import signal
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from tests.chaos import presets
from tests.chaos.presets import FAULTS, PRESETS, Preset
from tests.chaos.session import Script
from tests.chaos.watch import Timeline


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    about = "\n".join(f"  {name:11} {preset.about}" for name, preset in PRESETS.items())
    parser = argparse.ArgumentParser(
        prog="scripts/chaos",
        description=f"Real masters and agents under faults.\n\npresets:\n{about}",
        epilog=f"faults: {', '.join(sorted(FAULTS))}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("preset", nargs="?", choices=list(PRESETS), help="or --faults")
    parser.add_argument("--faults", default="", help="names, separated by commas; chance picks among them")
    parser.add_argument("--seed", type=int, help="of all chance; one is made up and printed unless given")
    parser.add_argument("--duration", type=float, help="seconds of load and faults")
    parser.add_argument("--count", type=int, help="submissions, instead of a duration; of what is measured, trials")
    parser.add_argument("--rate", type=float, help="submissions a second")
    parser.add_argument("--every", type=float, help="seconds from one fault to the next; by chance unless given")
    parser.add_argument("--at-once", type=int, help="how many faults at the same time")
    parser.add_argument("--masters", type=int, help="3 unless given")
    parser.add_argument("--agents", type=int, help="2 unless given")
    parser.add_argument("--keep", action="store_true", help="keep data and logs; they are kept after a violation too")
    given = parser.parse_args(arguments)
    if (given.preset is None) == (not given.faults):
        parser.error("give a preset or --faults")
    for name in given.faults.split(",") if given.faults else []:
        if name not in FAULTS:
            parser.error(f"no fault {name!r}; there are {', '.join(sorted(FAULTS))}")
    return given


def preset_of(given: argparse.Namespace, seed: int) -> Preset:
    preset = PRESETS[given.preset] if given.preset else _of_faults(given.faults)
    script = {"duration_s": given.duration, "rate": given.rate, "every_s": given.every, "at_once": given.at_once}
    changed = {key: value for key, value in script.items() if value is not None}
    if given.count is not None or given.duration is not None:
        changed["count"] = given.count
    shape = {key: value for key, value in (("masters", given.masters), ("agents", given.agents)) if value is not None}
    return replace(
        preset, script=replace(preset.script, seed=seed, **changed), shape=replace(preset.shape, **shape)
    )  # fmt: skip


def _of_faults(names: str) -> Preset:
    return Preset(about=names, faults=tuple(names.split(",")), script=Script(seed=0))


async def _until_signal(work: asyncio.Task[tuple[list[str], list[str]]]) -> tuple[list[str], list[str]]:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, work.cancel)
    return await work


async def main(given: argparse.Namespace) -> int:
    seed = given.seed if given.seed is not None else random.SystemRandom().randrange(1_000_000)
    directory = Path(tempfile.mkdtemp(prefix="pistage-chaos."))
    print(f"seed {seed}, data and logs in {directory}", flush=True)
    code = 1
    try:
        async with asyncio.TaskGroup() as group:
            work = group.create_task(presets.run(preset_of(given, seed), directory, Timeline()))
            lines, violations = await _until_signal(work)
        print("\n".join(lines))
        code = 1 if violations else 0
    except asyncio.CancelledError:
        print("interrupted; everything that was started is ended")
        code = 130
    finally:
        if code != 1 and not given.keep:
            with contextlib.suppress(OSError):
                shutil.rmtree(directory)
    return code


if __name__ == "__main__":
    sys.exit(asyncio.run(main(parse(sys.argv[1:]))))
