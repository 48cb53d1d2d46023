"""What became of what a step printed: as each master answers it over HTTP, and as it stands in the files of each."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from pistage.master import records as index_of
from pistage.master.records import StreamKey
from pistage.master.sealed import SealedFile
from tests.e2e.printing import Program, Sum, sum_of

STREAMS = {"stdout": 1, "stderr": 2}
_READ_BYTES = 1 << 20


def step_of(run: Mapping[str, Any]) -> dict[str, Any]:
    """The last step of the only attempt of the run's only task."""
    (task,) = run["tasks"]
    (attempt,) = task["attempts"]
    step: dict[str, Any] = attempt["steps"][-1]
    return step


# --- over HTTP -------------------------------------------------------------------------------------------------------


async def pieces_of(
    http: aiohttp.ClientSession, url: str, run_id: str, step: str, stream: str, **query: str
) -> AsyncIterator[bytes]:
    """The bytes of one stream of a step, as they come."""
    given = {"step": step, "stream": stream} | query
    headers = {"Accept": "application/octet-stream"}
    timeout = aiohttp.ClientTimeout(total=None, sock_read=60)
    async with http.get(f"{url}/api/v1/runs/{run_id}/logs", params=given, headers=headers, timeout=timeout) as response:
        assert response.status == 200, await response.text()
        async for piece in response.content.iter_chunked(_READ_BYTES):
            yield piece


async def wrong_when_read(
    http: aiohttp.ClientSession, url: str, run: Mapping[str, Any], program: Program, **query: str
) -> list[str]:
    """How what that master answers differs from what the program printed."""
    wrong = []
    step = step_of(run)
    for stream in STREAMS:
        length, digest = 0, hashlib.sha256()
        async for piece in pieces_of(http, url, run["id"], step["id"], stream, **query):
            length += len(piece)
            digest.update(piece)
        read, printed = Sum(length, digest.hexdigest()), sum_of(program.parts(stream))
        if read != printed:
            place = await _first_difference(http, url, run, program, stream, **query)
            wrong.append(f"{run['id']} {program.title}, {stream} at {url}: {read} was read, {printed} printed; {place}")
    return wrong


async def _first_difference(
    http: aiohttp.ClientSession, url: str, run: Mapping[str, Any], program: Program, stream: str, **query: str
) -> str:
    expected = _Cursor(program.parts(stream))
    at = 0
    step = step_of(run)
    async for piece in pieces_of(http, url, run["id"], step["id"], stream, **query):
        wanted = expected.take(len(piece))
        if piece != wanted:
            same = next((n for n, (a, b) in enumerate(zip(piece, wanted, strict=False)) if a != b), len(wanted))
            return f"from byte {at + same} on {piece[same : same + 80]!r} instead of {wanted[same : same + 80]!r}"
        at += len(piece)
    return f"after byte {at} {expected.take(80)!r} should follow"


class _Cursor:
    """Takes bytes off parts in portions of any size."""

    def __init__(self, parts: Iterable[bytes]) -> None:
        self._parts, self._rest = iter(parts), b""

    def take(self, count: int) -> bytes:
        taken = [self._rest]
        left = count - len(self._rest)
        while left > 0 and (part := next(self._parts, None)) is not None:
            taken.append(part)
            left -= len(part)
        text = b"".join(taken)
        self._rest = text[count:]
        return text[:count]


def wrong_as_reported(run: Mapping[str, Any], program: Program) -> list[str]:
    """How what the step's end says of its output differs from what the program printed."""
    wrong = []
    step = step_of(run)
    for stream in STREAMS:
        printed = sum_of(program.parts(stream))
        said = Sum(step[f"{stream}_bytes"] or 0, step[f"{stream}_sha256"] or "")
        if said != printed:
            wrong.append(f"{run['id']} {program.title}, {stream}: its step says {said}, {printed} was printed")
    return wrong


# --- in the files ----------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Kept:
    """A stream in a master's files: its bytes, how much was printed, and what of it is not there, and why."""

    printed: int = 0
    length: int = 0
    lines: int = 0
    sum: Sum = field(default_factory=lambda: sum_of(()))
    gaps: list[tuple[int, int, str]] = field(default_factory=list)  # offset, how many bytes, reason


def kept_in(directory: Path) -> dict[StreamKey, Kept]:
    """Every stream of the run in `directory`; AssertionError where index and files contradict each other."""
    found: dict[StreamKey, Kept] = defaultdict(Kept)
    for record in index_of.all_records(directory / "index"):
        if record.is_barrier:
            continue
        kept = found[record.key]
        assert record.is_sound and (record.offset, record.place) == (kept.printed, kept.length), (record, kept)
        kept.printed += record.length
        kept.length += record.kept
        kept.lines += record.lines
        if record.gap is not None:
            kept.gaps.append((record.offset, record.length, record.gap.value))
    for key, kept in found.items():
        counting = _Counting()
        kept.sum = sum_of(counting.through(_bytes_of(directory, key)))
        assert (kept.sum.length, counting.lines) == (kept.length, kept.lines), (directory, key, kept, counting.lines)
    return dict(found)


class _Counting:
    def __init__(self) -> None:
        self.lines = 0

    def through(self, parts: Iterable[bytes]) -> Iterator[bytes]:
        for part in parts:
            self.lines += part.count(b"\n")
            yield part


def _bytes_of(directory: Path, key: StreamKey) -> Iterator[bytes]:
    """All there is, whatever the index says; of an attempt that is sealed, perhaps while this is read."""
    attempt_id, step, stream = key
    try:
        with index_of.stream_path(directory, key).open("rb") as plain:
            while part := plain.read(_READ_BYTES):
                yield part
    except FileNotFoundError:
        if (sealed := directory / f"{attempt_id}.sealed").exists():
            yield from SealedFile.open(sealed).blocks(step, stream)


def wrong_in_files(directories: Mapping[str, Path], run: Mapping[str, Any], program: Program) -> list[str]:
    """How the files of masters, by name, differ from what the program printed, and from each other."""
    wrong = []
    step = step_of(run)
    indexes = {name: (directory / "index") for name, directory in directories.items()}
    raw = {name: path.read_bytes() if path.exists() else b"" for name, path in indexes.items()}
    if len(set(raw.values())) > 1:
        sizes = {name: f"{len(one) // index_of.RECORD_BYTES} records" for name, one in raw.items()}
        wrong.append(f"{run['id']} {program.title}: the indexes of the masters differ: {sizes}")
    for name, directory in directories.items():
        try:
            kept = {key[2]: one for key, one in kept_in(directory).items() if key[1] == step["id"]}
        except AssertionError as error:
            wrong.append(f"{run['id']} {program.title}, files of {name}: index and files differ: {error}")
            continue
        for stream, number in STREAMS.items():
            one, printed = kept.get(number, Kept()), sum_of(program.parts(stream))
            if (one.sum, one.gaps) != (printed, []):
                wrong.append(f"{run['id']} {program.title}, {stream}, files of {name}: {one}, {printed} was printed")
    return wrong
