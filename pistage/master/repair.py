"""Work on the directory of a master that does not run: into a group, out of a snapshot, out of a lost majority.

Nothing is deleted: what is replaced is moved aside, for whoever wants to look at it. Every master that is made here has
an id that was never used before: one that came back without its memory could vote twice.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from pistage import raft, wire
from pistage.core import limits, machine
from pistage.errors import Code, PistageError
from pistage.master.checksums import damaged
from pistage.master.directories import locked, sync_directory
from pistage.master.promises import promised_term
from pistage.master.snapshots import contents_of, copy_state
from pistage.master.state import State
from pistage.master.store import DurableLog, Identity

#: What a master's directory holds: what is moved aside when the master is replaced, and what stays.
_REPLACED: Final = ("raft.*", "founding", "state", "snapshots")
_KEPT: Final = ("lock", "logs", "damaged-*", "before-*", "lost+found")
#: A group that begins from an older state goes on beyond every index that the one before it can have reached: who
#: remembers an index of that one, to resume a stream or to wait for a change, is not misled. Its terms go beyond as
#: well: the masters keep their output, have promised to take none from a leader of an earlier term, and compare by it.
_LIFE: Final = 10**12
_COPY_BYTES: Final = 1 << 20
_SHA256_BYTES: Final = 32  # at the end of a snapshot that came through the API; no page of SQLite is that small


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """A group of masters as it describes itself: its id, and its members' ids and URLs."""

    group_id: str
    members: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Holding:
    """What a directory holds that is whole: a log, and the state that belongs to it."""

    identity: Identity
    membership: raft.Config
    masters: Mapping[str, str]  # id -> URL, as far as the state knows
    applied_index: int
    last_index: int
    last_term: int
    term: int
    generation: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """A master that can be started now; `aside` is where the former data went."""

    identity: Identity
    index: int = 0
    aside: Path | None = None


@contextmanager
def held(data_dir: Path) -> Iterator[None]:
    """Hold the directory; PistageError `usage` for one of something else, `conflict` while a master has it open."""
    known = [path for pattern in (*_REPLACED, *_KEPT) for path in data_dir.glob(pattern)]
    if data_dir.is_dir() and (strangers := sorted(set(data_dir.iterdir()) - set(known))):
        raise PistageError(
            Code.USAGE,
            f"{data_dir} is not the directory of a master: it holds {strangers[0].name}",
            hint="give the master's configuration with --config, or its --data-dir",
        )
    with locked(data_dir):
        yield


def examine(data_dir: Path) -> Holding | None:
    """What a held directory holds; None if nothing. PistageError `storage` for what is damaged or not all there."""
    path = data_dir / "raft.db"
    if not path.exists():
        left = [one for pattern in _REPLACED for one in data_dir.glob(pattern) if one.name != "founding"]
        if left:
            raise damaged(path, f"it is gone, but {left[0]} is there")
        return None
    try:
        with closing(DurableLog(path)) as log:
            return _holding(data_dir, log)
    except (sqlite3.Error, OSError, ValueError, TypeError, KeyError) as error:
        raise damaged(path, str(error)) from None


def _holding(data_dir: Path, log: DurableLog) -> Holding:
    path = _state_path(data_dir, log.generation)
    applied, masters = 0, dict(log.identity.founders)
    if path.exists():
        with closing(State(path)) as state:
            applied = state.position.index
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as db:
            masters |= dict(db.execute("SELECT id, url FROM master ORDER BY id").fetchall())
    elif log.last_index > 0:
        raise damaged(path, "it is gone")
    if not log.base.index <= applied <= log.last_index:
        raise damaged(path, f"it is at index {applied}, but raft.db covers {log.base.index} to {log.last_index}")
    changes = [entry for entry in log.entries if entry.kind is raft.Kind.CONFIG]
    return Holding(
        identity=log.identity,
        membership=raft.Config.decode(changes[-1].payload) if changes else log.base.config,
        masters=masters,
        applied_index=applied,
        last_index=log.last_index,
        last_term=log.entries[-1].term if log.entries else log.base.term,
        term=log.hard_state.term,
        generation=log.generation,
    )


