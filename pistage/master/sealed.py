"""Sealed files: all streams of an attempt that is over, compressed in blocks, written once and read anywhere.

    magic | blocks, stream after stream | directory | check sum and length of the directory, magic

The directory says of each stream its length and SHA-256, and of each of its blocks where it stands, its codec and the
check sum of what stands there. So every byte of the file is accounted for, and a read touches the blocks that it needs.

Of a file that went to an archive a stub is left, the same without its blocks: it says where they are.

    magic | lengths of two names, URL of the archive, name in it, directory | check sum and length of these, magic
"""

from __future__ import annotations

import hashlib
import os
import shutil
import struct
import threading
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import BinaryIO, Final

from pistage.core import limits
from pistage.errors import Code, PistageError
from pistage.master.archive import archive_at
from pistage.master.directories import sync_directory
from pistage.wire.codecs import Codec, compress, decompress

BLOCK_BYTES: Final = 256 * limits.KIB  # a line costs the reading of one: half a millisecond; twice as much saves 2 %
_MAGIC = b"sealed1\n"
_STUB_MAGIC = b"stub..1\n"
_NAMES = struct.Struct("<HH")
_STREAM = struct.Struct("<HBxIQ32s")  # step, stream, number of blocks, length, SHA-256; then its blocks
_BLOCK = struct.Struct("<QIIB")  # offset in the file, length there, its CRC32, codec
_TAIL = struct.Struct("<IQ8s")  # CRC32 and length of the directory, magic
_DIRECTORY_BYTES_MAX = 64 * limits.MIB  # that of a stream of a terabyte, or of all steps that a plan can have
_SYNC_BYTES = 8 * limits.MIB  # what the disk has to do at the end, while output of others waits for it
_RECENT_BLOCKS = 64  # 16 MiB, of all files together
_OPEN_FILES = 64

Part = tuple[str, int]  # step, stream (1 stdout, 2 stderr)


@dataclass(frozen=True, slots=True)
class Source:
    """A plain file with the bytes of a stream, of which the first `length` are sealed."""

    step: str
    stream: int
    path: Path
    length: int

    @property
    def part(self) -> Part:
        return (self.step, self.stream)


@dataclass(frozen=True, slots=True)
class Sealed:
    """A stream of a sealed file: its bytes, and the SHA-256 of them all as hex."""

    length: int
    sha256: str


@dataclass(frozen=True, slots=True)
class _Stream:
    length: int
    sha256: bytes
    blocks: bytes  # as they stand in the directory


def write(
    path: Path, sources: Sequence[Source], *, codec: Codec, between: Callable[[], None] = lambda: None
) -> dict[Part, Sealed]:
    """Make the file at `path`, durable as far as its bytes go; the caller moves it to its place and syncs that.

    `between` is called after each block; what it raises ends the work. Of work that ended early nothing is left.
    PistageError `storage` where a plain file holds less than it should.
    """
    try:
        with _private_file(path) as file:
            writer = _Writer(file.fileno())
            streams = [(source, writer.take(source, codec, between)) for source in sources]
            writer.finish(streams)
            os.fsync(file.fileno())
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    return {source.part: Sealed(stream.length, stream.sha256.hex()) for source, stream in streams}


def _private_file(path: Path) -> BinaryIO:
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o640), "wb")


class _Writer:
    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._at = self._synced = 0
        self._put(_MAGIC)

    def _put(self, data: bytes | memoryview) -> None:
        view = memoryview(data)
        self._at += len(view)
        while view:
            view = view[os.write(self._fd, view) :]
        if self._at - self._synced >= _SYNC_BYTES:
            os.fdatasync(self._fd)
            self._synced = self._at

    def take(self, source: Source, codec: Codec, between: Callable[[], None]) -> _Stream:
        digest, blocks = hashlib.sha256(), bytearray()
        with source.path.open("rb", buffering=0) as file:
            for at in range(0, source.length, BLOCK_BYTES):
                data = os.pread(file.fileno(), min(BLOCK_BYTES, source.length - at), at)
                if len(data) < min(BLOCK_BYTES, source.length - at):
                    raise PistageError(
                        Code.STORAGE, f"{source.path} holds {at + len(data):,} bytes of {source.length:,}"
                    )
                digest.update(data)
                used, packed = _packed(codec, data)
                blocks += _BLOCK.pack(self._at, len(packed), zlib.crc32(packed), used)
                self._put(packed)
                between()
        return _Stream(source.length, digest.digest(), bytes(blocks))

    def finish(self, streams: Sequence[tuple[Source, _Stream]]) -> None:
        directory = b"".join(
            _STREAM.pack(
                int(source.step), source.stream, len(stream.blocks) // _BLOCK.size, stream.length, stream.sha256
            )
            + stream.blocks
            for source, stream in streams
        )
        self._put(directory + _TAIL.pack(zlib.crc32(directory), len(directory), _MAGIC))


