"""Routes of webhooks: set by who has the token, and called by who has the secret."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from sqlite3 import Row
from typing import Any, Final
from urllib.parse import quote

from aiohttp import web
from pydantic import Field

from pistage import wire
from pistage.core import codec, limits
from pistage.core.commands_of_triggers import DeleteWebhook, DeliverWebhook, PutWebhook
from pistage.core.definition import check_inputs, declared_inputs
from pistage.core.definition.fields import problem_of_name
from pistage.core.triggers.settings import Webhook
from pistage.core.triggers.webhooks import PING, parse_webhook, reason_to_skip, values_in
from pistage.errors import Code, PistageError
from pistage.master.api import bodies, http, views
from pistage.master.api.context import Context
from pistage.master.api.deliveries import (
    GITHUB_EVENT,
    Delivery,
    name_in,
    payload_of,
    refused,
    signature_in,
)
from pistage.master.api.leading import passed_to_the_leader, read_up
from pistage.master.api.listing import page_by_name
from pistage.master.api.submissions import Submission, finding_view
from pistage.master.state import Snapshot

_EXPECTED: Final = '{"action": name or "definition": text, "inputs": {"tag": "release.tag_name", …}}'
_NOBODYS: Final = "\0" * 32  # the secret of a webhook that does not exist: checked all the same, as long as any other
_DELIVERIES_SHOWN: Final = 20


class _Asked(bodies.Body):
    action: str | None = Field(None, max_length=limits.NAME_CHARS_MAX)
    definition: str | None = Field(None, max_length=limits.DOCUMENT_BYTES_MAX)
    inputs: dict[str, str] = Field(default_factory=dict)
    parameters: dict[str, Any] = Field(default_factory=dict, alias="with")
    when: dict[str, Any] = Field(default_factory=dict)
    events: list[str] = Field(default_factory=list)
    window_s: float | None = Field(None, ge=0, le=1e9)
    secret: str | None = Field(
        None, min_length=limits.WEBHOOK_SECRET_CHARS_MIN, max_length=limits.WEBHOOK_SECRET_CHARS_MAX, repr=False
    )


@dataclass(frozen=True, slots=True)
class _Known:
    """A webhook as it is now, for a delivery."""

    id: str
    fence: int
    action: str | None
    webhook: Webhook


class WebhookRoutes:
    """Handlers under /api/v1/webhooks, and of /hooks."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._under_way = 0

    # --- set and shown -------------------------------------------------------------------------------------------

    async def list(self, request: web.Request) -> web.Response:
        """Webhooks by name, without their secrets; ?limit= &cursor=."""
        return await page_by_name(self._context, request, _WEBHOOKS, _listed)

    async def show(self, request: web.Request) -> web.Response:
        """A webhook, without its secret, with the latest deliveries that made runs."""
        return http.answer(await self._shown(self._context.project_of(request), request.match_info["name"]))

    async def put(self, request: web.Request) -> web.Response:
        """Run an action or a definition by deliveries to /hooks/{name}: {"action" or "definition", "inputs", …}.

        `inputs` is where in the payload each value stands, `with` what every run is given, `when` and `events` which
        deliveries make a run. A new one without a `secret` gets one, which is shown this once.
        """
        context = self._context
        project, name = context.project_of(request), request.match_info["name"]
        if (problem := problem_of_name(name)) is not None:
            raise PistageError(Code.INVALID, f"the name of the webhook {problem}", hint="give it another name")
        asked = await bodies.read(request, _Asked, expected=_EXPECTED)
        if (asked.action is None) == (asked.definition is None):
            raise PistageError(
                Code.INVALID, "expected one of action and definition", hint="name an action or send a text"
            )
        webhook = parse_webhook(
            inputs=asked.inputs, parameters=asked.parameters, when=asked.when, events=asked.events,
            window_s=asked.window_s,
        )  # fmt: skip
        warnings = await self._refuse_unless_runnable(asked, webhook, project)
        secret_if_new = secrets.token_urlsafe(32)
        command = PutWebhook(
            at=wire.now_ms(), id=wire.new_id(), project=project, owner=context.owner_of(request), name=name,
            webhook=webhook, secret=asked.secret, secret_if_new=secret_if_new, source=asked.definition or "",
            action=asked.action,
        )  # fmt: skip
        is_new = bool((await context.replica.propose(command)).value["is_new"])
        made = {"secret": secret_if_new} if is_new and asked.secret is None else {}
        shown = await self._shown(project, name)
        return http.answer(shown | {"is_new": is_new, "warnings": warnings} | made, status=201 if is_new else 200)

    async def delete(self, request: web.Request) -> web.Response:
        """Forget a webhook and its secret; its runs stay."""
        project, name = self._context.project_of(request), request.match_info["name"]
        await self._context.replica.propose(DeleteWebhook(at=wire.now_ms(), project=project, name=name))
        return web.Response(status=204)

    async def _refuse_unless_runnable(self, asked: _Asked, webhook: Webhook, project: str) -> Sequence[dict[str, Any]]:
        """What can be said now need not be said to every sender: wrong names, constants, what is never given."""
        planner = self._context.planner
        found = await planner.lint(Submission(asked.definition or "", asked.action), project)
        if found.errors:
            raise _refusal(found.errors[0].message, found.errors[0].hint, map(finding_view, found.findings))
        if found.images_missing:
            message = f"{found.images_missing[0] or 'its step'} has no image: this is an action for others to use"
            raise _refusal(message, "give it an image", [])
        text = asked.definition
        if asked.action is not None:
            text = (await planner.find_action(asked.action, project)).text
        given = webhook.inputs.keys() | webhook.parameters.keys()
        declared = await asyncio.to_thread(declared_inputs, text or "")
        if declared is not None:
            faults = check_inputs(declared, webhook.parameters, pending=tuple(webhook.inputs)).faults
            if faults:
                told = [{"severity": "error", "code": one.code, "message": one.message, "hint": one.hint,
                         "path": ".".join(str(part) for part in one.at)} for one in faults]  # fmt: skip
                raise _refusal(faults[0].message, faults[0].hint, told)
        elif lacking := sorted(set(found.parameters_needed) - given):
            raise _refusal(
                f"nothing gives the parameter {lacking[0]!r}", "map it in 'inputs', or give it in 'with'", []
            )
        return [finding_view(finding) for finding in found.findings]

    async def _shown(self, project: str, name: str) -> dict[str, Any]:
        async with self._context.replica.reader.snapshot() as snapshot:
            row = await snapshot.row(f"{_WEBHOOKS} WHERE project = ? AND name = ?", (project, name))
            if row is None:
                raise PistageError(
                    Code.NOT_FOUND, f"no webhook {name[:100]!r}", hint="pistage webhook ls lists them"
                )  # fmt: skip
            deliveries = await snapshot.rows(_DELIVERIES, (row["id"], _DELIVERIES_SHOWN))
        return _view(row) | {"deliveries": [_delivery(one) for one in deliveries]}

    # --- called --------------------------------------------------------------------------------------------------

    async def receive(self, request: web.Request) -> web.StreamResponse:
        """A delivery, signed with the webhook's secret instead of the token: makes a run, or says why it makes none."""
        try:
            signature, said_at = signature_in(request.headers)
            async with self._place():
                body = await _body_in_time(request)
                delivery = Delivery(
                    signature=signature, said_at=said_at, name=name_in(request.headers),
                    event=request.headers.get(GITHUB_EVENT), content_type=request.content_type, body=body,
                )  # fmt: skip
                return await self._checked(request, delivery)
        except PistageError as error:
            answer = http.problem(error)
            if error.code is Code.UNAUTHENTICATED:
                answer.headers["WWW-Authenticate"] = "HMAC-SHA256"
            return answer

    @asynccontextmanager
    async def _place(self) -> AsyncIterator[None]:
        """Anybody may send: what is held and checked at one time is bounded, and there is no queue to fill."""
        if self._under_way >= limits.WEBHOOKS_AT_ONCE:
            raise PistageError(Code.UNAVAILABLE, "too many deliveries come at once", hint="send it again")
        self._under_way += 1
        try:
            yield
        finally:
            self._under_way -= 1

    async def _checked(self, request: web.Request, delivery: Delivery) -> web.StreamResponse:
        """A stranger's body goes no further than the master that it came to."""
        await read_up(self._context)
        known = await self._known(request, delivery)
        if (passed := await passed_to_the_leader(self._context, request, delivery.body)) is not None:
            return passed
        delivery.refuse_unless_now(self._context.replica.now_ms(), known.webhook.window_ms)
        if (earlier := await self._earlier(known, delivery)) is not None:
            return _answer(*earlier, is_new=False)
        payload = await asyncio.to_thread(payload_of, delivery)
        if delivery.event == PING:
            return http.answer({"pong": True})
        reason = await asyncio.to_thread(reason_to_skip, known.webhook, payload, delivery.event)
        if reason is not None:
            return http.answer({"skipped": reason.encode("utf-8", "replace").decode()}, status=202)
        return await self._run(request, known, delivery, values_in(known.webhook, payload))

    async def _run(
        self, request: web.Request, known: _Known, delivery: Delivery, values: dict[str, Any]
    ) -> web.Response:
        context = self._context
        context.refuse_unless_space()
        source = ""
        if known.action is None:
            async with context.replica.reader.single() as snapshot:
                source = str(await snapshot.value("SELECT source FROM webhook WHERE id = ?", (known.id,)) or "")
        project = context.project_of(request)
        planned, text = await context.planner.plan(Submission(source, known.action, values), project)
        command = DeliverWebhook(
            at=wire.now_ms(), webhook_id=known.id, fence=known.fence, keys=delivery.keys(), run_id=wire.new_id(),
            plan=planned.plan, source="" if known.action is None else text,
        )  # fmt: skip
        made = (await context.replica.propose(command)).value
        return _answer(str(made["run_id"]), int(str(made["number"])), planned.plan.name, is_new=bool(made["is_new"]))

    async def _known(self, request: web.Request, delivery: Delivery) -> _Known:
        """The webhook whose secret signed it; the same refusal for one that is not there."""
        project = request.query.get("project", "default")
        async with self._context.replica.reader.snapshot() as snapshot:
            row = await snapshot.row(_SECRET, (project, request.match_info["name"]))
        secret = _NOBODYS if row is None else row["secret"]
        is_signed = await asyncio.to_thread(delivery.is_signed_with, secret)
        if row is None or not is_signed or project not in self._context.settings.projects:
            raise refused()
        return _Known(row["id"], row["fence"], row["action"], codec.from_json(Webhook, row["spec"]))

    async def _earlier(self, known: _Known, delivery: Delivery) -> tuple[str, int, str] | None:
        """The run of a delivery that came before; that two at one time make one is for the state machine to see to."""
        now_ms = self._context.replica.now_ms()
        async with self._context.replica.reader.snapshot() as snapshot:
            keys = codec.canonical_json(delivery.keys())
            row = await snapshot.row(_EARLIER, (known.id, keys, now_ms))
        return None if row is None else (row["run_id"], row["number"], row["name"])


