"""Sealed files: they hold what the plain ones held, say when they do not, and are read a block at a time."""

import hashlib
import os
import random
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pistage.errors import Code, PistageError
from pistage.master import sealed
from pistage.master.archive import archive_at
from pistage.master.sealed import OpenFiles, SealedFile, Source, stub_of, unseal
from pistage.wire.codecs import Codec

Streams = dict[tuple[str, int], bytes]


def lines(chance: random.Random, length: int) -> bytes:
    words = [b"worker", b"step", b"INFO", b"2026-11-22T07:12:59.113Z", b"done", b"%x" % chance.getrandbits(64)]
    text = b" ".join(chance.choice(words) + (b"\n" if chance.random() < 0.2 else b"") for _ in range(length // 4 + 1))
    return text[:length].ljust(length, b".")


def some_streams(seed: int) -> Streams:
    """Of sizes around those of blocks; text, noise and nothing."""
    chance = random.Random(seed)
    block = sealed.BLOCK_BYTES
    sizes = [0, 1, 5, 1_000, block - 1, block, block + 1, 2 * block, 2 * block + 77]
    make = [lines, random.Random.randbytes, lambda _, size: bytes(size)]
    keys = [(str(step), stream) for step in (1, 2, 9_999) for stream in (1, 2)]
    return {key: chance.choice(make)(chance, chance.choice(sizes)) for key in chance.sample(keys, 4)}


def plain_files(directory: Path, streams: Streams) -> list[Source]:
    directory.mkdir()
    sources = [Source(*key, directory / f"{key[0]}.{key[1]}", len(data)) for key, data in streams.items()]
    for source, data in zip(sources, streams.values(), strict=True):
        source.path.write_bytes(data)
    return sources


def a_sealed_file(directory: Path, streams: Streams, codec: Codec = Codec.ZLIB) -> Path:
    path = directory / "attempt.sealed"
    sealed.write(path, plain_files(directory / "plain", streams), codec=codec)
    return path


@pytest.mark.parametrize("codec", Codec)
@pytest.mark.parametrize("seed", range(4))
def test_any_read_gives_what_the_plain_file_would(tmp_path: Path, codec: Codec, seed: int) -> None:
    streams, chance = some_streams(seed), random.Random(seed)
    file = SealedFile.open(a_sealed_file(tmp_path, streams, codec))
    for (step, stream), data in streams.items():
        places = [0, 1, len(data) - 1, len(data), len(data) + 9, *(chance.randrange(len(data) + 1) for _ in range(30))]
        for place in [place for place in places if place >= 0]:
            for length in (0, 1, 100, sealed.BLOCK_BYTES, 3 * sealed.BLOCK_BYTES):
                assert file.read(step, stream, place, length) == data[place : place + length]
        assert b"".join(file.blocks(step, stream)) == data
    assert file.read("77", 1, 0, 10) == b""
    assert list(file.blocks("77", 1)) == []


@pytest.mark.parametrize("seed", range(4))
def test_length_and_sha_256_are_those_of_the_plain_files(tmp_path: Path, seed: int) -> None:
    streams = some_streams(seed)
    path = tmp_path / "attempt.sealed"
    told = sealed.write(path, plain_files(tmp_path / "plain", streams), codec=Codec.ZSTD)
    assert {part: (one.length, one.sha256) for part, one in told.items()} == {
        part: (len(data), hashlib.sha256(data).hexdigest()) for part, data in streams.items()
    }
    assert SealedFile.open(path).streams == told


def test_only_so_much_of_a_plain_file_is_taken_as_is_asked_for(tmp_path: Path) -> None:
    (source,) = plain_files(tmp_path / "plain", {("1", 1): b"kept, and what a crash left"})
    sealed.write(tmp_path / "s", [Source("1", 1, source.path, 4)], codec=Codec.ZLIB)
    assert SealedFile.open(tmp_path / "s").read("1", 1, 0, 99) == b"kept"


def test_a_plain_file_that_holds_less_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    (source,) = plain_files(tmp_path / "plain", {("1", 1): b"hello"})
    with pytest.raises(PistageError, match="5 bytes of 6") as refusal:
        sealed.write(tmp_path / "s", [Source("1", 1, source.path, 6)], codec=Codec.ZLIB)
    assert refusal.value.code is Code.STORAGE
    assert not (tmp_path / "s").exists()


def test_work_that_is_broken_off_leaves_nothing(tmp_path: Path) -> None:
    class EnoughError(Exception):
        pass

    def enough() -> None:
        raise EnoughError

    with pytest.raises(EnoughError):
        sealed.write(
            tmp_path / "s", plain_files(tmp_path / "plain", {("1", 1): b"x"}), codec=Codec.ZLIB, between=enough
        )
    assert os.listdir(tmp_path) == ["plain"]  # noqa: PTH208 - two names, no paths


def test_what_does_not_get_smaller_is_kept_bare(tmp_path: Path) -> None:
    noise = random.Random(1).randbytes(3 * sealed.BLOCK_BYTES)
    text = b"the same line, again and again\n" * 30_000
    path = a_sealed_file(tmp_path, {("1", 1): noise, ("1", 2): text})
    assert len(noise) < path.stat().st_size < len(noise) + len(text) // 20
    assert SealedFile.open(path).read("1", 1, 0, len(noise)) == noise


def test_a_compressor_that_errs_costs_no_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sealed, "decompress", lambda codec, raw, size: b"x" * size)
    text = b"the same line, again and again\n" * 3_000
    path = a_sealed_file(tmp_path, {("1", 1): text})
    monkeypatch.undo()
    assert SealedFile.open(path).read("1", 1, 0, len(text)) == text


@pytest.mark.slow
@pytest.mark.parametrize("codec", Codec)
def test_each_byte_that_changes_is_found(tmp_path: Path, codec: Codec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sealed, "BLOCK_BYTES", 64)
    streams = {("1", 1): lines(random.Random(3), 150), ("2", 2): b"x" * 100}
    path = a_sealed_file(tmp_path, streams, codec)
    whole = path.read_bytes()
    for at in range(len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x10]) + whole[at + 1 :])
        with pytest.raises(PistageError, match="damaged") as refusal:
            file = SealedFile.open(path)
            for part, data in streams.items():
                file.read(*part, 0, len(data))
        assert refusal.value.code is Code.STORAGE
        assert str(path) in str(refusal.value)


