"""Routes that masters alone may use: the hello, the link, snapshots, and coming in."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from aiohttp import web

from pistage import wire
from pistage.core import limits
from pistage.errors import Code, PistageError
from pistage.master import snapshots
from pistage.master.api import http
from pistage.master.api.context import Context
from pistage.master.checksums import DamagedError
from pistage.master.copies import BODY_BYTES_MAX


class PeerRoutes:
    """Handlers under /raft/v1."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._offering = asyncio.Lock()

    async def hello(self, request: web.Request) -> web.Response:
        """Who this master is, and which group it belongs to."""
        replica = self._context.replica
        members = replica.membership.members if replica.leader is not None else ()
        hello = replace(self._context.peers.hello(), members=members)
        return web.Response(body=wire.pack_hello(hello), content_type="application/octet-stream")

    async def stream(self, request: web.Request) -> web.StreamResponse:
        """The link of another master, a WebSocket: its hello, then consensus messages in msgpack."""
        return await self._context.peers.accept(request)

    async def output(self, request: web.Request) -> web.Response:
        """What the leader asks about output: what is here, to keep a copy, to give what it lacks."""
        group_id, question = wire.unpack_copy_question(await http.read_body(request, bytes_max=BODY_BYTES_MAX))
        if group_id != self._context.replica.identity.group_id:
            raise PistageError(Code.CONFLICT, "this master belongs to another group")
        answer = wire.pack_copy_answer(await self._context.copies.answer(question))
        return web.Response(body=answer, content_type="application/octet-stream")

    async def join(self, request: web.Request) -> web.Response:
        """Let the master of this hello in, as a learner that is promoted once it has caught up."""
        hello = wire.unpack_hello(await http.read_body(request, bytes_max=limits.MIB))
        await self._context.members.join(hello)
        return http.answer({})

    async def snapshot(self, request: web.Request) -> web.Response:
        """The manifest of a snapshot at ?index= or later; made now if there is none."""
        index = http.number_in(request, "index", 0)
        replica, offered = self._context.replica, self._context.snapshots
        if replica.applied_index < index:
            raise PistageError(Code.UNAVAILABLE, f"this master is at {replica.applied_index} itself", hint="try again")
        try:
            async with self._offering:  # whoever waits for the same one needs no thread for that
                manifest = await asyncio.to_thread(offered.offer, replica.reader.path, index)
        except DamagedError as error:
            replica.stop(error)  # it cannot bring anybody up: a leader that is whole can
            raise
        return http.answer(snapshots.manifest_to_json(manifest))

    async def snapshot_part(self, request: web.Request) -> web.Response:
        """One MiB of a snapshot, number ?part=."""
        index, number = request.match_info["index"], http.number_in(request, "part", 0, most=1 << 20)
        if not (index.isascii() and index.isdigit()) or len(index) > 18:
            raise PistageError(Code.USAGE, "expected the index of a snapshot")
        part = await asyncio.to_thread(self._context.snapshots.part, int(index), number)
        return web.Response(body=part, content_type="application/octet-stream")
