"""Routes of the cluster: its masters, its health."""

from __future__ import annotations

import asyncio
import hashlib
import json
import shutil
from typing import BinaryIO

from aiohttp import web
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pistage import __version__
from pistage.core import ids, limits
from pistage.errors import Code, PistageError
from pistage.master import reads
from pistage.master.api import http
from pistage.master.api.context import Context
from pistage.master.api.leading import forward, freshness
from pistage.owning import in_a_thread, seen_through


class _Asked(BaseModel):
    """Which master a request is about."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    master: str = Field("", max_length=limits.NAME_CHARS_MAX)


class ClusterRoutes:
    """Handlers of /api/v1/cluster, /livez, /readyz and /metrics."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._copying = asyncio.Lock()  # the threads are few, and names of masters are resolved in them as well

    async def cluster(self, request: web.Request) -> web.Response:
        """The masters as this one sees them, and how far its own state is; the leader knows how far each is."""
        context, replica = self._context, self._context.replica
        async with replica.reader.snapshot() as snapshot:
            cluster_id = await reads.cluster_id(snapshot)
        body = {
            "cluster_id": cluster_id,
            "group_id": replica.identity.group_id,
            "node": replica.node_id,
            "role": replica.role_name,
            "leader": replica.leader,
            "leader_url": context.url_of(replica.leader),
            "term": replica.term,
            "last_index": replica.node.log.last_index,
            "last_term": replica.node.log.last_term,
            "applied_index": replica.applied_index,
            "digest": replica.digest.hex(),
            "command_version": replica.command_version,
            "version": __version__,
            "loop_lag_ms": round(replica.lag_s * 1000),
            "is_disk_full": replica.node.writes.is_disk_full,
            "disk_free_bytes": shutil.disk_usage(context.settings.data_dir).free,
            "masters": [self._master(node_id) for node_id in replica.membership.members],
        }
        return http.answer(body, headers=freshness(context))

    def _master(self, node_id: str) -> dict[str, object]:
        replica, registered = self._context.replica, self._context.members.registered.get(node_id)
        leadership = replica.node.leadership
        progress = leadership and leadership.followers.get(node_id)
        here = replica.applied_index if node_id == replica.node_id else None
        return {
            "id": node_id,
            "url": self._context.url_of(node_id),
            "role": replica.role_of(node_id),
            "is_voter": node_id in replica.membership.voters,
            "version": registered and registered.version,
            "match_index": progress.match if progress else here,
            "last_heard_ms": replica.heard_ms(progress.heard_tick) if progress else None,
        }

    async def snapshot(self, request: web.Request) -> web.StreamResponse:
        """A consistent copy of the state, to keep elsewhere: a SQLite file, and its SHA-256 as the last 32 bytes."""
        context = self._context
        context.refuse_unless_space()
        async with self._copying:
            loop = asyncio.get_running_loop()
            copying = loop.run_in_executor(None, context.snapshots.copy, context.replica.reader.path)
            # Also when the client hangs up: one copy at a time.
            copy = await seen_through(copying, unwanted=lambda copy: loop.run_in_executor(None, copy.close))
        try:
            size = copy.seek(0, 2)
            copy.seek(0)
            response = web.StreamResponse(headers=freshness(context))
            response.content_type = "application/octet-stream"
            response.content_length = size + hashlib.sha256().digest_size
            await response.prepare(request)
            digest = hashlib.sha256()
            while piece := await in_a_thread(_next_piece, copy, digest):
                await response.write(piece)
            await response.write(digest.digest())
            await response.write_eof()
        finally:
            # Frees the space, and that takes a while; not waited for, so that nobody who hangs up can keep it from it.
            loop.run_in_executor(None, copy.close)
        return response

    async def transfer(self, request: web.Request) -> web.Response:
        """Let another master lead: the one named in {"master": …}, or the one that is furthest."""
        reference = _asked(await http.read_body(request, bytes_max=limits.MIB))
        replica, members = self._context.replica, self._context.members
        target = members.resolve(reference) if reference else self._successor()
        if target in replica.membership.learners:
            raise PistageError(
                Code.CONFLICT, f"master {target} is a learner yet", hint="it can lead once it has caught up and votes"
            )
        if target != replica.node_id:
            await replica.transfer(target)
        return http.answer({"leader": target, "leader_url": self._context.url_of(target)})

    async def remove(self, request: web.Request) -> web.StreamResponse:
        """Take the master named in {"master": …} out of the group; one that leads hands over first."""
        body = await http.read_body(request, bytes_max=limits.MIB)
        reference = _asked(body)
        if not reference:
            raise PistageError(Code.INVALID, "no master is named", hint='send {"master": id or URL}')
        context, replica = self._context, self._context.replica
        is_out = ids.is_id(reference) and reference not in replica.membership.members  # as it would be after this
        node_id = reference if is_out else context.members.resolve(reference)
        removed = {"id": node_id, "url": context.url_of(node_id)}
        if node_id == replica.node_id:
            successor = self._successor(is_leader_removed=True)
            await replica.transfer(successor)
            return await forward(context, request, context.url_of(successor) or "", body)
        if not is_out:
            await context.members.remove(node_id)
        return http.answer({"removed": removed, "masters": [self._master(one) for one in replica.membership.members]})

    def _successor(self, *, is_leader_removed: bool = False) -> str:
        """The other voter that is there and furthest. `conflict` without one, or too few to be left without us."""
        replica = self._context.replica
        others = [voter for voter in replica.membership.voters if voter != replica.node_id]
        if not replica.is_leading:
            raise PistageError(Code.UNAVAILABLE, "this master leads no longer", hint="try again")
        if not others:
            raise PistageError(Code.CONFLICT, "the leader is the only master that votes", hint="add another one first")
        there = {voter: match for voter, match in replica.heard.items() if voter in others}
        if not there or (is_leader_removed and len(there) <= len(others) // 2):
            raise PistageError(
                Code.CONFLICT,
                "without that master too few of the others would be left to decide anything",
                hint="bring the others back first, or add one",
            )
        return max(there, key=lambda voter: (there[voter], voter))

    async def livez(self, request: web.Request) -> web.Response:
        """200 while the process answers."""
        return web.Response(text="ok\n")

    async def readyz(self, request: web.Request) -> web.Response:
        """200 while changes can be made; 503 otherwise."""
        if not self._context.replica.is_serving:
            raise PistageError(Code.UNAVAILABLE, "this master cannot make changes now")
        return web.Response(text="ok\n")

    async def metrics(self, request: web.Request) -> web.Response:
        """Counts in the Prometheus text format."""
        async with self._context.replica.reader.snapshot() as snapshot:
            runs = await snapshot.rows("SELECT state, COUNT(*) FROM run GROUP BY state ORDER BY state")
            tasks = await snapshot.rows("SELECT state, COUNT(*) FROM task GROUP BY state ORDER BY state")
            agents = await snapshot.rows("SELECT state, COUNT(*) FROM agent GROUP BY state ORDER BY state")
            applied_index = await snapshot.applied_index()
        lines = ["# TYPE pistage_applied_index counter", f"pistage_applied_index {applied_index}"]
        for name, rows in (("runs", runs), ("tasks", tasks), ("agents", agents)):
            lines.append(f"# TYPE pistage_{name} gauge")
            lines += [f'pistage_{name}{{state="{state}"}} {count}' for state, count in rows]
        sealing = self._context.sealing
        lines += ["# TYPE pistage_output_sealed_total counter", f"pistage_output_sealed_total {sealing.sealed_count}"]
        lines += ["# TYPE pistage_output_damaged gauge", f"pistage_output_damaged {len(sealing.damaged)}"]
        return web.Response(text="\n".join(lines) + "\n", content_type="text/plain")


def _asked(body: bytes) -> str:
    """The master that the body names, "" where it names none."""
    try:
        return _Asked.model_validate(json.loads(body or b"{}")).master
    except (ValueError, ValidationError, RecursionError):
        raise PistageError(Code.INVALID, "the body names no master", hint='send {"master": id or URL}') from None


def _next_piece(file: BinaryIO, digest: hashlib._Hash) -> bytes:
    piece = file.read(limits.MIB)
    digest.update(piece)
    return piece
