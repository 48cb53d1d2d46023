"""Pattern: the expression that a text must match. It comes from strangers, so it is RE2, of bounded size.

The only importer of re2 in this room. RE2 takes time in proportion to the text; it knows neither references back nor
looking around, and differs in little else from the expressions of JSON Schema (ECMA-262): there `(?i)`, `\\A`, `\\z`
and `(?P<name>…)` mean nothing, `\\s` and `.` know more ends of lines and blanks.
"""

from __future__ import annotations

import re2

from pistage.core import limits
from pistage.core.definition.nodes import shortened


class PatternError(Exception):
    """The text is no expression, or one that is too large: why, and what to do."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class Pattern:
    """An expression; it matches a text anywhere unless it says `^` or `$`. PatternError for what is none."""

    __slots__ = ("_expression", "text")

    def __init__(self, text: str) -> None:
        size = len(text.encode())
        if size > limits.INPUT_PATTERN_BYTES_MAX:
            raise PatternError(f"has {size} bytes; at most {limits.INPUT_PATTERN_BYTES_MAX} are allowed", "shorten it")
        self.text = text
        options = re2.Options()
        options.never_capture = True
        options.log_errors = False
        options.max_mem = limits.INPUT_PATTERN_MEMORY_BYTES_MAX
        try:
            self._expression = re2.compile(text, options)
        except re2.error as error:
            raise _refused(error.args[0] if error.args else b"") from None
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


def _refused(told: bytes | str) -> PatternError:
    reason = told.decode("utf-8", "replace") if isinstance(told, bytes) else told
    if "too large" in reason:
        return PatternError("is too large, once what repeats in it is written out", "repeat less in it")
    hint = "the syntax is that of RE2: https://github.com/google/re2/wiki/Syntax"
    return PatternError(f"is no expression: {shortened(reason, 200)}", hint)
