"""Clocks: what tests write and read as local times, and instants as the code has them."""

from datetime import datetime, timedelta

from pistage.core.cron import next_after, parse_cron, zone_named


def instant(text: str, zone: str = "UTC") -> int:
    """Milliseconds UTC of a local time, or of one that says its offset."""
    when = datetime.fromisoformat(text)
    when = when if when.tzinfo else when.replace(tzinfo=zone_named(zone))
    return round(when.timestamp() * 1000)


def local(at_ms: int, zone: str) -> str:
    """The local time without seconds where there are none, with its offset where the zone is not UTC."""
    when = datetime.fromtimestamp(at_ms / 1000, zone_named(zone))
    text = when.strftime("%Y-%m-%dT%H:%M:%S" if when.second else "%Y-%m-%dT%H:%M")
    return text if when.utcoffset() == timedelta() else text + when.isoformat()[19:]


def firings(text: str, zone: str, after: str, count: int) -> list[str]:
    """The next `count` times after a local time, fewer where it ends."""
    cron, times = parse_cron(text), []
    due: int | None = instant(after, zone)
    for _ in range(count):
        assert due is not None
        due = next_after(cron, zone_named(zone), due)
        if due is None:
            break
        times.append(local(due, zone))
    return times