# --- into a group ----------------------------------------------------------------------------------------------------


def join(data_dir: Path, group: Group, *, is_replaced: bool) -> Made:
    """Make a master that asks the group to let it in when it is started; call with the directory held.

    PistageError `conflict` where the directory holds a master that is whole, unless that `is_replaced`.
    """
    try:
        holding = examine(data_dir)
    except PistageError as error:
        if error.code is not Code.STORAGE:
            raise
        holding = None  # damaged: that is what this is for
    if holding is not None and not is_replaced:
        if holding.identity.group_id == group.group_id and not holding.membership.members:
            return Made(identity=holding.identity)
        _refuse_whole(data_dir, holding, group)
    aside = _set_aside(data_dir, "damaged")
    identity = Identity(node_id=wire.new_id(), group_id=group.group_id, founders=dict(group.members))
    DurableLog.create(data_dir / "raft.db", identity, raft.Base())
    return Made(identity=identity, aside=aside)


def _refuse_whole(data_dir: Path, holding: Holding, group: Group) -> None:
    """A member that the group has removed is out of it, whatever it knows of that itself."""
    node_id = holding.identity.node_id
    if holding.identity.group_id != group.group_id:
        raise PistageError(
            Code.CONFLICT,
            f"{data_dir} holds master {node_id}, which is whole, of another group of masters",
            hint="check peers and data_dir; to leave that group for this one, add --replace",
        )
    if node_id in group.members:
        raise PistageError(
            Code.CONFLICT,
            f"{data_dir} holds master {node_id}, which is whole, and a member of the group",
            hint="start it; to bring it back with fresh data all the same, add --replace",
        )


def _set_aside(data_dir: Path, word: str) -> Path | None:
    """Move all that belongs to the former master away; None if there is nothing."""
    found = sorted(path for pattern in _REPLACED for path in data_dir.glob(pattern))
    if not found:
        return None
    aside = _fresh_directory(data_dir, word)
    for path in found:
        path.rename(aside / path.name)
    sync_directory(aside)
    sync_directory(data_dir)
    return aside


def _fresh_directory(data_dir: Path, word: str) -> Path:
    at = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%fZ")
    made = data_dir / f"{word}-{at}"
    made.mkdir(mode=0o700)
    return made


# --- out of a snapshot -----------------------------------------------------------------------------------------------


def restore(data_dir: Path, snapshot: Path, url: str) -> Made:
    """Make a master that is a group of its own and begins with the state in `snapshot`; the directory held, and empty.

    PistageError `storage` for a snapshot that is damaged, `conflict` for a directory with something in it.
    """
    if left := sorted(path for path in data_dir.iterdir() if path.name not in {"lock", "logs", "lost+found"}):
        raise PistageError(
            Code.CONFLICT,
            f"{data_dir} is not empty: it holds {left[0].name}",
            hint="restore into a directory of its own; what is there may be all that is left",
        )
    path = _state_path(data_dir, 1)
    path.parent.mkdir(parents=True)
    try:
        _unpack(snapshot, path)
        contents_of(path)
        identity, base = _begin_again(path, url, term=promised_term(data_dir / "logs"))
    except BaseException:
        shutil.rmtree(data_dir / "state", ignore_errors=True)
        raise
    sync_directory(data_dir / "state")
    DurableLog.create(data_dir / "raft.db", identity, base, term=base.term)
    return Made(identity=identity, index=base.index)


def is_sealed(snapshot: Path) -> bool:
    """Whether the file ends with the check sum that the API gives it. A bare state.db has none, and may be restored."""
    try:
        return snapshot.stat().st_size % 512 == _SHA256_BYTES
    except OSError as error:
        raise PistageError(Code.USAGE, f"cannot read {snapshot}: {error.strerror}") from None


