"""Text of others on its way to a terminal: control sequences never reach it (S12), lines are cut and prefixed."""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator
from typing import Final

#: Longer lines are cut into lines of this many characters: a job may print a gigabyte without a newline.
LINE_CHARS_MAX: Final = 16 * 1024

_SEQUENCE = re.compile(
    r"\x1b\[[0-?]*[ -/]*[@-~]"  # CSI: colours, cursor
    r"|\x1b[\]PX^_].*?(?:\x07|\x1b\\|\x9c|$)"  # OSC, DCS, SOS, PM, APC: titles, links, clipboard
    r"|\x1b[ -/]*[0-~]"  # the two-character ones
    r"|\x9b[0-?]*[ -/]*[@-~]"
)
#: C0 without tab and newline, delete, C1, and the marks that reorder text.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def clean(text: str) -> str:
    """`text` without anything that a terminal would act on; newlines and tabs stay."""
    if text.isprintable():
        return text
    return _CONTROL.sub("", _SEQUENCE.sub("", text))


def one_line(text: str) -> str:
    """`text` cleaned and on one line, for a cell of a table."""
    return " ".join(clean(text).split())


class Lines:
    """Bytes in any cut -> whole lines of clean text. A carriage return ends a line too (progress bars redraw so)."""

    def __init__(self) -> None:
        self._decode = codecs.getincrementaldecoder("utf-8")(errors="replace").decode
        self._rest = ""

    def feed(self, data: bytes) -> Iterator[str]:
        """The lines that `data` completes."""
        text = self._rest + self._decode(data)
        held = "\r" if text.endswith("\r") else ""  # it may be the first half of a CRLF
        text = text[: len(text) - len(held)].replace("\r\n", "\n").replace("\r", "\n")
        *lines, rest = text.split("\n")
        self._rest = rest + held
        yield from (clean(part) for line in lines for part in _cut(line))
        if len(self._rest) > LINE_CHARS_MAX:
            *whole, self._rest = _cut(self._rest)
            yield from (clean(part) for part in whole)

    def end(self) -> Iterator[str]:
        """What is left when no more comes."""
        rest = (self._rest + self._decode(b"", True)).rstrip("\r")
        self._rest = ""
        if rest:
            yield clean(rest)


def _cut(line: str) -> list[str]:
    if len(line) <= LINE_CHARS_MAX:
        return [line]
    return [line[start : start + LINE_CHARS_MAX] for start in range(0, len(line), LINE_CHARS_MAX)]
