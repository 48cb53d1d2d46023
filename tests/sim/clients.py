"""Clients: each does one thing at a time, at whichever master it likes, and repeats what has no answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.sim.host import TICK, Host
from tests.sim.machine import write_of

if TYPE_CHECKING:
    from pistage import raft
    from tests.sim.world import World

KEYS = ("x", "y", "z")


@dataclass(slots=True)
class Operation:
    """One line of a history. `end` is None while, or for ever if, the outcome is unknown."""

    key: str
    value: str
    is_write: bool
    start: int
    end: int | None = None


class Client:
    """A write keeps its request id over all attempts; a read that fails is forgotten."""

    def __init__(self, world: World, name: str) -> None:
        self.world, self.name = world, name
        self.number = 0
        self.is_stopped = False
        world.at(world.rng.randint(1, 5 * TICK), self._next)

    def _next(self) -> None:
        if self.is_stopped:
            return
        rng = self.world.rng
        self.number += 1
        self.attempt = 0
        self.floor = self.world.checker.seen_index
        is_write = rng.random() < 0.6
        self.operation = Operation(rng.choice(KEYS), f"{self.name}.{self.number}", is_write, self.world.moment())
        if is_write:
            self.world.history.append(self.operation)
            self._write(self.number)
        else:
            self._read(self.number)

    def _done(self) -> None:
        self.number += 1
        self.world.at(self.world.rng.randint(1, TICK), self._next)

    def restart(self) -> None:
        """It forgets what it waits for. A write that it had noted is asked for again, as the same request."""
        if self.is_stopped or self.number == 0:
            return
        self.number += 1
        if self.operation.is_write and self.operation.end is None and self.world.rng.random() < 0.5:
            self.attempt = 0
            self.world.at(self.world.rng.randint(1, 10) * TICK, self._write, self.number)
        else:
            self.world.at(self.world.rng.randint(1, 10) * TICK, self._next)

    def _host(self, *, leader_chance: float) -> Host:
        hosts = list(self.world.hosts.values())
        leaders = self.world.leaders()
        return self.world.rng.choice(leaders if leaders and self.world.rng.random() < leader_chance else hosts)

    # --- writes -----------------------------------------------------------------------------------------------

    def _write(self, number: int) -> None:
        if number != self.number:
            return
        self.attempt += 1
        operation = self.operation
        host = self._host(leader_chance=0.7)
        version = host.machine.version if self.world.rng.random() < 0.5 else 1
        payload = write_of(operation.value, operation.key, operation.value, host.at(), version)
        if host.node is not None:
            batch = (payload,) * (2 if self.world.rng.random() < 0.1 else 1)

            def replied(reply: raft.Reply) -> None:
                if reply.refusal is None:
                    host.wait(reply.index, reply.term, lambda index: self._written(number, index))

            host.propose(batch, replied)
        if self.attempt > 30:
            self._done()  # never known: it may still happen
        else:
            self.world.at(self.world.rng.randint(2, 12) * TICK, self._write, number)

    def _written(self, number: int, index: int) -> None:
        if number == self.number:
            self.world.checker.write_acknowledged(self.operation.value, index, self.floor)
            self.operation.end = self.world.moment()
            self.world.count("write")
            self._done()

    # --- reads ---------------------------------------------------------------------------------------------------

    def _read(self, number: int) -> None:
        host = self._host(leader_chance=0.5)

        def served(index: int) -> None:
            if number == self.number:
                value = host.machine.value(self.operation.key)
                self.world.checker.read_served(self.operation.key, value, index, self.floor)
                self.operation.value, self.operation.end = value, self.world.moment()
                self.world.history.append(self.operation)
                self.world.count("read")
                self._done()

        if host.node is not None:
            host.read(served)
        self.world.at(self.world.rng.randint(3, 20) * TICK, self._give_up, number)

    def _give_up(self, number: int) -> None:
        if number == self.number:
            self._done()
