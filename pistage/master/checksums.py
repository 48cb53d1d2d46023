"""Checksums of the pages of a SQLite file, kept beside it: a byte that changes on the disk is found at the next start.

SQLite checks what is in its write-ahead log, not what is in the file itself. The file changes in a checkpoint only, and
only its owner makes one, through `checkpoint` here: the sums are written before the log is emptied, so that at every
moment each page of the file has its sum or stands in the log. What counts as standing there is what SQLite will read
from it: frames up to the last commit before the first one that is damaged.
"""

from __future__ import annotations

import errno
import os
import sqlite3
import struct
import sys
import zlib
from array import array
from pathlib import Path

from pistage.errors import Code, PistageError

_HEAD = struct.Struct("<8sIQI")  # magic, page size, mark, number of pages; then a sum a page, then the sum of all that
_MAGIC = b"pistage1"
_WAL_MAGIC, _WAL_HEAD, _FRAME_HEAD = 0x377F0682, 32, 24  # https://www.sqlite.org/fileformat2.html#walformat
_NOT_OF_THE_FILE = {
    sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM, sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_NOMEM,
}  # fmt: skip
_NO_SHARED_MEMORY = {sqlite3.SQLITE_IOERR_SHMOPEN, sqlite3.SQLITE_IOERR_SHMSIZE, sqlite3.SQLITE_IOERR_SHMMAP}
REPLACE_HINT = (
    "this master cannot vote with it; the others go on. `pistage cluster join` with this master's configuration sets"
    " the damaged files aside and brings it back as a new member; a master that is alone needs a snapshot and"
    " `pistage cluster restore`"
)


class _Summed(sqlite3.Connection):
    """A connection to a file with sums. Whoever closes it, or only lets go of it: no sums stay that are wrong then.

    The end of the last connection makes SQLite checkpoint by itself. What was opened is known to be whole, so the sums
    can be made anew at the next start; but those of before would call every page damaged that was moved.
    """

    sums_path: Path | None = None  # none once a checkpoint of ours was the last thing that happened to the file

    def close(self) -> None:
        self._drop_sums()
        super().close()

    def __del__(self) -> None:
        self._drop_sums()

    def _drop_sums(self) -> None:
        if self.sums_path is not None:
            self.sums_path.unlink(missing_ok=True)
            self.sums_path = None  # what stands there later is another connection's


def opened_to_look(path: Path) -> sqlite3.Connection:
    """A connection that changes nothing, at its end neither: to see whether all is whole before it is opened."""
    return sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, isolation_level=None)


