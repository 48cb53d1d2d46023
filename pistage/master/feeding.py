"""Who is sent new output, and when: as many masters as are needed at once, the others a little later."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Final

from pistage.master.feeds import Feed, LedRun

#: More copies than were asked for are for the time after a loss. They wait until a run is quiet, for two cores that
#: carry output to one master less carry a fifth more of it, but never longer than this.
_BEHIND_MAX_S: Final = 15.0
_QUIET_S: Final = 0.5
_SLOW_S: Final = 1.0  # whoever does not get on for longer is not waited for alone; who is merely busy is


@dataclass(slots=True)
class Feeding:
    """The feeds of one term. Call `look` a few times a second."""

    feeds: dict[str, Feed] = field(default_factory=dict)
    _later: dict[str, tuple[LedRun, float]] = field(default_factory=dict)

    def offer(self, run: LedRun, others_needed: int, voters: frozenset[str]) -> None:
        """There is more of the run, which `others_needed` of these voters must have."""
        chosen = self._chosen(run, others_needed, voters)
        for node_id, feed in self.feeds.items():
            if run.place(node_id).next >= run.count:
                continue
            if node_id in chosen:
                feed.offer(run)
            else:
                self._later.setdefault(run.run_id, (run, time.monotonic()))

    def offer_all(self, run: LedRun) -> None:
        """Everybody is to say how much of the run is there, and to have the rest."""
        self._later.pop(run.run_id, None)
        for feed in self.feeds.values():
            feed.offer(run)

    def look(self) -> None:
        """See whose time has come."""
        now = time.monotonic()
        for run, since in list(self._later.values()):
            is_slow = bool(run.waiting) and now - max(run.waiting[0].since, run.safe_at) > _SLOW_S
            is_quiet = not run.waiting and now - run.stored_at > _QUIET_S
            if is_slow or is_quiet or now - since > _BEHIND_MAX_S:
                self.offer_all(run)

    def forget(self, run_id: str) -> None:
        """The run is let go."""
        self._later.pop(run_id, None)
        for feed in self.feeds.values():
            feed.forget(run_id)

    def _chosen(self, run: LedRun, others_needed: int, voters: frozenset[str]) -> set[str]:
        """Not the same for each run; those that are in trouble only where there are no others."""
        fit = sorted(node_id for node_id, feed in self.feeds.items() if node_id in voters and not feed.trouble)
        if len(fit) < others_needed:
            return set(self.feeds)
        turn = sum(run.run_id.encode()) % max(1, len(fit))
        return set([*fit[turn:], *fit[:turn]][:others_needed])
