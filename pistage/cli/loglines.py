"""Output as lines for people: clean, with where and when each was printed, and a gap in the place where it is."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from typing import Any, assert_never

from pistage.cli import terminal
from pistage.cli.progress import Progress, shortened
from pistage.client import Chunk, Gap, Line, Source

Shown = Callable[[str], str]


def print_object(value: dict[str, Any]) -> None:
    """A line of JSON on stdout; on a terminal what that would act on is escaped, which says the same."""
    text = json.dumps(value, ensure_ascii=False)
    sys.stdout.write(f"{terminal.escaped(text) if sys.stdout.isatty() else text}\n")


def sentence(gap: Gap) -> str:
    """What stands where bytes are missing."""
    return f"[{terminal.one_line(gap.text)}]"


class Printer:
    """Chunks or lines of one run -> lines, each with its time and its origin where they are wanted.

    Lines that were searched for (`is_search`) stay whole: a carriage return in them ends nothing.
    """

    def __init__(
        self,
        progress: Progress,
        *,
        shown: Shown = terminal.clean,
        has_times: bool = False,
        is_single: bool = False,
        is_search: bool = False,
    ) -> None:
        self._progress = progress
        self._shown = shown
        self._has_times = has_times
        self._is_single = is_single
        self._is_search = is_search
        self._streams: dict[tuple[str, int, str, str], tuple[terminal.Lines, Source]] = {}

    def lines(self, item: Chunk | Gap | Line) -> Iterator[str]:
        """The lines that `item` completes; each has the time of what ended it."""
        lines = self._streams[item.origin][0] if item.origin in self._streams else terminal.Lines(self._shown)
        self._streams[item.origin] = (lines, item)
        match item:
            case Chunk():
                whole = lines.feed(item.data)
            case Line():
                text = _in_one(item.text) if self._is_search else item.text
                # What is open goes on behind a break. What was found may have been broken off, and no gap says so.
                is_whole = not item.is_cut and (self._is_search or not item.is_open)
                whole = lines.feed_text(f"{text}\n" if is_whole else text)
            case Gap():  # what was before it goes on behind it no more
                whole = iter([*lines.end(), sentence(item)])
            case _:
                assert_never(item)
        head = self._head(item)
        return (f"{head}{line}\n" for line in whole)

    def rest(self) -> Iterator[str]:
        """Last lines that no newline ended."""
        for lines, last in self._streams.values():
            for line in lines.end():
                yield f"{self._head(last)}{line}\n"
        self._streams.clear()

    def _head(self, item: Source) -> str:
        time = f"{item.at} " if self._has_times else ""
        origin = "" if self._is_single else f"{self._progress.label(item)} | "
        return time + origin


class FoundPrinter:
    """Lines that were found in many runs -> `run#n task/step line | text`, a line each."""

    def __init__(self, *, shown: Shown = terminal.clean, has_times: bool = False) -> None:
        self._shown = shown
        self._has_times = has_times

    def lines(self, item: Line) -> Iterator[str]:
        """The line, or its part, in parts that are not too long."""
        time = f"{item.at} " if self._has_times else ""
        title, where = terminal.one_line(item.title), f"{shortened(item.task)}/{shortened(item.step)}"
        for part in terminal.cut(_in_one(item.text)):
            yield f"{time}{title} {where} {item.line} | {self._shown(part)}\n"


def _in_one(text: str) -> str:
    return text.rstrip("\r").replace("\r", " ")
