"""Layer B: the real state machine on SQLite under the simulator; serialize() and deserialize() are its crashes."""

from __future__ import annotations

import json
import sqlite3
from hashlib import blake2b, sha256

from pistage import raft
from pistage.core import commands as c
from pistage.core import machine
from tests.core.plans import a_plan

_OURS = "CREATE TABLE IF NOT EXISTS simulated (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID"
_VALUE = "SELECT source FROM run WHERE name = ? ORDER BY number DESC LIMIT 1"


class SqliteMachine:
    """A payload `request key value` submits a run named `key` whose document is `value`: a register of runs."""

    def __init__(self, config: raft.Config, image: bytes | None = None) -> None:
        self._db = sqlite3.connect(":memory:", isolation_level=None)
        if image is not None:
            self._db.deserialize(image)
        else:
            self._db.execute("BEGIN")
            machine.create_tables(self._db)
            self._db.execute(_OURS)
            self._keep(0, 0, config, b"")
            self._db.execute("COMMIT")
        self._load()

    def apply(self, entry: raft.Entry) -> bool:
        assert entry.index == self.index + 1, f"{entry.index} applied after {self.index}"
        self._db.execute("BEGIN IMMEDIATE")
        config, outcomes, is_new = self.config, [], False
        if entry.kind is raft.Kind.CONFIG:
            config = raft.Config.decode(entry.payload)
        elif entry.kind is raft.Kind.NORMAL:
            request, key, value = entry.payload.decode().split(" ")
            outcomes = [machine.apply(self._db, entry.index, each) for each in _commands(entry, request, key, value)]
            is_new = outcomes[0].value["is_new"] is True
        told = json.dumps([(dict(each.value), str(each.error)) for each in outcomes], sort_keys=True).encode()
        digest = blake2b(b"%b%d%b%b" % (self.digest, entry.index, entry.payload, told), digest_size=8).digest()
        self._keep(entry.index, entry.term, config, digest)
        machine.set_position(self._db, machine.Position(index=entry.index, term=entry.term))
        self._db.execute("COMMIT")
        self._load()
        assert machine.applied_index(self._db) == self.index
        return is_new

    def value(self, key: str) -> str:
        row = self._db.execute(_VALUE, (key,)).fetchone()
        return "" if row is None else str(row[0])

    def copy(self) -> SqliteMachine:
        return SqliteMachine(self.config, self._db.serialize())

    def contents(self) -> str:
        """A hash of every row of every table: what a chain of digests cannot see."""
        return sha256("\n".join(self._db.iterdump()).encode()).hexdigest()

    def _keep(self, index: int, term: int, config: raft.Config, digest: bytes) -> None:
        rows = {"index": str(index), "term": str(term), "config": config.encode().decode(), "digest": digest.hex()}
        self._db.executemany("INSERT OR REPLACE INTO simulated (key, value) VALUES (?, ?)", rows.items())

    def _load(self) -> None:
        rows = dict(self._db.execute("SELECT key, value FROM simulated").fetchall())
        self.index, self.term = int(rows["index"]), int(rows["term"])
        self.config = raft.Config.decode(rows["config"].encode())
        self.digest = bytes.fromhex(rows["digest"])


def _commands(entry: raft.Entry, request: str, key: str, value: str) -> list[c.Command]:
    """What one payload does: a run that is made once, and an action that gets a version."""
    body = sha256(value.encode()).hexdigest()
    return [
        c.SubmitRun(
            at=entry.index,
            run_id=f"run-{entry.index}",
            project="default",
            owner="client",
            plan=a_plan(name=key),
            source=value,
            request_key=request,
            request_sha256=body,
        ),
        c.PutAction(at=entry.index, project="default", owner="client", name=key, text=value, sha256=body),
    ]
