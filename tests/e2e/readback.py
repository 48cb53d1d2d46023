"""What became of what a step printed: as each master answers it over HTTP, and as it stands in the files of each."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from pistage.master import records as index_of
from pistage.master.records import StreamKey
from pistage.master.sealed import SealedFile
from tests.e2e.printing import Program, Sum, printed_by, sum_of

STREAMS = {"stdout": 1, "stderr": 2}
_READ_BYTES = 1 << 20
#: Of a gap that does not say how much is missing: what an engine that ends has read and not written, or less.
UNKNOWN_BYTES_MAX = 256 * 1024


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
    async for piece in _answer(http, url, run_id, given, "application/octet-stream"):
        yield piece


def _form_of(
    http: aiohttp.ClientSession, url: str, run: Mapping[str, Any], stream: str, accept: str
) -> AsyncIterator[bytes]:
    return _answer(http, url, run["id"], {"step": step_of(run)["id"], "stream": stream}, accept)


async def _answer(
    http: aiohttp.ClientSession, url: str, run_id: str, given: Mapping[str, str], accept: str
) -> AsyncIterator[bytes]:
    headers = {"Accept": accept}
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
        read, printed = Sum(length, digest.hexdigest()), printed_by(program, stream)
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
        printed = printed_by(program, stream)
        said = Sum(step[f"{stream}_bytes"] or 0, step[f"{stream}_sha256"] or "")
        if said != printed:
            wrong.append(f"{run['id']} {program.title}, {stream}: its step says {said}, {printed} was printed")
    return wrong


# --- in the files ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Gap:
    """Before the kept byte `place` so many printed ones are missing; 0 where nobody knows how many."""

    place: int
    length: int
    reason: str


@dataclass(slots=True)
class Kept:
    """A stream in a master's files: its bytes, how much was printed, and what of it is not there, and why."""

    printed: int = 0
    length: int = 0
    lines: int = 0
    sum: Sum = field(default_factory=lambda: sum_of(()))
    gaps: list[Gap] = field(default_factory=list)


def kept_in(directory: Path) -> dict[StreamKey, Kept]:
    """Every stream of the run in `directory`; AssertionError where index and files contradict each other."""
    found: dict[StreamKey, Kept] = defaultdict(Kept)
    for record in index_of.all_records(directory / "index"):
        if record.is_barrier:
            continue
        kept = found[record.key]
        assert record.is_sound and (record.offset, record.place) == (kept.printed, kept.length), (record, kept)
        if record.gap is not None:
            kept.gaps.append(Gap(record.place, record.length, record.gap.value))
        kept.printed += record.length
        kept.length += record.kept
        kept.lines += record.lines
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
    wrong = _wrong_between(directories, run)
    for name, stream, one in _kept_by(directories, run, wrong):
        printed = printed_by(program, stream)
        if (one.sum, one.gaps) != (printed, []):
            wrong.append(f"{run['id']} {program.title}, {stream}, files of {name}: {one}, {printed} was printed")
    return wrong


def _wrong_between(directories: Mapping[str, Path], run: Mapping[str, Any]) -> list[str]:
    indexes = {name: (directory / "index") for name, directory in directories.items()}
    raw = {name: path.read_bytes() if path.exists() else b"" for name, path in indexes.items()}
    if len(set(raw.values())) == 1:
        return []
    sizes = {name: f"{len(one) // index_of.RECORD_BYTES} records" for name, one in raw.items()}
    return [f"{run['id']}: the indexes of the masters differ: {sizes}"]


def _kept_by(
    directories: Mapping[str, Path], run: Mapping[str, Any], wrong: list[str]
) -> Iterator[tuple[str, str, Kept]]:
    """Master, stream, and what that one has of the run's last step."""
    step = step_of(run)
    for name, directory in directories.items():
        try:
            kept = {key[2]: one for key, one in kept_in(directory).items() if key[1] == step["id"]}
        except AssertionError as error:
            wrong.append(f"{run['id']}, files of {name}: index and files differ: {error}")
            continue
        for stream, number in STREAMS.items():
            yield name, stream, kept.get(number, Kept())


# --- where some of it may be missing ---------------------------------------------------------------------------------


