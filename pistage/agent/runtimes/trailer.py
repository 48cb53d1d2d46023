"""Trailers: where the output of a command in a shared container ends, and with which exit code."""

from __future__ import annotations


class TrailerScanner:
    """Passes a stream on up to its trailer, `\\x01<nonce>:<code>\\n`; what might begin one is held back."""

    def __init__(self, nonce: str) -> None:
        self._mark = b"\x01" + nonce.encode() + b":"
        self._held = b""
        self.code: int | None = None

    def feed(self, chunk: bytes) -> bytes:
        """The part of the stream that is certainly output; "" once the trailer has come."""
        if self.code is not None:
            return b""
        text = self._held + chunk
        at = text.find(self._mark)
        if at < 0:
            keep = self._may_begin(text)
            self._held = text[keep:]
            return text[:keep]
        line, newline, _ = text[at + len(self._mark) :].partition(b"\n")
        if newline:
            self.code = int(line)
            self._held = b""
        else:
            self._held = text[at:]
        return text[:at]

    def _may_begin(self, text: bytes) -> int:
        """Where a mark may begin that the end of `text` cuts off."""
        at = text.find(self._mark[:1], max(0, len(text) - len(self._mark) + 1))
        while at >= 0:
            if self._mark.startswith(text[at:]):
                return at
            at = text.find(self._mark[:1], at + 1)
        return len(text)