_WEBHOOKS: Final = "SELECT id, project, name, owner, created_at, at, spec, action FROM webhook"
_SECRET: Final = "SELECT id, fence, spec, action, secret FROM webhook WHERE project = ? AND name = ?"
_EARLIER: Final = """
SELECT delivery.run_id, delivery.number, run.name FROM webhook_delivery AS delivery JOIN run ON run.id = delivery.run_id
WHERE delivery.webhook_id = ? AND delivery.key IN (SELECT value FROM json_each(?)) AND delivery.until >= ?
ORDER BY delivery.at, delivery.key LIMIT 1
"""
_DELIVERIES: Final = """
SELECT DISTINCT delivery.at, delivery.run_id, run.name, run.number, run.state
FROM webhook_delivery AS delivery JOIN run ON run.id = delivery.run_id WHERE delivery.webhook_id = ?
ORDER BY delivery.at DESC, delivery.run_id DESC LIMIT ?
"""


async def _body_in_time(request: web.Request) -> bytes:
    """However slowly it comes, its place is another's after a while."""
    try:
        async with asyncio.timeout(limits.WEBHOOK_BODY_S):
            return await http.read_body(request, bytes_max=limits.WEBHOOK_BODY_BYTES_MAX)
    except TimeoutError:
        request.protocol.force_close()
        raise PistageError(Code.TIMEOUT, "the delivery's body came too slowly") from None


