"""Webhooks: what each runs and its secret, and the deliveries that are known again."""

from __future__ import annotations

from typing import Final, assert_never

from pistage.core import codec, limits
from pistage.core import commands_of_triggers as c
from pistage.core.machine.outcome import Turn
from pistage.core.machine.submissions import Origin, drafted, make
from pistage.core.model import Starter, Trigger
from pistage.core.triggers.settings import Webhook
from pistage.errors import Code, PistageError

_FORGOTTEN_AT_ONCE = 16  # old deliveries; more than a new one adds, so that fewer and fewer are left
#: A delivery is known for longer than its own time may be off, in both directions, with what a proposal takes.
_SLACK_MS: Final = 60_000

_INSERT = """
INSERT INTO webhook (id, project, name, owner, fence, created_at, at, spec, action, secret, source)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
"""
_CHANGE = """
UPDATE webhook
SET owner = ?, fence = ?, at = ?, spec = ?, action = ?, secret = COALESCE(?, secret), source = ? WHERE id = ?
"""
_KNOWN = "SELECT project, name, owner, fence, spec, source FROM webhook WHERE id = ?"
_EARLIER = """
SELECT run_id, number FROM webhook_delivery
WHERE webhook_id = ? AND key IN (SELECT value FROM json_each(?)) AND until >= ?
ORDER BY at, key LIMIT 1
"""
_REMEMBER = """
INSERT INTO webhook_delivery (webhook_id, key, at, until, run_id, number) VALUES (?, ?, ?, ?, ?, ?)
ON CONFLICT (webhook_id, key) DO UPDATE
SET at = excluded.at, until = excluded.until, run_id = excluded.run_id, number = excluded.number
"""
_FORGET = """
DELETE FROM webhook_delivery WHERE (webhook_id, key) IN (
  SELECT webhook_id, key FROM webhook_delivery WHERE until < ? ORDER BY until, webhook_id, key LIMIT ?)
"""


def carry_out(turn: Turn, command: c.WebhookCommand) -> dict[str, object]:
    """Any of their commands."""
    match command:
        case c.PutWebhook():
            return put(turn, command)
        case c.DeleteWebhook():
            return delete(turn, command)
        case c.DeliverWebhook():
            return deliver(turn, command)
        case _:
            assert_never(command)


def put(turn: Turn, command: c.PutWebhook) -> dict[str, object]:
    """Set it; deliveries that were known stay known."""
    spec = codec.to_json(Webhook, command.webhook)
    known = _id_of(turn, command.project, command.name)
    if known is not None:
        said = (command.owner, turn.index, turn.at, spec, command.action, command.secret, command.source)
        turn.db.execute(_CHANGE, (*said, known))
        return {"is_new": False}
    (count,) = turn.db.execute("SELECT COUNT(*) FROM webhook").fetchone()
    if count >= limits.WEBHOOKS_MAX:
        raise PistageError(
            Code.CONFLICT, f"there are {count} webhooks; a cluster has at most {limits.WEBHOOKS_MAX}",
            hint="remove some with pistage webhook rm",
        )  # fmt: skip
    secret = command.secret_if_new if command.secret is None else command.secret
    head = (command.id, command.project, command.name, command.owner, turn.index, turn.at, turn.at)
    turn.db.execute(_INSERT, (*head, spec, command.action, secret, command.source))
    return {"is_new": True}


def delete(turn: Turn, command: c.DeleteWebhook) -> dict[str, object]:
    """Forget it, its secret and its deliveries."""
    known = _id_of(turn, command.project, command.name)
    if known is None:
        raise PistageError(Code.NOT_FOUND, f"no webhook {command.name!r}", hint="see pistage webhook ls")
    turn.db.execute("DELETE FROM webhook_delivery WHERE webhook_id = ?", (known,))
    turn.db.execute("DELETE FROM webhook WHERE id = ?", (known,))
    return {}


def deliver(turn: Turn, command: c.DeliverWebhook) -> dict[str, object]:
    """Make the run, once; a delivery that is known is answered with the run that it made."""
    row = turn.db.execute(_KNOWN, (command.webhook_id,)).fetchone()
    if row is None or row[3] != command.fence:
        raise PistageError(Code.UNAVAILABLE, "the webhook was changed just now", hint="send it again")
    project, name, owner, _, spec, source = row
    turn.db.execute(_FORGET, (command.at, _FORGOTTEN_AT_ONCE))
    keys = codec.canonical_json(command.keys)
    earlier = turn.db.execute(_EARLIER, (command.webhook_id, keys, command.at)).fetchone()
    if earlier is not None:
        return {"run_id": earlier[0], "number": earlier[1], "is_new": False}
    trigger = Trigger(kind=Starter.WEBHOOK, name=name)
    origin = Origin(project=project, owner=owner, source=command.source or source, trigger=trigger)
    ((run_id, number),) = make(turn, origin, [(command.run_id, drafted(command.plan, turn.at))])
    window_ms = codec.from_json(Webhook, spec).window_ms
    until = command.at + 2 * window_ms + _SLACK_MS
    for key in command.keys:
        turn.db.execute(_REMEMBER, (command.webhook_id, key, command.at, until, run_id, number))
    return {"run_id": run_id, "number": number, "is_new": True}


def _id_of(turn: Turn, project: str, name: str) -> str | None:
    row = turn.db.execute("SELECT id FROM webhook WHERE project = ? AND name = ?", (project, name)).fetchone()
    return None if row is None else str(row[0])
