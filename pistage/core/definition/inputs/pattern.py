"""Pattern: the expression that a text must match. It comes from strangers, so it is RE2, of bounded size.

The only importer of re2 in this room. RE2 takes time in proportion to the text; it knows neither references back nor
looking around, and differs in little else from the expressions of JSON Schema (ECMA-262): there `(?i)`, `\\A`, `\\z`
and `(?P<name>…)` mean nothing, `\\s` and `.` know more ends of lines and blanks.
"""

from __future__ import annotations

import re2

from pistage.core import limits


class PatternError(Exception):
    """The text is no expression, or one that is too large: why."""


class Pattern:
    """An expression; it matches a text anywhere unless it says `^` or `$`. PatternError for what is none."""

    __slots__ = ("_expression", "text")

    def __init__(self, text: str) -> None:
        size = len(text.encode())
        if size > limits.INPUT_PATTERN_BYTES_MAX:
            raise PatternError(f"it has {size} bytes; at most {limits.INPUT_PATTERN_BYTES_MAX} are allowed")
        self.text = text
        options = re2.Options()
        options.never_capture = True
        options.log_errors = False
        options.max_mem = limits.INPUT_PATTERN_MEMORY_BYTES_MAX
        try:
            self._expression = re2.compile(text, options)
        except re2.error as error:
            told = error.args[0] if error.args else "it is no expression"
            raise PatternError(told.decode("utf-8", "replace") if isinstance(told, bytes) else str(told)) from None
        finally:
            re2.purge()  # which would keep the last 128 of them, and what each has allocated

    def matches(self, text: str) -> bool:
        """Whether it is found in `text`."""
        return self._expression.search(text) is not None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Pattern) and other.text == self.text

    def __hash__(self) -> int:
        return hash(self.text)

    def __repr__(self) -> str:
        return f"Pattern({self.text!r})"
