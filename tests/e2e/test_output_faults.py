"""Output while something is harmed: nothing lost, nothing doubled, alike on every master.

`scripts/chaos output` does the same for longer, with the engine as well, and prints what it sees.
"""

from __future__ import annotations

import os
import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.chaos import disks, network, output, wiping
from tests.chaos.engines import a_live_engine
from tests.chaos.faults import Scene
from tests.chaos.group import a_group
from tests.chaos.network import namespaces
from tests.chaos.watch import Timeline
from tests.engine import require_engine

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.root, pytest.mark.timeout(300)]

#: Seconds; the leader's lease, and the time after which the step would give up, are much longer.
SHORTLY = {
    output.AGENT_KILLED: 1.5,
    output.LEADER_KILLED: 1.5,
    output.FOLLOWER_AWAY: 3.0,
    output.LEADER_FULL: 2.0,
    output.FOLLOWER_FULL: 2.0,
    output.AGENT_CUT: 3.0,
    output.LEADER_CUT: 3.0,
}


@pytest.fixture
async def scene(tmp_path: Path) -> AsyncIterator[Scene]:
    """Three masters, the last with a small disk, an agent of the engine and one of the host; all can be cut off."""
    require_engine()
    if not network.is_possible() and os.environ.get("CI") != "true":
        pytest.skip("network namespaces need root, `ip` and `iptables`")
    with (
        disks.small_disk(tmp_path / "m3", output.SMALL_DISK_MB),
        namespaces(["m1", "m2", "m3", "a1", "a2"]) as space,
    ):
        async with a_group(tmp_path, output.SHAPE, space) as group:
            yield Scene(group, random.Random(1), Timeline(), space)


async def test_output_is_whole_whatever_is_killed_cut_off_or_full(scene: Scene) -> None:
    for harm, seconds in SHORTLY.items():
        await output.trial(scene, harm, seconds)
    assert scene.problems == []


async def test_an_engine_that_goes_away_costs_no_more_than_is_said(tmp_path: Path) -> None:
    require_engine()
    async with a_live_engine() as engine, a_group(tmp_path, engine.shape()) as group:
        scene = Scene(group, random.Random(1), Timeline())
        for harm in engine.harms():
            await output.trial(scene, harm, 1.0)
        assert scene.problems == []


@pytest.mark.parametrize("replicas", [1, 2])
async def test_what_is_lost_with_every_master_that_had_it_is_shown_as_a_gap(tmp_path: Path, replicas: int) -> None:
    async with a_group(tmp_path, wiping.shape(replicas)) as group:
        scene = Scene(group, random.Random(1), Timeline())
        await wiping.while_printing(scene, replicas)
        if replicas > 1:
            await wiping.after_the_end(scene)
        assert scene.problems == []
