"""Registered actions: every version kept, the newest one meant by its name."""

from __future__ import annotations

from pistage.core import commands as c
from pistage.core.machine.outcome import Turn
from pistage.errors import Code, PistageError

_NEWEST = "SELECT version, sha256 FROM action WHERE project = ? AND name = ? ORDER BY version DESC LIMIT 1"
_INSERT = "INSERT INTO action (project, name, version, sha256, text, owner, at) VALUES (?, ?, ?, ?, ?, ?, ?)"


def put(turn: Turn, command: c.PutAction) -> dict[str, object]:
    """A new version, unless the newest one has this text already."""
    newest = turn.db.execute(_NEWEST, (command.project, command.name)).fetchone()
    if newest is not None and newest[1] == command.sha256:
        return {"version": newest[0], "is_new": False}
    version = 1 if newest is None else newest[0] + 1
    row = (command.project, command.name, version, command.sha256, command.text, command.owner, command.at)
    turn.db.execute(_INSERT, row)
    turn.has_new_actions = True
    return {"version": version, "is_new": True}


def delete(turn: Turn, command: c.DeleteAction) -> dict[str, object]:
    """Forget all versions; plans that were made from them are whole without them."""
    gone = turn.db.execute("DELETE FROM action WHERE project = ? AND name = ?", (command.project, command.name))
    if gone.rowcount == 0:
        raise PistageError(Code.NOT_FOUND, f"no registered action {command.name!r}", hint="see pistage action ls")
    turn.has_new_actions = True
    return {"versions": gone.rowcount}
