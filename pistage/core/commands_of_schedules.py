"""Commands of schedules: what is to be run by itself, and each time at which it was."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pistage.core.cron.schedules import Schedule
from pistage.core.plan import Plan


@dataclass(frozen=True, slots=True, kw_only=True)
class NewSchedule:
    """A schedule of a definition; `id` is what it gets if there is none of its name yet."""

    id: str
    name: str
    schedule: Schedule


@dataclass(frozen=True, slots=True, kw_only=True)
class PutSchedules:
    """Let a definition be run by these schedules, and by no others that were set under its name.

    What is run is `source`, or, if that is empty, the action called `action` as it is when its time comes. `since` is
    when that begins, by the clock of the leader, which reckons the times: what came before is over.
    """

    kind: Literal["put_schedules"] = "put_schedules"
    at: int
    since: int
    project: str
    owner: str
    definition: str
    schedules: tuple[NewSchedule, ...]
    source: str = ""
    action: str | None = None
    start_node: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DeleteSchedule:
    """Forget a schedule; its runs stay."""

    kind: Literal["delete_schedule"] = "delete_schedule"
    at: int
    project: str
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EnableSchedule:
    """Pause a schedule, or let it go on: from `since`, what came meanwhile is not made up for."""

    kind: Literal["enable_schedule"] = "enable_schedule"
    at: int
    since: int
    project: str
    name: str
    is_enabled: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Fire:
    """What becomes of one time of a schedule, or of several that were missed, up to `until`.

    `nominal` is the time, milliseconds UTC, computed by the leader alone: masters may know different rules for a zone.
    With a `plan`, an index into the command's, a run is made of it unless one that is not over stands in the way;
    without one, `reason` says why there is none. It is refused unless the schedule is as the leader knew it, by its
    `fence`, and decided up to exactly `after`: else times between the two would be passed over in silence.
    """

    schedule_id: str
    fence: int
    after: int
    nominal: int
    plan: int | None = None
    run_id: str = ""
    until: int | None = None
    count: int | None = 1  # None: more than anybody counted
    outcome: Literal["missed", "failed"] = "missed"  # where there is no plan
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class FirePlan:
    """What some of the fires execute, and the document it was made from: "" for the schedule's own."""

    plan: Plan
    source: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class FireSchedules:
    """Decide times of schedules. Each is taken or refused by itself: a time that was decided before is refused."""

    kind: Literal["fire_schedules"] = "fire_schedules"
    at: int
    plans: tuple[FirePlan, ...]
    fires: tuple[Fire, ...]

    def __post_init__(self) -> None:
        # Whoever proposes must not be able to: it would stop every master that applies it.
        if not all(fire.plan is None or 0 <= fire.plan < len(self.plans) for fire in self.fires):
            raise ValueError("a fire has no plan")


ScheduleCommand = PutSchedules | DeleteSchedule | EnableSchedule | FireSchedules
