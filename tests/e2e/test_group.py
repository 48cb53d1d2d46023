"""Three masters, one truth: leaders killed, stopped, cut off and replaced in turn under a stream of submissions.

`scripts/chaos` does the same for longer, with more faults, and with other seeds.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos import faults, network
from tests.chaos.faults import Scene
from tests.chaos.group import Shape, a_group
from tests.chaos.network import Namespaces, namespaces
from tests.chaos.session import Beside, Report, Script, play
from tests.chaos.watch import Timeline

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

SHAPE = Shape(agents=1)
SCRIPT = Script(seed=1, rate=20.0, wants_all=True)


async def session(directory: Path, trouble: Beside, space: Namespaces | None = None) -> Report:
    """What came of it; a violation fails the test with the whole report."""
    timeline = Timeline()
    async with a_group(directory, SHAPE, space) as group:
        report = await play(group, SCRIPT, timeline=timeline, network=space, beside=trouble)
    print("\n".join(report.lines()))
    assert report.violations == []
    assert len(report.load.acknowledged) == report.findings.executions == report.findings.runs
    assert set(report.findings.attempts) == {"succeeded"}
    return report


async def test_leaders_that_are_killed_and_stopped_lose_nothing_and_double_nothing(tmp_path: Path) -> None:
    async def trouble(scene: Scene) -> None:
        for fault in (*[faults.kill_leader] * 3, faults.stop_leader_shortly, faults.kill_all):
            await fault(scene)
            await scene.group.leader()

    report = await session(tmp_path, trouble)
    assert len(report.watch.leaders) >= 3, "faults that changed no leader prove nothing"


async def test_masters_that_are_restarted_in_turn_fail_no_submission(tmp_path: Path) -> None:
    report = await session(tmp_path, faults.upgrade)
    assert len(report.watch.leaders) >= 2
    assert report.load.waits()[-1] < 10.0


@pytest.fixture
def space() -> Iterator[Namespaces]:
    if not network.is_possible() and os.environ.get("CI") != "true":
        pytest.skip("network namespaces need root, `ip` and `iptables`")
    with namespaces(["m1", "m2", "m3"]) as made:
        yield made


@pytest.mark.root
async def test_a_leader_that_is_cut_off_loses_nothing_and_doubles_nothing(tmp_path: Path, space: Namespaces) -> None:
    async def trouble(scene: Scene) -> None:
        for fault in (faults.partition, faults.partition_one_way, faults.partition_bridge):
            async with asyncio.timeout(30):
                await fault(scene)

    await session(tmp_path, trouble, space)
