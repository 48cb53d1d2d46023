"""What goes wrong in a seed: how often, drawn once; and the nemesis that does it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from random import Random
from typing import TYPE_CHECKING

from pistage import raft
from tests.sim.host import TICK, Host

if TYPE_CHECKING:
    from tests.sim.world import World


@dataclass(frozen=True, slots=True, kw_only=True)
class Mix:
    """How likely each fault is; 0 is never. The first group is a chance a message or step, the second a weight."""

    drop: float = 0.0
    duplicate: float = 0.0
    delay: float = 0.0
    crash_points: float = 0.0
    strand: float = 0.0  # a leader loses most of the others, or its life, soon after it has won

    crash: float = 0.0
    pause: float = 0.0
    cut: float = 0.0
    slow_disk: float = 0.0
    full_disk: float = 0.0
    eio: float = 0.0
    flip: float = 0.0  # a bit of a log
    rot: float = 0.0  # a state that is not what the log says
    upgrade: float = 0.0
    client: float = 0.0
    agent: float = 0.0
    replay: float = 0.0
    clock: float = 0.0
    jump: float = 0.0  # of the wall clock
    membership: float = 0.0
    transfer: float = 0.0
    checkpoint: float = 0.0


CHANCES = ("drop", "duplicate", "delay", "crash_points", "strand")
NEMESIS = tuple(field.name for field in fields(Mix) if field.name not in CHANCES)
_DONE = "done"
OFTEN = {"membership", "checkpoint", "cut"}  # of these much is asked and little comes about


def mix_of(rng: Random) -> Mix:
    """Each fault is absent in about half of the seeds: some bugs hide behind others."""

    def maybe(most: float, chance: float = 0.5) -> float:
        return rng.random() * most if rng.random() < chance else 0.0

    mix = Mix(
        drop=maybe(0.2),
        duplicate=maybe(0.2),
        delay=maybe(0.2),
        crash_points=maybe(0.02),
        strand=rng.choice((0.0, 0.5, 1.0)),
        **{name: maybe(3.0 if name in OFTEN else 1.0) for name in NEMESIS},
    )
    return replace(mix, checkpoint=mix.checkpoint or rng.choice((0.0, 0.5)))


class Nemesis:
    """Its deeds are numbered; those in `skip` are left out, which is how a failing seed is shrunk."""

    def __init__(self, world: World, skip: frozenset[int]) -> None:
        self.world, self.skip = world, skip
        self.rng = Random(f"nemesis of {world.seed}")
        self.deeds: list[str] = []
        self.in_hand: set[str] = set()  # who is being replaced
        idle = {"agent"} if world.fleet is None else set()
        self.weights = [0.0 if name in idle else getattr(world.mix, name) for name in NEMESIS]
        if any(self.weights):
            self.pace = self.rng.choice((1, 2, 5, 12)) * TICK
            world.at(self.rng.randrange(self.pace), self._act)

    def won(self, winner: Host) -> None:
        """A leader whose entries hardly anybody has is what figure 8 is made of: stop it at once, or a little later."""
        if self.world.is_faulty and self.rng.random() < self.world.mix.strand:
            assert winner.node is not None
            log, commit = winner.node.log, winner.node.commit
            has_older = commit < log.last_index and log.term_of(commit + 1) != winner.node.term
            wait = self.rng.randint(TICK // 2, 3 * TICK) if has_older else self.rng.randint(0, TICK // 2)
            self.world.at(wait, self._do, "strand", winner)

    def _act(self) -> None:
        if self.world.is_faulty:
            (kind,) = self.rng.choices(NEMESIS, self.weights)
            self._do(kind)
            self.world.at(1 + int(self.rng.expovariate(1) * self.pace), self._act)

    def _do(self, kind: str, *arguments: Host) -> None:
        rng, number = Random(self.rng.random()), len(self.deeds)
        self.deeds.append(kind)
        if self.world.is_faulty and number not in self.skip:
            self.world.count(kind)
            getattr(self, f"_{kind}")(rng, *arguments)

    def _strand(self, rng: Random, winner: Host) -> None:
        others = [name for name in self.world.hosts if name != winner.name]
        rng.shuffle(others)
        split = rng.randint(0, max(0, len(others) // 2 - 1))
        if rng.random() < 0.3:
            winner.crash(is_power_loss=rng.random() < 0.5)
        else:
            self.world.cut = frozenset(_both([winner.name, *others[:split]], others[split:]))
            self.world.at(
                rng.randint(1, 4 * self.world.settings.election_ticks) * TICK, self.world.set_cut, frozenset()
            )

    def _victim(self, rng: Random) -> Host:
        """Leaders are worth more."""
        hosts = list(self.world.hosts.values())
        leaders = self.world.leaders()
        return rng.choice(leaders if leaders and rng.random() < 0.5 else hosts)

    def _crash(self, rng: Random) -> None:
        victims = list(self.world.hosts.values()) if rng.random() < 0.1 else [self._victim(rng)]
        for victim in victims:
            victim.crash(is_power_loss=rng.random() < 0.5)

    def _pause(self, rng: Random) -> None:
        self._victim(rng).paused_until = self.world.now + rng.randint(2, 40) * TICK

    def _cut(self, rng: Random) -> None:
        """Symmetric, one-way, bridge or flapping."""
        names = list(self.world.hosts)
        rng.shuffle(names)
        match rng.randrange(5):
            case 0:  # two sides
                split = rng.randint(1, len(names))
                links = set(_both(names[:split], names[split:]))
            case 1:  # one node hears nobody, or is heard by nobody
                name = self._victim(rng).name
                is_deaf = rng.random() < 0.5
                links = {(other, name) if is_deaf else (name, other) for other in names}
            case 2:  # two sides that only one node can see
                split = len(names) // 2
                links = set(_both(names[:split], names[split + 1 :]))
            case 3:  # the leader alone
                name = self._victim(rng).name
                links = set(_both([name], [other for other in names if other != name]))
            case _:  # random links, each direction by itself
                links = {(a, b) for a in names for b in names if a != b and rng.random() < 0.4}
        self.world.cut = frozenset(links)
        spells = rng.choice((1, 1, 1, 4))
        wait = 0
        for _ in range(spells):
            wait += rng.randint(3, 40) * TICK // spells
            self.world.at(wait, self.world.set_cut, frozenset())
            wait += TICK
            if spells > 1:
                self.world.at(wait, self.world.set_cut, frozenset(links))
        self.world.at(wait + TICK, self.world.set_cut, frozenset())

    def _slow_disk(self, rng: Random) -> None:
        self._victim(rng).slow_until = self.world.now + rng.randint(5, 60) * TICK

    def _full_disk(self, rng: Random) -> None:
        self._victim(rng).full_until = self.world.now + rng.randint(5, 40) * TICK

    def _eio(self, rng: Random) -> None:
        self._victim(rng).is_eio_due = True

    def _flip(self, rng: Random) -> None:
        """Found at the next start, which therefore comes soon."""
        victim = self._victim(rng)
        if victim.disk.entries and not victim.is_bad and self.world.can_do_without(victim.name):
            victim.disk.flipped_at = rng.choice(victim.disk.entries).index
            victim.crash(is_power_loss=rng.random() < 0.5)

    def _rot(self, rng: Random) -> None:
        """One at a time: two of five can agree with each other for as long as a third is away."""
        victim = self._victim(rng)
        is_one = not any(host.machine.is_rotten for host in self.world.hosts.values())
        if is_one and victim.node is not None and not victim.is_bad and self.world.can_do_without(victim.name):
            victim.machine.rot()
            self.world.checker.rotten.add(victim.name)

    def replace(self, victim: Host) -> None:
        """Somebody has to put another in its place."""
        self.in_hand.add(victim.name)
        self.world.at(TICK, self._replace, victim, "")

    def _replace(self, victim: Host, successor: str) -> None:
        """What an operator does: the damaged one is removed, a new one comes as a learner and is promoted."""
        if successor in self.world.hosts and self.world.hosts[successor].is_bad:
            successor = _DONE  # another takes its place in turn
        for host in self.world.leaders():
            assert host.node is not None
            config = host.node.log.config
            if victim.name in config.members:
                kind, name = raft.ChangeKind.REMOVE, victim.name
            elif successor == _DONE or successor in config.voters or len(config.members) >= 5:
                successor = _DONE  # a leader that knows less may still come and have to remove it
                self.in_hand.discard(victim.name)
                continue
            elif successor in config.learners:
                kind, name = raft.ChangeKind.PROMOTE, successor
            else:
                kind, name = raft.ChangeKind.ADD_LEARNER, successor or self.world.new_host()
                successor = name
            change = raft.Change(kind=kind, node_id=name)
            host.step(raft.Conf(token=self.world.new_token(), change=change))
        self.world.at(8 * TICK, self._replace, victim, successor)

    def _jump(self, rng: Random) -> None:
        self._victim(rng).wall_offset = rng.randint(-6, 6) * 3_600_000

    def _upgrade(self, rng: Random) -> None:
        victim = self._victim(rng)
        if victim.version == 1:
            victim.version = 2
            victim.crash()

    def _client(self, rng: Random) -> None:
        rng.choice(self.world.clients).restart()

    def _agent(self, rng: Random) -> None:
        if self.world.fleet is not None:
            self.world.fleet.trouble(rng)

    def _replay(self, rng: Random) -> None:
        """Messages from any time of the past, in any order."""
        for message in rng.sample(self.world.old, min(len(self.world.old), 30)):
            self.world.at(rng.randint(1, 3 * TICK), self.world.deliver, message)

    def _clock(self, rng: Random) -> None:
        self._victim(rng).clock_rate = rng.uniform(0.8, 1.25)

    def _transfer(self, rng: Random) -> None:
        for host in self.world.leaders():
            target = rng.choice(list(self.world.hosts))
            host.step(raft.Transfer(token=self.world.new_token(), target=target))

    def _membership(self, rng: Random) -> None:
        for host in self.world.leaders():
            assert host.node is not None
            config = host.node.log.config
            gone = [name for name in config.members if self.world.hosts[name].is_bad]
            if gone:  # the operator is at it; nobody else goes meanwhile
                continue
            if config.learners and rng.random() < 0.6:
                kind, name = raft.ChangeKind.PROMOTE, rng.choice(config.learners)
            elif len(config.members) < 5 and rng.random() < 0.6:
                kind, name = raft.ChangeKind.ADD_LEARNER, self.world.new_host()
            else:
                kind, name = raft.ChangeKind.REMOVE, rng.choice((*config.members, host.name, host.name))
            change = raft.Change(kind=kind, node_id=name)
            host.step(raft.Conf(token=self.world.new_token(), change=change))

    def _checkpoint(self, rng: Random) -> None:
        hosts = list(self.world.hosts.values())
        for host in rng.sample(hosts, rng.randint(1, len(hosts))):
            host.checkpoint()


def _both(left: list[str], right: list[str]) -> Iterator[tuple[str, str]]:
    for a in left:
        for b in right:
            yield a, b
            yield b, a
