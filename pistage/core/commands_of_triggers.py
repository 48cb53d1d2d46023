"""Commands of triggers: webhooks and the runs that deliveries make, and what comes after the end of other runs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from pistage.core.plan import Plan
from pistage.core.triggers.settings import AfterRule, Webhook


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


@dataclass(frozen=True, slots=True, kw_only=True)
class PutAfter:
    """Let `source`, the document of this definition, be run when runs have ended that its rule names."""

    kind: Literal["put_after"] = "put_after"
    at: int
    id: str
    project: str
    owner: str
    definition: str
    rule: AfterRule
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DeleteAfter:
    """Let a definition come after nothing; its runs stay."""

    kind: Literal["delete_after"] = "delete_after"
    at: int
    project: str
    definition: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AfterFire:
    """The run that comes after `after_run`, which has ended."""

    after_run: str
    run_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FireAfters:
    """Make the runs of one definition that are due; without a `plan` none is made, and `reason` says why.

    Each is taken or refused by itself: one that was decided before is refused, and so are all where the definition is
    not as the leader knew it, by its `fence`.
    """

    kind: Literal["fire_afters"] = "fire_afters"
    at: int
    after_id: str
    fence: int
    fires: tuple[AfterFire, ...]
    plan: Plan | None = None
    reason: str = ""


WebhookCommand = PutWebhook | DeleteWebhook | DeliverWebhook
AfterCommand = PutAfter | DeleteAfter | FireAfters
TriggerCommand = WebhookCommand | AfterCommand
