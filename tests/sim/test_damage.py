"""Damage that is done while nothing else goes wrong: found in bounded time under steady load, and mended."""

import pytest

from tests.sim.faults import Mix
from tests.sim.host import TICK
from tests.sim.world import World


def calm(seed: int) -> World:
    """No faults, clients at work, a leader of at least three that has committed something, and that world."""
    world = World(seed, mix=Mix())
    while not (world.leaders() and len(world.checker.committed) > 20):
        world._run_one()
    return world


def three_or_more() -> list[int]:
    return [seed for seed in range(2_000, 2_040) if len(World(seed, mix=Mix()).hosts) >= 3][:6]


@pytest.mark.parametrize("seed", three_or_more())
@pytest.mark.parametrize("is_leader", [True, False])
def test_a_state_that_rots_is_found_in_two_election_timeouts_and_replaced(seed: int, is_leader: bool) -> None:
    world = calm(seed)
    (leader,) = world.leaders()
    victim = next(host for host in world.hosts.values() if (host is leader) == is_leader)
    victim.machine.rot()
    world.checker.rotten.add(victim.name)
    since = world.now
    while not victim.is_condemned:
        world._run_one()
    assert world.now - since <= 2 * world.settings.election_ticks * TICK
    while any(victim.name in host.machine.config.members for host in world.members()) or world.nemesis.in_hand:
        world._run_one()
    world.run(world.events)  # the rest is what every world must do at its end
    assert world.counts["damaged state given up"] == 1
    assert not any(host.is_condemned for host in world.members())


def test_a_log_that_is_damaged_is_refused_and_its_master_replaced() -> None:
    world = calm(three_or_more()[0])
    victim = next(host for host in world.hosts.values() if host.disk.entries and host not in world.leaders())
    victim.disk.flipped_at = victim.disk.entries[0].index
    victim.crash()
    while not (victim.is_condemned and victim.name not in world.members()[0].machine.config.members):
        world._run_one()
    world.run(world.events)
    assert world.counts["damaged log refused"] == 1
    assert len(world.members()) >= 3
