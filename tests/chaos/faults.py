"""The faults: each is a coroutine that harms some master, waits, and makes it good again. All chance is the seed's."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

from tests.chaos.group import Group
from tests.chaos.network import Namespaces
from tests.chaos.watch import Timeline


@dataclass(slots=True)
class Scene:
    """What a fault has at hand. `hurt` keeps two faults from the same master."""

    group: Group
    chance: random.Random
    timeline: Timeline
    network: Namespaces | None = None
    hurt: set[str] = field(default_factory=set)
    counts: dict[str, int] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def say(self, text: str) -> None:
        self.timeline.say(text)

    def fail(self, what: str) -> None:
        """A violation."""
        self.problems.append(what)
        self.timeline.say(f"VIOLATION: {what}")

    @contextmanager
    def harming(self, name: str | None) -> Iterator[str | None]:
        """Of `name`, unless another fault is at it already."""
        if name is None or name in self.hurt:
            yield None
            return
        self.hurt.add(name)
        try:
            yield name
        finally:
            self.hurt.discard(name)

    async def leader(self) -> str | None:
        try:
            return await self.group.leader(timeout_s=5.0)
        except AssertionError:
            return None

    async def follower(self) -> str | None:
        leader = await self.leader()
        others = [name for name in self.group.masters if name != leader and name not in self.hurt]
        return self.chance.choice(others) if others else None


Fault = Callable[[Scene], Awaitable[None]]


async def _kill(scene: Scene, victim: str | None, what: str) -> None:
    with scene.harming(victim) as name:
        if name is None:
            return
        scene.say(f"kill -9 {name} ({what})")
        scene.group.kill(name)
        await asyncio.sleep(scene.chance.uniform(0.2, 3.0))
        scene.group.start(name)
        scene.say(f"start {name}")


async def kill_leader(scene: Scene) -> None:
    await _kill(scene, await scene.leader(), "leader")


async def kill_follower(scene: Scene) -> None:
    await _kill(scene, await scene.follower(), "follower")


async def kill_all(scene: Scene) -> None:
    names = [name for name in scene.group.masters if name not in scene.hurt]
    scene.hurt.update(names)
    try:
        scene.say(f"kill -9 {' '.join(names)} at once")
        for name in names:
            scene.group.running[name].kill()
        for name in names:
            scene.group.kill(name)
        await asyncio.sleep(scene.chance.uniform(0.1, 2.0))
        for name in scene.chance.sample(names, len(names)):
            scene.group.start(name)
            await asyncio.sleep(scene.chance.uniform(0, 0.5))
        scene.say("all are started again")
    finally:
        scene.hurt.difference_update(names)


async def kill_agent(scene: Scene) -> None:
    with scene.harming(scene.chance.choice(scene.group.agents)) as name:
        if name is None:
            return
        scene.say(f"kill -9 {name} (agent)")
        scene.group.kill(name)
        await asyncio.sleep(scene.chance.uniform(0.2, 3.0))
        scene.group.start(name)


async def _pause(scene: Scene, victim: str | None, seconds: float, what: str) -> None:
    with scene.harming(victim) as name:
        if name is None:
            return
        scene.say(f"SIGSTOP {name} ({what}) for {seconds:.1f} s")
        scene.group.pause(name)
        try:
            await asyncio.sleep(seconds)
        finally:
            scene.group.resume(name)
        scene.say(f"SIGCONT {name}")


def _pause_s(chance: random.Random) -> float:
    """0.2 to 30 s, mostly around an election's time: as many below 2.5 s as above it."""
    return float(0.2 * 150 ** chance.random())


async def stop_leader(scene: Scene) -> None:
    await _pause(scene, await scene.leader(), _pause_s(scene.chance), "leader")


async def stop_follower(scene: Scene) -> None:
    await _pause(scene, await scene.follower(), _pause_s(scene.chance), "follower")


async def stop_leader_shortly(scene: Scene) -> None:
    await _pause(scene, await scene.leader(), scene.chance.uniform(0.2, 4.0), "leader")


