"""Who decides: the members of the group, and what a majority of them is."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """A membership. Learners receive the log and decide nothing. Both are kept sorted: equal sets are equal values."""

    voters: tuple[str, ...] = ()
    learners: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("voters", "learners"):
            object.__setattr__(self, name, tuple(sorted(set(getattr(self, name)))))
        if both := set(self.voters) & set(self.learners):
            raise ValueError(f"both voter and learner: {sorted(both)}")

    @property
    def members(self) -> tuple[str, ...]:
        """Voters, then learners."""
        return self.voters + self.learners

    def is_quorum(self, ids: Collection[str]) -> bool:
        """Whether these, however often named, hold a majority of the voters."""
        return sum(voter in ids for voter in self.voters) > len(self.voters) // 2

    def agreed(self, match: Mapping[str, int]) -> int:
        """The highest index that a majority of the voters has reached; a voter that is not named has reached 0."""
        reached = sorted((match.get(voter, 0) for voter in self.voters), reverse=True)
        return reached[len(reached) // 2] if reached else 0

    def encode(self) -> bytes:
        """As the payload of an entry."""
        return json.dumps({"voters": self.voters, "learners": self.learners}, separators=(",", ":")).encode()

    @classmethod
    def decode(cls, payload: bytes) -> Config:
        """The inverse of `encode`."""
        fields = json.loads(payload)
        return cls(voters=tuple(fields["voters"]), learners=tuple(fields["learners"]))


EMPTY: Final = Config()  # of a node that has not joined yet


class ChangeKind(StrEnum):
    """The steps a member takes: in as a learner, up to a voter, out."""

    ADD_LEARNER = "add_learner"
    PROMOTE = "promote"
    REMOVE = "remove"


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One member, one step. Any two majorities before and after one step share a member (§4.1)."""

    kind: ChangeKind
    node_id: str

    def of(self, config: Config) -> Config | None:
        """The membership after this step; None if it makes no sense there."""
        is_voter, is_learner = self.node_id in config.voters, self.node_id in config.learners
        without = tuple(learner for learner in config.learners if learner != self.node_id)
        match self.kind:
            case ChangeKind.ADD_LEARNER if not is_voter and not is_learner:
                return replace(config, learners=(*config.learners, self.node_id))
            case ChangeKind.PROMOTE if is_learner:
                return Config(voters=(*config.voters, self.node_id), learners=without)
            case ChangeKind.REMOVE if is_learner:
                return replace(config, learners=without)
            case ChangeKind.REMOVE if is_voter and len(config.voters) > 1:
                return replace(config, voters=tuple(voter for voter in config.voters if voter != self.node_id))
            case _:
                return None
