"""Routes of the cluster: its agents, its master, its health."""

from __future__ import annotations

from aiohttp import web

from pistage import __version__, wire
from pistage.core.commands import SetAgentDrain
from pistage.errors import Code, PistageError
from pistage.master import reads
from pistage.master.api import http, views
from pistage.master.api.context import Context
from pistage.master.api.leading import freshness
from pistage.master.state import Snapshot


class ClusterRoutes:
    """Handlers of /api/v1/agents, /api/v1/cluster, /livez, /readyz and /metrics."""

    def __init__(self, context: Context) -> None:
        self._context = context

    async def agents(self, request: web.Request) -> web.Response:
        """Every agent that ever registered: state, labels, capacity, what is reserved."""
        async with self._context.replica.reader.snapshot() as snapshot:
            items = await views.list_agents(snapshot, self._seen_at)
            applied_index = await snapshot.applied_index()
        return http.answer({"items": items, "next": None, "applied_index": applied_index})

    async def drain(self, request: web.Request) -> web.Response:
        """Give the agent no new work."""
        return await self._set_drain(request, is_draining=True)

    async def resume(self, request: web.Request) -> web.Response:
        """Let the agent take work again."""
        return await self._set_drain(request, is_draining=False)

    async def _set_drain(self, request: web.Request, *, is_draining: bool) -> web.Response:
        async with self._context.replica.reader.snapshot() as snapshot:
            agent_id = await _resolve_agent(snapshot, request.match_info["id"])
        await self._context.replica.propose(SetAgentDrain(at=wire.now_ms(), agent_id=agent_id, is_draining=is_draining))
        async with self._context.replica.reader.snapshot() as snapshot:
            items = await views.list_agents(snapshot, self._seen_at)
        return http.answer(next(item for item in items if item["id"] == agent_id))

    async def cluster(self, request: web.Request) -> web.Response:
        """The masters as this one sees them, and how far its own state is; the leader knows how far each is."""
        context, replica = self._context, self._context.replica
        async with replica.reader.snapshot() as snapshot:
            cluster_id = await reads.cluster_id(snapshot)
        body = {
            "cluster_id": cluster_id,
            "node": replica.node_id,
            "role": replica.role_name,
            "leader": replica.leader,
            "leader_url": context.url_of(replica.leader),
            "term": replica.term,
            "applied_index": replica.applied_index,
            "digest": replica.digest.hex(),
            "command_version": replica.command_version,
            "version": __version__,
            "loop_lag_ms": round(replica.lag_s * 1000),
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
        return web.Response(text="\n".join(lines) + "\n", content_type="text/plain")

    def _seen_at(self, agent_id: str) -> tuple[bool, int]:
        sessions = self._context.sessions
        return sessions.is_connected(agent_id), wire.now_ms() - round(1000 * sessions.silent_s(agent_id))


async def _resolve_agent(snapshot: Snapshot, reference: str) -> str:
    rows = await snapshot.rows("SELECT id FROM agent WHERE id = ? OR name = ? ORDER BY id LIMIT 2", (reference,) * 2)
    if not rows:
        raise PistageError(Code.NOT_FOUND, f"no agent {reference!r}", hint="pistage agent ls lists the agents")
    if len(rows) > 1:
        raise PistageError(Code.CONFLICT, f"several agents are called {reference!r}", hint="give the id")
    return str(rows[0][0])
