"""Looks at every master all the time: never two leaders in a term, nor two digests at an index, nor a step back."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field

from tests.chaos.group import Group

_LOOK_EVERY_S = 0.3


@dataclass(slots=True)
class Timeline:
    """What was done and what was seen, with the seconds since the beginning."""

    is_loud: bool = True
    begun: float = field(default_factory=time.monotonic)
    lines: list[str] = field(default_factory=list)

    def say(self, text: str) -> None:
        line = f"{time.monotonic() - self.begun:7.2f} s  {text}"
        self.lines.append(line)
        if self.is_loud:
            print(line, flush=True)


@dataclass(slots=True)
class Watch:
    """Run `serve` beside the faults; `violations` is empty as long as all is well."""

    group: Group
    timeline: Timeline
    violations: list[str] = field(default_factory=list)
    looks: int = 0
    leaders: dict[int, str] = field(default_factory=dict)  # by term
    worst_lag_ms: int = 0
    _digests: dict[int, tuple[str, str]] = field(default_factory=dict)  # by applied index: the digest, and whose
    _terms: dict[str, int] = field(default_factory=dict)  # by node id: a node that lost its data has a new one
    _applied: dict[str, int] = field(default_factory=dict)

    async def serve(self) -> None:
        """Until cancelled."""
        while True:
            await self.look()
            await asyncio.sleep(_LOOK_EVERY_S)

    async def look(self) -> dict[str, dict[str, object]]:
        """Once, now."""
        found = await self.group.statuses()
        self.looks += 1
        for name, one in found.items():
            self._take(name, str(one["node"]), one)
        return found

    def _take(self, name: str, node: str, one: dict[str, object]) -> None:
        term, index, digest = int(str(one["term"])), int(str(one["applied_index"])), str(one["digest"])
        if one["role"] == "leader":
            if self.leaders.setdefault(term, node) != node:
                self._violated(f"term {term} has two leaders: {self.leaders[term]} and {node} ({name})")
            self.worst_lag_ms = max(self.worst_lag_ms, int(str(one["loop_lag_ms"])))
        known, whose = self._digests.setdefault(index, (digest, name))
        if known != digest:
            self._violated(f"at index {index} {whose} has digest {known}, {name} has {digest}")
        if term < self._terms.get(node, 0):
            self._violated(f"{name} went back from term {self._terms[node]} to {term}")
        self._terms[node] = term
        self._applied[node] = max(index, self._applied.get(node, 0))

    def _violated(self, what: str) -> None:
        if what not in self.violations:
            self.violations.append(what)
            self.timeline.say(f"VIOLATION: {what}")
