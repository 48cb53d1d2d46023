"""The fleet: every agent, what is reserved on it and by whom, and which have got more room of late."""

from __future__ import annotations

from collections.abc import Iterable
from weakref import WeakValueDictionary

from pistage.core.changes import AgentChanged, Placing, TaskId
from pistage.core.demand import Demand
from pistage.core.schedule.agents import Agent, Amounts, Held
from pistage.core.schedule.shapes import Kind, Moves


class Fleet:
    """Agents by id. What is reserved counts for its agent and for its owner."""

    def __init__(self) -> None:
        self.agents: dict[str, Agent] = {}
        self.ranked = 0  # how often all agents were looked at for one shape
        self._kinds: WeakValueDictionary[tuple[object, ...], Kind] = WeakValueDictionary()
        self._growths = Moves()
        self._moves = Moves()
        self.kept: dict[TaskId, str] = {}  # a task that has waited for long, and the agent that is kept free for it
        self._owners: dict[str, Amounts] = {}
        self._whole = Amounts()
        self._grown: dict[str, None] = {}

    def kind_of(self, demand: Demand) -> Kind:
        """Who is what the demand asks for, its size aside."""
        key = (
            demand.needs_images, demand.needs_containers, demand.languages, demand.installs, demand.lacks_image,
            demand.constraints,
        )  # fmt: skip
        kind = self._kinds.get(key)
        if kind is None:
            kind = self._kinds[key] = Kind(demand, self.agents.values())
        return kind

    def moves_for(self, placing: Placing) -> Moves:
        """What may have made an agent a better place: more room, and for who packs also less."""
        return self._growths if placing == "spread" else self._moves

    def share_of(self, owner: str) -> float:
        """How much of what there is the owner's tasks have reserved, from 0 to 1."""
        used = self._owners.get(owner)
        return 0.0 if used is None else used.share_of(self._whole)

    def change(self, change: AgentChanged) -> None:
        """The agent as it is now."""
        agent = self.agents.get(change.info.id)
        is_other = agent is None or agent.info != change.info
        if agent is None:
            agent = self.agents[change.info.id] = Agent(change.info, change.epoch)
        else:
            self._count(agent, -1)
        agent.change(change)
        self._count(agent, 1)
        if is_other:
            for kind in list(self._kinds.values()):
                kind.consider(agent)
        self._note_growth(change.info.id)

    def count_again(self, agent_id: str, held: Iterable[Held]) -> None:
        """The agent is new here: of all that is reserved, this is on it."""
        agent = self.agents[agent_id]
        agent.used = Amounts()
        for one in held:
            if one.agent_id == agent_id:
                agent.used.add(one)

    def remove(self, agent_id: str) -> None:
        """Forget the agent; unknown ones are passed over."""
        agent = self.agents.pop(agent_id, None)
        if agent is not None:
            self._count(agent, -1)
            for kind in list(self._kinds.values()):
                kind.agents.discard(agent_id)
            if agent.kept_for is not None:
                self.unkeep(agent.kept_for)

    def set_present(self, agent_id: str, *, is_present: bool) -> None:
        """Whether the agent has a session with this leader and takes work; an unknown one is passed over."""
        agent = self.agents.get(agent_id)
        if agent is not None and agent.is_present != is_present:
            agent.is_present = is_present
            self._note_growth(agent_id)

    def reserve(self, held: Held) -> None:
        """Take room; the agent may be gone."""
        if (agent := self.agents.get(held.agent_id)) is not None:
            agent.used.add(held)
            self._moves.add(held.agent_id)
        self._owners.setdefault(held.owner, Amounts()).add(held)

    def free(self, held: Held) -> None:
        """Give room back."""
        if (agent := self.agents.get(held.agent_id)) is not None:
            agent.used.take(held)
            self._note_growth(held.agent_id)
        owner = self._owners[held.owner]
        owner.take(held)
        if not owner.slots:
            del self._owners[held.owner]

    def keep(self, task: TaskId, agent: Agent) -> None:
        """Place nothing else on the agent until the task has its place."""
        self.kept[task] = agent.info.id
        agent.kept_for = task

    def unkeep(self, task: TaskId) -> None:
        """The agent that was kept for the task, if one was, is there for all again."""
        agent_id = self.kept.pop(task, None)
        if agent_id is not None and (agent := self.agents.get(agent_id)) is not None and agent.kept_for == task:
            agent.kept_for = None
            self._note_growth(agent_id)

    @property
    def has_grown(self) -> bool:
        """Whether `grown` has any."""
        return bool(self._grown)

    def grown(self) -> list[Agent]:
        """The agents that may have more room than when this was last asked."""
        found = [agent for agent_id in self._grown if (agent := self.agents.get(agent_id)) is not None]
        self._grown.clear()
        return found

    def _note_growth(self, agent_id: str) -> None:
        self._growths.add(agent_id)
        self._moves.add(agent_id)
        self._grown[agent_id] = None

    def _count(self, agent: Agent, sign: int) -> None:
        if agent.is_up:
            offered = agent.info.capacity
            self._whole.cpus_milli += sign * offered.cpus_milli
            self._whole.memory_bytes += sign * offered.memory_bytes
            self._whole.gpus += sign * offered.gpus
            self._whole.slots += sign * offered.slots
