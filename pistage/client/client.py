"""The client: one method a route of the API."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from pathlib import Path
from typing import Any, cast

from pistage.client import backup, output, streams
from pistage.client.answers import (
    Agent,
    Chunk,
    Event,
    Gap,
    Line,
    Page,
    Pattern,
    Queue,
    Retention,
    Run,
    Selection,
    Triggers,
    Why,
)
from pistage.client.calls import API, quoted
from pistage.client.output import Output
from pistage.client.transport import Request
from pistage.client.triggers import TriggerCalls
from pistage.core import limits


class Client(TriggerCalls):
    """Talks to the masters; see Calls."""

    # --- runs ----------------------------------------------------------------------------------------------

    async def submit_run(self, body: Mapping[str, Any], *, request_key: str | None = None) -> Run:
        """Submit {"definition": text} or {"action": name}, with `with` and `start_node` beside it; the run it made.

        The same `request_key` gives the same run again; without one a fresh key guards this call's own retries.
        """
        headers = {"Idempotency-Key": request_key or _fresh_key()}
        return cast(Run, await self._post("/runs", body, headers=headers, parameters={"now": "1"}))

    async def submit(self, body: Mapping[str, Any], *, request_key: str | None = None) -> Run | Triggers:
        """The same, but for a definition that asks to be run by itself: that is set, and no run is made."""
        headers = {"Idempotency-Key": request_key or _fresh_key()}
        made = await self._post("/runs", body, headers=headers)
        return Triggers(made["schedules"], made.get("after")) if "schedules" in made else cast(Run, made)

    async def submit_runs(self, body: Mapping[str, Any], *, request_key: str | None = None) -> dict[str, Any]:
        """Submit up to 1,000 runs of one definition at once, all or none: `items` has the id and number of each.

        `body` is {"definition": text} or {"action": name}, and `runs`, a list of {`with`, `start_node`}.
        `request_key` is as for `submit_run`, one for them all.
        """
        headers = {"Idempotency-Key": request_key or _fresh_key()}
        return cast(dict[str, Any], await self._post("/runs/batch", body, headers=headers))

    async def submit_script(self, body: Mapping[str, Any], *, request_key: str | None = None) -> Run:
        """Submit {"script": code}, and beside it the keys of a definition with a script alone; the run it made.

        `request_key` is as for `submit_run`.
        """
        headers = {"Idempotency-Key": request_key or _fresh_key()}
        return cast(Run, await self._post("/scripts", body, headers=headers))

    async def fetch_run(self, run: str) -> Run:
        """The run of this id, unique prefix of an id, or `name#number`."""
        return cast(Run, await self._get(_run_path(run)))

    async def fetch_plan(self, run: str) -> dict[str, Any]:
        """What the run executes, without credentials."""
        return cast(dict[str, Any], (await self._get(f"{_run_path(run)}/plan"))["plan"])

    async def fetch_runs(
        self,
        *,
        state: str | None = None,
        name: str | None = None,
        queue: str | None = None,
        limit: int | None = None,
        cursor: str | None = None,
    ) -> Page:
        """One page of runs, the newest first."""
        return await self._page(
            "/runs", {"state": state, "name": name, "queue": queue, "limit": limit, "cursor": cursor}
        )

    async def fetch_why(self, run: str, *, task: str | None = None) -> Why:
        """Why each task of the run that has not succeeded is where it is, or the one task that is named."""
        return cast(Why, await self._get(f"{_run_path(run)}/why", {} if task is None else {"task": task}))

    async def retry_run(
        self, run: str, *, is_failed_only: bool = False, start: str | None = None, request_key: str | None = None
    ) -> Run:
        """Run an ended run again: whole, only what failed, or from the task `start` on; the new run.

        `request_key` is as for `submit_run`.
        """
        body: dict[str, Any] = {"failed": True} if is_failed_only else {}
        headers = {"Idempotency-Key": request_key or _fresh_key()}
        given = body if start is None else body | {"from": start}
        return cast(Run, await self._post(f"{_run_path(run)}/retry", given, headers=headers))

    async def cancel_run(self, run: str, *, task: str | None = None) -> Run:
        """Ask for the end of a run, or of one task of it; tasks end once their processes are gone."""
        parameters = {} if task is None else {"task": task}
        return cast(Run, await self._post(f"{_run_path(run)}/cancel", {}, parameters=parameters))

    async def set_run_priority(self, run: str, priority: int) -> Run:
        """Give a run that has not ended another priority."""
        return cast(Run, await self._post(f"{_run_path(run)}/priority", {"priority": priority}))

    def follow_events(self, run: str, *, after: str = "") -> AsyncGenerator[Event, None]:
        """What happened to the run and what happens next, until it is over; survives a master that restarts."""
        return streams.follow_events(self._transport, API + _run_path(run), after)

    # --- output --------------------------------------------------------------------------------------------

    def output(self, run: str) -> Output:
        """What the run prints, by bytes, or by pieces and lines as the master describes them in JSON."""
        return Output(self._transport, API + _run_path(run))

    async def follow_chunks(
        self, run: str, selection: Selection | None = None, *, start: int = 0, is_followed: bool = True
    ) -> AsyncGenerator[Chunk | Gap, None]:
        """Output in chunks that name their step and stream, from chunk number `start` on, with a gap where one is."""
        pieces = self.output(run).follow_pieces(selection or Selection(), start=start, is_followed=is_followed)
        async with aclosing(pieces):
            async for piece in pieces:
                yield output.piece_of(piece)

    async def follow_lines(
        self,
        run: str,
        selection: Selection | None = None,
        *,
        pattern: Pattern | None = None,
        tail: int | None = None,
        limit: int | None = None,
        is_followed: bool = True,
    ) -> AsyncGenerator[Line | Gap, None]:
        """Output in lines, as `Output.follow_lines` has them."""
        lines = self.output(run).follow_lines(
            selection or Selection(), pattern=pattern, tail=tail, limit=limit, is_followed=is_followed
        )
        async with aclosing(lines):
            async for line in lines:
                yield output.line_of(line)

    def follow_bytes(
        self, run: str, selection: Selection | None = None, *, offset: int = 0, is_followed: bool = True
    ) -> AsyncGenerator[bytes, None]:
        """Output as bare bytes: the fast way, exact for one stream."""
        return self.output(run).follow_bytes(selection or Selection(), offset=offset, is_followed=is_followed)

    def search_output(
        self, pattern: Pattern, *, limit: int | None = None, cursor: str | None = None, **filters: str | None
    ) -> AsyncGenerator[dict[str, Any], None]:
        """Lines of many runs that hold the `pattern`, as the master describes them in JSON; `kind` "end" ends them.

        At most `limit`, or limits.FOUND_DEFAULT. `filters` are those of the route: name, state, task, stream, since,
        until.
        """
        given = {key: value for key, value in filters.items() if value is not None}
        most = limits.FOUND_DEFAULT if limit is None else limit
        return output.search(self._transport, f"{API}/logs", pattern.parameters() | given, limit=most, cursor=cursor)

    # --- definitions ---------------------------------------------------------------------------------------

    async def lint(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """What the cluster has to say about a definition."""
        return cast(dict[str, Any], await self._post("/lint", body))

    async def plan(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """What a submission of `body` would run: {plan, findings}."""
        return cast(dict[str, Any], await self._post("/plan", body))

    async def fetch_actions(self) -> Page:
        """The registered and the predefined actions."""
        return cast(Page, await self._get("/actions"))

    async def fetch_action(self, name: str) -> dict[str, Any]:
        """One action with its text."""
        return cast(dict[str, Any], await self._get(f"/actions/{quoted(name)}"))

    async def fetch_action_schema(self, name: str) -> dict[str, Any]:
        """What an action takes, as JSON Schema."""
        return cast(dict[str, Any], await self._get(f"/actions/{quoted(name)}/schema"))

    async def put_action(self, name: str, text: str) -> dict[str, Any]:
        """Register `text` under `name`: a new version, unless it is the newest one already."""
        headers = {"Content-Type": "application/yaml"}
        request = Request(
            method="PUT", path=f"{API}/actions/{quoted(name)}", headers=headers, body=text.encode("utf-8")
        )
        return cast(dict[str, Any], await self._transport.fetch_json(request))

    async def delete_action(self, name: str) -> None:
        """Forget every version of an action; runs that exist keep their plans."""
        await self._delete(f"/actions/{quoted(name)}")

    # --- queues --------------------------------------------------------------------------------------------

    async def fetch_queues(self) -> list[Queue]:
        """Every queue that was set or has runs."""
        return cast("list[Queue]", (await self._get("/queues"))["items"])

    async def put_queue(self, name: str, *, priority: int, limit: int | None, placing: str) -> Queue:
        """Serve a queue so from now on."""
        body = {"priority": priority, "limit": limit, "placing": placing}
        return cast(Queue, await self._send("PUT", f"/queues/{quoted(name)}", body))

    async def delete_queue(self, name: str) -> None:
        """Serve a queue with the defaults again."""
        await self._delete(f"/queues/{quoted(name)}")

    # --- retention -----------------------------------------------------------------------------------------

    async def fetch_retention(self) -> list[Retention]:
        """For how long output is kept: of all pipelines, and of those that were set."""
        return cast("list[Retention]", (await self._get("/retention"))["items"])

    async def put_retention(
        self, name: str, *, age_s: float | None, bytes_max: int | None, runs_max: int | None
    ) -> Retention:
        """Keep output of a pipeline, or of all others ("*"), so from now on; None is no such bound."""
        body = {"age_s": age_s, "bytes_max": bytes_max, "runs_max": runs_max}
        return cast(Retention, await self._send("PUT", f"/retention/{quoted(name)}", body))

    async def delete_retention(self, name: str) -> None:
        """Keep output of a pipeline as that of any other."""
        await self._delete(f"/retention/{quoted(name)}")

    async def pin_run(self, run: str) -> Run:
        """Keep the output of a run, whatever retention says."""
        return cast(Run, await self._post(f"{_run_path(run)}/pin", {}))

    async def unpin_run(self, run: str) -> Run:
        """Let the output of a run go by retention again."""
        return cast(Run, await self._post(f"{_run_path(run)}/unpin", {}))

    # --- the cluster ---------------------------------------------------------------------------------------

    async def fetch_agents(self) -> Page:
        """Every agent the cluster knows."""
        return cast(Page, await self._get("/agents"))

    async def drain_agent(self, agent_id: str, *, deadline_s: float | None = None) -> Agent:
        """Give the agent no new work; what it still runs after `deadline_s` is stopped and tried elsewhere."""
        body = {} if deadline_s is None else {"deadline_s": deadline_s}
        return cast(Agent, await self._post(f"/agents/{quoted(agent_id)}/drain", body))

    async def resume_agent(self, agent_id: str) -> Agent:
        """Let the agent take work again."""
        return cast(Agent, await self._post(f"/agents/{quoted(agent_id)}/resume", {}))

    async def remove_agent(self, agent_id: str, *, is_forced: bool = False) -> dict[str, Any]:
        """Forget an agent: {was_connected, attempts_lost}. One that is connected or at work only where `is_forced`."""
        parameters = {"force": "1"} if is_forced else {}
        request = Request(method="DELETE", path=f"{API}/agents/{quoted(agent_id)}", parameters=parameters)
        return cast(dict[str, Any], await self._transport.fetch_json(request))

    async def fetch_cluster(self) -> dict[str, Any]:
        """Who leads, and how far the master that answers has come."""
        return cast(dict[str, Any], await self._get("/cluster"))

    async def transfer_leadership(self, master: str = "") -> dict[str, Any]:
        """Let this master lead (an id, a prefix of one, or a URL; the one that is furthest unless named)."""
        return cast(dict[str, Any], await self._post("/cluster/transfer", {"master": master}))

    async def remove_master(self, master: str) -> dict[str, Any]:
        """Take a master, by a prefix of its id or by its URL, out of the group: who it was, and who is left."""
        known = (await self.fetch_cluster())["masters"]
        found = [one["id"] for one in known if one["id"].startswith(master.lower()) or one["url"] == master.rstrip("/")]
        # By its whole id: where the first answer is lost, asking again must not say that there is no such master.
        named = found[0] if len(found) == 1 else master
        return cast(dict[str, Any], await self._post("/cluster/remove", {"master": named}))

    async def save_snapshot(self, path: Path, *, is_stale: bool = False) -> int:
        """Bring a snapshot of the state into a file; its size. `is_stale`: as it is at the master that answers."""
        parameters = {"stale": "1"} if is_stale else {}
        request = Request(method="GET", path=f"{API}/cluster/snapshot", parameters=parameters)
        return await backup.save_snapshot(self._transport, request, path)

    def at(self, server: str) -> Client:
        """A client with the same token for this server alone, that asks no second time."""
        return Client((server,), self._token, first_patience_s=0.0, patience_s=0.0)


def _run_path(run: str) -> str:
    return f"/runs/{quoted(run)}"


def _fresh_key() -> str:
    """A key that no other request has. What masters call things by, `wire` makes, whose import no verb waits for."""
    return os.urandom(16).hex()
