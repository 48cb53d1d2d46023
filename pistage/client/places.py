"""Where a reader of output stands: what to ask for after a break, and which of what then comes was had already."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

_REPLACED: Final = ("text", "data")


class PiecePlace:
    """Among the pieces of a run, from number `start` on.

    A large piece comes in parts and none says that it is the last, so the last piece that came is asked for again. In
    the order of time numbers do not grow; then everything is, and each stream's own place says what of it is new.
    """

    is_done = False

    def __init__(self, start: int = 0, *, is_by_time: bool = False) -> None:
        self._next = start
        self._is_by_time = is_by_time
        self._had: dict[object, tuple[int, int]] = {}  # of each stream: the last piece, and where it ended

    def parameters(self) -> dict[str, str]:
        """What to ask for."""
        return {"offset": str(self._next)}

    def begin(self) -> None:
        """A connection begins."""

    def fresh(self, piece: Mapping[str, Any]) -> dict[str, Any] | None:
        """What is new of a piece or a gap; None where nothing is."""
        number, start = int(piece["number"]), int(piece["offset"])
        is_gap = piece.get("kind") == "gap"
        end = start if is_gap else start + len(bytes_of(piece))
        origin = _origin(piece)
        last = self._had.get(origin)
        if last is not None and (number < last[0] or (number == last[0] and end <= last[1])):
            return None
        self._had[origin] = number, end
        if not self._is_by_time:
            self._next = max(self._next, number)
        if last is None or number > last[0] or start >= last[1]:
            return dict(piece)
        return _without(piece, last[1] - start)


class LinePlace:
    """Among the lines of a selection: from `offset` on (below 0: from the end of what is there), at most `limit`.

    Lines that `come_again` are told from new ones by their numbers, which grow in each stream: so it is with the
    order of time, and with many runs. A line that is open has no number that lasts; what is new of it is told by what
    was had of its stream since the last line that ended. A gap breaks a line off: what is behind it is another. Among
    matches gaps are not told; there what is open, and not at the end of an answer, was broken off.
    """

    def __init__(self, offset: int = 0, limit: int | None = None, *, come_again: bool = False) -> None:
        self._next = offset
        self._left = limit
        self._told_open = 0  # lines that a gap broke off
        self._comes_again = come_again
        self._ended: dict[object, int] = {}  # of each stream, the last line that ended
        self._had: dict[object, _Had] = {}  # of each stream, since then
        self._come: dict[object, int] = {}  # of that, how many characters this connection has brought
        self._gaps: set[object] = set()
        self._opened: set[object] = set()  # streams whose open line this connection has brought last
        self._broken_off: set[object] = set()  # streams with a gap since any line ended

    @property
    def is_done(self) -> bool:
        """Whether as many lines came as were wanted."""
        return self._left is not None and self._left <= self._told_open

    def parameters(self) -> dict[str, str]:
        """What to ask for."""
        asked = {"by": "line", "offset": str(self._next)}
        return asked if self._left is None else asked | {"limit": str(self._left)}

    def begin(self) -> None:
        """A connection begins: a line that came in part comes from its beginning."""
        self._come.clear()
        self._opened.clear()

    def fresh(self, line: Mapping[str, Any]) -> dict[str, Any] | None:
        """What is new of a line or a gap; None where nothing is."""
        origin = _origin(line)
        if line.get("kind") == "gap":
            return self._fresh_gap(origin, line)
        number, text = int(line["line"]), str(line["text"])
        if number <= self._ended.get(origin, -1):
            return None
        if self._next < 0 and not self._comes_again:
            self._next = number  # what was "the last ten" when it was asked for is these from now on
        if not line.get("is_open"):
            for other in self._opened:
                self._break_off(other)
            self._opened.clear()
        had = self._had.setdefault(origin, _Had())
        start = self._come.get(origin, 0)
        new = max(0, start + len(text) - had.all)
        self._come[origin] = start + len(text)
        had.all += new
        had.behind_gap += new
        if line.get("is_open") and start + len(text) == had.all:
            self._opened.add(origin)
        if not line.get("is_open") and not line.get("is_cut"):
            self._end(origin, number)
        elif not new:
            return None
        return dict(line) | {"text": text[len(text) - new :]}

    def _fresh_gap(self, origin: object, gap: Mapping[str, Any]) -> dict[str, Any] | None:
        name = (origin, gap["number"])
        if name in self._gaps:
            return None
        self._gaps.add(name)
        self._opened.discard(origin)
        self._break_off(origin)
        return dict(gap)

    def _break_off(self, origin: object) -> None:
        """What was open is a line of its own, and all of it was told."""
        self._broken_off.add(origin)
        had = self._had.setdefault(origin, _Had())
        self._told_open += had.behind_gap > 0 and not self._comes_again
        had.behind_gap = 0

    def _end(self, origin: object, number: int) -> None:
        self._ended[origin] = number
        del self._had[origin], self._come[origin]
        self._broken_off.discard(origin)
        if self._comes_again:
            return
        self._left = None if self._left is None else self._left - 1
        self._next = max(self._next, number + 1)
        for other in self._broken_off:  # from here on nobody sends what is before its gap
            before = self._had[other].all - self._had[other].behind_gap
            self._had[other].all -= before
            self._come[other] = max(0, self._come.get(other, 0) - before)
        self._broken_off.clear()


@dataclass(slots=True)
class _Had:
    """How many characters were had of a stream since its last line ended: `all`, and those behind its last gap."""

    all: int = 0
    behind_gap: int = 0


class BytePlace:
    """Among the bytes of a selection, from `offset` on, which counts bytes, lines or pieces; at most `lines_max` lines.

    Behind a break it is asked for what follows; where nobody can say where that begins (`must_repeat`), for the same
    again, and what was had of it is dropped.
    """

    def __init__(
        self, by: str = "byte", offset: int = 0, *, lines_max: int | None = None, must_repeat: bool = False
    ) -> None:
        self._by, self._offset = by, offset
        self._lines_max = self._left = lines_max
        self._must_repeat = must_repeat or by == "piece"
        self._had = 0  # bytes behind `offset`
        self._drop = 0  # of what comes, so many were had

    @property
    def is_done(self) -> bool:
        """Whether as many lines came as were wanted."""
        return self._left is not None and self._left <= 0

    def parameters(self) -> dict[str, str]:
        """What to ask for."""
        asked = {"by": self._by, "offset": str(self._offset)}
        limit = self._lines_max if self._must_repeat else self._left
        return asked if limit is None else asked | {"limit": str(limit)}

    def begin(self) -> None:
        """A connection begins."""
        self._drop = self._had

    def fresh(self, data: bytes) -> bytes:
        """What is new of these bytes."""
        if self._drop:
            dropped = min(self._drop, len(data))
            self._drop -= dropped
            data = data[dropped:]
        # Counted at the speed of memory, and only where lines are: whole ones need not come again.
        newlines = data.count(b"\n") if self._by == "line" else 0
        self._left = None if self._left is None else self._left - newlines
        if self._by == "byte" and not self._must_repeat:
            self._offset += len(data)
        elif newlines and not self._must_repeat:
            self._offset += newlines
            self._had = len(data) - data.rfind(b"\n") - 1
        else:
            self._had += len(data)
        return data


def bytes_of(piece: Mapping[str, Any]) -> bytes:
    """The bytes that a piece holds: as text where they are UTF-8, else in base64."""
    if "data" in piece:
        return base64.b64decode(piece["data"])
    return str(piece["text"]).encode("utf-8", "replace")


def _origin(value: Mapping[str, Any]) -> object:
    return value.get("run"), value["task"], value["attempt"], value["step"], value["stream"]


def _without(piece: Mapping[str, Any], count: int) -> dict[str, Any]:
    """A piece without its first bytes."""
    rest = bytes_of(piece)[count:]
    bare = {key: value for key, value in piece.items() if key not in _REPLACED}
    bare["offset"] = int(piece["offset"]) + count
    try:
        return bare | {"text": rest.decode()}
    except UnicodeDecodeError:
        return bare | {"data": base64.b64encode(rest).decode()}
