"""Calls: how the client asks a route of the API, whichever it is."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self, cast
from urllib.parse import quote

from pistage.client import transport
from pistage.client.answers import Page
from pistage.client.transport import Request, Transport

API = "/api/v1"
_PAGE = 500


class Calls:
    """Talks to the masters at `servers`; one that answers is enough. An async context manager.

    Every method raises PistageError: what the master said, or `unavailable` once patience is over.
    """

    def __init__(
        self,
        servers: Sequence[str],
        token: str | None = None,
        *,
        first_patience_s: float = transport.FIRST_PATIENCE_S,
        patience_s: float = transport.PATIENCE_S,
    ) -> None:
        self._token = token
        self._transport = Transport(servers, token, first_patience_s=first_patience_s, patience_s=patience_s)

    @property
    def server(self) -> str:
        """The master that is asked first."""
        return self._transport.server

    async def __aenter__(self) -> Self:
        await self._transport.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._transport.__aexit__(kind, error, trace)

    async def _page(self, path: str, given: Mapping[str, object]) -> Page:
        asked = {key: str(value) for key, value in given.items() if value is not None}
        return cast(Page, await self._get(path, asked))

    async def _get(self, path: str, parameters: Mapping[str, str] | None = None) -> Any:
        return await self._transport.fetch_json(
            Request(method="GET", path=API + path, parameters=parameters or {}, headers={"Accept": "application/json"})
        )

    async def _post(
        self,
        path: str,
        body: Mapping[str, Any],
        *,
        headers: Mapping[str, str] | None = None,
        parameters: Mapping[str, str] | None = None,
    ) -> Any:
        return await self._send("POST", path, body, headers=headers, parameters=parameters)

    async def _send(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any],
        *,
        headers: Mapping[str, str] | None = None,
        parameters: Mapping[str, str] | None = None,
    ) -> Any:
        return await self._transport.fetch_json(
            Request(
                method=method,
                path=API + path,
                parameters=parameters or {},
                headers={"Content-Type": "application/json"} | dict(headers or {}),
                body=json.dumps(body, ensure_ascii=False).encode("utf-8"),
            )
        )

    async def _delete(self, path: str) -> None:
        await self._transport.fetch_text(Request(method="DELETE", path=API + path))


def quoted(text: str) -> str:
    """User text as one segment of a path: a name may hold spaces, commas, slashes, and `#`."""
    return quote(text, safe="")


async def all_items(fetch: Callable[..., Awaitable[Page]]) -> list[Any]:
    """What all pages hold that `fetch`, a method with `limit` and `cursor`, gives one after the other."""
    page = await fetch(limit=_PAGE, cursor=None)
    items = list(page["items"])
    while (cursor := page["next"]) is not None:
        page = await fetch(limit=_PAGE, cursor=cursor)
        items += page["items"]
    return items
