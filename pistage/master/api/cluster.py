"""Routes of the cluster: its agents, its master, its health."""

from __future__ import annotations

from aiohttp import web

from pistage import __version__, wire
from pistage.core.commands import SetAgentDrain
from pistage.errors import Code, PistageError
from pistage.master import reads
from pistage.master.api import http, views
from pistage.master.api.context import Context
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
        """The cluster's id, its leader, and how far this master's state is."""
        context = self._context
        async with context.replica.reader.snapshot() as snapshot:
            body = {
                "cluster_id": await reads.cluster_id(snapshot),
                "node": context.node_id,
                "leader": context.node_id,
                "term": context.replica.term,
                "masters": [{"id": context.node_id, "role": "leader", "version": __version__}],
                "applied_index": await snapshot.applied_index(),
                "version": __version__,
            }
        return http.answer(body)

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