def _answer(run_id: str, number: int, name: str, *, is_new: bool) -> web.Response:
    run = {"id": run_id, "name": name, "number": number}
    headers = {"Location": f"/api/v1/runs/{run_id}"}
    return http.answer({"run": run, "is_new": is_new}, status=201 if is_new else 200, headers=headers)


def _refusal(message: str, hint: str | None, findings: Iterable[dict[str, Any]]) -> PistageError:
    return PistageError(Code.INVALID, message, hint=hint, details={"findings": list(findings)})


async def _listed(_: Snapshot, row: Row) -> dict[str, Any]:
    return _view(row)


def _view(row: Row) -> dict[str, Any]:
    webhook: Webhook = codec.from_json(Webhook, row["spec"])
    return {
        "id": row["id"],
        "name": row["name"],
        "project": row["project"],
        "path": f"/hooks/{quote(row['name'], safe='')}",
        "action": row["action"],
        "owner": row["owner"],
        "inputs": dict(webhook.inputs),
        "with": dict(webhook.parameters),
        "when": {path: list(wanted) for path, wanted in webhook.when.items()},
        "events": list(webhook.events),
        "window_s": webhook.window_ms / 1000,
        "created_at": views.at(row["created_at"]),
        "changed_at": views.at(row["at"]),
    }


def _delivery(row: Row) -> dict[str, Any]:
    run = {"id": row["run_id"], "name": row["name"], "number": row["number"], "state": row["state"]}
    return {"at": views.at(row["at"]), "run": run}