async def _cut(scene: Scene, victim: str | None, how: Callable[[Namespaces, str, Sequence[str]], str]) -> None:
    network = scene.network
    assert network is not None, "partitions need the namespaces"
    if victim is None:
        return
    others = [name for name in scene.group.masters if name != victim]
    seconds = scene.chance.uniform(1.0, 8.0)
    scene.say(f"cut {how(network, victim, others)} for {seconds:.1f} s")
    try:
        await asyncio.sleep(seconds)
    finally:
        network.heal()
    scene.say("the network is whole again")


async def partition(scene: Scene) -> None:
    """The leader (or, once in three, a minority with it) away from the other masters; or from everybody."""

    def both_ways(network: Namespaces, victim: str, others: Sequence[str]) -> str:
        if scene.chance.random() < 0.3:
            network.isolate(victim)
            return f"{victim} off from everybody"
        side = [victim, *others[: (len(others) - 1) // 2 if scene.chance.random() < 0.33 else 0]]
        far = [name for name in others if name not in side]
        for near in side:
            for other in far:
                network.cut(near, other)
                network.cut(other, near)
        return f"{' '.join(side)} | {' '.join(far)}"

    await _cut(scene, await scene.leader(), both_ways)


async def partition_one_way(scene: Scene) -> None:
    """What the leader, or a follower, sends to some others is lost, or what they send to it."""

    def one_way(network: Namespaces, victim: str, others: Sequence[str]) -> str:
        some = scene.chance.sample(others, scene.chance.randint(1, len(others)))
        is_mute = scene.chance.random() < 0.5
        for other in some:
            network.cut(*((victim, other) if is_mute else (other, victim)))
        return f"{victim} {'-x->' if is_mute else '<-x-'} {' '.join(some)}"

    await _cut(scene, await (scene.leader() if scene.chance.random() < 0.7 else scene.follower()), one_way)


async def partition_bridge(scene: Scene) -> None:
    """Two masters that do not hear each other, while all others hear both."""

    def between(network: Namespaces, victim: str, others: Sequence[str]) -> str:
        other = scene.chance.choice(others)
        network.cut(victim, other)
        network.cut(other, victim)
        return f"{victim} -x- {other}"

    await _cut(scene, await scene.leader(), between)


async def upgrade(scene: Scene) -> None:
    """Every master in turn, the leader last: stopped as an operator stops it, started, waited for."""
    group, leader = scene.group, await scene.leader()
    for name in sorted(group.masters, key=lambda name: (name == leader, name)):
        with scene.harming(name) as taken:
            if taken is None:
                continue
            if name not in group.running:
                continue
            scene.say(f"SIGTERM {name}{' (leader)' if name == leader else ''}")
            if code := await group.stop(name):
                scene.fail(f"{name} ended with {code} after SIGTERM")
            group.start(name)
            try:
                await caught_up(group, name, 60.0)
                scene.say(f"{name} is back and has caught up")
            except AssertionError as late:
                scene.fail(str(late))


async def caught_up(group: Group, name: str, timeout_s: float) -> None:
    """Wait until the master follows a leader and has applied what that one had applied when it was asked."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout_s
    while loop.time() < deadline:
        found = await group.statuses()
        ours, leaders = found.get(name), [one for one in found.values() if one["role"] == "leader"]
        if ours and leaders and ours["leader"] and ours["applied_index"] >= leaders[0]["applied_index"] - 5:
            return
        await asyncio.sleep(0.1)
    raise AssertionError(f"{name} has not caught up within {timeout_s:g} s")


BASIC: Final[dict[str, Fault]] = {
    "kill-leader": kill_leader,
    "kill-follower": kill_follower,
    "kill-all": kill_all,
    "kill-agent": kill_agent,
    "stop-leader": stop_leader,
    "stop-follower": stop_follower,
    "stop-shortly": stop_leader_shortly,
    "partition": partition,
    "partition-one-way": partition_one_way,
    "partition-bridge": partition_bridge,
    "upgrade": upgrade,
}
NEEDS_NETWORK: Final = frozenset({"partition", "partition-one-way", "partition-bridge"})
