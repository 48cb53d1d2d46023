"""What lines are searched for: a text, or an RE2 expression, which takes time in proportion to what it is held against.

The only importer of re2 in this room. A line is matched as if there were no other: `^` is its beginning, `$` its end,
and nothing matches its newline.
"""

from __future__ import annotations

import re
from typing import Final

import re2

from pistage.errors import Code, PistageError

PATTERN_BYTES_MAX: Final = 1_000
_MEMORY_BYTES_MAX: Final = 8 * 1024 * 1024  # of an expression, its states with it: past that it is slower, not larger
#: What means the beginning or the end of all text, or a byte of any kind: with these a line must be looked at alone.
_OF_THE_TEXT: Final = re.compile(r"\\[AzC]|\(\?[a-zA-Z]*-[a-zA-Z]*m")


class Pattern:
    """Any thread may use it."""

    def __init__(self, text: str, *, is_regex: bool = False, ignores_case: bool = False) -> None:
        """PistageError `usage` for what is no pattern."""
        raw = text.encode("utf-8", "surrogatepass")
        if len(raw) > PATTERN_BYTES_MAX:
            raise PistageError(Code.USAGE, f"grep: at most {PATTERN_BYTES_MAX} bytes, not {len(raw):,}")
        if not is_regex and "\n" in text:
            raise PistageError(Code.USAGE, "grep: a line holds no newline")
        options = re2.Options()
        options.literal = not is_regex
        options.case_sensitive = not ignores_case
        options.never_nl = options.never_capture = True
        options.log_errors = False
        options.max_mem = _MEMORY_BYTES_MAX
        try:
            self._expression = re2.compile(raw, options)
            if is_regex:  # only now: by itself it might not be one
                self._expression = re2.compile(b"(?m:" + raw + b")", options)
        except re2.error as error:
            told = error.args[0].decode("utf-8", "replace") if error.args else "not an expression"
            hint = "the syntax is that of RE2: https://github.com/google/re2/wiki/Syntax"
            raise PistageError(Code.USAGE, f"grep: {told}", hint=hint) from None
        finally:
            re2.purge()  # which would keep the last 128 of them, and what each has allocated
        self._is_split = is_regex and _OF_THE_TEXT.search(text) is not None

    def has(self, line: bytes) -> bool:
        """Whether a line, without its newline, matches."""
        return self._expression.search(line) is not None

    def has_in(self, part: bytes, *, is_first: bool, is_last: bool) -> bool:
        """Whether a part of a line matches, unless only by its ends, which are none of the line's."""
        end = len(part) - (not is_last)
        return self._expression.search(part, 0 if is_first else 1, end) is not None

    def lines_in(self, data: bytes, start: int, end: int, count_max: int) -> tuple[list[tuple[int, int]], int]:
        """Beginning and end of the lines between `start` and `end` that match, at most so many; and the end of what
        was looked through.

        Whole lines are there, the last with its newline, and `start` is 0 or behind another.
        """
        if self._is_split:
            return self._each_line_in(data, start, end, count_max)
        found: list[tuple[int, int]] = []
        search = self._expression.search
        while start < end and len(found) < count_max:
            match = search(data, start, end)
            if match is None or (at := match.start()) >= end:
                return found, end
            line_start = data.rfind(b"\n", start, at) + 1 or start
            line_end = data.find(b"\n", at)
            found.append((line_start, line_end))
            start = line_end + 1
        return found, start

    def _each_line_in(self, data: bytes, start: int, end: int, count_max: int) -> tuple[list[tuple[int, int]], int]:
        found: list[tuple[int, int]] = []
        while start < end and len(found) < count_max:
            line_end = data.find(b"\n", start)
            if self._expression.search(data[start:line_end]) is not None:
                found.append((start, line_end))
            start = line_end + 1
        return found, start
