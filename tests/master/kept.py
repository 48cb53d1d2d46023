"""What a store has written down, read from its files."""

from pistage.master import blocks as blocks_of
from pistage.master import records as index_of
from pistage.master.blocks import Block
from pistage.master.logs import LogStore
from pistage.master.records import Record, StreamKey


def records_in(store: LogStore, run_id: str, start: int, count: int) -> list[Record]:
    """Records from number `start` on, at most `count`; empty at the end."""
    return index_of.read_records(store.directory / run_id / "index", start, count)


def blocks_in(store: LogStore, run_id: str) -> list[Block]:
    """What each 1,024 records of the run amount to, as far as that is known."""
    return blocks_of.read(store.directory / run_id / "blocks")


def bytes_in(store: LogStore, run_id: str, key: StreamKey, place: int, length: int) -> bytes:
    """Bytes of one stream from the kept byte `place` on; fewer than `length` at its end."""
    return index_of.read_bytes(store.directory / run_id, key, place, length)
