"""Codecs: what was compressed comes back, nothing else does, and never more than the caller has room for."""

import random
import tracemalloc
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from pistage.errors import Code, PistageError
from pistage.wire import codecs
from pistage.wire.codecs import Codec, available, compress, decompress, named

SAMPLES = [b"", b"x", b"one line\n" * 5_000, random.Random(5).randbytes(70_000), b"\0" * 300_000]
CHECKED = [Codec.ZLIB, Codec.ZSTD]


@pytest.fixture
def _without_zstd(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(codecs, "_module", lambda: None)
    codecs._of_this_thread.cache_clear()
    yield
    codecs._of_this_thread.cache_clear()


@pytest.mark.parametrize("codec", Codec)
@pytest.mark.parametrize("data", SAMPLES, ids=len)
def test_what_was_compressed_comes_back_into_just_enough_room(codec: Codec, data: bytes) -> None:
    assert decompress(codec, compress(codec, data), len(data)) == data
    assert decompress(codec, memoryview(compress(codec, memoryview(data))), 1 << 20) == data


@pytest.mark.parametrize("codec", Codec)
@pytest.mark.parametrize("data", SAMPLES[1:], ids=len)
def test_what_is_longer_than_the_room_is_refused(codec: Codec, data: bytes) -> None:
    with pytest.raises(PistageError, match="more than") as refusal:
        decompress(codec, compress(codec, data), len(data) - 1)
    assert refusal.value.code is Code.INVALID


@pytest.mark.parametrize("codec", CHECKED)
def test_a_bomb_takes_no_more_memory_than_the_room(codec: Codec) -> None:
    bomb = compress(codec, b"\0" * 30_000_000)
    tracemalloc.start()
    try:
        with pytest.raises(PistageError, match="more than"):
            decompress(codec, bomb, 100_000)
        assert tracemalloc.get_traced_memory()[1] < 500_000
    finally:
        tracemalloc.stop()


def test_a_number_of_no_codec_is_refused() -> None:
    with pytest.raises(PistageError, match="number 3") as refusal:
        decompress(3, b"x", 10)
    assert refusal.value.code is Code.INVALID


def test_a_frame_that_does_not_say_its_length_is_refused() -> None:
    zstandard = pytest.importorskip("zstandard")
    silent = zstandard.ZstdCompressor(write_content_size=False).compress(b"x" * 100)
    with pytest.raises(PistageError, match="length"):
        decompress(Codec.ZSTD, silent, 1_000)


@pytest.mark.parametrize("codec", CHECKED)
@pytest.mark.parametrize("data", [b"", b"some output of a step\n" * 40], ids=len)
def test_every_byte_that_changes_is_found(codec: Codec, data: bytes) -> None:
    raw = compress(codec, data)
    for at in range(len(raw)):
        for flip in (0x01, 0x80):
            changed = raw[:at] + bytes([raw[at] ^ flip]) + raw[at + 1 :]
            try:
                assert decompress(codec, changed, 10_000) == data  # a bit of the header that means nothing
            except PistageError as refusal:
                assert refusal.code is Code.INVALID


@pytest.mark.parametrize("codec", CHECKED)
@pytest.mark.parametrize("data", [b"", b"x" * 5_000], ids=len)
def test_what_is_cut_off_or_continued_is_refused(codec: Codec, data: bytes) -> None:
    raw = compress(codec, data)
    for wrong in (*(raw[:length] for length in range(len(raw))), raw + b"x", raw + raw):
        with pytest.raises(PistageError) as refusal:
            decompress(codec, wrong, 10_000)
        assert refusal.value.code is Code.INVALID


def test_a_codec_has_the_name_that_people_write() -> None:
    assert [named(text) for text in ("raw", "zlib", "zstd")] == list(Codec)
    assert available() == tuple(Codec)
    for wrong in ("ZLIB", "lz4", "", "1"):
        with pytest.raises(PistageError, match="no codec") as refusal:
            named(wrong)
        assert refusal.value.code is Code.USAGE


@pytest.mark.usefixtures("_without_zstd")
def test_without_the_package_zstd_is_refused_with_what_to_install() -> None:
    assert available() == (Codec.RAW, Codec.ZLIB)
    for use, code in (
        (lambda: named("zstd"), Code.USAGE),
        (lambda: compress(Codec.ZSTD, b"x"), Code.USAGE),
        (lambda: decompress(Codec.ZSTD, b"x", 9), Code.INVALID),
    ):
        with pytest.raises(PistageError) as refusal:
            use()
        assert refusal.value.code is code
        assert refusal.value.hint == "pip install 'pistage[zstd]'"


def test_threads_do_not_meet_in_a_compressor() -> None:
    chance = random.Random(9)
    pieces = [chance.randbytes(30_000) + b"\0" * 30_000 for _ in range(40)]

    def there_and_back(piece: bytes) -> bytes:
        return decompress(Codec.ZSTD, compress(Codec.ZSTD, piece), len(piece))

    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(there_and_back, pieces)) == pieces


def test_zlib_is_what_every_other_program_reads() -> None:
    assert zlib.decompress(compress(Codec.ZLIB, b"x" * 100)) == b"x" * 100
