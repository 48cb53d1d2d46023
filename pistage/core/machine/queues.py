"""Queues: how each is served; one that nothing was said about has the defaults."""

from __future__ import annotations

from pistage.core import commands as c
from pistage.core.changes import QueueChanged, QueueSettings
from pistage.core.machine.outcome import Turn
from pistage.errors import Code, PistageError

_PUT = """
INSERT INTO queue (name, priority, run_limit, placing) VALUES (?, ?, ?, ?)
ON CONFLICT (name) DO UPDATE
SET priority = excluded.priority, run_limit = excluded.run_limit, placing = excluded.placing
"""


def put(turn: Turn, command: c.PutQueue) -> dict[str, object]:
    """Serve the queue so from now on; runs that have begun go on."""
    queue = command.queue
    turn.db.execute(_PUT, (queue.name, queue.priority, queue.limit, queue.placing))
    turn.changes.append(QueueChanged(queue))
    return {}


def delete(turn: Turn, command: c.DeleteQueue) -> dict[str, object]:
    """Back to the defaults; runs in it stay."""
    if turn.db.execute("DELETE FROM queue WHERE name = ?", (command.name,)).rowcount == 0:
        raise PistageError(
            Code.NOT_FOUND, f"nothing was said about a queue {command.name!r}", hint="see pistage queue ls"
        )
    turn.changes.append(QueueChanged(QueueSettings(name=command.name)))
    return {}
