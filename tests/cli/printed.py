"""What a fake master knows of output: pieces that the test sets, read as decision 0009 says, the plain and slow way."""

import base64
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

Query = Mapping[str, str]
AT = "2024-01-01T00:00:{:02}.000Z"


@dataclass
class Piece:
    """Bytes of a stream; `gap` is the object that stands in their place where they are not kept."""

    task: str
    step: str
    stream: str
    data: bytes
    second: int = 1
    attempt: int = 1
    gap: dict[str, Any] | None = None

    @property
    def origin(self) -> tuple[str, int, str, str]:
        return self.task, self.attempt, self.step, self.stream


@dataclass
class Printed:
    """The output of one run. Parts are of `part_bytes`."""

    pieces: list[Piece] = field(default_factory=list)
    part_bytes: int = 64 * 1024
    is_over: bool = True

    def answer(self, accept: str, query: Query) -> Iterator[bytes]:
        """The body of an answer, a JSON line or a piece at a time."""
        if "json" not in accept:
            yield self.bytes(query)
            return
        is_by_line = query.get("by", "line" if "grep" in query else "piece") == "line"
        for value in self.lines(query) if is_by_line else self.numbered(query):
            yield json.dumps(value, ensure_ascii=False).encode() + b"\n"

    def bytes(self, query: Query) -> bytes:
        """The bytes themselves."""
        chosen = self._chosen(query)
        offset, by = int(query.get("offset", 0)), query.get("by", "byte")
        if by == "piece":
            return b"".join(piece.data for number, _, piece in chosen if number >= offset)
        data = b"".join(piece.data for _, _, piece in chosen)
        if by == "byte":
            return data[offset:]
        lines = re.findall(rb"[^\n]*\n|[^\n]+", data)
        return b"".join(lines[offset : offset + int(query["limit"]) if "limit" in query else None])

    def numbered(self, query: Query) -> list[dict[str, Any]]:
        """Pieces and gaps."""
        chosen = self._chosen(query)
        offset, limit = int(query.get("offset", 0)), int(query.get("limit", 1 << 60))
        first = chosen[max(0, len(chosen) + offset)][0] if offset < 0 and chosen else offset
        if query.get("order") != "time":
            chosen = [one for one in chosen if one[0] >= first]
        return [part for number, start, piece in chosen[:limit] for part in self._parts(number, start, piece)]

    def lines(self, query: Query) -> list[dict[str, Any]]:
        """Lines, those that hold the pattern if there is one."""
        every: list[dict[str, Any]] = []
        open_lines: dict[Any, tuple[bytes, Piece]] = {}
        is_by_time = query.get("order") == "time"
        before, count = {}, 0  # numbers are given by arrival, whatever the order
        for number, _, piece in self._chosen({**query, "order": "arrival"}):
            before[number] = count
            count += piece.data.count(b"\n")
        for number, start, piece in self._chosen(query):
            begun = open_lines.pop(piece.origin, (b"", piece))[0]
            if piece.gap is not None:
                every += [_line(piece) | {"data": begun, "line": before[number], "is_open": True}] if begun else []
                every += self._parts(number, start, piece)
            *ended, rest = (b"" if piece.gap is not None else begun + piece.data).split(b"\n")
            every += [_line(piece) | {"data": data, "line": place} for place, data in enumerate(ended, before[number])]
            if rest:
                open_lines[piece.origin] = rest, piece
        if self.is_over or not query.get("follow"):
            every += [
                _line(piece) | {"data": data, "line": place, "is_open": True}
                for place, (data, piece) in enumerate(open_lines.values(), count)
            ]
        offset = int(query.get("offset", 0))
        if is_by_time:
            offset += len([one for one in every if one["kind"] == "line"]) if offset < 0 else 0
            every = [one for one in every if one["kind"] == "gap" or one["line"] >= offset]
        else:
            every = self._from(every, offset)
        if "grep" in query:
            text = query["grep"] if "regex" in query else re.escape(query["grep"])
            pattern = re.compile(text.encode(), re.IGNORECASE if "ignore_case" in query else 0)
            every = [one for one in every if one["kind"] == "line" and pattern.search(one["data"])]
        limit = int(query.get("limit", 1 << 60))
        told: list[dict[str, Any]] = []
        for one in every:
            if not limit:
                break
            limit -= one["kind"] == "line"
            told += [one] if one["kind"] == "gap" else self._line_parts(one)
        return told

    def _from(self, every: list[dict[str, Any]], offset: int) -> list[dict[str, Any]]:
        """From a line on: what comes behind the newline before it, and what that leaves of lines that had begun."""
        if offset < 0:
            lines = [place for place, one in enumerate(every) if one["kind"] == "line"]
            return every[lines[max(0, len(lines) + offset)] :] if lines else every
        ended = [place for place, one in enumerate(every) if one["kind"] == "line" and "is_open" not in one]
        if offset < len(ended):
            return every[ended[offset - 1] + 1 if offset else 0 :]
        return [one for one in every[ended[-1] + 1 if ended else 0 :] if one["kind"] == "gap" or one["line"] >= offset]

    def _chosen(self, query: Query) -> list[tuple[int, int, Piece]]:
        """Number, offset and piece of what is selected."""
        ends: dict[Any, int] = {}
        chosen = []
        for number, piece in enumerate(self.pieces):
            start = ends.get(piece.origin, 0)
            ends[piece.origin] = start + len(piece.data) + ((piece.gap or {}).get("missing") or 0)
            if (
                query.get("task", piece.task) == piece.task
                and query.get("step", piece.step) == piece.step
                and query.get("stream", piece.stream) == piece.stream
                and query.get("since", "") <= AT.format(piece.second) < query.get("until", "9")
            ):
                chosen.append((number, start, piece))
        return sorted(chosen, key=lambda one: one[2].second) if query.get("order") == "time" else chosen

    def _parts(self, number: int, start: int, piece: Piece) -> Iterator[dict[str, Any]]:
        common = _source(piece) | {"number": number}
        if piece.gap is not None:
            yield {"kind": "gap"} | common | {"offset": start} | piece.gap
        for place in range(0, len(piece.data), self.part_bytes):
            yield (
                {"kind": "output"}
                | common
                | {"offset": start + place}
                | _said(piece.data[place : place + self.part_bytes])
            )

    def _line_parts(self, line: dict[str, Any]) -> Iterator[dict[str, Any]]:
        text = line.pop("data").decode("utf-8", "replace")
        parts = [text[place : place + self.part_bytes] for place in range(0, len(text), self.part_bytes)] or [""]
        for place, part in enumerate(parts, 1):
            yield line | {"text": part} | ({"is_cut": True} if place < len(parts) else {})


def gap(task: str, step: str, text: str, *, missing: int | None = 7, reason: str = "limit") -> Piece:
    """Output of stdout that is not kept."""
    said = {"missing": missing, "reason": reason, "text": text}
    return Piece(task, step, "stdout", b"", gap=said)


def _said(data: bytes) -> dict[str, Any]:
    try:
        return {"text": data.decode()}
    except UnicodeDecodeError:
        return {"data": base64.b64encode(data).decode()}


def _source(piece: Piece) -> dict[str, Any]:
    return {
        "task": piece.task, "attempt": piece.attempt, "attempt_id": f"at-{piece.task}", "step": piece.step,
        "stream": piece.stream, "at": AT.format(piece.second),
    }  # fmt: skip


def _line(piece: Piece) -> dict[str, Any]:
    return {"kind": "line"} | _source(piece)
