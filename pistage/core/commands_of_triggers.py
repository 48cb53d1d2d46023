"""Commands of triggers: webhooks, and the runs that deliveries to them make."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from pistage.core.plan import Plan
from pistage.core.triggers.settings import Webhook


@dataclass(frozen=True, slots=True, kw_only=True)
class PutWebhook:
    """Let deliveries to `name` make runs of `source`, or, if that is empty, of the action called `action`.

    Without a `secret` one that is there keeps its own, and a new one gets `secret_if_new`; the answer says `is_new`.
    """

    kind: Literal["put_webhook"] = "put_webhook"
    at: int
    id: str
    project: str
    owner: str
    name: str
    webhook: Webhook
    secret: str | None = field(default=None, repr=False)
    secret_if_new: str = field(repr=False)
    source: str = ""
    action: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DeleteWebhook:
    """Forget a webhook and its secret; its runs stay."""

    kind: Literal["delete_webhook"] = "delete_webhook"
    at: int
    project: str
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DeliverWebhook:
    """Make the run of a delivery, unless a delivery that has one of these keys made one: then the answer is that.

    Refused unless the webhook is as the leader knew it, by its `fence`. `source` is the document, where it is not the
    webhook's own.
    """

    kind: Literal["deliver_webhook"] = "deliver_webhook"
    at: int
    webhook_id: str
    fence: int
    keys: tuple[str, ...]
    run_id: str
    plan: Plan
    source: str = ""


TriggerCommand = PutWebhook | DeleteWebhook | DeliverWebhook
