"""The view: what waits and what there is to place it on, kept as the state changes so that no decision reads it anew.

It follows the state by changes (`take`), and knows two things that no state does: which agents are present, and what
was decided and is not committed yet.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from heapq import heapify, heappop, heappush
from typing import assert_never

from pistage.core import changes as ch
from pistage.core.changes import QueueSettings, TaskId, WaitingTask
from pistage.core.schedule.agents import Agent, Held, held_by
from pistage.core.schedule.fleet import Fleet
from pistage.core.schedule.lines import Band, Gate, Gates, Line, place_of
from pistage.core.schedule.shapes import Shape, Shapes

_IDLE_BANDS_MAX = 1_000
_STALE_MAX = 4_096
_OPEN = Gate()
_BEGUN = Gate(is_begun=True)


@dataclass(slots=True, eq=False)
class Entry:
    """A task that waits, and the line it stands in; None while it waits for its time."""

    task: WaitingTask
    line: Line | None = None


@dataclass(slots=True)
class Tentative:
    """A placement that was decided and is not committed; `task` is None once nothing waits for it any more."""

    task: WaitingTask | None
    held: Held
    gang: tuple[str, str] | None


class View:
    """What `decide` decides from. Not thread-safe."""

    def __init__(self) -> None:
        self.fleet = Fleet()
        self.shapes = Shapes()
        self.queues: dict[str, QueueSettings] = {}
        self.bands: dict[tuple[str, int, str], Band] = {}
        self.gates = Gates()
        self.due: dict[Shape, None] = {}  # shapes of which a task may find a place
        self.joined: list[Line] = []  # lines of those that are new since a decision last looked
        self.keeping_due = 0  # when to look again for tasks that have waited for too long
        self._waiting: dict[str, dict[int, Entry]] = {}
        self._count = 0
        self._lines_of_group: dict[str, dict[Line, None]] = {}
        self._gangs: dict[str, dict[str, str]] = {}  # of a run, by gang: where its networks and volumes stand
        self._gangs_to_be: dict[tuple[str, str], str] = {}  # the same, by what is decided and not committed
        self._attempts: dict[str, Held] = {}
        self._tentative: dict[TaskId, Tentative] = {}
        self._begun: set[str] = set()  # runs that hold their places for certain
        self._bands_max = _IDLE_BANDS_MAX
        self._later: list[tuple[int, str, int]] = []
        self._expiring: list[tuple[int, str, int]] = []
        self._now = 0

    def __len__(self) -> int:
        """How many tasks wait."""
        return self._count

    @property
    def in_flight(self) -> int:
        """How many placements are decided and not committed."""
        return len(self._tentative)

    def entry(self, task: TaskId) -> Entry | None:
        """A task that waits."""
        return self._waiting.get(task[0], {}).get(task[1])

    def gang_agent(self, task: WaitingTask) -> str | None:
        """The agent that the task's gang is bound to, for as long as that agent is up."""
        if task.gang is None:
            return None
        agent = self.fleet.agents.get(self._gangs.get(task.run_id, {}).get(task.gang, ""))
        if agent is not None and agent.is_up:
            return agent.info.id
        return self._gangs_to_be.get((task.run_id, task.gang))

    def shape_of(self, task: WaitingTask) -> Shape:
        """What the task asks, and who could take it."""
        return self.shapes.of(task.demand, self.gang_agent(task), self.fleet)

    # --- what happens ---------------------------------------------------------------------------------------------

    def take(self, change: ch.Change, now: int) -> None:
        """Follow one change of the state; in the order of the log, each once."""
        self._now = max(self._now, now)
        match change:
            case ch.TaskQueued(task=task):
                self._queue(task)
            case ch.TaskUnqueued(run_id=run_id, position=position):
                self._unqueue((run_id, position))
            case ch.RunReprioritised(run_id=run_id, priority=priority):
                self._reprioritise(run_id, priority)
            case ch.AttemptBegun():
                self._begin(change)
            case ch.AttemptEnded(attempt_id=attempt_id):
                if held := self._attempts.pop(attempt_id, None):
                    self.fleet.free(held)
            case ch.RunBegun(run_id=run_id, queue=queue, group=group):
                self._begun.add(run_id)
                self._hold_place(run_id, queue, group)
            case ch.RunEnded(run_id=run_id):
                self._end_run(run_id)
            case ch.AgentChanged():
                self._change_agent(change)
            case ch.AgentRemoved(agent_id=agent_id):
                self._remove_agent(agent_id)
            case ch.QueueChanged(queue=settings):
                self._change_queue(settings)
            case _:
                assert_never(change)

    def advance(self, now: int) -> list[TaskId]:
        """Let time pass: who has waited for his time stands in line. Returns who has waited for too long."""
        self._now = max(self._now, now)
        while self._later and self._later[0][0] <= now:
            _, run_id, position = heappop(self._later)
            entry = self.entry((run_id, position))
            if entry is not None and entry.line is None and entry.task.ready_at <= now:
                self._stand_in_line(entry)
        expired = []
        while self._expiring and self._expiring[0][0] <= now:
            at, run_id, position = heappop(self._expiring)
            entry = self.entry((run_id, position))
            if entry is not None and entry.task.expires_at == at:
                expired.append((run_id, position))
        for shape in self.shapes.which_may_fit(self.fleet):
            self.unblock(shape)
        return expired

    def begin_ageing(self, now: int) -> None:
        """Nothing is known of who was served when: everybody's wait counts from now."""
        for band in self.bands.values():
            band.served_at = max(band.served_at, now)

    @property
    def next_at(self) -> int | None:
        """When time alone will change something."""
        return min((heap[0][0] for heap in (self._later, self._expiring) if heap), default=None)

    def place(self, entry: Entry, agent: Agent, now: int) -> None:
        """Decide on a place: what it takes there is taken from now on."""
        task = entry.task
        held = held_by(self.shape_of(task).demand, agent.info.id, task.owner, task.id)
        gang = None if task.gang is None else (task.run_id, task.gang)
        self._band(task).served_at = now
        self._remove(task.id)
        self._tentative[task.id] = Tentative(task, held, gang)
        self.fleet.reserve(held)
        self._hold_place(task.run_id, task.queue, task.group)
        if gang is not None and self.gang_agent(task) is None:
            self._gangs_to_be[gang] = agent.info.id
            self._move_gang(gang)

    def give_back(self, task: TaskId) -> None:
        """A placement was refused: who waits goes on waiting."""
        tentative = self._tentative.pop(task, None)
        if tentative is None:
            return
        self.fleet.free(tentative.held)
        if task[0] not in self._begun:
            # Also while more of its run is under way: that is likely to be refused for the same reason.
            self._release_place(task[0])
        gang = tentative.gang
        if gang in self._gangs_to_be and not any(other.gang == gang for other in self._tentative.values()):
            del self._gangs_to_be[gang]
            self._move_gang(gang)
        if tentative.task is not None:
            self._queue(tentative.task)

    def expire_again(self, task: TaskId) -> None:
        """That it has waited for too long could not be written down: say so again a second later."""
        entry = self.entry(task)
        if entry is not None and entry.task.expires_at is not None:
            self._queue(replace(entry.task, expires_at=self._now + 1000))

    def unblock(self, shape: Shape) -> None:
        """Have the next decision try its tasks."""
        shape.is_blocked = False
        self.due[shape] = None

    # --- tasks ----------------------------------------------------------------------------------------------------

    def _queue(self, task: WaitingTask) -> None:
        if (tentative := self._tentative.get(task.id)) is not None:
            tentative.task = task
            return
        self._remove(task.id)
        entry = Entry(task)
        self._waiting.setdefault(task.run_id, {})[task.position] = entry
        self._count += 1
        if task.expires_at is not None:
            heappush(self._expiring, (task.expires_at, *task.id))
            self._forget_who_waits_no_more()
        if task.ready_at > self._now:
            heappush(self._later, (task.ready_at, *task.id))
        else:
            self._stand_in_line(entry)

    def _forget_who_waits_no_more(self) -> None:
        """Most get a place long before they would have waited for too long."""
        if len(self._expiring) > 2 * self._count + _STALE_MAX:
            waiting = ((task, entry) for of_run in self._waiting.values() for task, entry in of_run.items())
            self._expiring = [
                (entry.task.expires_at, entry.task.run_id, task)
                for task, entry in waiting
                if entry.task.expires_at is not None
            ]
            heapify(self._expiring)

    def _unqueue(self, task: TaskId) -> None:
        if (tentative := self._tentative.get(task)) is not None:
            tentative.task = None
        self._remove(task)

    def _remove(self, task: TaskId) -> None:
        tasks = self._waiting.get(task[0], {})
        entry = tasks.pop(task[1], None)
        if entry is None:
            return
        if not tasks:
            del self._waiting[task[0]]
        self._count -= 1
        self._leave_line(entry)
        self.fleet.unkeep(task)

    def _reprioritise(self, run_id: str, priority: int) -> None:
        for entry in list(self._waiting.get(run_id, {}).values()):
            self._queue(replace(entry.task, priority=priority))
        for task, tentative in self._tentative.items():
            if task[0] == run_id and tentative.task is not None:
                tentative.task = replace(tentative.task, priority=priority)

    def _stand_in_line(self, entry: Entry) -> None:
        task = entry.task
        band, shape, gate = self._band(task), self.shape_of(task), self._gate(task)
        line = band.lines.setdefault(shape, {}).get(gate)
        if line is None:
            line = band.lines[shape][gate] = Line(band, shape, gate)
            shape.lines[line] = None
            if gate.group is not None:
                self._lines_of_group.setdefault(gate.group, {})[line] = None
        line.add(place_of(task))
        entry.line = line
        self._note_due_if_open((line,))

    def _note_due_if_open(self, lines: Iterable[Line]) -> None:
        """Have the next decision try the first of each, unless it is known to be in vain."""
        for line in lines:
            if not line.shape.is_blocked and self.gates.is_open(line.band, line.gate):
                self.due[line.shape] = None
                self.joined.append(line)

    def _leave_line(self, entry: Entry) -> None:
        line, entry.line = entry.line, None
        if line is None:
            return
        line.remove(place_of(entry.task))
        if not line:
            del line.band.lines[line.shape][line.gate]
            if not line.band.lines[line.shape]:
                del line.band.lines[line.shape]
            del line.shape.lines[line]
            if line.gate.group is not None:
                del self._lines_of_group[line.gate.group][line]
                if not self._lines_of_group[line.gate.group]:
                    del self._lines_of_group[line.gate.group]

    def _stand_again(self, entries: Iterable[Entry]) -> None:
        """What says in which line they belong has changed."""
        for entry in [entry for entry in entries if entry.line is not None]:
            self._leave_line(entry)
            self._stand_in_line(entry)

    def _band(self, task: WaitingTask) -> Band:
        key = (task.queue, task.priority, task.owner)
        band = self.bands.get(key)
        if band is None:
            if len(self.bands) >= self._bands_max:
                for idle in [key for key, band in self.bands.items() if not band.lines]:
                    del self.bands[idle]
                self._bands_max = max(_IDLE_BANDS_MAX, 2 * len(self.bands))
            queue = self.queues.get(task.queue) or QueueSettings(name=task.queue)
            band = self.bands[key] = Band(queue, task.owner, task.priority)
        if not band.lines:
            band.served_at = max(band.served_at, task.ready_at)
        return band

    def _gate(self, task: WaitingTask) -> Gate:
        queue = self.queues.get(task.queue)
        if task.group is None and (queue is None or queue.limit is None):
            return _OPEN
        if task.run_id in self.gates.begun:
            return _BEGUN
        return Gate(task.group, task.group_limit)

    # --- runs -----------------------------------------------------------------------------------------------------

    def _hold_place(self, run_id: str, queue: str, group: str | None) -> None:
        if run_id not in self.gates.begun:
            self.gates.hold(run_id, queue, group)
            self._stand_again(self._waiting.get(run_id, {}).values())

    def _release_place(self, run_id: str) -> None:
        held = self.gates.release(run_id)
        if held is None:
            return
        self._stand_again(self._waiting.get(run_id, {}).values())
        queue, group = held
        waiting = list(self._lines_of_group.get(group, {})) if group is not None else []
        if (settings := self.queues.get(queue)) is not None and settings.limit is not None:
            waiting += [line for band in self.bands.values() if band.queue is settings for line in band.all_lines()]
        self._note_due_if_open(waiting)

    def _end_run(self, run_id: str) -> None:
        self._begun.discard(run_id)
        self._release_place(run_id)
        self._gangs.pop(run_id, None)

    def _begin(self, change: ch.AttemptBegun) -> None:
        task = (change.run_id, change.position)
        self._remove(task)
        held = Held(
            agent_id=change.agent_id, owner=change.owner, task=task,
            cpus_milli=change.cpus_milli, memory_bytes=change.memory_bytes, gpus=change.gpus,
        )  # fmt: skip
        tentative = self._tentative.pop(task, None)
        if tentative is None or tentative.held != held:  # mostly it is what was decided here, and reserved then
            if tentative is not None:
                self.fleet.free(tentative.held)
            self.fleet.reserve(held)
        self._attempts[change.attempt_id] = held
        if change.gang is not None:
            gang = (change.run_id, change.gang)
            self._gangs.setdefault(change.run_id, {})[change.gang] = change.agent_id
            self._gangs_to_be.pop(gang, None)
            self._move_gang(gang)

    def _move_gang(self, gang: tuple[str, str]) -> None:
        """Its agent may be another one: who waits stands in the line for that."""
        members = (entry for entry in self._waiting.get(gang[0], {}).values() if entry.task.gang == gang[1])
        self._stand_again(
            one for one in members if one.line is not None and one.line.shape.pin != self.gang_agent(one.task)
        )

    def _change_queue(self, settings: QueueSettings) -> None:
        before = self.queues.get(settings.name)
        self.queues[settings.name] = settings
        for band in self.bands.values():
            if band.queue.name == settings.name:
                band.queue = settings
        if (before is None or before.limit is None) != (settings.limit is None):
            waiting = (entry for tasks in self._waiting.values() for entry in tasks.values())
            self._stand_again([entry for entry in waiting if entry.task.queue == settings.name])
        self._note_due_if_open(
            line for band in self.bands.values() if band.queue is settings for line in band.all_lines()
        )

    # --- agents ---------------------------------------------------------------------------------------------------

    def _change_agent(self, change: ch.AgentChanged) -> None:
        before = self.fleet.agents.get(change.info.id)
        was_up = before is not None and before.is_up
        self.fleet.change(change)
        if before is None:  # it may have been removed, and come back while something was still reserved on it
            tentative = (one.held for one in self._tentative.values())
            self.fleet.count_again(change.info.id, (*self._attempts.values(), *tentative))
        if change.is_up != was_up:
            self._move_gangs_of(change.info.id)

    def _remove_agent(self, agent_id: str) -> None:
        self.fleet.remove(agent_id)
        self._move_gangs_of(agent_id)

    def _move_gangs_of(self, agent_id: str) -> None:
        for gang in [(run, gang) for run, bound in self._gangs.items() for gang in bound if bound[gang] == agent_id]:
            self._move_gang(gang)
