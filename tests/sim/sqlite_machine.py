"""Layer B: the real state machine on SQLite under the simulator; serialize() and deserialize() are its crashes."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping
from hashlib import blake2b, sha256

from pistage import raft, wire
from pistage.core import commands as c
from pistage.core import machine
from pistage.core.plan import Backoff, FailureClass, Plan, Retry
from tests.core.plans import a_plan, a_task
from tests.sim.machine import KNOWS, RAISE, words_of

_VALUE = "SELECT source FROM run WHERE name = ? ORDER BY number DESC LIMIT 1"
_OUTCOMES_KEPT = 500
_RETRY = Retry(
    limits={FailureClass.LOST: 20, FailureClass.FAILURE: 1},
    backoff=Backoff(initial_s=0.3, factor=1.5, max_s=2.0, jitter=0.5),
)


class SqliteMachine:
    """A write submits a run named `key` whose document is `value`: a register of runs. Packed commands come as such."""

    def __init__(self, config: raft.Config, image: bytes | None = None) -> None:
        self.db = sqlite3.connect(":memory:", isolation_level=None)
        self.outcomes: dict[int, machine.Outcome] = {}  # of the newest entries, for who proposed them
        self.is_rotten = False
        if image is not None:
            self.db.deserialize(image)
        else:
            self.db.execute("BEGIN")
            machine.create_tables(self.db)
            machine.set_position(self.db, machine.Position(membership=config.encode().decode()))
            self.db.execute("COMMIT")
        self._load()

    def apply(self, entry: raft.Entry) -> bool:
        assert entry.index == self.index + 1, f"{entry.index} applied after {self.index}"
        self.db.execute("BEGIN IMMEDIATE")
        config, at, outcomes = self.config, self.at, []
        if entry.kind is raft.Kind.CONFIG:
            config = raft.Config.decode(entry.payload)
            machine.forget_all_but(self.db, config.members)
        elif entry.kind is raft.Kind.NORMAL:
            for command in commands_in(entry):
                outcomes.append(machine.apply(self.db, entry.index, command))
                at = max(at, command.at)
        told = json.dumps([(dict(each.value), str(each.error)) for each in outcomes], sort_keys=True).encode()
        digest = blake2b(b"%b%d%b%b" % (self.digest, entry.index, entry.payload, told), digest_size=8).digest()
        membership = config.encode().decode()
        machine.set_position(
            self.db,
            machine.Position(index=entry.index, term=entry.term, digest=digest, at=at, membership=membership),
        )
        self.db.execute("COMMIT")
        self._load()
        if outcomes:
            self.outcomes[entry.index] = outcomes[0]
            if len(self.outcomes) > _OUTCOMES_KEPT:
                del self.outcomes[next(iter(self.outcomes))]
        return bool(outcomes) and outcomes[0].value.get("is_new") is True

    @property
    def known(self) -> Mapping[str, int]:
        return dict(self.db.execute("SELECT id, command_version FROM master").fetchall())

    def value(self, key: str) -> str:
        row = self.db.execute(_VALUE, (key,)).fetchone()
        return "" if row is None else str(row[0])

    def rot(self) -> None:
        self.is_rotten, self.digest = True, b"rotten"

    def copy(self) -> SqliteMachine:
        twin = SqliteMachine(self.config, self.db.serialize())
        twin.is_rotten, twin.digest = self.is_rotten, self.digest
        return twin

    def contents(self) -> str:
        """A hash of every row of every table: what a chain of digests cannot see."""
        return sha256("\n".join(self.db.iterdump()).encode()).hexdigest()

    def _load(self) -> None:
        position = machine.position(self.db)
        self.index, self.term, self.at, self.digest = position.index, position.term, position.at, position.digest
        self.config = raft.Config.decode(position.membership.encode())
        self.version = machine.command_version(self.db)


def commands_in(entry: raft.Entry) -> list[c.Command]:
    """What one payload does: a command as it is, or what stands for the words of a client."""
    if entry.payload[0] >= 0x80:  # a map of msgpack, and no text
        return [wire.unpack_command(entry.payload)]
    words = words_of(entry.payload)
    if words[0] == KNOWS:
        name, version = words[1], int(words[2])
        return [c.RegisterMaster(at=0, node_id=name, url=name, version=words[2], command_version=version)]
    if words[0] == RAISE:
        return [c.RaiseVersion(at=0, command_version=int(words[1]))]
    return _submission(entry.index, words[0], words[1], words[2], int(words[3]))


def _submission(index: int, request: str, key: str, value: str, at: int) -> list[c.Command]:
    """A run that is made once, and an action that gets a version."""
    body = sha256(value.encode()).hexdigest()
    return [
        c.SubmitRun(
            at=at,
            run_id=f"run-{index}",
            project="default",
            owner="client",
            plan=_PLANS[int(body[0], 16) % len(_PLANS)](key),
            source=value,
            request_key=request,
            request_sha256=body,
        ),
        c.PutAction(at=at, project="default", owner="client", name=key, text=value, sha256=body),
    ]


def _one(key: str) -> Plan:
    return a_plan(a_task(retry=_RETRY), name=key)


def _two(key: str) -> Plan:
    return a_plan(a_task("first", retry=_RETRY), a_task("second", needs=("first",), retry=_RETRY), name=key)


_PLANS = (_one, _one, _two)
