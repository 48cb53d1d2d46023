"""What is read from the state of schedules."""

from __future__ import annotations

import json
import logging
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from sqlite3 import Row
from typing import Any, Final

from pistage.core import codec
from pistage.core.cron import Schedule
from pistage.errors import PistageError
from pistage.master.state import Snapshot

log = logging.getLogger(__name__)

_READ_AT_ONCE: Final = 1_000


@dataclass(frozen=True, slots=True)
class Scheduled:
    """A schedule that is not paused, as a leader has to know it; times are milliseconds UTC."""

    id: str
    project: str
    name: str
    fence: int
    decided_until: int
    schedule: Schedule
    action: str | None
    start_node: str | None
    sha256: str  # of the document


async def enabled(snapshot: Snapshot) -> list[Scheduled]:
    """All that are not paused."""
    found: list[Scheduled] = []
    last = ""
    while rows := await snapshot.rows(f"{_ENABLED} AND id > ? ORDER BY id LIMIT {_READ_AT_ONCE}", (last,)):
        found.extend(_readable(rows))
        last = rows[-1]["id"]
    return found


async def enabled_among(snapshot: Snapshot, schedule_ids: Collection[str]) -> list[Scheduled]:
    """Those of these that are there and not paused."""
    sql = f"{_ENABLED} AND id IN (SELECT value FROM json_each(?))"
    return list(_readable(await snapshot.rows(sql, (json.dumps(sorted(schedule_ids)),))))


async def source_of(snapshot: Snapshot, schedule_id: str) -> str:
    """The document that a schedule runs; "" where that is an action, or the schedule is gone."""
    return str(await snapshot.value("SELECT source FROM schedule WHERE id = ?", (schedule_id,)) or "")


_ENABLED: Final = """
SELECT id, project, name, fence, decided_until, spec, action, start_node, sha256 FROM schedule WHERE is_enabled = 1
"""


def _readable(rows: Iterable[Row]) -> Iterator[Scheduled]:
    for row in rows:
        fields: dict[str, Any] = dict(row)
        try:
            schedule = codec.from_json(Schedule, fields.pop("spec"))
        except PistageError as error:  # a row that cannot be read must not stop the others
            log.error("schedule=%s does not fire: %s", row["name"], error)
        else:
            yield Scheduled(schedule=schedule, **fields)