def test_a_file_that_is_cut_off_anywhere_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sealed, "BLOCK_BYTES", 64)
    path = a_sealed_file(tmp_path, {("1", 1): b"x" * 150})
    whole = path.read_bytes()
    for end in range(len(whole)):
        path.write_bytes(whole[:end])
        with pytest.raises(PistageError, match="damaged"):
            SealedFile.open(path)


def test_damage_of_one_block_costs_that_block_alone(tmp_path: Path) -> None:
    data = random.Random(1).randbytes(3 * sealed.BLOCK_BYTES)
    path = a_sealed_file(tmp_path, {("1", 1): data})
    with path.open("r+b") as file:
        file.seek(sealed.BLOCK_BYTES + 100)
        file.write(b"damage")
    reading = SealedFile.open(path)
    first, last = sealed.BLOCK_BYTES, 2 * sealed.BLOCK_BYTES
    assert reading.read("1", 1, 0, first) == data[:first]
    assert reading.read("1", 1, last, first) == data[last:]
    with pytest.raises(PistageError, match="block 1: its check sum is wrong"):
        reading.read("1", 1, first - 1, 2)


def test_a_read_touches_only_the_blocks_it_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = SealedFile.open(a_sealed_file(tmp_path, {("1", 1): lines(random.Random(1), 4 * sealed.BLOCK_BYTES)}))
    touched: list[int] = []
    real = os.pread
    monkeypatch.setattr(os, "pread", lambda fd, length, at: touched.append(at) or real(fd, length, at))
    for place in range(sealed.BLOCK_BYTES - 500, sealed.BLOCK_BYTES + 500, 10):  # small ones, one behind the other
        file.read("1", 1, place, 10)
    assert len(touched) == 2
    for number in range(4):
        file.read("1", 1, number * sealed.BLOCK_BYTES, sealed.BLOCK_BYTES)
    assert len(touched) == 6


def test_many_threads_read_one_file(tmp_path: Path) -> None:
    data = lines(random.Random(1), 3 * sealed.BLOCK_BYTES + 5)
    file = SealedFile.open(a_sealed_file(tmp_path, {("1", 1): data}, Codec.ZSTD))
    places = [random.Random(seed).randrange(len(data)) for seed in range(300)]
    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(lambda place: file.read("1", 1, place, 1_000), places)) == [
            data[place : place + 1_000] for place in places
        ]


# --- back to plain files ---------------------------------------------------------------------------------------------


def test_what_is_unsealed_is_what_was_sealed(tmp_path: Path) -> None:
    streams = some_streams(7)
    path = a_sealed_file(tmp_path, streams, Codec.ZSTD)
    unseal(path, tmp_path / "attempt")
    assert {file.name: file.read_bytes() for file in (tmp_path / "attempt").iterdir()} == {
        f"{step}.{stream}": data for (step, stream), data in streams.items()
    }
    assert sorted(os.listdir(tmp_path)) == ["attempt", "plain"]  # noqa: PTH208 - two names, no paths


def test_damage_is_not_unsealed(tmp_path: Path) -> None:
    path = a_sealed_file(tmp_path, {("1", 1): random.Random(1).randbytes(1_000)})
    raw = bytearray(path.read_bytes())
    raw[500] ^= 1
    path.write_bytes(raw)
    with pytest.raises(PistageError, match="damaged"):
        unseal(path, tmp_path / "attempt")
    assert sorted(os.listdir(tmp_path)) == ["attempt.sealed", "plain"]  # noqa: PTH208 - two names, no paths


class Crash(BaseException):
    """The process is gone: nothing after it happens."""


