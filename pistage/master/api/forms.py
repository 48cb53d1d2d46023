"""How output looks: a piece, a gap or a line in JSON, and text for people."""

from __future__ import annotations

import base64
import json
from functools import lru_cache
from json.encoder import encode_basestring as quoted
from typing import Final

from pistage.core.plaintext import PlainBytes, plain
from pistage.master.api import views
from pistage.master.reading.gaps import Missing
from pistage.master.reading.lines import Line
from pistage.master.reading.selection import Selection
from pistage.master.reading.walk import Item
from pistage.master.records import Record, StreamKey

NAMES: Final = {1: "stdout", 2: "stderr"}
_PAIRS_AT_ONCE = 4096


class Shapes:
    """Objects of JSON for what a selection holds, each as text. What pieces of a stream share is made once."""

    def __init__(self, selection: Selection, more: str = "") -> None:
        self._selection = selection
        self._more = more  # pairs that each object has, ", " behind them
        self._origins: dict[StreamKey, str] = {}

    def piece(self, item: Item, data: bytes) -> str:
        """The piece; `data` are its bytes from `item.skip` on, or a part of them."""
        try:
            content = f'"text": {quoted(data.decode())}'
        except UnicodeDecodeError:
            content = f'"data": "{base64.b64encode(data).decode()}"'
        record = item.record
        return (
            f'{{"kind": "output", "number": {item.id}, {self._origin(record)}, '
            f'"offset": {record.offset + item.skip}, "at": {_at(record.at)}, {content}}}'
        )

    def gap(self, item: Item, missing: Missing) -> str:
        """The gap."""
        record = item.record
        return (
            f'{{"kind": "gap", "number": {item.id}, {self._origin(record)}, "offset": {record.offset}, '
            f'"at": {_at(record.at)}, "missing": {json.dumps(missing.count)}, "reason": {quoted(missing.reason)}, '
            f'"text": {quoted(missing.text)}}}'
        )

    def line(self, line: Line, data: bytes, *, is_cut: bool) -> str:
        """The line, or a part of it."""
        record = line.record
        marks = (', "is_cut": true' if is_cut else "") + (', "is_open": true' if line.is_open else "")
        return (
            f'{{"kind": "line", {self._more}"line": {line.number}, {self._origin(record)}, '
            f'"at": {_at(record.at)}, "text": {quoted(data.decode("utf-8", "replace"))}{marks}}}'
        )

    def _origin(self, record: Record) -> str:
        origin = self._origins.get(record.key)
        if origin is None:
            task, attempt = self._selection.origin(record.attempt_id)
            origin = (
                f'"task": {quoted(task)}, "attempt": {attempt}, "attempt_id": {quoted(record.attempt_id)}, '
                f'"step": {quoted(record.step)}, "stream": {quoted(NAMES.get(record.stream, ""))}'
            )
            if len(self._origins) >= _PAIRS_AT_ONCE:
                self._origins.clear()
            self._origins[record.key] = origin
        return origin


class Flow:
    """Pieces as they came -> text."""

    def __init__(self, *, has_controls: bool) -> None:
        self._has_controls = has_controls
        self._streams: dict[StreamKey, PlainBytes] = {}
        self._is_at_start = True  # of a line

    def piece(self, record: Record, data: bytes) -> str:
        """The text of a piece, as far as it is known without the next one of its stream."""
        stream = self._streams.get(record.key)
        if stream is None:
            stream = self._streams[record.key] = PlainBytes(has_controls=self._has_controls)
        return self._told(stream.feed(data))

    def gap(self, record: Record, missing: Missing) -> str:
        """A line in brackets, behind what is left of its stream."""
        stream = self._streams.pop(record.key, None)
        rest = "" if stream is None else self._told(stream.feed(b"", is_last=True))
        return rest + self._told(f"{'' if self._is_at_start else chr(10)}[{missing.text}]\n")

    def rest(self) -> str:
        """What was left of each stream."""
        streams, self._streams = self._streams, {}
        return "".join(self._told(stream.feed(b"", is_last=True)) for stream in streams.values())

    def _told(self, text: str) -> str:
        if text:
            self._is_at_start = text.endswith("\n")
        return text


class TextLines:
    """Lines -> text, each with its time where that is wanted."""

    def __init__(self, *, has_controls: bool, has_times: bool) -> None:
        self._has_controls, self._has_times = has_controls, has_times
        self._line: PlainBytes | None = None  # in the middle of its parts

    def line(self, line: Line, data: bytes, *, is_cut: bool) -> str:
        """The text of a line, or of a part of it."""
        head = f"{_time(line.record.at)} " if self._has_times and self._line is None else ""
        if self._line is None and not is_cut:
            text = data.decode("utf-8", "replace")
            if not self._has_controls and not text.isprintable():
                text = plain(text).removesuffix("\n")  # of a return before the newline
            return f"{head}{text}\n"
        if self._line is None:
            self._line = PlainBytes(has_controls=self._has_controls)
        text = self._line.feed(data, is_last=not is_cut)
        if is_cut:
            return head + text
        self._line = None
        return f"{head}{text if self._has_controls else text.removesuffix(chr(10))}\n"

    def gap(self, record: Record, missing: Missing) -> str:
        """A line in brackets."""
        return f"{f'{_time(record.at)} ' if self._has_times else ''}[{missing.text}]\n"


@lru_cache(maxsize=4096)
def _at(ms: int) -> str:
    return json.dumps(views.at(ms))


@lru_cache(maxsize=4096)
def _time(ms: int) -> str:
    return str(views.at(ms))
