"""Agents that are cut off, and a leader that is killed while it has tasks started: nothing runs twice, or counts twice.

`scripts/chaos agents-cut` and `scripts/chaos starts` do the same for longer and print what they measure.
"""

from __future__ import annotations

import os
import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from pistage.client import Client
from tests.chaos import cutting, network, starts
from tests.chaos.faults import Scene
from tests.chaos.group import TOKEN, a_group
from tests.chaos.network import namespaces
from tests.chaos.watch import Timeline, Watch

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

SEED = 1


@pytest.fixture
async def scene(tmp_path: Path) -> AsyncIterator[Scene]:
    """Three masters and two agents that can all be cut off."""
    if not network.is_possible() and os.environ.get("CI") != "true":
        pytest.skip("network namespaces need root, `ip` and `iptables`")
    with namespaces(["m1", "m2", "m3", "a1", "a2"]) as space:
        async with a_group(tmp_path, cutting.SHAPE, space) as group:
            yield Scene(group, random.Random(SEED), Timeline(), space)


def client_of(scene: Scene) -> Client:
    return Client(list(scene.group.urls.values()), TOKEN, first_patience_s=30.0, patience_s=30.0)


@pytest.mark.root
async def test_an_agent_that_is_cut_off_stops_its_work_before_another_starts_it(scene: Scene) -> None:
    both_ways, _, hears_nothing, *_ = cutting.CUTS
    async with client_of(scene) as client:
        for harm in (both_ways, hears_nothing, cutting.KILLED):
            trial = await cutting.kill_trial(scene, client, scene.group.directory / harm.about, harm)
            assert trial.gap_s > 0
    assert scene.problems == []


@pytest.mark.root
async def test_work_that_continues_may_run_twice_and_counts_once(scene: Scene) -> None:
    async with client_of(scene) as client:
        for order in cutting.CONTINUED:
            trial = await cutting.continue_trial(scene, client, scene.group.directory / order, cutting.CUTS[0], order)
            assert trial.gap_s < 0
    assert scene.problems == []


async def test_a_leader_that_is_killed_while_it_has_tasks_started_loses_none_and_doubles_none(tmp_path: Path) -> None:
    async with a_group(tmp_path, starts.SHAPE) as group:
        scene = Scene(group, random.Random(SEED), Timeline())
        watch = Watch(group, scene.timeline)
        for number in range(2):
            trial = await starts.trial(scene, watch, number)
            assert (trial.executions, trial.lost) == (starts.TASKS, 0)
    assert scene.problems + watch.violations == []
