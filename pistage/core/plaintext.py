"""What programs print -> plain text: UTF-8 with what is none replaced, nothing in it that a terminal would act on."""

from __future__ import annotations

import codecs
import re
from typing import Final

# ECMA-48, and what xterm makes of it. A string (a title, a link, the clipboard) also ends at a line's end, or a program
# that dies in the middle of one would take all output after it with it; and where another sequence begins.
_CSI = r"(?:\x1b\[|\x9b)[0-?]*+[ -/]*+"
_STRING = r"(?:\x1b[\]PX^_]|[\x90\x98\x9d-\x9f])[^\x07\x18\x1a\x1b\x80-\x9f\n]*+"
_SHORT = r"\x1b(?![\[\]PX^_])[ -/]*+"
_SEQUENCE: Final = re.compile(  # one that is broken off is dropped as far as it goes
    rf"{_CSI}(?:[@-~]|(?!\Z))"  # colours, the cursor
    rf"|{_STRING}(?:[\x07\x18\x1a\x9c]|\x1b\\|(?=[\n\x80-\x9f])|(?=\x1b[^\\]))"
    rf"|{_SHORT}(?:[0-~]|(?!\Z))"
)
#: What may become a sequence with the text that comes next.
_BEGUN: Final = re.compile(rf"(?:(?P<string>{_STRING})(?P<escape>\x1b?)|(?P<csi>{_CSI})|(?P<short>{_SHORT}))\Z")
#: C0 but tab, newline and return, delete, C1, and the marks that reorder text.
_CONTROL: Final = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
_RETURNS: Final = re.compile("\r+\n?")


class Plain:
    """Text in any cut -> plain text. A carriage return ends a line: so progress bars redraw theirs.

    What is kept between two pieces is a few characters, whatever is printed.
    """

    __slots__ = ("_begun", "_has_returned")

    def __init__(self) -> None:
        self._begun = ""  # the beginning of a sequence, or as good as that
        self._has_returned = False  # the last character was "\r", which is not told yet

    def feed(self, text: str, *, is_last: bool = False) -> str:
        """The plain text of a piece, as far as it is known without the next one."""
        if not self._begun and not self._has_returned and (text.isprintable() or not _has_controls(text)):
            return text
        text = _SEQUENCE.sub("", self._begun + text)
        self._begun = ""
        if (begun := _BEGUN.search(text)) is not None:
            text = text[: begun.start()]
            self._begun = "" if is_last else _shortened(begun)
        text = _CONTROL.sub("", text)
        if self._has_returned:
            text = "\r" + text
        self._has_returned = not is_last and text.endswith("\r")
        return _RETURNS.sub("\n", text.rstrip("\r") if self._has_returned else text)


class PlainBytes:
    """Bytes of one stream in any cut -> text, plain unless `has_controls`."""

    __slots__ = ("_decode", "_plain")

    def __init__(self, *, has_controls: bool = False) -> None:
        self._decode = codecs.getincrementaldecoder("utf-8")(errors="replace").decode
        self._plain = None if has_controls else Plain()

    def feed(self, data: bytes, *, is_last: bool = False) -> str:
        """The text of a piece, as far as it is known without the next one."""
        text = self._decode(data, is_last)
        return text if self._plain is None else self._plain.feed(text, is_last=is_last)


def plain(text: str) -> str:
    """All of a text, plain."""
    return Plain().feed(text, is_last=True)


def _has_controls(text: str) -> bool:
    # \x1b and \r among them: two searches of C, where most of what is printed has none.
    return "\r" in text or _CONTROL.search(text) is not None


def _shortened(begun: re.Match[str]) -> str:
    """As good as what has begun, for what follows, whatever it is, and of a bounded length."""
    if begun["string"]:
        return f"\x1b]{begun['escape']}"
    if begun["csi"]:
        # Behind an intermediate byte no parameter may come.
        return "\x1b[ " if " " <= begun["csi"][-1] <= "/" else "\x1b["
    return "\x1b " if len(begun["short"]) > 1 else "\x1b"