def _unpack(snapshot: Path, to: Path) -> None:
    """Lay the state in a snapshot at `to`, checked."""
    if not is_sealed(snapshot):
        try:
            copy_state(snapshot.absolute(), to)
        except sqlite3.Error as error:
            raise PistageError(Code.STORAGE, f"{snapshot} is no snapshot: {error}") from None
        return
    digest, left = hashlib.sha256(), snapshot.stat().st_size - _SHA256_BYTES
    with snapshot.open("rb") as source, to.open("xb") as target:
        while left and (piece := source.read(min(left, _COPY_BYTES))):
            left -= len(piece)
            digest.update(piece)
            target.write(piece)
        if source.read() != digest.digest():
            raise PistageError(
                Code.STORAGE, f"{snapshot} is damaged: its check sum is wrong", hint="take an older snapshot"
            )
        target.flush()
        os.fsync(target.fileno())
    sync_directory(to.parent)


def _begin_again(path: Path, url: str, *, term: int) -> tuple[Identity, raft.Base]:
    """Make the state at `path` the beginning of a group of one, in a later term than `term`: who it is, and where."""
    node_id = wire.new_id()
    config = raft.Config(voters=(node_id,))
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("BEGIN IMMEDIATE")
        former = machine.position(db)
        index, term = ((last // _LIFE + 1) * _LIFE for last in (former.index, max(former.term, term)))
        base = raft.Base(index=index, term=term, config=config)
        machine.set_position(db, replace(former, index=base.index, term=base.term, membership=config.encode().decode()))
        machine.forget_all_but(db, config.members)
        db.execute("COMMIT")
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    path.with_name(f"{path.name}-sums").unlink(missing_ok=True)  # made anew when the state is opened
    with path.open("rb") as file:
        os.fsync(file.fileno())
    sync_directory(path.parent)
    return Identity(node_id=node_id, group_id=wire.new_id(), founders={node_id: url}), base


# --- out of a lost majority ------------------------------------------------------------------------------------------


def recover(data_dir: Path, url: str) -> Made:
    """Make the master in this held directory a group of its own, with all that its log holds, committed or not.

    PistageError `storage` if it is damaged itself.
    """
    holding = examine(data_dir)
    if holding is None:
        raise nothing_in(data_dir)
    generation = holding.generation + 1
    former, path = _state_path(data_dir, holding.generation), _state_path(data_dir, generation)
    shutil.rmtree(path.parent, ignore_errors=True)
    path.parent.mkdir(parents=True)
    _bring_up(data_dir / "raft.db", former, path)
    promised = promised_term(data_dir / "logs")
    identity, base = _begin_again(path, url, term=max(holding.term, holding.last_term, promised))
    sync_directory(data_dir / "state")
    aside = _fresh_directory(data_dir, "before-recovery")
    for name in ("raft.db", "raft.db-sums", "raft.mark"):
        if (data_dir / name).exists():
            os.link(data_dir / name, aside / name)
    sync_directory(aside)
    # From here on the directory is that of the new group: the log appears in one step.
    DurableLog.create(data_dir / "raft.db", identity, base, term=base.term, generation=generation)
    if former.exists():
        (aside / "state").mkdir()
        former.parent.rename(aside / "state" / former.parent.name)
    sync_directory(data_dir / "state")
    return Made(identity=identity, index=base.index, aside=aside)


def _bring_up(log_path: Path, former: Path, path: Path) -> None:
    """Copy the state and apply the rest of the log to the copy: the former one stays as it is."""
    if former.exists():
        copy_state(former, path)
    with closing(DurableLog(log_path)) as log, closing(State(path)) as state:
        entries = [entry for entry in log.entries if entry.index > state.position.index]
        try:
            for at in range(0, len(entries), limits.APPLY_BATCH_MAX):
                state.apply(entries[at : at + limits.APPLY_BATCH_MAX])
        except RuntimeError as error:  # a command of a later version
            raise PistageError(
                Code.STORAGE, str(error), hint="recover with the newest version of Pistage that ran here"
            ) from None


def nothing_in(data_dir: Path) -> PistageError:
    """For a directory in which no master has ever been."""
    return PistageError(
        Code.NOT_FOUND, f"{data_dir} holds no master", hint="give its configuration with --config, or its --data-dir"
    )


def _state_path(data_dir: Path, generation: int) -> Path:
    return data_dir / "state" / str(generation) / "state.db"
