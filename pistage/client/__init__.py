"""Talk to masters: find one that answers, follow hints to the leader, retry, resume streams after a break."""

from __future__ import annotations

from pistage.client.answers import (
    Agent,
    Attempt,
    Chunk,
    Event,
    Gap,
    Line,
    Page,
    Pattern,
    Queue,
    Run,
    Schedule,
    Searched,
    Selection,
    Source,
    Step,
    Task,
    Triggers,
    Unread,
    Webhook,
    Why,
)
from pistage.client.calls import all_items
from pistage.client.client import Client

__all__ = [
    "Agent",
    "Attempt",
    "Chunk",
    "Client",
    "Event",
    "Gap",
    "Line",
    "Page",
    "Pattern",
    "Queue",
    "Run",
    "Schedule",
    "Searched",
    "Selection",
    "Source",
    "Step",
    "Task",
    "Triggers",
    "Unread",
    "Webhook",
    "Why",
    "all_items",
]
