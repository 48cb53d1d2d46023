"""Zones: names that are taken, and what the clocks of every zone show around every change since 1970."""

import itertools
import struct
from collections.abc import Iterator
from importlib.resources import files
from zoneinfo import ZoneInfo

import pytest

from pistage.core.cron import CronError, zone_named
from pistage.core.cron.zones import change_between, first_shown, furthest_shown, offset_at

DAY_S = 86_400


@pytest.mark.parametrize("name", ["UTC", "Europe/Berlin", "Asia/Shanghai", "America/Argentina/Ushuaia", "Etc/GMT+5"])
def test_time_zones_of_the_database_are_known(name: str) -> None:
    assert zone_named(name).key == name
    assert zone_named(name) is zone_named(name)


@pytest.mark.parametrize(
    "name",
    [
        *("", "Mars/Olympus", "../etc/passwd", "/etc/passwd", "Europe", "UTC ", "a" * 300, "a\0b", "+"),
        *("localtime", "posixrules", "Factory", "right/UTC", "posix/Europe/Berlin", "leapseconds"),
    ],
)
def test_other_time_zones_are_refused(name: str) -> None:
    with pytest.raises(CronError, match="no time zone"):
        zone_named(name)


def changes_of(raw: bytes) -> Iterator[tuple[int, int, int]]:
    """RFC 9636: every change of the offset in a TZif file since 1970, as instant, offset before, offset after."""
    isut, isstd, leaps, times, types, chars = struct.unpack(">6L", raw[20:44])
    body = 44 + times * 5 + types * 6 + chars + leaps * 8 + isstd + isut  # version 1, which ends in 2038
    isut, isstd, leaps, times, types, chars = struct.unpack(">6L", raw[body + 20 : body + 44])
    at = body + 44
    instants = struct.unpack(f">{times}q", raw[at : at + times * 8])
    kinds = raw[at + times * 8 : at + times * 9]
    offsets = [struct.unpack(">l", raw[at + times * 9 + 6 * kind :][:4])[0] for kind in range(types)]
    before = None
    for instant, kind in zip(instants, kinds, strict=True):
        if before is not None and before != offsets[kind] and instant >= 0:
            yield instant, before, offsets[kind]
        before = offsets[kind]


def every_zone() -> Iterator[tuple[ZoneInfo, list[tuple[int, int, int]]]]:
    tzdata = files("tzdata")
    for name in tzdata.joinpath("zones").read_text(encoding="utf-8").split():
        file = tzdata.joinpath("zoneinfo", *name.split("/"))
        with file.open("rb") as opened:
            yield ZoneInfo.from_file(opened, key=name), list(changes_of(file.read_bytes()))


def test_changes_of_one_zone_are_days_apart_and_a_day_wide_at_most() -> None:
    seen = 0
    for zone, changes in every_zone():
        instants = [at for at, _, _ in changes]
        assert all(later - at > 6 * DAY_S for at, later in itertools.pairwise(instants)), zone.key
        assert all(abs(after - before) <= DAY_S for _, before, after in changes), zone.key
        seen += len(changes)
    assert seen > 10_000


def test_at_every_change_of_every_zone_the_clocks_show_what_the_file_says() -> None:
    for zone, changes in every_zone():
        for at, before, after in [*changes[-8:], *(each for each in changes if abs(each[2] - each[1]) != 3600)]:
            assert (offset_at(zone, at - 1), offset_at(zone, at)) == (before, after)
            assert change_between(zone, at - 2 * DAY_S, at + 2 * DAY_S) == at
            assert change_between(zone, at - 1, at) == at
            assert change_between(zone, at, at + DAY_S) is None
            low, high = sorted((at + before, at + after))
            for local in (low, (low + high) // 2, high - 1):
                # Skipped, or shown for the first time.
                assert first_shown(zone, local) == (at if before < after else local - before)
            assert first_shown(zone, high) == high - after
            assert first_shown(zone, low - 1) == low - 1 - before
            if before > after:
                assert furthest_shown(zone, at) == furthest_shown(zone, at + high - low - 1) == high - 1
            assert furthest_shown(zone, at - 1) == at - 1 + before
            assert furthest_shown(zone, at + high - low) == at + high - low + after
