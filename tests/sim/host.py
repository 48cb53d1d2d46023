"""One simulated master: a driver of the core as its guide asks for, on a disk and a network that fail."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from random import Random
from typing import TYPE_CHECKING

from pistage import raft
from tests.sim.disk import Disk, Write
from tests.sim.machine import Machine, version_of

if TYPE_CHECKING:
    from tests.sim.world import World

EPOCH = 1_700_000_000_000  # what clocks show at the start, milliseconds
TICK = 100  # units of simulated time between two ticks of a good clock


class Host:
    """`node` is None while the process is down. Everything but `disk` and `machine` is lost in a crash."""

    def __init__(self, world: World, name: str, base: raft.Base, version: int) -> None:
        self.world, self.name, self.version = world, name, version
        self.machine: Machine = world.new_machine(base.config)
        self.disk = Disk(base, self.machine.copy())
        self.clock_rate = 1.0
        self.slow_until = self.full_until = self.paused_until = 0
        self.is_eio_due = False
        self.is_condemned = False  # not to be started again: an operator replaces it
        self.wall_offset = 0  # how wrong its clock is
        self._at = self._at_now = 0  # the time last given to a command, and when that was
        self.starts = 0
        self.node: raft.Node | None = None
        self.start()

    @property
    def is_paused(self) -> bool:
        return self.paused_until > self.world.now

    @property
    def is_bad(self) -> bool:
        """Whether it is to be replaced, or will be once somebody finds out."""
        return self.is_condemned or self.machine.is_rotten or self.disk.flipped_at is not None

    @property
    def is_blank(self) -> bool:
        """Whether nothing was ever written here."""
        return not self.disk.entries and self.disk.base.index == self.disk.hard_state.term == 0

    def configs(self) -> set[raft.Config]:
        """Every membership in its log, on the disk or not."""
        entries = list(self.disk.entries)
        found = {self.disk.base.config}
        if self.node is not None:
            log = self.node.log
            entries += log.entries(log.base.index + 1, log.last_index)
            found.add(log.base.config)
        return found | {raft.Config.decode(entry.payload) for entry in entries if entry.kind is raft.Kind.CONFIG}

    # --- life and death --------------------------------------------------------------------------------------

    def start(self) -> None:
        if self.node is not None or self.is_condemned:
            return
        if self.disk.flipped_at is not None:
            self.condemn("damaged log refused")
            return
        self.starts += 1
        self.world.checker.starting(self)
        rng = Random(f"{self.world.seed} {self.name} {self.starts}")
        self.node = raft.Node(
            node_id=self.name,
            rng=rng,
            hard_state=self.disk.hard_state,
            base=self.disk.base,
            entries=tuple(self.disk.entries),
            applied=self.machine.index,
            digest=self.machine.digest,
            settings=self.world.settings,
        )
        self.queue: deque[Write] = deque()
        self.batch: list[Write] = []
        self.held: list[raft.Send] = []
        self.write_ticks: deque[int] = deque()  # when each write that is not durable was asked for
        self.applies: deque[raft.Entry] = deque()
        self.is_applying = False
        self.generation = 0  # counts installed snapshots: an apply begun before one is void
        self.waiters: dict[int, tuple[int, Callable[[int], None]]] = {}
        self.replies: dict[int, Callable[[raft.Reply], None]] = {}
        self.readers: dict[int, Callable[[int], None]] = {}
        self.ready_reads: list[tuple[int, int]] = []
        self.world.checker.started(self)
        self.world.at(self.world.rng.randrange(TICK), self._tick, self.starts)

    def condemn(self, why: str) -> None:
        """Not to be started again."""
        self.is_condemned = True
        self.world.count(why)
        self.world.nemesis.replace(self)

    def crash(self, *, is_power_loss: bool = False) -> None:
        """Any beginning of what the disk was writing may have reached it; with the power goes the state's tail, too."""
        if self.node is None:
            return
        world = self.world
        for write in self.batch[: world.rng.randint(0, len(self.batch))]:
            self._write(write)
        if is_power_loss or self.machine.index < self.disk.base.index:
            self.machine = self.disk.checkpoint.copy()
        self.node = None
        world.count("crash")
        world.at(world.rng.randint(1, world.rng.choice((4, 12, 60))) * TICK, self.start)

    def _may_crash_here(self, where: str) -> bool:
        world = self.world
        if world.mix.crash_points and world.is_faulty and world.rng.random() < world.mix.crash_points:
            world.count(f"crash {where}")
            self.crash(is_power_loss=world.rng.random() < 0.5)
            return True
        return False

    # --- the driver ---------------------------------------------------------------------------------------------

    def step(self, event: raft.Event) -> None:  # noqa: PLR0912 - one arm an action
        if self.node is None:
            return
        actions = self.node.step(event)
        self.world.checker.stepped(self, self.node, event, actions)
        for action in actions:
            match action:
                case raft.Persist():
                    staged = self.world.staged.get((self.name, action.install.index)) if action.install else None
                    self.queue.append(Write(action, staged))
                    self.write_ticks.append(self.node.now)
                    if not self.batch:
                        self._sync_soon()
                case raft.Send():
                    if action.after_seq is None:
                        self.world.send(self, action.message)
                    else:
                        self.held.append(action)
                case raft.Apply(entries=entries):
                    self.applies.extend(entries)
                    self._apply_soon()
                case raft.Reply():
                    self._replied(action)
                case raft.ReadReady():
                    self.ready_reads.append((action.token, action.index))
                    self._serve_reads()
                case raft.InstallSnap():
                    self.world.at(self.world.rng.randint(1, 3 * TICK), self._fetch, self.starts, action)
                case raft.Fatal():
                    self.world.checker.fatal(self, action)
                    if action.is_state_damaged:
                        self.condemn("damaged state given up")
                    self.crash()
                case raft.Role(role=raft.RoleName.LEADER):
                    self.world.nemesis.won(self)

    def _tick(self, start: int) -> None:
        if self.node is None or start != self.starts:
            return
        self.step(raft.Tick())
        self.world.at(int(TICK * self.clock_rate), self._tick, start, host=self)

    def receive(self, message: raft.Message) -> None:
        self.step(raft.Recv(message=message))

    # --- the disk -------------------------------------------------------------------------------------------------

    def _sync_soon(self) -> None:
        if self.node is None or not self.queue:
            return
        self.batch = list(self.queue)
        self.queue.clear()
        wait = self.world.rng.randint(1, self.world.disk_wait_max)
        if self.world.now < self.slow_until:
            wait *= self.world.rng.randint(5, 60)
        self.world.at(wait, self._synced, self.starts)

    def _synced(self, start: int) -> None:
        if self.node is None or start != self.starts:
            return
        if self.is_eio_due:
            self.is_eio_due = False
            self.world.count("EIO")
            self.step(raft.DiskFault(fault=raft.Fault.FAILED))
            return
        if self.world.now < self.full_until:
            self.world.count("ENOSPC")
            self.step(raft.DiskFault(fault=raft.Fault.FULL))
            self.world.at(TICK, self._synced, start)
            return
        if self._may_crash_here("in a write"):
            return
        batch, self.batch = self.batch, []
        for write in batch:
            self._write(write)
        if self._may_crash_here("after a write"):
            return
        last = batch[-1].persist
        for write in batch:
            self.write_ticks.popleft()
            if write.persist.install is not None and write.staged is not None:
                self.machine = write.staged.copy()
                self.generation += 1
                self.applies.clear()
                self.is_applying = False
        held, self.held = self.held, []
        for send in held:
            if send.after_seq is not None and send.after_seq <= last.seq:
                self.world.checker.promised(self, send.message)
                self.world.send(self, send.message)
            else:
                self.held.append(send)
        self._sync_soon()
        self.step(raft.Durable(seq=last.seq, term=last.term, last_index=last.last_index))

    def _write(self, write: Write) -> None:
        before = self.disk.hard_state
        self.disk.write(write)
        self.world.checker.written(self, before, write.persist)

    # --- the state --------------------------------------------------------------------------------------------------

    def _apply_soon(self) -> None:
        if not self.is_applying and self.applies:
            self.is_applying = True
            self.world.at(self.world.rng.randint(1, 20), self._applied, self.starts, self.generation)

    def _applied(self, start: int, generation: int) -> None:
        if self.node is None or start != self.starts or generation != self.generation:
            return
        if self._may_crash_here("before an apply"):
            return
        self.is_applying = False
        if any(version_of(entry) > self.version for entry in self.applies):
            self.world.checker.unknown_command(self)
            self.crash()  # with nothing of this batch committed; again and again until it is upgraded
            return
        digests = []
        for entry in self.applies:
            is_new = self.machine.apply(entry)
            digests.append(self.machine.digest)
            self.world.checker.applied(self, entry, is_new=is_new)
        applied, self.applies = self.applies, deque()
        if self._may_crash_here("after an apply"):
            return
        for entry in applied:
            term, waiter = self.waiters.pop(entry.index, (0, None))
            if waiter is not None and term == entry.term:
                waiter(entry.index)
        self._serve_reads()
        self.step(raft.Applied(index=self.machine.index, digests=tuple(digests)))

    def checkpoint(self) -> None:
        """The state as it is becomes durable; the log behind it may go, but for some entries."""
        if self.node is None:
            return
        self.disk.checkpoint = self.machine.copy()
        keep = self.world.rng.choice((0, 0, 1, 3, 10))
        if self.machine.index - keep > self.disk.base.index:
            self.world.count("compaction")
            self.step(raft.Compact(index=self.machine.index - keep))

    def _fetch(self, start: int, asked: raft.InstallSnap) -> None:
        if self.node is None or start != self.starts:
            return
        world = self.world
        source = world.hosts.get(asked.source)
        is_there = source is not None and source.node is not None and source.machine.index >= asked.index
        is_lost = world.is_cut(asked.source, self.name) or world.rng.random() < 0.1
        if source is None or not is_there or is_lost:
            self.step(raft.SnapFailed())
            return
        if source.machine.is_rotten:
            source.condemn("damaged snapshot refused")  # by the hash that is made of it
            source.crash()
            self.step(raft.SnapFailed())
            return
        copy = source.machine.copy()
        if self._may_crash_here("with a snapshot fetched"):
            return
        world.staged[self.name, copy.index] = copy
        world.count("snapshot")
        base = raft.Base(index=copy.index, term=copy.term, config=copy.config)
        self.step(raft.SnapInstalled(base=base, digest=copy.digest))

    # --- clients ------------------------------------------------------------------------------------------------------

    def propose(self, payloads: tuple[bytes, ...], replied: Callable[[raft.Reply], None]) -> None:
        token = self.world.new_token()
        self.replies[token] = replied
        self.step(raft.Propose(token=token, payloads=payloads))

    def at(self) -> int:
        """The time for a command: it never falls, and goes on from the newest there was, however wrong a clock is."""
        now = self.world.now
        newest = max(self._at + now - self._at_now, self.machine.at)
        self._at, self._at_now = max(EPOCH + now + self.wall_offset, newest), now
        return self._at

    def wait(self, index: int, term: int, done: Callable[[int], None]) -> None:
        self.waiters[index] = (term, done)

    def read(self, served: Callable[[int], None]) -> None:
        """Calls `served` with the index of the state that answers; never, if it cannot."""
        token = self.world.new_token()
        self.readers[token] = served
        self.step(raft.Read(token=token))

    def _replied(self, reply: raft.Reply) -> None:
        self.readers.pop(reply.token, None)
        if (replied := self.replies.pop(reply.token, None)) is not None:
            replied(reply)

    def _serve_reads(self) -> None:
        ready, self.ready_reads = self.ready_reads, []
        for token, index in ready:
            if index > self.machine.index:
                self.ready_reads.append((token, index))
            elif (served := self.readers.pop(token, None)) is not None:
                served(self.machine.index)
