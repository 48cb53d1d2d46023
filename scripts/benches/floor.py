"""What the disk alone can do: an append made durable, and a commit of one row by SQLite."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path

from benches.load import Load


def append_and_sync(directory: Path, seconds: float) -> Load:
    """Append 512 bytes, then fdatasync."""
    file = os.open(directory / "floor", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_TRUNC)
    entry = os.urandom(512)

    def write() -> None:
        os.write(file, entry)
        os.fdatasync(file)

    try:
        return _repeated(write, seconds)
    finally:
        os.close(file)


def commit_row(directory: Path, seconds: float) -> Load:
    """A row of 512 bytes a transaction, with a write-ahead log and `synchronous = FULL`."""
    path = directory / "floor.db"
    path.unlink(missing_ok=True)
    db = sqlite3.connect(path, isolation_level=None)
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("PRAGMA synchronous = FULL")
    db.execute("CREATE TABLE entries (idx INTEGER PRIMARY KEY, payload BLOB NOT NULL)")
    row = os.urandom(512)
    try:
        return _repeated(lambda: db.execute("INSERT INTO entries (payload) VALUES (?)", (row,)), seconds)
    finally:
        db.close()


def _repeated(write: Callable[[], object], seconds: float) -> Load:
    latencies = []
    started = before = time.perf_counter()
    while before - started < seconds:
        write()
        now = time.perf_counter()
        latencies.append(now - before)
        before = now
    return Load(latencies, before - started)
