"""What starts by itself, and who is told of its end: schedules, webhooks, runs after runs, notices."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from pistage.client.answers import Page, Receiver, Schedule, Webhook
from pistage.client.calls import Calls, quoted


class TriggerCalls(Calls):
    """One method a route."""

    # --- schedules -----------------------------------------------------------------------------------------

    async def fetch_schedules(self, *, limit: int | None = None, cursor: str | None = None) -> Page:
        """One page of schedules, by name."""
        return await self._page("/schedules", {"limit": limit, "cursor": cursor})

    async def fetch_schedule(self, name: str, *, count: int = 10) -> Schedule:
        """A schedule, with so many of its next times."""
        return cast(Schedule, await self._get(f"/schedules/{quoted(name)}", {"next": str(count)}))

    async def fetch_fires(self, name: str, *, limit: int | None = None, cursor: str | None = None) -> Page:
        """What became of a schedule's times, the latest first."""
        return await self._page(f"/schedules/{quoted(name)}/fires", {"limit": limit, "cursor": cursor})

    async def put_schedule(self, name: str, body: Mapping[str, Any]) -> Schedule:
        """Run by a schedule: `body` is {"action" or "definition", "schedule": {"cron", …}}."""
        return cast(Schedule, await self._send("PUT", f"/schedules/{quoted(name)}", body))

    async def enable_schedule(self, name: str, *, is_enabled: bool) -> Schedule:
        """Let a schedule fire again, or no more."""
        verb = "resume" if is_enabled else "pause"
        return cast(Schedule, await self._post(f"/schedules/{quoted(name)}/{verb}", {}))

    async def delete_schedule(self, name: str) -> None:
        """Forget a schedule; its runs stay."""
        await self._delete(f"/schedules/{quoted(name)}")

    # --- what comes after runs -----------------------------------------------------------------------------

    async def fetch_afters(self, *, limit: int | None = None, cursor: str | None = None) -> Page:
        """One page of definitions that come after runs of others, by name."""
        return await self._page("/afters", {"limit": limit, "cursor": cursor})

    async def delete_after(self, name: str) -> None:
        """Let a definition come after nothing; its runs stay."""
        await self._delete(f"/afters/{quoted(name)}")

    # --- webhooks ------------------------------------------------------------------------------------------

    async def fetch_webhooks(self, *, limit: int | None = None, cursor: str | None = None) -> Page:
        """One page of webhooks, by name."""
        return await self._page("/webhooks", {"limit": limit, "cursor": cursor})

    async def fetch_webhook(self, name: str) -> Webhook:
        """A webhook, without its secret."""
        return cast(Webhook, await self._get(f"/webhooks/{quoted(name)}"))

    async def put_webhook(self, name: str, body: Mapping[str, Any]) -> Webhook:
        """Run {"action": name} or {"definition": text} by deliveries to it.

        A new one without a `secret` gets one that only this answer shows: give one, where the answer may be lost.
        """
        return cast(Webhook, await self._send("PUT", f"/webhooks/{quoted(name)}", body))

    async def delete_webhook(self, name: str) -> None:
        """Forget a webhook; its runs stay."""
        await self._delete(f"/webhooks/{quoted(name)}")

    # --- notices -------------------------------------------------------------------------------------------

    async def fetch_receivers(self) -> list[Receiver]:
        """Who is told of runs that end."""
        return cast("list[Receiver]", (await self._get("/notices"))["items"])

    async def put_receiver(self, name: str, body: Mapping[str, Any]) -> Receiver:
        """Tell it of runs that end: `body` is {"url", "on", "pipelines", "body", "headers", "secret"}."""
        return cast(Receiver, await self._send("PUT", f"/notices/{quoted(name)}", body))

    async def delete_receiver(self, name: str) -> None:
        """Tell it no more."""
        await self._delete(f"/notices/{quoted(name)}")

    async def test_receiver(self, name: str) -> dict[str, Any]:
        """Send it a notice of a run that never was: whether it was delivered, the status and the reason."""
        return dict(await self._post(f"/notices/{quoted(name)}/test", {}))