def _packed(codec: Codec, data: bytes) -> tuple[Codec, bytes]:
    packed = compress(codec, data)
    # Read back at once: the plain bytes are removed after this.
    if len(packed) >= len(data) or decompress(codec, packed, len(data)) != data:
        return Codec.RAW, data
    return codec, packed


class SealedFile:
    """Any thread may read. Closed when nobody has it any more: a reader in another thread may be in the middle."""

    def __init__(self, path: Path, fd: int) -> None:
        """See `open`."""
        self.path = path
        self._fd = fd
        self._number = next(_numbers)
        status = os.fstat(fd)
        self.identity = _identity(status)
        self._archived, directory = _checked(path, fd, status.st_size)
        self._streams = _parsed(path, directory)

    @classmethod
    def open(cls, path: Path) -> SealedFile:
        """Read the directory of the file; FileNotFoundError where there is none, PistageError `storage` for damage."""
        return cls(path, os.open(path, os.O_RDONLY | os.O_CLOEXEC))

    def __del__(self) -> None:
        os.close(self._fd)

    def length(self, step: str, stream: int) -> int:
        """How many bytes of a stream are in it."""
        found = self._streams.get((step, stream))
        return found.length if found else 0

    @property
    def streams(self) -> Mapping[Part, Sealed]:
        """What is in it."""
        return {part: Sealed(stream.length, stream.sha256.hex()) for part, stream in self._streams.items()}

    def read(self, step: str, stream: int, offset: int, length: int) -> bytes:
        """Bytes of a stream; fewer than `length` at its end, none of one that is not here.

        PistageError `storage` for damage.
        """
        part = (step, stream)
        found = self._streams.get(part)
        if found is None:
            return b""
        end = min(found.length, offset + length)
        pieces = []
        while offset < end:
            number, start = divmod(offset, BLOCK_BYTES)
            stop = min(BLOCK_BYTES, start + end - offset)
            # A block that is read whole is not read again soon.
            is_whole = start == 0 and stop == BLOCK_BYTES
            block = self._block(part, found, number) if is_whole else self._recent_block(part, found, number)
            pieces.append(block if is_whole else block[start:stop])
            offset += stop - start
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def blocks(self, step: str, stream: int) -> Iterator[bytes]:
        """All bytes of a stream, a block at a time. PistageError `storage` for damage."""
        if found := self._streams.get((step, stream)):
            for number in range(len(found.blocks) // _BLOCK.size):
                yield self._block((step, stream), found, number)

    def _recent_block(self, part: Part, stream: _Stream, number: int) -> bytes:
        key = (self._number, part, number)
        block = _recent.get(key)
        if block is None:
            block = self._block(part, stream, number)
            _recent.put(key, block)
        return block

    def _block(self, part: Part, stream: _Stream, number: int) -> bytes:
        offset, length, check, codec = _BLOCK.unpack_from(stream.blocks, number * _BLOCK.size)
        expected = min(BLOCK_BYTES, stream.length - number * BLOCK_BYTES)
        try:
            packed = self._stored(offset, length)
        except OSError as error:
            raise self._damaged(part, number, error.strerror or str(error)) from None
        if zlib.crc32(packed) != check:
            raise self._damaged(part, number, "its check sum is wrong")
        try:
            data = decompress(codec, packed, expected)
        except PistageError as error:
            raise self._damaged(part, number, str(error)) from None
        if len(data) != expected:
            raise self._damaged(part, number, "it is too short")
        return data

    def _stored(self, offset: int, length: int) -> bytes:
        if self._archived is None:
            return os.pread(self._fd, length, offset)
        url, name = self._archived
        return archive_at(url).read(name, offset, length)

    def _damaged(self, part: Part, number: int, why: str) -> PistageError:
        return _damaged(self.path, f"step {part[0]}, stream {part[1]}, block {number}: {why}")


class _Recent:
    """Blocks that small reads have just touched, of any file."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._blocks: OrderedDict[tuple[int, Part, int], bytes] = OrderedDict()

    def get(self, key: tuple[int, Part, int]) -> bytes | None:
        with self._lock:
            if key in self._blocks:
                self._blocks.move_to_end(key)
            return self._blocks.get(key)

    def put(self, key: tuple[int, Part, int], block: bytes) -> None:
        with self._lock:
            self._blocks[key] = block
            while len(self._blocks) > _RECENT_BLOCKS:
                self._blocks.popitem(last=False)


_numbers = count()
_recent = _Recent()


def _identity(status: os.stat_result) -> tuple[int, int, int, int]:
    return status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size


def _checked(path: Path, fd: int, size: int) -> tuple[tuple[str, str] | None, bytes]:
    """Of a stub, the URL and the name of what it stands for; and the directory."""
    try:
        magic, tail_at = os.pread(fd, len(_MAGIC), 0), size - _TAIL.size
        if tail_at < len(_MAGIC) or magic not in {_MAGIC, _STUB_MAGIC}:
            raise _damaged(path, "it does not begin as it should")
        check, length, end = _TAIL.unpack(os.pread(fd, _TAIL.size, tail_at))
        begin = tail_at - length
        if end != _MAGIC or begin < len(_MAGIC) or length > _DIRECTORY_BYTES_MAX:
            raise _damaged(path, "it does not end as it should")
        body = os.pread(fd, length, begin)
    except OSError as error:
        raise _damaged(path, error.strerror or str(error)) from None
    if zlib.crc32(body) != check:
        raise _damaged(path, "the check sum of its directory is wrong")
    if magic == _MAGIC:
        return None, body
    try:
        of_url, of_name = _NAMES.unpack_from(body)
        names, directory = body[_NAMES.size :][: of_url + of_name], body[_NAMES.size + of_url + of_name :]
        return (names[:of_url].decode(), names[of_url:].decode()), directory
    except (struct.error, ValueError):
        raise _damaged(path, "its names are none") from None


def _parsed(path: Path, directory: bytes) -> dict[Part, _Stream]:
    """What a directory says, that may have come from another master: a read must find the blocks that it goes by."""
    streams: dict[Part, _Stream] = {}
    at = 0
    while len(directory) - at >= _STREAM.size:
        step, stream, number, length, sha256 = _STREAM.unpack_from(directory, at)
        at += _STREAM.size
        streams[str(step), stream] = _Stream(length, sha256, directory[at : at + number * _BLOCK.size])
        at += number * _BLOCK.size
        if number != -(-length // BLOCK_BYTES):
            at = -1
            break
    if at != len(directory):
        raise _damaged(path, "its directory says what cannot be")
    return streams


def _damaged(path: Path, what: str) -> PistageError:
    return PistageError(
        Code.STORAGE, f"{path} is damaged: {what}", hint="another master may have this output: ask it, with ?stale=1"
    )


def unseal(path: Path, directory: Path) -> None:
    """Make of a sealed file the plain files that it was, in `directory`, durably; a crash leaves the one or the other.

    PistageError `storage` for damage; OSError where there is no room. Then it is as it was.
    """
    fresh = directory.with_name(f"{directory.name}.unsealing")
    shutil.rmtree(fresh, ignore_errors=True)
    file = SealedFile.open(path)
    try:
        fresh.mkdir()
        for (step, stream), sealed in file.streams.items():
            digest = hashlib.sha256()
            with _private_file(fresh / f"{step}.{stream}") as plain:
                for block in file.blocks(step, stream):
                    digest.update(block)
                    plain.write(block)
                plain.flush()
                os.fsync(plain.fileno())
            if digest.hexdigest() != sealed.sha256:
                raise _damaged(path, f"step {step}, stream {stream}: its SHA-256 is wrong")
        sync_directory(fresh)
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)
        raise
    if directory.exists():  # a crash came between the sealing and the removal: what is sealed is whole
        shutil.rmtree(directory)
    fresh.rename(directory)
    sync_directory(directory.parent)
    path.unlink()
    sync_directory(directory.parent)


def stub_of(url: str, name: str) -> tuple[bytes, Mapping[Part, Sealed]]:
    """The stub of a sealed file that is in the archive at `url`, and what is in it, by what is written there.

    PistageError `storage` where it is not there, or damaged, `unavailable` where the archive does not answer.
    """
    archive = archive_at(url)
    at = (archive.size(name) or 0) - _TAIL.size
    check, length, end = _TAIL.unpack(archive.read(name, at, _TAIL.size) if at >= 0 else bytes(_TAIL.size))
    directory = archive.read(name, at - length, length) if end == _MAGIC and length <= at else b""
    if end != _MAGIC or zlib.crc32(directory) != check:
        raise _damaged(Path(name), f"it is not whole in the archive {url}")
    names = url.encode(), name.encode()
    body = _NAMES.pack(*map(len, names)) + b"".join(names) + directory
    streams = {part: Sealed(one.length, one.sha256.hex()) for part, one in _parsed(Path(name), directory).items()}
    return _STUB_MAGIC + body + _TAIL.pack(zlib.crc32(body), len(body), _MAGIC), streams


class OpenFiles:
    """Sealed files that are read, kept open for the next read; any thread may ask."""

    def __init__(self, files_max: int = _OPEN_FILES) -> None:
        self._files_max = files_max
        self._lock = threading.Lock()
        self._files: OrderedDict[Path, SealedFile] = OrderedDict()

    def at(self, path: Path) -> SealedFile | None:
        """The file as it stands there now; None where there is none. PistageError `storage` for damage."""
        try:
            with self._lock:
                file = self._files.get(path)
                if file is not None and file.identity == _identity(path.stat()):
                    self._files.move_to_end(path)
                    return file
            file = SealedFile.open(path)
        except FileNotFoundError:
            self.forget(path)
            return None
        with self._lock:
            self._files[path] = file
            self._files.move_to_end(path)
            while len(self._files) > self._files_max:
                self._files.popitem(last=False)
        return file

    def forget(self, path: Path) -> None:
        """Close the file, or all below the directory `path`, once nobody reads it."""
        with self._lock:
            for one in [one for one in self._files if one == path or path in one.parents]:
                del self._files[one]
