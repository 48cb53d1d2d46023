"""The leader's view against the tables: it is what a new leader would make of them, and nothing waits for nothing."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING, Any

from pistage.core import codec
from pistage.core.changes import Change, TaskId
from pistage.core.plan import Task
from pistage.core.schedule import Decision, Explainer, Explanation, View
from pistage.core.schedule import decide as really_decide
from pistage.master import reads
from tests.fleet.checker import is_fit
from tests.sim.violation import Violation

if TYPE_CHECKING:
    from tests.fleet.cluster import Master
    from tests.fleet.world import World

_LOOK_EVERY_S = 2.0
_PAIRS_IN_A_LOOK = 200  # of a task and an agent; where there are more, it is looked less often
_WAITING_MAX = 400  # a look at more is too slow to be had often
_AGENTS = """
SELECT agent.id, agent.state, agent.is_draining, agent.info, agent.cpus_milli, agent.memory_bytes, agent.gpus,
  agent.slots, COALESCE(SUM(task.cpus_milli), 0), COALESCE(SUM(task.memory_bytes), 0), COALESCE(SUM(task.gpus), 0),
  COUNT(attempt.id)
FROM agent
LEFT JOIN attempt ON attempt.agent_id = agent.id AND attempt.state IN ('queued', 'running')
LEFT JOIN task ON task.run_id = attempt.run_id AND task.position = attempt.position
GROUP BY agent.id ORDER BY agent.id
"""
_WAITING = """
SELECT task.run_id, task.position, task.ready_at, task.gang, task.spec, run.state, run.concurrency,
  run.concurrency_limit, run.queue
