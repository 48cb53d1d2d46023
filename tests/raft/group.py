"""A group of nodes on a table: messages and writes wait until a test moves them, one by one or all."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from random import Random

from pistage import raft
from pistage.raft import messages as m

SETTINGS = raft.Settings(heartbeat_ticks=2, election_ticks=10)


class Member:
    """One node with a disk: `term`, `vote` and `disk` are what a crash leaves."""

    def __init__(self, node_id: str, base: raft.Base, settings: raft.Settings) -> None:
        self.id, self.settings = node_id, settings
        self.hard_state = raft.HardState()
        self.base = base
        self.disk: list[raft.Entry] = []
        self.state: list[raft.Entry] = []
        self.applied = base.index
        self.digest_of: Callable[[raft.Entry], bytes] = lambda entry: b"%d" % entry.index
        self.starts = 0
        self.start()

    def start(self) -> None:
        self.starts += 1
        self.node = raft.Node(
            node_id=self.id,
            rng=Random(f"{self.id} {self.starts}"),
            hard_state=self.hard_state,
            base=self.base,
            entries=tuple(self.disk),
            applied=self.applied,
            settings=self.settings,
        )
        self.writes: list[raft.Persist] = []
        self.held: list[raft.Send] = []
        self.others: list[raft.Action] = []

    def write(self, write: raft.Persist) -> None:
        self.hard_state = write.hard_state or self.hard_state
        if write.install is not None:
            self.base, self.disk, self.applied = write.install, [], write.install.index
        if write.base is not None:
            self.base = write.base
            self.disk = [entry for entry in self.disk if entry.index > self.base.index]
        if write.truncate_from is not None:
            self.disk = [entry for entry in self.disk if entry.index < write.truncate_from]
        self.disk.extend(write.entries)


class Group:
    """`deliver()` runs everything until nothing moves; the finer methods move one thing."""

    def __init__(self, *names: str, learners: Iterable[str] = (), settings: raft.Settings = SETTINGS) -> None:
        self.config = raft.Config(voters=names, learners=tuple(learners))
        base = raft.Base(config=self.config)
        self.settings = settings
        self.members = {name: Member(name, base, settings) for name in self.config.members}
        self.wire: list[raft.Message] = []
        self.sent: list[raft.Message] = []
        self.is_disk_slow: dict[str, bool] = defaultdict(bool)
        self.cut: set[tuple[str, str]] = set()
        self.drop: Callable[[raft.Message], bool] = lambda _: False

    def __getitem__(self, name: str) -> raft.Node:
        return self.members[name].node

    def join(self, name: str) -> None:
        """A new, empty node that nobody has told anything."""
        self.members[name] = Member(name, raft.Base(), self.settings)

    def step(self, name: str, event: raft.Event) -> list[raft.Action]:
        member = self.members[name]
        actions = member.node.step(event)
        for action in actions:
            match action:
                case raft.Persist():
                    member.writes.append(action)
                case raft.Send(after_seq=None, message=message):
                    self._send(message)
                case raft.Send():
                    member.held.append(action)
                case raft.Apply(entries=entries):
                    member.state.extend(entries)
                    member.applied = entries[-1].index
                    member.others.append(action)
                case _:
                    member.others.append(action)
        for action in actions:
            if isinstance(action, raft.Apply):
                digests = tuple(map(member.digest_of, action.entries))
                self.step(name, raft.Applied(index=action.entries[-1].index, digests=digests))
        if not self.is_disk_slow[name]:
            self.sync(name)
        return actions

    def sync(self, name: str, writes: int | None = None) -> None:
        """The first so many writes become durable; all if not said."""
        member = self.members[name]
        for write in member.writes[:writes]:
            member.writes.remove(write)
            member.write(write)
            ready = [send for send in member.held if send.after_seq is not None and send.after_seq <= write.seq]
            member.held = [send for send in member.held if send not in ready]
            for send in ready:
                self._send(send.message)
            self.step(name, raft.Durable(seq=write.seq, term=write.term, last_index=write.last_index))

    def crash(self, name: str) -> None:
        """What was not durable is gone; the node starts again."""
        self.members[name].start()

    def _send(self, message: raft.Message) -> None:
        self.sent.append(message)
        self.wire.append(message)

    def deliver(self) -> None:
        """Carry messages until none is left; those over a cut link, or that `drop` names, are lost."""
        for _ in range(100_000):
            if not self.wire:
                return
            message = self.wire.pop(0)
            if message.dst in self.members and (message.src, message.dst) not in self.cut and not self.drop(message):
                self.step(message.dst, raft.Recv(message=message))
        raise AssertionError("the group never comes to rest")

    def tick(self, *names: str, times: int = 1) -> None:
        """Time passes for these (all if none is named), with everything delivered after each tick."""
        for _ in range(times):
            for name in names or tuple(self.members):
                self.step(name, raft.Tick())
            self.deliver()

    def elect(self, name: str) -> None:
        """`name` is the only one whose clock runs until it leads."""
        others = [other for other in self.members if other != name]
        for other in others:  # nobody is under the lease of a leader that the test has given up
            self[other].heard_tick = -1_000
        for _ in range(60):
            self.tick(name)
            if self[name].role is raft.RoleName.LEADER:
                return
        raise AssertionError(f"{name} was not elected: it is {self[name].role}")

    def elect_without_commit(self, name: str) -> None:
        """`name` leads, and the slow disks of the others hold their acknowledgements back."""
        while self[name].leadership is None:
            for other in self.members:
                self.sync(other, 1)
            self.step(name, raft.Tick())
            self.deliver()

    def isolate(self, name: str) -> None:
        self.cut |= {(name, other) for other in self.members} | {(other, name) for other in self.members}

    def heal(self) -> None:
        self.cut.clear()

    def propose(self, name: str, *payloads: str) -> raft.Reply:
        event = raft.Propose(token=1, payloads=tuple(text.encode() for text in payloads))
        return next(action for action in self.step(name, event) if isinstance(action, raft.Reply))

    def conf(self, name: str, kind: str, node_id: str) -> raft.Reply:
        change = raft.Change(kind=raft.ChangeKind(kind), node_id=node_id)
        actions = self.step(name, raft.Conf(token=2, change=change))
        return next(action for action in actions if isinstance(action, raft.Reply))

    def log_of(self, name: str) -> list[tuple[int, int]]:
        log = self[name].log
        return [(entry.index, entry.term) for entry in log.entries(log.base.index + 1, log.last_index)]

    def texts(self, name: str) -> list[str]:
        return [entry.payload.decode() for entry in self.members[name].state if entry.kind is raft.Kind.NORMAL]


def normal(index: int, term: int, text: str = "") -> raft.Entry:
    return raft.Entry(index=index, term=term, payload=text.encode())


def one(name: str, *, term: int = 1, log: Iterable[int] = (), members: str = "abc", **fields: object) -> raft.Node:
    """A single node whose log has entries of these terms."""
    entries = tuple(normal(index, of) for index, of in enumerate(log, 1))
    arguments: dict[str, object] = {
        "hard_state": raft.HardState(term=term),
        "base": raft.Base(config=raft.Config(voters=tuple(members))),
        "settings": SETTINGS,
    }
    return raft.Node(node_id=name, rng=Random(1), entries=entries, **(arguments | fields))  # type: ignore[arg-type]


def append(src: str, dst: str, term: int, prev: tuple[int, int], terms: Iterable[int], *, commit: int = 0) -> raft.Recv:
    entries = tuple(normal(prev[0] + n, of) for n, of in enumerate(terms, 1))
    return raft.Recv(
        message=m.Append(
            src=src, dst=dst, term=term, prev_index=prev[0], prev_term=prev[1], entries=entries, commit=commit
        )
    )


def sends(actions: Iterable[raft.Action]) -> list[raft.Send]:
    return [action for action in actions if isinstance(action, raft.Send)]


def messages(actions: Iterable[raft.Action]) -> list[raft.Message]:
    return [send.message for send in sends(actions)]
