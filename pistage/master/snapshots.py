"""Snapshots: one file that holds the state as of an index, made beside the running state, checked part by part.

What a snapshot is of (index, term, membership) is read from the file itself, never from a name or a note beside it.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sqlite3
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from pistage import raft
from pistage.core import codec, machine
from pistage.errors import Code, PistageError
from pistage.master.checksums import damaged
from pistage.master.directories import sync_directory

PART_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What a snapshot is made of: `sha256` of each MiB, in order."""

    index: int
    size: int
    sha256: tuple[str, ...]


class Snapshots:
    """The snapshots that this master offers: the newest one, made when somebody asks for one that is newer."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._lock = threading.Lock()
        shutil.rmtree(directory, ignore_errors=True)  # a state beside them, of another group perhaps: not worth keeping
        self._newest: Manifest | None = None

    def offer(self, state_path: Path, index: int) -> Manifest:
        """A snapshot at `index` or later, made if there is none. Blocks for as long as copying the state takes."""
        with self._lock:
            if self._newest is None or self._newest.index < index:
                self._newest = self._make(state_path)
            return self._newest

    def copy(self, state_path: Path) -> BinaryIO:
        """A snapshot made now, for whoever keeps one elsewhere: it has no name, and goes when it is closed."""
        self._directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self._directory, prefix="copy-") as scratch:
            copy_state(state_path, path := Path(scratch) / "state.db", is_durable=False)
            return path.open("rb", buffering=0)

    def part(self, index: int, number: int) -> bytes:
        """One MiB of the snapshot at `index`; `not_found` once a newer one has replaced it."""
        try:
            with self._path(index).open("rb", buffering=0) as file:
                return os.pread(file.fileno(), PART_BYTES, number * PART_BYTES)
        except FileNotFoundError:
            raise PistageError(Code.NOT_FOUND, f"no snapshot at {index}", hint="ask for the newest one") from None

    def _make(self, state_path: Path) -> Manifest:
        self._directory.mkdir(parents=True, exist_ok=True)
        fresh = self._directory / "new.db"
        fresh.unlink(missing_ok=True)
        index = _copied(state_path, fresh)
        for older in self._directory.glob("[0-9]*.db"):
            older.unlink()
        fresh.replace(self._path(index))
        return manifest_of(self._path(index), index)

    def _path(self, index: int) -> Path:
        return self._directory / f"{index}.db"


def _copied(state_path: Path, to: Path) -> int:
    """Copy the state and look at the copy. DamagedError: it is the state itself that is not whole."""
    try:
        copy_state(state_path, to)
    except sqlite3.DatabaseError as error:
        to.unlink(missing_ok=True)  # a full disk is not to stay full of it
        if error.sqlite_errorcode in {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}:
            raise damaged(state_path, str(error)) from None
        raise PistageError(Code.STORAGE, f"no snapshot can be made: {error}", hint="is the disk full?") from None
    try:
        return contents_of(to).base.index
    except PistageError as error:
        raise damaged(state_path, error.message) from None


def copy_state(state_path: Path, to: Path, *, is_durable: bool = True) -> None:
    """The state as last committed, in one file; the writer goes on meanwhile."""
    db = sqlite3.connect(f"file:{state_path}?mode=ro", uri=True, isolation_level=None)
    try:
        db.execute("PRAGMA wal_autocheckpoint = 0")
        db.execute("VACUUM INTO ?", (str(to),))
    finally:
        db.close()
    if is_durable:
        with to.open("rb") as file:
            os.fsync(file.fileno())
        sync_directory(to.parent)


def contents_of(path: Path) -> raft.SnapInstalled:
    """What is in this file. PistageError `storage` if it is not a whole state."""
    try:
        db = sqlite3.connect(f"file:{path}?mode=ro", uri=True, isolation_level=None)
        try:
            if db.execute("PRAGMA quick_check(1)").fetchone()[0] != "ok":
                raise sqlite3.DatabaseError("quick_check found a fault")
            position = machine.position(db)
        finally:
            db.close()
        config = raft.Config.decode(position.membership.encode())
    except (sqlite3.DatabaseError, ValueError) as error:
        raise PistageError(Code.STORAGE, f"{path} is not a whole state: {error}", hint="fetch it again") from None
    return raft.SnapInstalled(
        base=raft.Base(index=position.index, term=position.term, config=config), digest=position.digest
    )


def manifest_of(path: Path, index: int) -> Manifest:
    """The checksums of a snapshot that lies at `path`."""
    sums = []
    with path.open("rb") as file:
        while part := file.read(PART_BYTES):
            sums.append(hashlib.sha256(part).hexdigest())
    return Manifest(index=index, size=path.stat().st_size, sha256=tuple(sums))


def check_part(manifest: Manifest, number: int, part: bytes) -> None:
    """PistageError `storage` unless these are the bytes that the manifest promises."""
    if hashlib.sha256(part).hexdigest() != manifest.sha256[number]:
        raise PistageError(Code.STORAGE, f"part {number} of the snapshot is damaged", hint="it is fetched again")


def manifest_to_json(manifest: Manifest) -> object:
    """As an answer."""
    return codec.to_jsonable(Manifest, manifest)


def manifest_from_json(text: bytes) -> Manifest:
    """The inverse; PistageError for anything else."""
    manifest: Manifest = codec.from_json(Manifest, text)
    return manifest