def crash_at(patch: pytest.MonkeyPatch, step: int) -> Callable[[], int]:
    """Let calls that change directories happen, but for number `step` and all after it; tells how many there were."""
    calls = 0

    def stopped(real: Callable[..., object]) -> Callable[..., object]:
        def call(*given: object, **named: object) -> object:
            nonlocal calls
            calls += 1
            if calls > step:
                raise Crash
            return real(*given, **named)

        return call

    for owner, name in ((Path, "mkdir"), (Path, "rename"), (Path, "unlink"), (shutil, "rmtree"), (os, "fsync")):
        patch.setattr(owner, name, stopped(getattr(owner, name)))
    return lambda: calls


def test_a_crash_while_it_is_unsealed_leaves_one_or_the_other_whole(tmp_path: Path) -> None:
    streams = {("1", 1): b"hello " * 20, ("2", 2): b"world"}
    for step in range(100):
        directory = tmp_path / str(step)
        directory.mkdir()
        path, plain = a_sealed_file(directory, streams), directory / "attempt"
        with pytest.MonkeyPatch.context() as patch:
            calls = crash_at(patch, step)
            try:
                unseal(path, plain)
            except Crash:
                pass
            else:
                break
        assert calls() == step + 1 or calls() == step + 2  # what it does about an error fails as well
        assert path.exists() or plain.exists()
        if path.exists():
            assert SealedFile.open(path).read("1", 1, 0, 999) == streams["1", 1]
            unseal(path, plain)  # at the next start
        assert {file.name: file.read_bytes() for file in plain.iterdir()} == {"1.1": b"hello " * 20, "2.2": b"world"}
    assert step > 6


# --- files that stay open --------------------------------------------------------------------------------------------


def test_an_open_file_is_opened_again_when_another_takes_its_place(tmp_path: Path) -> None:
    files = OpenFiles()
    path = a_sealed_file(tmp_path, {("1", 1): b"before"})
    first = files.at(path)
    assert first is not None
    assert files.at(path) is first
    path.unlink()
    assert files.at(path) is None
    (tmp_path / "again").mkdir()
    a_sealed_file(tmp_path / "again", {("1", 1): b"after"}).rename(path)
    second = files.at(path)
    assert second is not None
    assert second.read("1", 1, 0, 99) == b"after"
    assert first.read("1", 1, 0, 99) == b"before"  # who still reads it reads what it was


def test_files_that_nobody_reads_are_closed(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - what is counted is this process
    files = OpenFiles(files_max=3)
    for name in map(str, range(9)):
        (tmp_path / name).mkdir()
        assert files.at(a_sealed_file(tmp_path / name, {("1", 1): b"x"})) is not None
    assert len(os.listdir("/proc/self/fd")) == before + 3  # noqa: PTH208
    files.forget(tmp_path)
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


def test_a_large_stream_comes_back_whole(tmp_path: Path) -> None:
    data = lines(random.Random(1), 500_001) * 40
    file = SealedFile.open(a_sealed_file(tmp_path, {("1", 1): data}, Codec.ZSTD))
    digest = hashlib.sha256()
    for block in file.blocks("1", 1):
        digest.update(block)
    assert digest.digest() == hashlib.sha256(data).digest()


def test_a_stub_reads_what_is_in_the_archive_and_says_when_it_is_not(tmp_path: Path) -> None:
    streams = some_streams(3)
    path, stub = a_sealed_file(tmp_path, streams), tmp_path / "attempt.stub"
    (tmp_path / "archive").mkdir()
    url = f"file://{tmp_path}/archive"
    archive_at(url).put("run/attempt", path)
    told = SealedFile.open(path).streams
    made, streams_there = stub_of(url, "run/attempt")
    assert streams_there == told
    stub.write_bytes(made)
    path.unlink()
    file = SealedFile.open(stub)
    assert file.streams == told
    for (step, stream), data in streams.items():
        assert file.read(step, stream, 100, 1 << 20) == data[100 : 100 + (1 << 20)]
    archive_at(url).delete_below("run")
    with pytest.raises(PistageError, match="has lost run/attempt"):
        SealedFile.open(stub).read(*next(key for key, data in streams.items() if data), 0, 10)


def test_a_damaged_stub_is_told_from_a_whole_one(tmp_path: Path) -> None:
    stub = tmp_path / "attempt.stub"
    archive_at(f"file://{tmp_path}").put("run/attempt", a_sealed_file(tmp_path, some_streams(1)))
    whole, _ = stub_of(f"file://{tmp_path}", "run/attempt")
    for at in range(0, len(whole), 7):
        stub.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(PistageError, match="damaged"):
            SealedFile.open(stub)


@pytest.mark.parametrize("left", [0, 5, 100, -1])
def test_of_a_file_that_is_not_whole_in_the_archive_there_is_no_stub(tmp_path: Path, left: int) -> None:
    path = a_sealed_file(tmp_path, some_streams(2))
    path.write_bytes(path.read_bytes()[:left])
    archive_at(f"file://{tmp_path}").put("run/attempt", path)
    for name in ("run/attempt", "run/another"):
        with pytest.raises(PistageError) as caught:
            stub_of(f"file://{tmp_path}", name)
        assert caught.value.code is Code.STORAGE
