"""Log lines: the exact bytes of a stream from the messages in which an engine stored it.

An engine cuts lines longer than 16 KiB into messages that carry one time. The `local` driver of engines before API
1.42 loses the newline that ended such a line; the times tell where it was, except at the very end of the stream, where
a long last line is taken to have ended as lines do.
"""

from __future__ import annotations

from datetime import datetime

_CUT_BYTES = 16 * 1024


def time_of(message: bytes) -> int:
    """When the engine read it: nanoseconds UTC, by its clock."""
    written = message[: message.index(b" ")].decode()  # RFC 3339 with nine digits, in the engine's own time zone
    seconds, nanoseconds, zone = written[:19], written[20:29], written[29:]
    return int(datetime.fromisoformat(seconds + zone).timestamp()) * 1_000_000_000 + int(nanoseconds)


class LineMender:
    """Puts one stream together again; `feed` for each message, `finish` once at the end."""

    def __init__(self, *, loses_newlines: bool) -> None:
        self._loses_newlines = loses_newlines
        self._open_since: bytes | None = None
        self._open_bytes = 0

    def feed(self, message: bytes) -> bytes:
        """The stream's bytes that `message`, which begins with its time, adds to it."""
        space = message.index(b" ")
        at, text = message[:space], message[space + 1 :]
        lost = b""
        if self._loses_newlines and self._open_since not in {None, at}:
            lost = b"\n"
            self._open_bytes = 0
        if text.endswith(b"\n"):
            self._open_since = None
            self._open_bytes = 0
        else:
            self._open_since = at
            self._open_bytes += len(text)
        return lost + text

    def finish(self) -> bytes:
        """What is missing at the end of the stream."""
        is_long = self._open_bytes >= _CUT_BYTES
        return b"\n" if self._loses_newlines and self._open_since is not None and is_long else b""
