"""The route table: every method and path there is, and the OpenAPI document made from it."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from aiohttp import web

from pistage import __version__
from pistage.master.api import http
from pistage.master.api.actions import ActionRoutes
from pistage.master.api.afters import AfterRoutes
from pistage.master.api.agents import AgentRoutes
from pistage.master.api.answering import Means
from pistage.master.api.cluster import ClusterRoutes
from pistage.master.api.context import Context
from pistage.master.api.events import EventRoutes
from pistage.master.api.leading import after_reading_up, at_the_leader, sent_to_the_leader
from pistage.master.api.notices import NoticeRoutes
from pistage.master.api.output import OutputRoutes
from pistage.master.api.peers import PeerRoutes
from pistage.master.api.queues import QueueRoutes
from pistage.master.api.retention import RetentionRoutes
from pistage.master.api.runs import RunRoutes
from pistage.master.api.schedules import ScheduleRoutes
from pistage.master.api.searching import SearchRoutes
from pistage.master.api.webhooks import WebhookRoutes
from pistage.master.api.why import WhyRoutes
from pistage.master.copies import OUTPUT_PATH
from pistage.master.founding import HELLO_PATH
from pistage.master.members import JOIN_PATH
from pistage.master.peers import SNAPSHOT_PATH, STREAM_PATH


@dataclass(frozen=True, slots=True)
class Route:
    """One method and path, and what answers; the handler's docstring is the route's documentation."""

    method: str
    path: str
    handler: Callable[[web.Request], Awaitable[web.StreamResponse]]

    @property
    def summary(self) -> str:
        return " ".join((self.handler.__doc__ or "").split())


def routes_of(context: Context) -> list[Route]:
    """Every route of a master."""
    afters = AfterRoutes(context)
    schedules = ScheduleRoutes(context, afters)
    runs, why = RunRoutes(context, schedules), WhyRoutes(context)
    means = Means(context.settings.data_dir / "logs")
    output, search = OutputRoutes(context, means), SearchRoutes(context, means)
    actions, queues, retention = ActionRoutes(context), QueueRoutes(context), RetentionRoutes(context)
    agents, cluster = AgentRoutes(context), ClusterRoutes(context)
    lead, read = partial(at_the_leader, context), partial(after_reading_up, context)
    routes = [
        Route("POST", "/api/v1/runs", lead(runs.submit)),
        Route("POST", "/api/v1/runs/batch", lead(runs.submit_batch)),
        Route("POST", "/api/v1/scripts", lead(runs.submit_script)),
        Route("GET", "/api/v1/runs", read(runs.list)),
        Route("GET", "/api/v1/runs/{id}", read(runs.show)),
        Route("GET", "/api/v1/runs/{id}/plan", read(runs.plan)),
        Route("GET", "/api/v1/runs/{id}/why", lead(read(why.why))),
        Route("POST", "/api/v1/runs/{id}/cancel", lead(runs.cancel)),
        Route("POST", "/api/v1/runs/{id}/retry", lead(runs.retry)),
        Route("POST", "/api/v1/runs/{id}/priority", lead(runs.set_priority)),
        Route("POST", "/api/v1/runs/{id}/pin", lead(retention.pin)),
        Route("POST", "/api/v1/runs/{id}/unpin", lead(retention.unpin)),
        Route("GET", "/api/v1/runs/{id}/logs", lead(output.logs)),
        Route("GET", "/api/v1/logs", lead(search.search)),
        Route("GET", "/api/v1/runs/{id}/events", read(EventRoutes(context).events)),
        Route("PUT", "/api/v1/actions/{name}", lead(actions.put)),
        Route("GET", "/api/v1/actions/{name}", read(actions.show)),
        Route("GET", "/api/v1/actions/{name}/schema", read(actions.schema)),
        Route("DELETE", "/api/v1/actions/{name}", lead(actions.delete)),
        Route("GET", "/api/v1/actions", read(actions.list)),
        Route("POST", "/api/v1/lint", read(actions.lint)),
        Route("POST", "/api/v1/plan", read(actions.plan)),
        Route("GET", "/api/v1/queues", read(queues.list)),
        Route("PUT", "/api/v1/queues/{name}", lead(queues.put)),
        Route("DELETE", "/api/v1/queues/{name}", lead(queues.delete)),
        Route("GET", "/api/v1/retention", read(retention.list)),
        Route("PUT", "/api/v1/retention/{name}", lead(retention.put)),
        Route("DELETE", "/api/v1/retention/{name}", lead(retention.delete)),
        *_routes_of_beginnings_and_ends(context, schedules, afters),
        Route("GET", "/api/v1/agents", lead(read(agents.list))),
        Route("POST", "/api/v1/agents/{id}/drain", lead(agents.drain)),
        Route("POST", "/api/v1/agents/{id}/resume", lead(agents.resume)),
        Route("DELETE", "/api/v1/agents/{id}", lead(agents.remove)),
        Route("GET", "/api/v1/cluster", cluster.cluster),
        Route("GET", "/api/v1/cluster/snapshot", read(cluster.snapshot)),
        Route("POST", "/api/v1/cluster/transfer", lead(cluster.transfer)),
        Route("POST", "/api/v1/cluster/remove", lead(cluster.remove)),
        *_routes_of_members(context),
        Route("GET", "/livez", cluster.livez),
        Route("GET", "/readyz", cluster.readyz),
        Route("GET", "/metrics", cluster.metrics),
    ]
    document = openapi(routes)

    async def openapi_json(request: web.Request) -> web.Response:
        """This API as an OpenAPI document."""
        return http.answer_cached(request, document)

    return [*routes, Route("GET", "/openapi.json", openapi_json)]


def _routes_of_schedules(context: Context, schedules: ScheduleRoutes) -> list[Route]:
    lead, read = partial(at_the_leader, context), partial(after_reading_up, context)
    return [
        Route("GET", "/api/v1/schedules", read(schedules.list)),
        Route("PUT", "/api/v1/schedules/{name}", lead(schedules.put)),
        Route("GET", "/api/v1/schedules/{name}", read(schedules.show)),
        Route("DELETE", "/api/v1/schedules/{name}", lead(schedules.delete)),
        Route("GET", "/api/v1/schedules/{name}/fires", read(schedules.fires)),
        Route("POST", "/api/v1/schedules/{name}/pause", lead(schedules.pause)),
        Route("POST", "/api/v1/schedules/{name}/resume", lead(schedules.resume)),
    ]


def _routes_of_beginnings_and_ends(context: Context, schedules: ScheduleRoutes, afters: AfterRoutes) -> list[Route]:
    lead, read = partial(at_the_leader, context), partial(after_reading_up, context)
    webhooks = WebhookRoutes(context)
    return [
        *_routes_of_schedules(context, schedules),
        *_routes_of_notices(context),
        Route("GET", "/api/v1/webhooks", read(webhooks.list)),
        Route("PUT", "/api/v1/webhooks/{name}", lead(webhooks.put)),
        Route("GET", "/api/v1/webhooks/{name}", read(webhooks.show)),
        Route("DELETE", "/api/v1/webhooks/{name}", lead(webhooks.delete)),
        Route("POST", "/hooks/{name}", webhooks.receive),
        Route("GET", "/api/v1/afters", read(afters.list)),
        Route("GET", "/api/v1/afters/{name}", read(afters.show)),
        Route("DELETE", "/api/v1/afters/{name}", lead(afters.delete)),
    ]


def _routes_of_notices(context: Context) -> list[Route]:
    notices = NoticeRoutes(context)
    lead, read = partial(at_the_leader, context), partial(after_reading_up, context)
    return [
        Route("GET", "/api/v1/runs/{id}/notices", read(notices.of_run)),
        Route("GET", "/api/v1/notices", read(notices.list)),
        Route("PUT", "/api/v1/notices/{name}", lead(notices.put)),
        Route("DELETE", "/api/v1/notices/{name}", lead(notices.delete)),
        Route("POST", "/api/v1/notices/{name}/test", lead(notices.test)),
    ]


def _routes_of_members(context: Context) -> list[Route]:
    """What agents and other masters ask."""
    peers, lead = PeerRoutes(context), partial(at_the_leader, context)
    return [
        Route("GET", "/agent/v1/session", sent_to_the_leader(context, context.sessions.serve)),
        Route("GET", HELLO_PATH, peers.hello),
        Route("GET", STREAM_PATH, peers.stream),
        Route("POST", OUTPUT_PATH, peers.output),
        Route("POST", JOIN_PATH, lead(peers.join)),
        Route("GET", SNAPSHOT_PATH, peers.snapshot),
        Route("GET", SNAPSHOT_PATH + "/{index}", peers.snapshot_part),
    ]


def openapi(routes: list[Route]) -> dict[str, Any]:
    """The routes as an OpenAPI 3.1 document."""
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        names = re.findall(r"{(\w+)}", route.path)
        parameters = [{"name": n, "in": "path", "required": True, "schema": {"type": "string"}} for n in names]
        responses = {"default": {"description": "success, or problem+json"}}
        operation = {"summary": route.summary, "parameters": parameters, "responses": responses}
        paths.setdefault(route.path, {})[route.method.lower()] = operation
    return {"openapi": "3.1.0", "info": {"title": "Pistage", "version": __version__}, "paths": paths}
