"""A snapshot of the cluster's state, brought into a file: whole and as the master sent it, or not at all."""

from __future__ import annotations

import asyncio
import hashlib
import os
from pathlib import Path
from typing import BinaryIO, Final

from pistage.client.transport import BROKEN, Request, Transport
from pistage.errors import Code, PistageError

#: The end of a snapshot: the SHA-256 of everything before it.
TRAILER_BYTES: Final = hashlib.sha256().digest_size
_PIECE_BYTES: Final = 1 << 20


async def save_snapshot(transport: Transport, request: Request, path: Path) -> int:
    """Write the snapshot that `request` gives to `path`, in place of what is there; its size.

    PistageError `storage` where the disk refuses it, or it arrived damaged.
    """
    patience = transport.patience()
    while True:
        try:
            return await _save_once(transport, request, path)
        except BROKEN as error:  # cut in the middle: the next one is another snapshot, from its beginning
            if patience.is_over():
                raise PistageError(
                    Code.UNAVAILABLE, f"the snapshot broke off: {error or type(error).__name__}", hint="try again"
                ) from None
            await patience.pause()


async def _save_once(transport: Transport, request: Request, path: Path) -> int:
    async with transport.open(request) as response:
        fresh = path.with_name(f".{path.name}.{os.getpid()}.part")
        try:
            file = _File(fresh)
            try:
                async for piece in response.content.iter_chunked(_PIECE_BYTES):
                    await asyncio.to_thread(file.take, piece)
                await asyncio.to_thread(file.finish)
            finally:
                file.close()
            fresh.replace(path)
        except OSError as error:
            if isinstance(error, BROKEN):
                raise
            raise PistageError(Code.STORAGE, f"cannot write {path}: {error.strerror}") from None
        finally:
            fresh.unlink(missing_ok=True)
    return file.size


class _File:
    """What has come so far; the last bytes are held back, for they are the check sum of the others."""

    def __init__(self, path: Path) -> None:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        self._file: BinaryIO = os.fdopen(fd, "wb")
        self._digest = hashlib.sha256()
        self._tail = b""
        self.size = 0

    def take(self, piece: bytes) -> None:
        """The next bytes."""
        self._file.write(piece)
        self.size += len(piece)
        self._tail += piece
        self._digest.update(self._tail[:-TRAILER_BYTES])
        self._tail = self._tail[-TRAILER_BYTES:]

    def finish(self) -> None:
        """Make it durable; PistageError `storage` unless it is what was sent."""
        if self._digest.digest() != self._tail:
            raise PistageError(Code.STORAGE, "the snapshot arrived damaged: its check sum is wrong", hint="try again")
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()
