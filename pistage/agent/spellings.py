"""Spellings: how a secret may look in what a program prints, by the usual ways to encode and to quote."""

from __future__ import annotations

import base64
import html
import json
import re
from collections.abc import Iterator
from urllib.parse import quote, quote_plus

from pistage.core import limits

#: What the usual encoders of URLs leave as it is, beside letters, digits and `_.-~`.
_URL_SAFE = ("", "/", "!'()*", ";,/?:@&=+$!'()*#")
_HEX_ESCAPE = re.compile(r"%[0-9A-F]{2}")
_SHELL_SPECIAL = re.compile(r"""([ \t'"\\|&;()<>!{}*\[\]?^$`])""")
_DOUBLE_QUOTED_SPECIAL = re.compile(r'([\\"$`])')
_HTML_IN_JSON = str.maketrans({"<": "\\u003c", ">": "\\u003e", "&": "\\u0026"})
_TO_URL_SAFE = str.maketrans("+/", "-_")
#: Of the base64 of bytes that 0, 1 or 2 others stand before: how many characters are made of those, too.
_FOREIGN_CHARS = (0, 2, 3)
_BASE64_WIDTHS = (64, 76)  # of lines: PEM (RFC 7468) and openssl, MIME (RFC 2045) and coreutils


def spellings_of(secret: str) -> frozenset[bytes]:
    """Every spelling of the secret, and of each of its lines; those that are too short for it have none."""
    values = {secret, secret.strip(), *map(str.strip, secret.split("\n"))}
    return frozenset(
        spelling.encode() for value in values if len(value) >= limits.MASK_CHARS_MIN for spelling in _spellings(value)
    )


def _spellings(value: str) -> Iterator[str]:
    raw = value.encode()
    yield value
    yield raw.hex()
    yield raw.hex().upper()
    yield from _in_base64(raw)
    yield from _in_urls(value)
    yield from _in_json(value)
    yield from _in_shells(value)
    yield html.escape(value, quote=False)
    yield html.escape(value)


def _in_base64(raw: bytes) -> Iterator[str]:
    """What the secret alone decides of the base64 of any text around it; and its own end, where the text ends there."""
    for before, foreign in enumerate(_FOREIGN_CHARS):
        padded = base64.b64encode(bytes(before) + raw).decode()[foreign:]
        whole = padded.rstrip("=")
        own = whole[:-1] if padded != whole else whole
        for text in {own, whole, padded}:
            yield text
            yield text.translate(_TO_URL_SAFE)
        for text in {own, padded}:
            yield from _in_lines(text, foreign)


def _in_lines(text: str, foreign: int) -> Iterator[str]:
    """The same as tools fold it, wherever in a line it begins: at a group of four, or behind `foreign` ones of that."""
    for width in _BASE64_WIDTHS:
        for column in range(foreign, width, 4):
            first, rest = text[: width - column], text[width - column :]
            if rest:
                lines = [first, *(rest[at : at + width] for at in range(0, len(rest), width))]
                yield "\n".join(lines)
                yield "\r\n".join(lines)


def _in_urls(value: str) -> Iterator[str]:
    for encoded in (quote_plus(value), *(quote(value, safe=safe) for safe in _URL_SAFE)):
        yield encoded
        yield _HEX_ESCAPE.sub(lambda escape: escape[0].lower(), encoded)


def _in_json(value: str) -> Iterator[str]:
    for is_ascii in (False, True):
        text = json.dumps(value, ensure_ascii=is_ascii)[1:-1]
        yield text
        yield text.replace("/", "\\/")
        yield text.translate(_HTML_IN_JSON)


def _in_shells(value: str) -> Iterator[str]:
    """Inside the quotes that a shell's trace, or `printf %q`, puts around it."""
    yield value.replace("'", "'\\''")
    yield value.replace("'", "'\"'\"'")
    yield _DOUBLE_QUOTED_SPECIAL.sub(r"\\\1", value)
    backslashed = _SHELL_SPECIAL.sub(r"\\\1", value)
    yield backslashed
    yield backslashed.replace(",", "\\,")
    yield value.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n")
