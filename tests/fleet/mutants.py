"""Faults on purpose in scheduling and in the state machine: the simulator must find every one of them.

It imports nothing of ours but `mutating`, because it has to come first. Faults that show only where much comes together
are left to the tests of their own: a gang that does not look for more memory when one of it needs it
(`tests/core/schedule/test_gangs.py`), a place that runs keep open for each other (`test_refusals.py`).
"""

from __future__ import annotations

from dataclasses import dataclass

from tests.sim.mutating import Edit, install

VIEW = "pistage.core.schedule."
STATE = "pistage.core.machine."


@dataclass(frozen=True, slots=True)
class Mutant:
    """A line or two of the source, replaced."""

    name: str
    bug: str
    edits: tuple[Edit, ...]

    def install(self) -> None:
        """From here on this process has the fault; RuntimeError if its modules are imported already."""
        install(self.edits)


def _view(name: str, bug: str, module: str, old: str, new: str) -> Mutant:
    return Mutant(name, bug, ((VIEW + module, old, new),))


def _state(name: str, bug: str, module: str, old: str, new: str) -> Mutant:
    return Mutant(name, bug, ((STATE + module, old, new),))


MUTANTS = (
    # --- the view --------------------------------------------------------------------------------------------------
    _view(
        "refused-room-is-not-given-back", "a placement that was refused goes on taking room", "view",
        "            return\n        self.fleet.free(tentative.held)\n", "            return\n",
    ),
    _view(
        "ended-room-is-not-given-back", "the room of an attempt that has ended stays taken", "view",
        "                    self.fleet.free(held)", "                    pass",
    ),
    _view(
        "more-room-unblocks-nobody", "who found no room is not tried again when there is some", "view",
        "        self.due[shape] = None\n", "",
    ),
    _view(
        "room-is-forgotten", "room that came while nobody asked for it is not seen by who asks next", "shapes",
        "yield shape if not shape.lines or any(", "yield shape if shape.lines and any(",
    ),
    _view(
        "an-end-lets-nobody-begin", "a place in a group becomes free, and nobody is told", "view",
        "            if not line.shape.is_blocked and self.gates.is_open(line.band, line.gate):",
        "            if False:",
    ),
    _view(
        "gangs-stay-with-the-lost", "a gang waits for an agent that is gone", "view",
        "        if change.is_up != was_up:\n", "        if False:\n",
    ),
    _view(
        "a-queue-changes-for-new-ones-only", "who waits in a queue is served as it was before", "view",
        "        self._stand_again([entry for entry in waiting if entry.task.queue == settings.name])",
        "        list(waiting)",
    ),
    _view(
        "who-comes-back-is-not-seen", "an agent connects, and what is blocked stays so", "fleet",
        "            agent.is_present = is_present\n            self._note_growth(agent_id)",
        "            agent.is_present = is_present",
    ),
    _view(
        "labels-are-read-once", "an agent that comes back as another is taken for what it was", "fleet",
        "        if is_other:", "        if is_other and agent.epoch < 2:",
    ),
    _view(
        "gpus-have-no-end", "GPUs are not counted", "agents",
        "            and used.gpus + want.gpus <= whole.gpus\n", "",
    ),
    _view(
        "one-run-too-many", "a group is open while it is full", "lines",
        "len(self.groups.get(gate.group, ())) >= gate.limit", "len(self.groups.get(gate.group, ())) > gate.limit",
    ),
    # --- the state machine ------------------------------------------------------------------------------------------
    _state(
        "old-epochs-take-work", "an assignment to an agent that has come back since is taken", "placing",
        "if agent is None or agent[0] != epoch or", "if agent is None or",
    ),
    _state(
        "the-drained-take-work", "an assignment to an agent that drains is taken", "placing",
        ' or agent[1] != "up" or agent[2]:', ' or agent[1] != "up":',
    ),
    _state(
        "one-of-the-lost-lives-on", "not everything that a lost agent had is ended", "agents",
        "    for attempt_id in live:", "    for attempt_id in live[1:]:",
    ),
    _state(
        "a-retry-is-told-to-nobody", "a task that is tried again is not told to the scheduler", "attempts",
        "    )  # fmt: skip\n    waiting.announce(turn, key.run_id, key.position)\n", "    )  # fmt: skip\n",
    ),
    _state(
        "the-old-ones-stay", "a run more than may run is left when the newest take their place", "groups",
        "max(0, len(active) - concurrency.limit)", "max(0, len(active) - concurrency.limit - 1)",
    ),
    _state(
        "refused-one-too-late", "a group that refuses what is too much takes one too many", "groups",
        "> concurrency.limit:", "> concurrency.limit + 1:",
    ),
)  # fmt: skip
BY_NAME = {mutant.name: mutant for mutant in MUTANTS}