FROM task JOIN run ON run.id = task.run_id WHERE task.state = 'queued' ORDER BY task.run_id, task.position
"""
_HOME = """
SELECT CASE WHEN agent.state = 'up' THEN agent.id END FROM attempt
JOIN task ON task.run_id = attempt.run_id AND task.position = attempt.position
LEFT JOIN agent ON agent.id = attempt.agent_id
WHERE attempt.run_id = ? AND task.gang = ? ORDER BY attempt.fence DESC, attempt.id DESC LIMIT 1
"""


class Views:
    """Stands between a Dispatch and `decide`, and looks at what goes in and comes out."""

    def __init__(self, world: World) -> None:
        self.world = world
        self._next_look_s = 0.0

    def decide(self, view: View, now: int, **given: int) -> Decision:
        """What `decide` says, once it has been checked."""
        before = set(view.fleet.kept)
        decision = self._checked(view, now, **given)
        self.world.count("agent kept free", len(view.fleet.kept.keys() - before))
        self.world.count(
            "placed on an agent kept free", len(before & {(p.run_id, p.position) for p in decision.placements})
        )
        return decision

    def _checked(self, view: View, now: int, **given: int) -> Decision:
        master = self._master_of(view)
        if master is None or self.world.now_s < self._next_look_s or view._tentative or len(view) > _WAITING_MAX:
            return really_decide(view, now, **given)
        pairs = len(view) * (10 + len(view.fleet.agents)) * (1 if self.world.is_stormy else 3)
        self._next_look_s = self.world.now_s + _LOOK_EVERY_S * max(1.0, pairs / _PAIRS_IN_A_LOOK)
        cold = self._cold(view, master, now)
        self._compare(view, cold)
        # Who begins to keep an agent for a task looks at what was blocked before.
        is_comparable = now < view.keeping_due
        # In which order they come whose time has just come, and when their bands count as served, a new leader does not
        # know.
        is_exact = not view._later or view._later[0][0] > now
        decision = really_decide(view, now, **given)
        other = really_decide(cold, now, **given)
        if is_comparable and not decision.is_more and not other.is_more:
            told, others = decision.placements, other.placements
            if told != others if is_exact else bool(told) != bool(others):
                raise Violation("view", f"decides {told}, and a new leader {others}")
            self.world.count("decision compared")
        if not decision.placements and not decision.expired and not decision.is_more:
            Look(self.world, view, now).check()
        return decision

    def _master_of(self, view: View) -> Master | None:
        """The leader whose view that is, if it knows all that was committed, and who is connected."""
        leader = self.world.cluster.leader
        is_its_own = leader is not None and leader.dispatch._view is view
        knows_all = is_its_own and not (
            leader.dispatch._news or leader.dispatch._have_sessions_changed or leader.sessions.greeting
        )
        return leader if knows_all else None

    def _cold(self, view: View, master: Master, now: int) -> View:
        cold = View()
        from tests.fleet.cluster import Snapshot

        for change in _all(reads.changes(Snapshot(self.world.cluster.db))):  # type: ignore[arg-type]
            cold.take(change, now)
        for agent_id, agent in view.fleet.agents.items():
            cold.fleet.set_present(agent_id, is_present=agent.is_present)
        known = {key: cold.bands[key] for key in view.bands if key in cold.bands}
        for key, band in known.items():
            band.served_at = view.bands[key].served_at
        cold.bands = known | cold.bands  # in its order, for ties
        for task, agent_id in view.fleet.kept.items():
            cold.fleet.keep(task, cold.fleet.agents[agent_id])
        cold.keeping_due = view.keeping_due
        return cold

    def _compare(self, view: View, cold: View) -> None:
        for what, warm, other in (
            ("tasks", _tasks(view), _tasks(cold)),
            ("agents", _agents(view), _agents(cold)),
            ("owners", view.fleet._owners, cold.fleet._owners),
            ("groups", view.gates.groups, cold.gates.groups),
            ("queues", view.gates.queues, cold.gates.queues),
            ("settings", _settings(view), _settings(cold)),
            ("gangs", _gangs(view), _gangs(cold)),
        ):
            if warm != other:
                raise Violation("view", f"{what}: the leader has {_only(warm, other)}, a new one {_only(other, warm)}")
        self.world.count("view compared")


def _all(generator: AsyncIterator[list[Change]]) -> list[Change]:
    """What an asynchronous generator that never waits has to give."""
    found: list[Change] = []
    while True:
        try:
            generator.__anext__().send(None)  # type: ignore[attr-defined]
        except StopIteration as stop:
            found += stop.value
        except StopAsyncIteration:
            return found


def _tasks(view: View) -> dict[TaskId, Any]:
    entries = [entry for tasks in view._waiting.values() for entry in tasks.values()]
    return {
        entry.task.id: (entry.task.priority, entry.task.ready_at, entry.task.demand, sorted(entry.task.tried_on))
        for entry in entries
    }


def _agents(view: View) -> dict[str, Any]:
    return {
        agent_id: (agent.info, agent.epoch, agent.is_up, agent.is_draining, agent.used)
        for agent_id, agent in view.fleet.agents.items()
    }


def _settings(view: View) -> dict[str, Any]:
    defaults = {"priority": 0, "limit": None, "placing": "spread"}
    plain = {name: codec.to_plain(type(queue), queue) for name, queue in view.queues.items()}
    return {name: said for name, said in plain.items() if said != defaults | {"name": name}}


def _gangs(view: View) -> dict[Any, str]:
    return {
        (run_id, gang): agent_id
        for run_id, gangs in view._gangs.items()
        for gang, agent_id in gangs.items()
        if agent_id in view.fleet.agents and view.fleet.agents[agent_id].is_up
    }


def _only(these: dict[Any, Any], others: dict[Any, Any]) -> dict[Any, Any]:
    return {key: value for key, value in these.items() if others.get(key) != value}


class Look:
    """At all that waits, from the tables and who is connected: nothing of the scheduler's own is believed."""

    def __init__(self, world: World, view: View, now: int) -> None:
        self.world, self.view, self.now = world, view, now
        self.db: sqlite3.Connection = world.cluster.db
        leader = world.cluster.leader
        assert leader is not None
        self.agents = {
            row[0]: (
                row[1] == "up" and not row[2] and leader.sessions.takes_work(row[0]),
                json.loads(row[3]), row[4:8], row[8:],
            )
            for row in self.db.execute(_AGENTS).fetchall()
        }  # fmt: skip
        self.explainer = Explainer(view, now)

    def check(self) -> None:
        """Violation if a task waits that could be placed, or if what is said of it is not so."""
        for run_id, position, ready_at, gang, spec, *run in self.db.execute(_WAITING).fetchall():
            told = self.explainer.explain((run_id, position))
            if told is None:
                raise Violation("stuck", f"task {position} of {run_id} waits, and the leader does not know it")
            is_held = ready_at > self.now or (run[0] == "queued" and self._is_full(*run[1:]))
            if bool(told.holds) != is_held:
                raise Violation("idle", f"task {position} of {run_id} {is_held=}, and it is said: {told.brief}")
            self._against_agents((run_id, position), gang, codec.from_json(Task, spec), told, is_held=is_held)
        self.world.count("look at what waits")

    def _is_full(self, group: str | None, limit: int, queue: str) -> bool:
        def running(column: str, name: str) -> int:
            sql = f"SELECT COUNT(*) FROM run WHERE {column} = ? AND state = 'running'"
            return int(self.db.execute(sql, (name,)).fetchone()[0])

        row = self.db.execute("SELECT run_limit FROM queue WHERE name = ?", (queue,)).fetchone()
        queue_limit = None if row is None else row[0]
        return (group is not None and running("concurrency", group) >= limit) or (
            queue_limit is not None and running("queue", queue) >= queue_limit
        )

    def _against_agents(
        self, task: TaskId, gang: str | None, spec: Task, told: Explanation, *, is_held: bool
    ) -> None:  # fmt: skip
        members, home = [spec], None
        if gang is not None:
            rows = self.db.execute("SELECT spec FROM task WHERE run_id = ? AND gang = ?", (task[0], gang)).fetchall()
            members = [codec.from_json(Task, row[0]) for row in rows]
            home = self.db.execute(_HOME, (task[0], gang)).fetchone()
        said = {one.agent_id: one.reasons for one in told.agents}
        if said.keys() != self.agents.keys():
            raise Violation("idle", f"{task}: agents {sorted(said)} are told of, and there are {sorted(self.agents)}")
        for agent_id in self.agents:
            is_free = self._is_free(task, agent_id, members, spec, None if home is None else home[0])
            if is_free == bool(said[agent_id]):
                raise Violation("idle", f"{task} and {agent_id}: {is_free=}, and it is said: {said[agent_id]}")
            if is_free and not is_held:
                raise Violation("idle", f"{task} could be placed on {agent_id}, and is not: {told.brief}")
            self.world.count("obstacle that is one", not is_free)

    def _is_free(self, task: TaskId, agent_id: str, members: Sequence[Task], spec: Task, home: str | None) -> bool:
        takes_work, info, whole, used = self.agents[agent_id]
        kept_for = self.view.fleet.agents[agent_id].kept_for
        want = spec.resources
        sizes = (want.cpus_milli or 0, want.memory_bytes or 0, want.gpus, 1)
        most = [_most(members, "cpus_milli"), _most(members, "memory_bytes"), _most(members, "gpus"), 1]
        return (
            takes_work
            and kept_for in (None, task)
            and home in (None, agent_id)
            and is_fit(members, info)
            and all(one <= size for one, size in zip(most, whole, strict=True))
            and all(one + taken <= size for one, taken, size in zip(sizes, used, whole, strict=True))
        )


def _most(members: Sequence[Task], what: str) -> int:
    return max(getattr(member.resources, what) or 0 for member in members)
