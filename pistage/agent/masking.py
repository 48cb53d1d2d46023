"""Masking: secrets in a stream of bytes are replaced by `***`, wherever the stream is cut."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import re2

from pistage.agent.spellings import spellings_of
from pistage.core import limits

MASK = b"***"
_KEY_BYTES = limits.MASK_CHARS_MIN  # no spelling is shorter
#: How much of each spelling is looked for. Most are no longer, and what was found is compared with the whole.
_SOUGHT_BYTES = 64
#: All of what is looked for, together: with more of it, less is looked for of each, so that the automaton that is made
#: of it stays within its memory. It makes its states as it meets them: in text without secrets, a few hundred.
_PROGRAM_BYTES = 1 * limits.MIB
_AUTOMATON_BYTES_MAX = 256 * limits.MIB


class Masks:
    """What must not be seen, ready to be looked for; any number of streams may share it."""

    def __init__(self, secrets: Iterable[str]) -> None:
        spellings = {spelling for secret in secrets for spelling in spellings_of(secret)}
        self._longest = max(map(len, spellings), default=0)
        by_key: defaultdict[bytes, list[bytes]] = defaultdict(list)
        for spelling in sorted(spellings, key=lambda one: (-len(one), one)):
            by_key[spelling[:_KEY_BYTES]].append(spelling)
        self._by_key = {key: tuple(longest_first) for key, longest_first in by_key.items()}
        #: The first bytes of spellings, by how many.
        self._beginnings = tuple(frozenset(key[:length] for key in by_key) for length in range(_KEY_BYTES))
        if spellings:
            self._sought = _any_of(_sought_of(spellings))
            self._keys = _any_of(set(by_key))

    def __bool__(self) -> bool:
        return bool(self._longest)

    def in_text(self, text: str, *, is_cut: bool = False) -> str:
        """`text` without the secrets; `is_cut` if more of it is not shown, which may have cut a secret in two."""
        if not self:
            return text
        masked, _ = self.scan(text.encode(errors="replace"), is_last=not is_cut)
        return masked.decode(errors="replace")

    def scan(self, text: bytes, *, is_last: bool) -> tuple[bytes, bytes]:
        """`text` without the secrets, up to where one may begin that its end cuts off; and the rest, as it is.

        Of secrets that overlap the leftmost is replaced, and of those that begin there the longest.
        """
        pieces: list[bytes] = []
        done = at = 0
        end = len(text) if is_last else self._unfinished(text, 0)
        while (found := self._sought.search(text, at)) is not None and (start := found.start()) < end:
            known = self._by_key[text[start : start + _KEY_BYTES]]
            spelling = next((one for one in known if text.startswith(one, start)), None)
            if spelling is None:
                at = start + 1
                continue
            pieces += (text[done:start], MASK)
            done = at = start + len(spelling)
            if end < done:
                end = self._unfinished(text, done)
        if not pieces and end == len(text):
            return text, b""
        pieces.append(text[done:end])
        return b"".join(pieces), text[end:]

    def _unfinished(self, text: bytes, start: int) -> int:
        """The first place, from `start` on, where a spelling may begin that goes on behind the end of `text`."""
        at = max(start, len(text) - self._longest + 1)
        while (found := self._keys.search(text, at)) is not None:
            at = found.start()
            rest = text[at:]
            if any(len(one) > len(rest) and one.startswith(rest) for one in self._by_key[rest[:_KEY_BYTES]]):
                return int(at)
            at += 1
        for length in range(min(_KEY_BYTES - 1, len(text) - start), 0, -1):
            if text[-length:] in self._beginnings[length]:
                return len(text) - length
        return len(text)


class Masker:
    """One stream on its way: what comes out depends on what went in, not on how it was cut."""

    def __init__(self, masks: Masks) -> None:
        self._masks = masks
        self._held = b""

    def feed(self, data: bytes) -> bytes:
        """What is certain now; held back is what may begin a secret, always less than the longest spelling."""
        masked, self._held = self._masks.scan(self._held + data if self._held else data, is_last=False)
        return masked

    def finish(self) -> bytes:
        """The rest: the stream ends here, and another may begin."""
        masked, self._held = self._masks.scan(self._held, is_last=True)
        return masked


def _sought_of(spellings: set[bytes]) -> set[bytes]:
    """As much of each as there is room for. Many share it: they differ in how their lines are folded, or end."""
    length = _SOUGHT_BYTES
    while True:
        sought = {spelling[:length] for spelling in spellings}
        if length == _KEY_BYTES or sum(map(len, sought)) <= _PROGRAM_BYTES:
            return sought
        length = max(_KEY_BYTES, length // 2)


def _any_of(literals: set[bytes]) -> re2._Regexp:
    options = re2.Options()
    options.encoding = re2.Options.Encoding.LATIN1
    options.never_capture = True
    options.log_errors = False
    options.max_mem = _AUTOMATON_BYTES_MAX
    return re2.compile(b"|".join(map(re2.escape, sorted(literals))), options=options)