def wrong_but_for_gaps(
    directories: Mapping[str, Path], run: Mapping[str, Any], program: Program, reason: str
) -> list[str]:
    """As `wrong_in_files`, where bytes may be missing at gaps of that reason, and only there."""
    wrong = _wrong_between(directories, run)
    step = step_of(run)
    for name, stream, one in _kept_by(directories, run, wrong):
        said = (step[f"{stream}_bytes"], step[f"{stream}_missing"])
        if said != (one.printed, one.printed - one.length):
            wrong.append(f"{run['id']} {stream}: its step says {said} printed and missing, {name} has {one}")
        if strange := {gap.reason for gap in one.gaps} - {reason}:
            wrong.append(f"{run['id']} {stream}, files of {name}: gaps for {strange}")
        key = (run["tasks"][0]["attempts"][0]["id"], step["id"], STREAMS[stream])
        kept = b"".join(_bytes_of(directories[name], key))
        if what := wrong_order(kept, one.gaps, b"".join(program.parts(stream))):
            wrong.append(f"{run['id']} {program.title}, {stream}, files of {name}: {what}")
    return wrong


async def wrong_when_shown(
    http: aiohttp.ClientSession, url: str, run: Mapping[str, Any], gaps: Mapping[str, Sequence[Gap]]
) -> list[str]:
    """How the gaps that a master shows differ from those of its files, by stream: as JSON, and in text for people."""
    wrong = []
    for stream, expected in gaps.items():
        found = await _gaps_shown(http, url, run, stream)
        said = [(one["missing"], one["reason"]) for one in found]
        if said != [(gap.length or None, gap.reason) for gap in expected]:
            wrong.append(f"{run['id']} {stream} at {url}: shown are {said}, there are {expected}")
        text = b"".join([piece async for piece in _form_of(http, url, run, stream, "text/plain")])
        unsaid = [one["text"] for one in found if f"[{one['text']}]\n".encode() not in text]
        wrong += [f"{run['id']} {stream} at {url}: the text does not say [{one}]" for one in unsaid]
    return wrong


async def wrong_where_lost(
    http: aiohttp.ClientSession, url: str, run: Mapping[str, Any], program: Program
) -> list[str]:
    """How what a master shows of a step, of which the end was lost after it had ended, is not all that there was."""
    wrong, lost = [], 0
    for stream in STREAMS:
        kept = b"".join([piece async for piece in _form_of(http, url, run, stream, "application/octet-stream")])
        found = await _gaps_shown(http, url, run, stream)
        missing = sum(one["missing"] for one in found)
        printed = b"".join(program.parts(stream))
        lost += missing
        if not printed.startswith(kept) or len(kept) + missing != len(printed):
            wrong.append(f"{run['id']} {stream}: {len(kept)} bytes of {len(printed)} are there, and shown is {found}")
    return wrong or ([] if lost else [f"{run['id']}: nothing is lost, so nothing is shown by this"])


async def _gaps_shown(
    http: aiohttp.ClientSession, url: str, run: Mapping[str, Any], stream: str
) -> list[dict[str, Any]]:
    text = b"".join([piece async for piece in _form_of(http, url, run, stream, "application/x-ndjson")])
    return [json.loads(line) for line in text.splitlines() if line.startswith(b'{"kind": "gap"')]


def gaps_in(directory: Path, run: Mapping[str, Any]) -> dict[str, list[Gap]]:
    """By stream, those of the run's last step, for streams that have any."""
    kept = {key[2]: one for key, one in kept_in(directory).items() if key[1] == step_of(run)["id"]}
    return {stream: kept[number].gaps for stream, number in STREAMS.items() if number in kept and kept[number].gaps}


def wrong_order(kept: bytes, gaps: Sequence[Gap], printed: bytes, unknown_max: int = UNKNOWN_BYTES_MAX) -> str:
    """Why what is kept is not what was printed with something missing at each gap, and nowhere else; "" if it is.

    Where a gap does not say how much is missing, that may be `unknown_max` bytes.
    """
    at = start = 0
    least = most = 0  # bytes that are missing before what comes next
    known = [(gap.place, gap.length, 0 if gap.length else unknown_max) for gap in gaps]
    for place, length, more in [*known, (len(kept), 0, 0)]:
        if piece := kept[start:place]:
            found = printed.find(piece, at + least, at + most + len(piece))
            if found < 0:
                expected = f"byte {at + least}" + (f" to {at + most}" if most > least else "")
                return f"bytes {start} to {place} of what is kept are not what was printed from {expected} on"
            at, least, most = found + len(piece), 0, 0
        least, most, start = least + length, most + length + more, place
    if not at + least <= len(printed) <= at + most:
        return f"{len(printed) - at - least} bytes are missing at the end, and no gap says so"
    return ""
