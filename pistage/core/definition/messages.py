"""Messages: the body of a notice, from a template or as it is, and the signature by which its receiver knows it."""

from __future__ import annotations

import hmac
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Final

from pistage.core import limits
from pistage.core.definition.scope import given_value
from pistage.core.definition.templates import parse_template, render
from pistage.core.definition.values import Fuel, TemplateError, Value
from pistage.core.notices import Receiver
from pistage.errors import Code, PistageError

RUN_ENDED: Final = "run.ended"
TEST: Final = "test"  # asked for by hand; its run is made up
_NAMES: Final = frozenset({"event", "run", "tasks", "tasks_left_out"})
_FUEL_BYTES: Final = 4 * limits.MIB  # of CPU that one body may cost: about a tenth of a second


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """What there is to tell: JSON values. Of the tasks those that did not succeed come first, and no more than 100."""

    event: str
    run: Mapping[str, object]
    tasks: Sequence[Mapping[str, object]]
    tasks_left_out: int = 0

    def to_plain(self) -> dict[str, object]:
        """As the body has it."""
        return {
            "event": self.event, "run": dict(self.run), "tasks": [dict(task) for task in self.tasks],
            "tasks_left_out": self.tasks_left_out,
        }  # fmt: skip


def problem_of_body(template: str) -> str | None:
    """Why no body can be made of the template, whatever is told; None if one may be."""
    if len(template.encode("utf-8", "replace")) > limits.NOTICE_TEMPLATE_BYTES_MAX:
        return f"is larger than {limits.NOTICE_TEMPLATE_BYTES_MAX} bytes"
    try:
        names = parse_template(template, Fuel(_FUEL_BYTES)).names
    except TemplateError as error:
        return f"is no template: {error.message}"
    if strange := sorted(names - _NAMES):
        return f"takes '{strange[0][:40]}', but there are only {', '.join(sorted(_NAMES))}"
    return None


def body_of(told: Told, template: str) -> bytes:
    """What is sent; the same for the same run. PistageError `invalid` if the template cannot be rendered with it."""
    plain = told.to_plain()
    if not template:
        return json.dumps(plain, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")
    try:
        names: dict[str, Value] = {name: given_value(value) for name, value in plain.items()}
        fuel = Fuel(_FUEL_BYTES)
        body = render(parse_template(template, fuel), names, fuel).encode("utf-8", "replace")
    except TemplateError as error:
        raise PistageError(Code.INVALID, f"its body cannot be made: {error.message}") from None
    if len(body) > limits.NOTICE_BODY_BYTES_MAX:
        raise PistageError(Code.INVALID, f"its body is larger than {limits.NOTICE_BODY_BYTES_MAX} bytes")
    return body


def headers_of(receiver: Receiver, told: Told, body: bytes, *, delivery: str, at_s: int, agent: str) -> dict[str, str]:
    """What goes with the body; `delivery` is the same at each try, `at_s` (Unix seconds) and the signature are not."""
    headers = {
        "Content-Type": "application/json" if not receiver.body or _is_json(body) else "text/plain; charset=utf-8",
        "User-Agent": agent,
    }
    taken = {name.lower() for name in receiver.headers}
    headers = {name: value for name, value in headers.items() if name.lower() not in taken} | dict(receiver.headers)
    headers |= {
        "X-Pistage-Event": told.event,
        "X-Pistage-Delivery": delivery,
        "X-Pistage-Timestamp": str(at_s),
    }
    if receiver.secret:
        headers["X-Pistage-Signature-256"] = signature(receiver.secret, at_s, body)
    return headers


def signature(secret: str, at_s: int, body: bytes) -> str:
    """`sha256=` and the HMAC-SHA-256, in hex, of the timestamp, a dot and the body."""
    return f"sha256={hmac.new(secret.encode(), b'%d.' % at_s + body, sha256).hexdigest()}"


def _is_json(body: bytes) -> bool:
    try:
        json.loads(body)
    except (ValueError, RecursionError):
        return False
    return True
