"""What is read from the state of notices."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from dataclasses import dataclass, replace
from sqlite3 import Row
from typing import Any, Final

from pistage.core import codec, limits
from pistage.core.definition.messages import RUN_ENDED, Told
from pistage.core.model import Trigger
from pistage.core.notices import Notify, Receiver
from pistage.errors import Code, PistageError
from pistage.master.api import views
from pistage.master.state import Snapshot

log = logging.getLogger(__name__)

#: A notice: the run, and its position among the run's.
Key = tuple[str, int]

_WAITING: Final = """
SELECT run_id, position, project, pipeline, receiver, due_at FROM delivery WHERE state = 'waiting'
"""
_READ_AT_ONCE: Final = 1_000


@dataclass(frozen=True, slots=True)
class Waiting:
    """A notice that waits: when it is due (milliseconds UTC), and for whom, in a word that is the same for all such."""

    key: Key
    due_at: int
    target: str


async def waiting(snapshot: Snapshot) -> list[Waiting]:
    """All that wait, at most limits.NOTICES_WAITING_MAX."""
    rows = await snapshot.rows(f"{_WAITING} ORDER BY created_at, run_id, position")
    return [_waiting(row) for row in rows]


async def waiting_among(snapshot: Snapshot, keys: Iterable[Key]) -> list[Waiting]:
    """Those of these that wait."""
    asked = sorted(keys)
    found: list[Waiting] = []
    for start in range(0, len(asked), _READ_AT_ONCE):
        sql = f"""{_WAITING} AND (run_id, position) IN (
          SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]') FROM json_each(?))"""
        rows = await snapshot.rows(sql, (json.dumps(asked[start : start + _READ_AT_ONCE]),))
        found.extend(_waiting(row) for row in rows)
    return found


def _waiting(row: Row) -> Waiting:
    to = ["receiver", row["receiver"]] if row["receiver"] is not None else ["pipeline", row["pipeline"]]
    return Waiting((row["run_id"], row["position"]), row["due_at"], json.dumps([row["project"], *to]))


@dataclass(frozen=True, slots=True, kw_only=True)
class Notice:
    """All that is needed to send one; `receiver` and `told` are None where the state cannot be read."""

    key: Key
    tries: int
    created_at: int
    receiver: Receiver | None = None
    told: Told | None = None

    @property
    def delivery(self) -> str:
        """What it is called at each try."""
        return f"{self.key[0]}-{self.key[1]}"


async def notice(snapshot: Snapshot, key: Key) -> Notice | None:
    """A notice that waits, None if it does no more."""
    row = await snapshot.row(_NOTICE, key)
    if row is None:
        return None
    found = Notice(key=key, tries=row["tries"], created_at=row["created_at"])
    try:
        return replace(found, receiver=_receiver(row), told=await _told(snapshot, key[0]))
    except PistageError as error:
        log.error("run=%s notice=%d cannot be read: %s", *key, error.message)
        return found


def _receiver(row: Row) -> Receiver:
    notify = None
    if row["notify"] is not None:
        notifies: tuple[Notify, ...] = codec.from_json(tuple[Notify, ...], row["notifies"] or "[]")
        notify = notifies[row["notify"]] if row["notify"] < len(notifies) else None
    if row["spec"] is not None:
        receiver: Receiver = codec.from_json(Receiver, row["spec"])
        return replace(receiver, body=notify.body or receiver.body) if notify is not None else receiver
    if notify is None or not notify.url:
        raise PistageError(Code.INTERNAL, "nothing says where it is to go")
    return Receiver(url=notify.url, body=notify.body)


_NOTICE: Final = """
SELECT delivery.notify, delivery.tries, delivery.created_at, receiver.spec,
  CASE WHEN json_valid(run.plan) THEN json_extract(run.plan, '$.notify') END AS notifies
FROM delivery JOIN run ON run.id = delivery.run_id
LEFT JOIN receiver ON receiver.project = delivery.project AND receiver.name = delivery.receiver
WHERE delivery.run_id = ? AND delivery.position = ? AND delivery.state = 'waiting'
"""
_RUN: Final = """
SELECT id, project, name, number, owner, started_by, state, reason, retry_of, created_at, started_at, finished_at
FROM run WHERE id = ?
"""
_TASKS: Final = """
SELECT name, state, reason, started_at, finished_at FROM task WHERE run_id = ?
ORDER BY state IN ('succeeded', 'skipped'), position LIMIT ?
"""


async def _told(snapshot: Snapshot, run_id: str) -> Told:
    run = await snapshot.row(_RUN, (run_id,))
    if run is None:
        raise PistageError(Code.INTERNAL, "its run is not there")
    trigger: Trigger = codec.from_json(Trigger, run["started_by"])
    rows = await snapshot.rows(_TASKS, (run_id, limits.NOTICE_TASKS_MAX))
    count = int(await snapshot.value("SELECT COUNT(*) FROM task WHERE run_id = ?", (run_id,)))
    head: dict[str, Any] = {key: run[key] for key in ("id", "project", "name", "number", "owner", "state", "retry_of")}
    return Told(
        event=RUN_ENDED,
        run=head
        | {
            "reason": _clean(run["reason"], limits.REASON_CHARS_MAX),
            "started_by": {"kind": str(trigger.kind), "name": trigger.name, "nominal": views.at(trigger.nominal)}
            | {"run": trigger.run_id or None},
        }
        | _times(run, "created_at", "started_at", "finished_at"),
        tasks=[
            {"name": row["name"], "state": row["state"]}
            | {"reason": _clean(row["reason"], limits.NOTICE_TASK_REASON_CHARS_MAX)}
            | _times(row, "started_at", "finished_at")
            for row in rows
        ],
        tasks_left_out=count - len(rows),
    )


def _times(row: Row, *keys: str) -> dict[str, str | None]:
    return {key: views.at(row[key]) for key in keys}


def _clean(text: str, chars_max: int) -> str:
    """Without what no template takes: an agent says why something failed, and may say anything."""
    return text[:chars_max].replace("\0", "\ufffd").encode("utf-8", "replace").decode()
