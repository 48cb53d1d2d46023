"""Text of others on its way to a terminal: control sequences never reach it (S12), lines are cut."""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable, Iterator
from typing import Final

from pistage.core.plaintext import plain

#: Longer lines are cut into lines of this many characters: a job may print a gigabyte without a newline.
LINE_CHARS_MAX: Final = 16 * 1024

#: Beyond what plain text is without: what separates lines or paragraphs, and the weaker marks of direction.
_MARKS = re.compile("[\u061c\u200e\u200f\u2028\u2029]")
#: What JSON leaves as it is and a terminal would act on.
_UNESCAPED = re.compile("[\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")
#: Colours and weights (SGR), and nothing else that begins so.
_COLOUR = re.compile(r"(\x1b\[(?:[0-9]{1,3}(?:[;:][0-9]{0,3}){0,15})?m)")
_COLOUR_OFF: Final = "\x1b[0m"


def clean(text: str) -> str:
    """`text` without anything that a terminal would act on; newlines and tabs stay."""
    if text.isprintable():
        return text
    return _MARKS.sub("", plain(text))


def coloured(text: str) -> str:
    """`text` cleaned but for its colours, which end with it: they are not to run on into what is ours."""
    parts = _COLOUR.split(text)  # text, colour, text, …
    if len(parts) == 1:
        return clean(text)
    kept = "".join(part if place % 2 else clean(part) for place, part in enumerate(parts))
    return kept + _COLOUR_OFF


def escaped(json_text: str) -> str:
    """JSON that a terminal does not act on, and that says the same."""
    return _UNESCAPED.sub(lambda found: f"\\u{ord(found[0]):04x}", json_text)


def one_line(text: str) -> str:
    """`text` cleaned and on one line, for a cell of a table."""
    return " ".join(clean(text).split())


class Lines:
    """Bytes in any cut -> whole lines of text, each as `shown` makes it: cleaned, unless something else is said.

    A carriage return ends a line too (progress bars redraw so).
    """

    def __init__(self, shown: Callable[[str], str] = clean) -> None:
        self._decode = codecs.getincrementaldecoder("utf-8")(errors="replace").decode
        self._shown = shown
        self._rest = ""

    def feed(self, data: bytes) -> Iterator[str]:
        """The lines that `data` completes."""
        return self.feed_text(self._decode(data))

    def feed_text(self, text: str) -> Iterator[str]:
        """The lines that `text` completes."""
        text = self._rest + text
        held = "\r" if text.endswith("\r") else ""  # it may be the first half of a CRLF
        text = text[: len(text) - len(held)].replace("\r\n", "\n").replace("\r", "\n")
        *lines, rest = text.split("\n")
        self._rest = rest + held
        yield from (self._shown(part) for line in lines for part in cut(line))
        if len(self._rest) > LINE_CHARS_MAX:
            *whole, self._rest = cut(self._rest)
            yield from (self._shown(part) for part in whole)

    def end(self) -> Iterator[str]:
        """What is left when no more comes."""
        rest = (self._rest + self._decode(b"", True)).rstrip("\r")
        self._rest = ""
        if rest:
            yield self._shown(rest)


def cut(line: str) -> list[str]:
    """A line in parts of at most LINE_CHARS_MAX characters."""
    if len(line) <= LINE_CHARS_MAX:
        return [line]
    return [line[start : start + LINE_CHARS_MAX] for start in range(0, len(line), LINE_CHARS_MAX)]
