"""Plain values and commands as msgpack; the clock and the ids that they carry."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import Any

import msgpack

from pistage.core import codec, ids
from pistage.core.commands import Command
from pistage.errors import Code, PistageError


def now_ms() -> int:
    """Milliseconds UTC, for values that people read or that enter the log."""
    return time.time_ns() // 1_000_000


def new_id() -> str:
    """A fresh id."""
    return ids.make_id(now_ms(), os.urandom(10))


def pack_command(command: Command) -> bytes:
    """The payload of a log entry; PistageError `invalid` for values that cannot be in one."""
    try:
        return pack_value(codec.to_plain(Command, command))
    except (OverflowError, ValueError) as error:  # a number of more than 64 bits, what is nested too deep
        raise PistageError(Code.INVALID, f"it has a value that cannot be kept: {str(error)[:200]}") from None


def unpack_command(payload: bytes) -> Command:
    """The command in a log entry; PistageError `invalid` for one this version does not know."""
    command: Command = codec.from_plain(Command, unpack_value(payload))
    return command


def pack_value(value: Any) -> bytes:
    """Plain values (no dataclass) as msgpack."""
    packed: bytes = msgpack.packb(value, use_bin_type=True)
    return packed


def pack_with_bytes(values: Sequence[Any], data: bytes) -> bytes:
    """`pack_value([*values, data])`, of at most 14 values, with one copy of the data where msgpack makes four."""
    head = pack_value(list(values))
    count = bytes([head[0] + 1])  # an array of up to 15 begins with 0x90 and its length
    return b"".join((count, memoryview(head)[1:], b"\xc6", len(data).to_bytes(4, "big"), data))


def unpack_value(raw: bytes) -> Any:
    """What `pack_value` packed; PistageError `invalid` for anything else."""
    try:
        return msgpack.unpackb(raw, raw=False)
    except (ValueError, msgpack.UnpackException) as error:
        raise PistageError(Code.INVALID, f"not msgpack: {error}") from None
