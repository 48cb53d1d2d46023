"""A connection between an agent and a master: in order, whole, slow, and held up while a direction is cut."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pistage import wire

if TYPE_CHECKING:
    from tests.fleet.agents import Agent
    from tests.fleet.cluster import Master
    from tests.fleet.desk import Session
    from tests.fleet.world import World


class Pipe:
    """One direction. What is held up flows on when `pump` is called."""

    __slots__ = ("_deliver", "_is_armed", "_is_held", "_last_s", "_queue", "_world", "is_closed")

    def __init__(self, world: World, is_held: Callable[[], bool], deliver: Callable[[Any], None]) -> None:
        self._world, self._is_held, self._deliver = world, is_held, deliver
        self._queue: deque[tuple[float, Any]] = deque()
        self._last_s = 0.0
        self._is_armed = self.is_closed = False

    def send(self, what: Any) -> None:
        if not self.is_closed:
            self._last_s = max(self._last_s, self._world.now_s + self._world.delay_s())
            self._queue.append((self._last_s, what))
            self.pump()

    def pump(self) -> None:
        if self._queue and not self.is_closed and not self._is_armed and not self._is_held():
            self._is_armed = True
            self._world.loop.call_at(max(self._queue[0][0], self._world.now_s), self._flow)

    def _flow(self) -> None:
        self._is_armed = False
        if not self.is_closed and self._queue and not self._is_held():
            self._deliver(self._queue.popleft()[1])
        self.pump()


_END = object()


class Link:
    """A connection of one life of an agent. Either end may know of its end before the other."""

    def __init__(self, world: World, agent: Agent, master: Master) -> None:
        self.world, self.agent, self.master = world, agent, master
        self.session: Session | None = None
        self.is_open_here = self.is_open_there = True  # at the master, at the agent
        self._up = Pipe(world, lambda: agent.is_mute, self._at_master)
        self._down = Pipe(world, lambda: agent.is_deaf, self._at_agent)
        agent.links[self] = None
        master.sessions.connected(self)

    def to_master(self, message: wire.ToMaster) -> None:
        if self.is_open_there:
            self._up.send(message)

    def to_agent(self, message: wire.ToAgent) -> None:
        if self.is_open_here:
            self._down.send(message)

    def pump(self) -> None:
        """A cut is healed."""
        self._up.pump()
        self._down.pump()

    def close_by_agent(self, *, is_said: bool = True) -> None:
        """Its process ends it, or is gone; where the whole machine is gone nobody says so."""
        if self.is_open_there:
            self.is_open_there = False
            self._down.is_closed = True
            if is_said:
                self._up.send(_END)

    def close_by_master(self) -> None:
        if self.is_open_here:
            self.is_open_here = False
            self._down.send(_END)
            self._up.is_closed = True
            self._forget()

    def break_off(self) -> None:
        """What is under way in both directions is lost."""
        self._up.is_closed = self._down.is_closed = True
        self.world.at(self.world.rng.uniform(0.0, 2.0), self._ended_here)
        self.world.at(self.world.rng.uniform(0.0, 2.0), self._ended_there)

    def _at_master(self, message: Any) -> None:
        if message is _END:
            self._ended_here()
        elif self.is_open_here:
            self.master.sessions.received(self, message)

    def _at_agent(self, message: Any) -> None:
        if message is _END:
            self._ended_there()
        elif self.is_open_there:
            self.agent.received(self, message)

    def _ended_here(self) -> None:
        if self.is_open_here:
            self.is_open_here = False
            self.master.sessions.lost(self)
        self._forget()

    def _ended_there(self) -> None:
        if self.is_open_there:
            self.is_open_there = False
            self.agent.disconnected(self)
        self._forget()

    def _forget(self) -> None:
        if not self.is_open_here and not self.is_open_there:
            self.agent.links.pop(self, None)
