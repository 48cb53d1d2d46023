"""How bytes are compressed, on the wire and on disk: the codecs, and the only importer of zstandard."""

from __future__ import annotations

import threading
import zlib
from enum import IntEnum
from functools import cache
from types import ModuleType
from typing import TYPE_CHECKING, assert_never

from pistage.errors import Code, PistageError

if TYPE_CHECKING:
    import zstandard

# Of the lines of a program, 256 KiB at a time: deflate takes 145 MB/s a core at level 1, and 119 at level 3 for 3 %
# less; zstd takes 470 MB/s at level 1, and 350 at level 3 for nothing.
_ZLIB_LEVEL = 1
_ZSTD_LEVEL = 1
_INSTALL_HINT = "pip install 'pistage[zstd]'"


class Codec(IntEnum):
    """How a piece of bytes was compressed; the number stands beside it on the wire and on disk."""

    RAW = 0
    ZLIB = 1
    ZSTD = 2


def available() -> tuple[Codec, ...]:
    """The codecs that work here, the best one last."""
    return (Codec.RAW, Codec.ZLIB) if _module() is None else (Codec.RAW, Codec.ZLIB, Codec.ZSTD)


def named(text: str) -> Codec:
    """The codec of this name, in lower case; PistageError `usage` for no name of one, or one that is not installed."""
    codec = next((codec for codec in Codec if codec.name.lower() == text), None)
    if codec is None:
        names = ", ".join(codec.name.lower() for codec in Codec)
        raise PistageError(Code.USAGE, f"no codec is called {text[:20]!r}", hint=f"they are {names}")
    if codec not in available():
        raise _missing(Code.USAGE)
    return codec


def compress(codec: Codec, data: bytes | memoryview) -> bytes:
    """`data` as `decompress` takes it. Any thread may call; the interpreter is free meanwhile.

    PistageError `usage` for zstd where it is not installed.
    """
    match codec:
        case Codec.RAW:
            return bytes(data)
        case Codec.ZLIB:
            return zlib.compress(data, _ZLIB_LEVEL)
        case Codec.ZSTD:
            return _of_this_thread().compressor.compress(data)
        case _:
            assert_never(codec)


def decompress(codec: int, raw: bytes | memoryview, bytes_max: int) -> bytes:
    """What `compress` was given, if it is no more than `bytes_max`, which bounds the memory, too.

    PistageError `invalid` for more, for anything that is not exactly what `compress` made (RAW cannot tell), and for
    a codec that is not known, or not installed, here.
    """
    match codec:
        case Codec.RAW:
            if len(raw) > bytes_max:
                raise _too_long(bytes_max)
            return bytes(raw)
        case Codec.ZLIB:
            return _inflate(raw, bytes_max)
        case Codec.ZSTD:
            return _unzstd(raw, bytes_max)
        case _:
            raise PistageError(Code.INVALID, f"no codec has the number {codec}", hint="a newer version may")


def _inflate(raw: bytes | memoryview, bytes_max: int) -> bytes:
    stream = zlib.decompressobj()
    try:
        data = stream.decompress(raw, bytes_max + 1)  # 0 would be no bound; and one more tells that there is more
    except zlib.error as error:
        raise _damaged(str(error)) from None
    if len(data) > bytes_max:
        raise _too_long(bytes_max)
    if not stream.eof or stream.unused_data:
        raise _damaged("it ends elsewhere")
    return data


def _unzstd(raw: bytes | memoryview, bytes_max: int) -> bytes:
    zstd = _module()
    if zstd is None:
        raise _missing(Code.INVALID)
    kept = _of_this_thread()
    try:
        # What a frame says of its length is what will be allocated for it. Ours all say it: -1 is for none.
        length = zstd.frame_content_size(raw)
        if length > bytes_max:
            raise _too_long(bytes_max)
        if length < 0:
            raise _damaged("its length is not said")
        data: bytes = kept.decompressor.decompress(raw, allow_extra_data=False)
    except zstd.ZstdError as error:
        raise _damaged(str(error)) from None
    if not data and bytes(raw) != kept.nothing:  # of a frame that says 0 the package reads no further
        raise _damaged("it ends elsewhere")
    return data


class _Contexts(threading.local):
    """What zstd works with, a megabyte of tables and no two threads at a time; made once a thread."""

    def __init__(self) -> None:
        zstd = _module()
        if zstd is None:
            raise _missing(Code.USAGE)
        self.compressor: zstandard.ZstdCompressor = zstd.ZstdCompressor(level=_ZSTD_LEVEL, write_checksum=True)
        self.decompressor: zstandard.ZstdDecompressor = zstd.ZstdDecompressor()
        self.nothing: bytes = self.compressor.compress(b"")


@cache
def _of_this_thread() -> _Contexts:
    return _Contexts()


@cache
def _module() -> ModuleType | None:
    try:
        import zstandard  # noqa: PLC0415 -- optional, and of no use to most verbs
    except ImportError:
        return None
    return zstandard


def _missing(code: Code) -> PistageError:
    return PistageError(code, "zstd is not installed here", hint=_INSTALL_HINT)


def _too_long(bytes_max: int) -> PistageError:
    return PistageError(Code.INVALID, f"more than {bytes_max:,} bytes are compressed here")


def _damaged(why: str) -> PistageError:
    return PistageError(Code.INVALID, f"not what was compressed: {why}")
