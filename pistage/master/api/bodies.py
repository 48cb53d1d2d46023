"""Small JSON bodies: what a request may hold beside its path, checked against a model."""

from __future__ import annotations

from typing import TypeVar

from aiohttp import web
from pydantic import BaseModel, ConfigDict, ValidationError

from pistage.core import limits
from pistage.errors import Code, PistageError
from pistage.master.api import http


class Body(BaseModel):
    """What such a body is made of: the keys that are named, and no others."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


T = TypeVar("T", bound=Body)


async def read(request: web.Request, kind: type[T], *, expected: str) -> T:
    """The request's body, an empty one standing for `{}`; PistageError `invalid` names the key and says `expected`."""
    return parse(await http.read_body(request, bytes_max=limits.MIB), kind, expected=expected)


def parse(body: bytes, kind: type[T], *, expected: str) -> T:
    """The same for a body that was read before."""
    try:
        return kind.model_validate_json(body if body.strip() else b"{}")
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise PistageError(Code.INVALID, f"{where or 'the body'}: {first['msg']}", hint=f"send {expected}") from None
