"""One seed: a heap of what happens next, one source of chance, hosts, links, clients and a nemesis."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable
from random import Random
from typing import Any
from zlib import crc32

from pistage import raft
from tests.sim.checker import Checker
from tests.sim.clients import Client, Operation
from tests.sim.faults import Mix, Nemesis, mix_of
from tests.sim.fleet import Fleet
from tests.sim.host import TICK, Host
from tests.sim.machine import KNOWS, RAISE, MachineFactory, Registers, write_of
from tests.sim.sqlite_machine import SqliteMachine
from tests.sim.violation import Violation

HEAL_TICKS = 400
CALM_TICKS = 25


def settings_of(rng: Random) -> raft.Settings:
    """Small numbers: what is rare with a large one happens in every seed."""
    election_ticks = rng.choice((3, 4, 6))
    return raft.Settings(
        heartbeat_ticks=rng.choice((1, election_ticks // 3)),
        election_ticks=election_ticks,
        appends_in_flight_max=rng.choice((1, 1, 4)),
        append_entries_max=rng.choice((1, 1, 2, 8)),
        promote_lag_max=10,
    )


class World:
    """`run()` lets `events_max` events happen under faults, heals everything, and asks for progress."""

    def __init__(
        self,
        seed: int,
        *,
        mix: Mix | None = None,
        skip: frozenset[int] = frozenset(),
        machine: MachineFactory = Registers,
        is_traced: bool = False,
    ) -> None:
        self.seed, self.rng = seed, Random(seed)
        drawn = mix_of(self.rng)
        self.mix = mix or drawn
        self.settings = settings_of(self.rng)
        self.disk_wait_max = self.rng.choice((30, 100, 200))
        self.new_machine = machine
        self.now = 0
        self.events = 0
        self.counts: Counter[str] = Counter()
        self.is_faulty = True
        self.is_traced, self.trace = is_traced, 0
        self._heap: list[tuple[int, int, Host | None, Callable[..., None], tuple[Any, ...]]] = []
        self._pushed = 0
        self._tokens = 0
        self._moments = 0
        self.cut: frozenset[tuple[str, str]] = frozenset()
        self.deaf = ""
        self.old: list[raft.Message] = []
        self.staged: dict[tuple[str, int], Any] = {}
        self.history: list[Operation] = []
        self.checker = Checker(self)
        self.hosts: dict[str, Host] = {}
        founders = tuple(f"m{n}" for n in range(1, 1 + self.rng.choice((1, 2, 3, 3, 3, 3, 5, 5, 5, 5))))
        self.founders = raft.Config(voters=founders)
        self.is_mixed = self.rng.random() < 0.3
        for name in founders:
            self.hosts[name] = Host(self, name, raft.Base(config=self.founders), 1 if self.is_mixed else 2)
        self.clients = [Client(self, f"c{n}") for n in range(self.rng.randint(2, 6))]
        self.fleet = Fleet(self) if machine is SqliteMachine else None
        self.nemesis = Nemesis(self, skip)
        self.at(TICK, self._tell_versions)

    # --- time ----------------------------------------------------------------------------------------------------

    def at(self, wait: int, call: Callable[..., None], *arguments: Any, host: Host | None = None) -> None:
        """Later; what is for a host that is paused then happens when it goes on."""
        self._pushed += 1
        heapq.heappush(self._heap, (self.now + wait, self._pushed, host, call, arguments))

    def moment(self) -> int:
        """A time for histories: no two are equal."""
        self._moments += 1
        return self._moments

    def new_token(self) -> int:
        self._tokens += 1
        return self._tokens

    def count(self, what: str) -> None:
        self.counts[what] += 1

    def _run_one(self) -> None:
        when, _, host, call, arguments = heapq.heappop(self._heap)
        self.now = when
        if host is not None and host.paused_until > when and self.is_faulty:
            self._pushed += 1
            heapq.heappush(self._heap, (host.paused_until, self._pushed, host, call, arguments))
            return
        self.events += 1
        call(*arguments)
        if self.is_traced:
            self.trace = crc32(f"{when} {call.__name__} {self._summary()}".encode(), self.trace)

    def _summary(self) -> list[tuple[str, int, int, int]]:
        running = [host for host in self.hosts.values() if host.node is not None]
        return [(host.name, host.node.term, host.node.commit, host.machine.index) for host in running if host.node]

    def run(self, events_max: int) -> None:
        """Violation: an invariant fell; any other exception of the core is a bug as well."""
        while self.events < events_max:
            self._run_one()
        self.heal()
        self._await_progress()
        self.checker.finished()

    # --- links -----------------------------------------------------------------------------------------------------

    def is_cut(self, src: str, dst: str) -> bool:
        return (src, dst) in self.cut

    def set_cut(self, links: frozenset[tuple[str, str]]) -> None:
        self.cut = links if self.is_faulty else frozenset()

    def send(self, host: Host, message: raft.Message) -> None:
        rng, mix = self.rng, self.mix
        wait = rng.randint(1, 40)
        if not self.is_faulty:
            self.at(wait, self.deliver, message, host=self.hosts.get(message.dst))
            return
        if mix.replay and (len(self.old) < 300 or rng.random() < 0.1):
            self.old.append(message)
        if rng.random() < mix.drop:
            self.count("message dropped")
            return
        if rng.random() < mix.delay:
            wait += rng.randint(1, 10) * TICK
        self.at(wait, self.deliver, message, host=self.hosts.get(message.dst))
        if rng.random() < mix.duplicate:
            self.count("message duplicated")
            self.at(wait + rng.randint(0, 5 * TICK), self.deliver, message, host=self.hosts.get(message.dst))

    def deliver(self, message: raft.Message) -> None:
        host = self.hosts.get(message.dst)
        if host is not None and not self.is_cut(message.src, message.dst):
            host.receive(message)

    # --- hosts -----------------------------------------------------------------------------------------------------

    def new_host(self) -> str:
        """An empty node under a name that was never used, or that nobody has told anything yet."""
        last = self.hosts[f"m{len(self.hosts)}"]
        if last.name not in self.founders.voters and last.is_blank:
            return last.name
        name = f"m{len(self.hosts) + 1}"
        is_old = self.is_mixed and self.is_faulty and self.rng.random() < 0.5  # also when it is too late for it
        self.hosts[name] = Host(self, name, raft.Base(), 1 if is_old else 2)
        return name

    def members(self) -> list[Host]:
        """Those of the newest committed membership."""
        newest = max(self.hosts.values(), key=lambda host: host.machine.index)
        return [self.hosts[name] for name in newest.machine.config.members]

    def members_within_reach(self) -> list[Host]:
        """The members but the one that stays deaf to the end."""
        return [host for host in self.members() if host.name != self.deaf]

    def leaders(self) -> list[Host]:
        """Those who think that they lead."""
        hosts = list(self.hosts.values())
        return [host for host in hosts if host.node is not None and host.node.leadership is not None]

    def can_do_without(self, name: str) -> bool:
        """Whether, if this one never answers again, a majority is left of every membership that any log holds."""
        gone = {host.name for host in self.hosts.values() if host.is_bad} | {name}
        configs = {config for host in self.hosts.values() for config in host.configs()}
        return all(config.is_quorum(set(config.voters) - gone) for config in configs if config.voters)

    def _tell_versions(self) -> None:
        """Leaders propose what masters know, and the newer version once all members know it."""
        for host in self.leaders():
            assert host.node is not None
            members, machine = host.node.log.config.members, host.machine
            known = machine.known
            news = [name for name in members if self.hosts[name].node and known.get(name) != self.hosts[name].version]
            for name in news:
                host.propose((f"{KNOWS} {name} {self.hosts[name].version}".encode(),), lambda _: None)
            if machine.version == 1 and all(known.get(name) == 2 for name in members):
                host.propose((f"{RAISE} 2".encode(),), lambda _: None)
        self.at(8 * TICK, self._tell_versions)

    def heal(self) -> None:
        """All faults end but, in some seeds, one: a member of at least three, the leader, hears nobody."""
        self.is_faulty = False
        for host in self.hosts.values():
            host.slow_until = host.full_until = host.paused_until = 0
            host.is_eio_due = False
            host.version = 2
            host.start()
        leaders = self.leaders()
        if leaders and self.rng.random() < 0.3 and self.can_do_without(leaders[0].name):
            self.deaf = leaders[0].name
        self.cut = frozenset((name, self.deaf) for name in self.hosts if self.deaf)

    def _await_progress(self) -> None:
        """One leader, a fresh write through it, equal states, all work done, whoever is damaged replaced; and it stays.

        There is time for a log that is sent entry by entry to a new member.
        """
        for client in self.clients:
            client.is_stopped = True
        if self.fleet is not None:
            self.fleet.heal()
        self._is_written = False
        self._ask_for_a_write()
        self._settle(HEAL_TICKS)
        self._run_for(CALM_TICKS)  # a deaf leader may have got the write through before it noticed
        elections = self.counts["election won"]
        self._run_for(CALM_TICKS)
        if self.counts["election won"] > elections:
            raise Violation("stability", f"a leader was deposed although nothing was wrong: {self._summary()}")
        self._settle(CALM_TICKS)  # a client may have repeated its last write just now

    def _settle(self, ticks: int) -> None:
        since = self.now
        while not (self._is_written and self._is_settled()):
            if self.now > since + (ticks + 6 * len(self.checker.committed)) * TICK:
                raise Violation("liveness", f"no progress after healing: {self._summary()}")
            self._run_one()

    def _run_for(self, ticks: int) -> None:
        until = self.now + ticks * TICK
        while self.now < until:
            self._run_one()

    def _ask_for_a_write(self) -> None:
        for host in self.leaders():
            if not self._is_written:
                self._write_through(host)
        if not self._is_written:
            self.at(10 * TICK, self._ask_for_a_write)

    def _write_through(self, host: Host) -> None:
        def written(_: int) -> None:
            self._is_written = True

        payload = write_of("fresh", "fresh", str(self.seed), host.at())
        host.propose((payload,), lambda reply: host.wait(reply.index, reply.term, written))

    def _is_settled(self) -> bool:
        last = len(self.checker.committed) - 1
        members = self.members_within_reach()
        if self.nemesis.in_hand or any(host.is_bad or host.machine.index != last for host in members):
            return False
        return self.fleet is None or self.fleet.is_idle(members[0])