class PageSums:
    """The sums of one database file. Not thread-safe: every call comes from the thread that owns the connection."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._sums_path = path.with_name(f"{path.name}-sums")
        self._wal_path = path.with_name(f"{path.name}-wal")
        self._sums: array[int] = array("I")
        self._page_size = 0

    def verify(self) -> int:
        """Check the file before it is opened; the mark of the newest checkpoint, 0 without one.

        PistageError `storage` names the file and what to do.
        """
        if not self._sums_path.exists():
            return 0
        mark = self._read()
        in_log = _pages_that_count(self._wal_path)
        pages = len(self._sums)
        with self.path.open("rb") as file:
            for number in range(1, max(pages, -(-os.fstat(file.fileno()).st_size // self._page_size)) + 1):
                page = file.read(self._page_size)
                if number in in_log:
                    continue
                if number > pages or zlib.crc32(page) != self._sums[number - 1]:
                    raise damaged(self.path, f"its page {number} is not what was written")
        return mark

    def opened(self, *, timeout_s: float = 5.0, cached_statements: int = 128) -> sqlite3.Connection:
        """A connection that writes, once all is known to be whole: to be ended by `close`."""
        db = sqlite3.connect(
            self.path, timeout=timeout_s, isolation_level=None, check_same_thread=False,
            cached_statements=cached_statements, factory=_Summed,
        )  # fmt: skip
        db.sums_path = self._sums_path
        return db

    def checkpoint(self, db: sqlite3.Connection, mark: int) -> bool:
        """Move the log into the file; false while a reader holds it up.

        From now on the database is at `mark` or beyond: what an opened one must not be behind.
        """
        self._page_size = self._page_size or int(db.execute("PRAGMA page_size").fetchone()[0])
        changed = self._pages_in_log()
        if self._sums:  # without any, nothing of the file can be told from damage yet
            # SQLite syncs its log only after this, and a mark must not be durable before what it speaks of.
            self._sync_log()
            self._write(mark)
        busy, in_log, moved = db.execute("PRAGMA wal_checkpoint(FULL)").fetchone()
        if busy or in_log != moved:
            return False
        with self.path.open("rb", buffering=0) as file:
            pages = os.fstat(file.fileno()).st_size // self._page_size
            known = len(self._sums)
            self._sums.extend([0] * (pages - known))
            # A frame that SQLite has dropped, after a loss of power, may name a page that the file never got.
            for number in {number for number in changed if 0 < number <= pages} | set(range(known + 1, pages + 1)):
                page = os.pread(file.fileno(), self._page_size, (number - 1) * self._page_size)
                self._sums[number - 1] = zlib.crc32(page)
        try:
            self._write(mark)
        except OSError:
            # The next write takes the place of what stood in the log, and the sums beside the file are of before.
            self._sums_path.unlink(missing_ok=True)
            raise
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        return True

    @property
    def log_bytes(self) -> int:
        """How large the write-ahead log is."""
        try:
            return self._wal_path.stat().st_size
        except FileNotFoundError:
            return 0

    def close(self, db: sqlite3.Connection, mark: int) -> None:
        """Close the connection, the last one. SQLite makes a checkpoint then: ours comes first, so it finds nothing."""
        try:
            is_done = self.checkpoint(db, mark)
        except (OSError, sqlite3.OperationalError):  # a full disk
            is_done = False
        if is_done and isinstance(db, _Summed):
            db.sums_path = None
        db.close()

    def _sync_log(self) -> None:
        try:
            with self._wal_path.open("rb", buffering=0) as file:
                os.fsync(file.fileno())
        except FileNotFoundError:
            pass

    def _pages_in_log(self) -> set[int]:
        """Every page that a frame names, also one of an earlier round that SQLite reads no more."""
        pages: set[int] = set()
        try:
            with self._wal_path.open("rb", buffering=0) as file:
                at, end = _WAL_HEAD, os.fstat(file.fileno()).st_size
                page_size = self._page_size or int.from_bytes(os.pread(file.fileno(), 4, 8), "big")
                while at + _FRAME_HEAD <= end:
                    pages.add(int.from_bytes(os.pread(file.fileno(), 4, at), "big"))
                    at += _FRAME_HEAD + page_size
        except FileNotFoundError:
            pass
        return pages

    def _read(self) -> int:
        raw = self._sums_path.read_bytes()
        body, check = raw[:-4], raw[-4:]
        if len(raw) < _HEAD.size + 4 or zlib.crc32(body).to_bytes(4, "little") != check or body[:8] != _MAGIC:
            raise damaged(self._sums_path, "it is not what was written")
        _, self._page_size, mark, pages = _HEAD.unpack_from(body)
        self._sums = array("I")
        self._sums.frombytes(body[_HEAD.size :])
        if len(self._sums) != pages:
            raise damaged(self._sums_path, "it is cut off")
        return int(mark)

    def _write(self, mark: int) -> None:
        body = _HEAD.pack(_MAGIC, self._page_size, mark, len(self._sums)) + self._sums.tobytes()
        fresh = self._sums_path.with_name(f"{self._sums_path.name}.new")
        with fresh.open("wb") as file:
            file.write(body + zlib.crc32(body).to_bytes(4, "little"))
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(self._sums_path)


def _pages_that_count(wal_path: Path) -> set[int]:
    """The pages that SQLite will take from the log: those of whole transactions before the first damaged frame."""
    try:
        raw = wal_path.read_bytes()
    except FileNotFoundError:
        return set()
    magic, page_size = int.from_bytes(raw[:4], "big"), int.from_bytes(raw[8:12], "big")
    if magic not in {_WAL_MAGIC, _WAL_MAGIC | 1} or len(raw) < _WAL_HEAD:
        return set()
    sums_are_big = bool(magic & 1)
    running = _wal_sum((0, 0), raw[:24], sums_are_big)
    pages: set[int] = set()
    pending: set[int] = set()
    if raw[24:32] != struct.pack(">II", *running):
        return pages
    for at in range(_WAL_HEAD, len(raw) - _FRAME_HEAD - page_size + 1, _FRAME_HEAD + page_size):
        number, commit = struct.unpack_from(">II", raw, at)
        page = raw[at + _FRAME_HEAD : at + _FRAME_HEAD + page_size]
        running = _wal_sum(running, raw[at : at + 8] + page, sums_are_big)
        if raw[at + 8 : at + 16] != raw[16:24] or raw[at + 16 : at + 24] != struct.pack(">II", *running):
            break
        pending.add(number)
        if commit:
            pages |= pending
            pending.clear()
    return pages


def _wal_sum(before: tuple[int, int], data: bytes, is_big: bool) -> tuple[int, int]:
    words = array("I", data)
    if is_big is not (sys.byteorder == "big"):
        words.byteswap()
    first, second = before
    pairs = iter(words)
    for even, odd in zip(pairs, pairs, strict=True):
        first = (first + even + second) & 0xFFFFFFFF
        second = (second + odd + first) & 0xFFFFFFFF
    return first, second


class DamagedError(PistageError):
    """A master's files are not what it wrote: it can go on, or start, with none of them."""


def damaged(path: Path, what: str) -> DamagedError:
    """The refusal of a master whose files are not what it wrote."""
    return DamagedError(Code.STORAGE, f"{path} is damaged: {what}", hint=REPLACE_HINT)


def unopened(path: Path, error: sqlite3.DatabaseError) -> PistageError:
    """The refusal of a master that could not open this file: only what is not the disk's, or the user's, is damage."""
    if is_full(error):
        return PistageError(Code.STORAGE, f"{path} cannot be opened: its disk is full", hint="free some space on it")
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR)
    if code & 0xFF in _NOT_OF_THE_FILE or code in _NO_SHARED_MEMORY:
        hint = "see who owns the data directory, whether it can be written to, and who else has the file open"
        return PistageError(Code.STORAGE, f"{path} cannot be opened: {error}", hint=hint)
    return damaged(path, str(error))


def is_full(error: Exception) -> bool:
    """Whether this says that the disk has no space left; anything else of a disk's is beyond repair."""
    if isinstance(error, sqlite3.OperationalError):
        return error.sqlite_errorcode == sqlite3.SQLITE_FULL
    return isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT}
