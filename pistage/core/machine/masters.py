"""The cluster itself: its id, the masters' addresses, and which commands all of them know."""

from __future__ import annotations

import sqlite3
from collections.abc import Collection

from pistage.core import commands as c
from pistage.core.machine import meta
from pistage.core.machine.outcome import Turn
from pistage.errors import Code, PistageError


def found(turn: Turn, command: c.FoundCluster) -> dict[str, object]:
    """Give the cluster its id, once."""
    known = meta.get(turn.db, "cluster_id")
    if known is not None and known != command.cluster_id:
        raise PistageError(Code.CONFLICT, f"this cluster has the id {known} already")
    meta.put(turn.db, {"cluster_id": command.cluster_id})
    return {"cluster_id": command.cluster_id}


def register(turn: Turn, command: c.RegisterMaster) -> dict[str, object]:
    """Note where a master is reached and what it knows."""
    turn.db.execute(
        "INSERT INTO master (id, url, version, command_version, at) VALUES (?, ?, ?, ?, ?)"
        " ON CONFLICT (id) DO UPDATE SET url = excluded.url, version = excluded.version,"
        " command_version = excluded.command_version, at = excluded.at",
        (command.node_id, command.url, command.version, command.command_version, turn.at),
    )
    return {}


def forget_all_but(db: sqlite3.Connection, members: Collection[str]) -> None:
    """The membership has changed: those who are in it no longer need no address."""
    marks = ", ".join("?" * len(members))
    db.execute(f"DELETE FROM master WHERE id NOT IN ({marks})", sorted(members))


def command_version(db: sqlite3.Connection) -> int:
    """The newest version of commands that may be proposed."""
    return int(meta.get(db, "command_version") or 1)


def raise_version(turn: Turn, command: c.RaiseVersion) -> dict[str, object]:
    """Let newer commands come; a lower version than the one in force changes nothing."""
    version = max(command.command_version, command_version(turn.db))
    meta.put(turn.db, {"command_version": str(version)})
    return {"command_version": version}
