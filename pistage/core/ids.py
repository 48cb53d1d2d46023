"""Ids: ULIDs in lower case, ordered by time, made only by us; user text is never part of one."""

from __future__ import annotations

import re

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
_PATTERN = re.compile(r"[0-7][0-9a-hjkmnp-tv-z]{25}")


def make_id(at_ms: int, entropy: bytes) -> str:
    """A ULID (https://github.com/ulid/spec) of 26 characters from milliseconds UTC and 10 random bytes."""
    if len(entropy) != 10:
        raise ValueError(f"expected 10 bytes of entropy, got {len(entropy)}")
    return from_bytes(((at_ms << 80) | int.from_bytes(entropy, "big")).to_bytes(16, "big"))


def to_bytes(text: str) -> bytes:
    """The 16 bytes of an id; ValueError for what is none."""
    if not is_id(text):
        raise ValueError(f"not an id of ours: {text!r}")
    number = 0
    for character in text:
        number = number << 5 | _ALPHABET.index(character)
    return number.to_bytes(16, "big")


def from_bytes(raw: bytes) -> str:
    """The id that 16 bytes are."""
    number = int.from_bytes(raw, "big")
    return "".join(_ALPHABET[(number >> shift) & 31] for shift in range(125, -1, -5))


def is_id(text: str) -> bool:
    """Whether `text` is shaped like an id of ours: safe as a file name and in an engine object's name."""
    return _PATTERN.fullmatch(text) is not None
