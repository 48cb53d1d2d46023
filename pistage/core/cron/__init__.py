"""Cron: a crontab expression -> a checked value (J10), and the instants at which it fires in a time zone.

`parse_cron` and `zone_named` refuse what cannot be; `next_after`, `times_between` and `last_between` say when. All of
it is a function of what is given and of the IANA database: nothing here knows what time it is.
"""

from pistage.core.cron.expressions import Cron, CronError, Dialect
from pistage.core.cron.firing import last_between, next_after, times_between
from pistage.core.cron.parsing import parse_cron
from pistage.core.cron.schedules import CatchUp, Due, Missed, Overlap, Schedule, Timer
from pistage.core.cron.zones import zone_named

__all__ = [
    "CatchUp",
    "Cron",
    "CronError",
    "Dialect",
    "Due",
    "Missed",
    "Overlap",
    "Schedule",
    "Timer",
    "last_between",
    "next_after",
    "parse_cron",
    "times_between",
    "zone_named",
]
