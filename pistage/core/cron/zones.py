"""Zones: what the clocks of an IANA time zone show at an instant, and when they first show a local time.

An instant is whole seconds UTC since 1970, a local time whole seconds since 1970-01-01 00:00:00 on those clocks. A
clock change is any change of the offset. In the IANA database (2026) no two of one zone since 1970 are less than six
days apart, and the widest goes by 24 hours: over the date line.
"""

from __future__ import annotations

import re
from datetime import datetime, timedelta
from functools import lru_cache
from zoneinfo import ZoneInfo

from pistage.core.cron.expressions import CronError

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_+-]*(?:/[A-Za-z0-9_+-]+){0,2}")
_NAME_CHARS_MAX = 60
#: Files that lie beside the zones: this machine's own zone, and zones that count leap seconds.
_NOT_ZONES = re.compile(r"localtime|posixrules|Factory|(?:posix|right)/.*")


@lru_cache(maxsize=1024)  # more than there are: a zone is read from the disk once
def zone_named(name: str) -> ZoneInfo:
    """The time zone of the IANA database that `name` is; CronError when there is none."""
    try:
        if len(name) < _NAME_CHARS_MAX and _NAME.fullmatch(name) and not _NOT_ZONES.fullmatch(name):
            return ZoneInfo(name)
    except (KeyError, ValueError, OSError):
        pass
    raise CronError(
        f"there is no time zone '{name[:_NAME_CHARS_MAX]}'",
        "write it as in the IANA database: Europe/Berlin, Asia/Shanghai, UTC",
    )


def offset_at(zone: ZoneInfo, at_s: int) -> int:
    """What is added to the instant to have the local time, in seconds."""
    return _seconds(datetime.fromtimestamp(at_s, zone))


def first_shown(zone: ZoneInfo, local_s: int) -> int:
    """The first instant at which the clocks show `local_s` or later.

    So it is the first of two where they are put back, and the instant of the change where they are put forward over
    it. Never less for a later local time.
    """
    shown = datetime(1970, 1, 1, tzinfo=zone) + timedelta(seconds=local_s)
    before, after = _seconds(shown), _seconds(shown.replace(fold=1))
    if before >= after:
        return local_s - before
    change = change_between(zone, local_s - after, local_s - before)
    return local_s - before if change is None else change


def furthest_shown(zone: ZoneInfo, at_s: int) -> int:
    """The latest local time that the clocks have shown up to the instant, also before they were put back."""
    now = datetime.fromtimestamp(at_s, zone)
    offset = _seconds(now)
    if not now.fold:
        return at_s + offset
    before = _seconds(now.replace(fold=0))
    change = change_between(zone, at_s - (before - offset), at_s)
    return at_s + offset if change is None else change - 1 + before


def change_between(zone: ZoneInfo, from_s: int, until_s: int) -> int | None:
    """The first instant after `from_s`, and not after `until_s`, that has another offset; None if they have the same.

    The two are to be less than six days apart, so that no more than one change lies between them.
    """
    offset = offset_at(zone, from_s)
    if offset_at(zone, until_s) == offset:
        return None
    while until_s - from_s > 1:
        middle = (from_s + until_s) // 2
        if offset_at(zone, middle) == offset:
            from_s = middle
        else:
            until_s = middle
    return until_s


def _seconds(shown: datetime) -> int:
    offset = shown.utcoffset()
    assert offset is not None
    return offset.days * 86_400 + offset.seconds
