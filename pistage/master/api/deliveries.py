"""Deliveries: what a webhook's sender sends, checked to be signed, before anything else is made of it.

Two ways to sign: as GitHub does, the body alone; or ours, which also says when. Of the first nothing dates the body,
and its delivery's name is not signed: so a body that was seen is known again, under whatever name it comes.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, NoReturn
from urllib.parse import parse_qs

from pistage.core import limits
from pistage.errors import Code, PistageError

GITHUB_SIGNATURE: Final = "X-Hub-Signature-256"
GITHUB_DELIVERY: Final = "X-GitHub-Delivery"
GITHUB_EVENT: Final = "X-GitHub-Event"
SIGNATURE: Final = "X-Pistage-Signature-256"
TIMESTAMP: Final = "X-Pistage-Timestamp"
_PREFIX: Final = "sha256="
_FORM: Final = "application/x-www-form-urlencoded"
_REFUSED: Final = "the delivery's signature is wrong, or there is no such webhook"


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """A delivery as it came. `said_at` is what it says of its time, as it was written; "" where it is not signed."""

    signature: bytes
    said_at: str
    name: str
    event: str | None
    content_type: str
    body: bytes

    @property
    def signed(self) -> bytes:
        """What the signature is of."""
        return f"{self.said_at}.".encode() + self.body if self.said_at else self.body

    def is_signed_with(self, secret: str) -> bool:
        """Whether who sent it knows the secret; as long for one that is wrong in any place."""
        expected = hmac.new(secret.encode(), self.signed, hashlib.sha256).hexdigest().encode()
        return hmac.compare_digest(expected, self.signature)

    def keys(self) -> tuple[str, ...]:
        """By what it is known again: what was signed, and the name that the sender gave it."""
        signed = hashlib.sha256(f"signed\0{self.said_at}\0".encode() + self.body).hexdigest()
        named = hashlib.sha256(b"named\0" + _bytes_of(self.name)).hexdigest()
        return (signed, named) if self.name else (signed,)

    def refuse_unless_now(self, now_ms: int, window_ms: int) -> None:
        """PistageError `forbidden` for a time that is further off than the window, in either direction."""
        if self.said_at and abs(now_ms - int(self.said_at) * 1000) > window_ms:
            raise PistageError(
                Code.FORBIDDEN, f"the delivery's {TIMESTAMP} is more than {window_ms / 1000:g} s off",
                hint="send the seconds since 1970 in UTC, and sign anew",
            )  # fmt: skip


def signature_in(headers: Mapping[str, str]) -> tuple[bytes, str]:
    """The signature of a delivery and the time that it covers, by its headers alone.

    PistageError `unauthenticated` without one, `forbidden` for what cannot be one.
    """
    is_ours = SIGNATURE in headers
    said_at = headers.get(TIMESTAMP, "") if is_ours else ""
    signature = headers.get(SIGNATURE if is_ours else GITHUB_SIGNATURE)
    if signature is None:
        raise PistageError(
            Code.UNAUTHENTICATED, "the delivery is not signed",
            hint=f"send {GITHUB_SIGNATURE}: sha256=… with the HMAC-SHA-256 of the body",
        )  # fmt: skip
    is_time = 0 < len(said_at) <= 12 and said_at.isascii() and said_at.isdigit()
    if not signature.startswith(_PREFIX) or (is_ours and not is_time):
        raise refused()
    return _bytes_of(signature.removeprefix(_PREFIX).lower()), said_at


def refused() -> PistageError:
    """The same for a wrong signature, and for a webhook that does not exist: which, is nobody's business."""
    return PistageError(Code.FORBIDDEN, _REFUSED)


def name_in(headers: Mapping[str, str]) -> str:
    """What the sender calls the delivery; "" where it gives no name."""
    return headers.get(GITHUB_DELIVERY, "")[: limits.WEBHOOK_DELIVERY_CHARS_MAX]


def payload_of(delivery: Delivery) -> dict[str, Any]:
    """The JSON object that was sent, as such or as `payload` of a form; PistageError `invalid` for anything else."""
    text = delivery.body
    if delivery.content_type == _FORM and not text.startswith(b"{"):  # which is what curl -d calls any text
        text = _form_payload(delivery.body)
    try:
        payload = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        payload = None
    if not isinstance(payload, dict):
        raise PistageError(
            Code.INVALID, "the body is no JSON object",
            hint="send {…} as application/json, or as `payload` of a form, as GitHub does",
        )  # fmt: skip
    return payload


def _form_payload(body: bytes) -> bytes:
    # What was signed with a time in front must not pass for a form without one.
    if not body.startswith(b"payload="):
        return b""
    try:
        fields = parse_qs(body.decode("ascii"), max_num_fields=8)
    except ValueError:
        return b""
    return _bytes_of(fields.get("payload", [""])[0])


def _bytes_of(text: str) -> bytes:
    """Headers may hold any byte."""
    return text.encode("utf-8", "surrogateescape")


def _refuse_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not JSON")
