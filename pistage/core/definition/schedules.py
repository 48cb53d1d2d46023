"""Schedules: `schedule` of a definition, and `crontab` of a pipeline (J10) -> when it is to be run by itself."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from pistage.core import limits
from pistage.core.cron import CatchUp, CronError, Overlap, Schedule, next_after, parse_cron, zone_named
from pistage.core.cron.schedules import (
    CAUGHT_UP_DEFAULT,
    CAUGHT_UP_MAX,
    JITTER_MAX_MS,
    WINDOW_DEFAULT_MS,
    WINDOW_MAX_MS,
)
from pistage.core.definition.document import read_document
from pistage.core.definition.fields import (
    boolean_field,
    check_keys,
    choice_field,
    count_field,
    map_field,
    measure_field,
    name_field,
    text_field,
    wrong_kind,
)
from pistage.core.definition.findings import Page, Report
from pistage.core.definition.nodes import Kind, ListNode, MapNode, Node, ScalarNode, is_true, number_of
from pistage.core.definition.units import seconds_of
from pistage.core.triggers.settings import problem_of_kept
from pistage.errors import Code, PistageError

T = TypeVar("T")

_KEYS = {"name", "cron", "timezone", "overlap", "catch_up", "jitter", "with", "enabled", "once"}
_CATCH_UP = {"mode", "limit", "window"}
_EXPECTED = "a crontab, a mapping with 'cron', or a list of them"

Schedules = dict[str, Schedule]


def schedules_field(page: Page, node: Node | None, name: str, *, has_group: bool) -> Schedules:
    """By their names: that of the definition, or given, or the definition's with a number behind.

    `has_group` says that the definition has a concurrency group, which then decides what overlaps.
    """
    if node is None:
        return {}
    items = node.items if isinstance(node, ListNode) else (node,)
    if len(items) > limits.SCHEDULES_OF_DEFINITION_MAX:
        page.error(
            node, "too-many-schedules",
            f"there are {len(items)} schedules; a definition has at most {limits.SCHEDULES_OF_DEFINITION_MAX}",
            "take it apart",
        )  # fmt: skip
        return {}
    found: Schedules = {}
    for number, item in enumerate(items, 1):
        own = _name_in(page, item) or (name if number == 1 else f"{name}-{number}")
        if own in found:
            page.error(item, "same-name", f"there are two schedules called '{own}'", "give each a 'name' of its own")
        elif (schedule := _schedule(page, item, has_group)) is not None:
            found[own] = schedule
    return found


def parse_schedule(said: Mapping[str, Any]) -> Schedule:
    """One schedule as `schedule` has it, from a program; PistageError `invalid` carries everything that is wrong."""
    report = Report()
    document = read_document(json.dumps({"schedule": said}), report)
    found: Schedules = {}
    if document is not None:
        page = report.page(None, document.shifts)
        found = schedules_field(page, document.root.get("schedule"), "schedule", has_group=False)
    if report.errors or not found:
        raise report.refusal()
    for warning in report.warnings:  # a program that says what means nothing is wrong, too
        raise PistageError(Code.INVALID, f"{warning.path}: {warning.message}", hint=warning.hint)
    return next(iter(found.values()))


def crontab_field(root: MapNode, page: Page) -> Schedule | None:
    """J10: `runOnce` without `crontab` is a run by hand; with it, one run by itself."""
    is_once = boolean_field(page, root.get("runOnce"), "runOnce")
    return _timed(
        page, root.get("crontab"), root.get("timezone"), "crontab",
        lambda cron, zone: Schedule(cron=cron, timezone=zone, is_once=is_once),
    )  # fmt: skip


def _name_in(page: Page, item: Node) -> str | None:
    node = item.get("name") if isinstance(item, MapNode) else None
    return None if node is None else name_field(page, node, item, "schedule.name")


def _schedule(page: Page, node: Node, has_group: bool) -> Schedule | None:
    match node:
        case MapNode():
            return _mapped(page, node, has_group)
        case ScalarNode(kind=Kind.TEXT):
            return _timed(page, node, None, "schedule", lambda cron, zone: Schedule(cron=cron, timezone=zone))
        case _:
            wrong_kind(page, node, "schedule", _EXPECTED, "write for example schedule: '0 2 * * *'")
            return None


def _mapped(page: Page, node: MapNode, has_group: bool) -> Schedule | None:
    check_keys(page, node, _KEYS, "a schedule")
    if node.get("cron") is None:
        page.error(node, "no-cron", "the schedule has no 'cron'", "write for example cron: '0 2 * * *'")
    if has_group and node.get("overlap") is not None:
        page.error(
            node.entries["overlap"], "overlap-and-concurrency",
            "the definition has a concurrency group: that decides what becomes of runs that overlap",
            "take out 'overlap' here, or 'concurrency' there",
        )  # fmt: skip
    overlap = choice_field(page, node.get("overlap"), "schedule.overlap", Overlap) or Overlap.SKIP
    catch_up, limit, window_ms = _catch_up(page, node.get("catch_up"))
    jitter_ms = _ms_field(page, node.get("jitter"), "schedule.jitter", JITTER_MAX_MS) or 0
    given = map_field(page, node.get("with"), "schedule.with")
    parameters = {} if given is None else {name: _plain(value) for name, value in given.entries.items()}
    if given is not None and (problem := problem_of_kept(parameters)) is not None:
        page.error(given, "bad-number", f"in schedule.with, {problem}", "put it in quotes")
    if given is not None and len(json.dumps(parameters)) > limits.SCHEDULE_WITH_BYTES_MAX:
        page.error(
            given, "too-large", f"schedule.with has more than {limits.SCHEDULE_WITH_BYTES_MAX} bytes of JSON",
            "have the run fetch what it needs",
        )  # fmt: skip
    is_enabled = boolean_field(page, node.get("enabled"), "schedule.enabled", default=True)
    is_once = boolean_field(page, node.get("once"), "schedule.once")
    return _timed(
        page, node.get("cron"), node.get("timezone"), "schedule.cron",
        lambda cron, zone: Schedule(
            cron=cron, timezone=zone, overlap=overlap, catch_up=catch_up, limit=limit, window_ms=window_ms,
            jitter_ms=jitter_ms, is_once=is_once, is_enabled=is_enabled, parameters=parameters,
        ),
    )  # fmt: skip


def _timed(
    page: Page, cron: Node | None, timezone: Node | None, label: str, made: Callable[[str, str], Schedule]
) -> Schedule | None:
    """What is made of an expression and a zone, once both are found to be right."""
    written = text_field(page, cron, label)
    zone = text_field(page, timezone, "timezone") or "UTC"
    is_zone = _is_read(page, timezone, "bad-timezone", zone_named, zone)
    if cron is None or written is None or not _is_read(page, cron, "bad-cron", parse_cron, written) or not is_zone:
        return None
    if next_after(parse_cron(written), zone_named(zone), 0) is None:
        page.error(cron, "bad-cron", f"the crontab '{written}' names no time", "look at its years")
    return made(written, zone)


def _is_read(page: Page, node: Node | None, code: str, read: Callable[[str], object], text: str) -> bool:
    if node is None:
        return True
    try:
        read(text)
    except CronError as error:
        page.error(node, code, error.message, error.hint)
        return False
    return True


def _catch_up(page: Page, node: Node | None) -> tuple[CatchUp, int, int]:
    if isinstance(node, MapNode):
        check_keys(page, node, _CATCH_UP, "catch_up")
        mode = choice_field(page, node.get("mode"), "catch_up.mode", CatchUp) or CatchUp.LAST
        limit = count_field(page, node.get("limit"), "catch_up.limit", CAUGHT_UP_MAX, least=1)
        window_ms = _ms_field(page, node.get("window"), "catch_up.window", WINDOW_MAX_MS)
        return mode, limit or CAUGHT_UP_DEFAULT, WINDOW_DEFAULT_MS if window_ms is None else window_ms
    mode = choice_field(page, node, "schedule.catch_up", CatchUp) or CatchUp.NONE
    return mode, CAUGHT_UP_DEFAULT, WINDOW_DEFAULT_MS


def _ms_field(page: Page, node: Node | None, label: str, most_ms: int) -> int | None:
    def parse(text: str) -> int | None:
        seconds = seconds_of(text)
        return round(seconds * 1000) if seconds is not None and 0 <= seconds * 1000 <= most_ms else None

    expected = f"a duration of at most {most_ms // 3_600_000} h"
    return measure_field(page, node, label, parse, expected=expected, sample="90s")


def _plain(node: Node) -> Any:
    """What a node holds, as JSON has it."""
    match node:
        case ListNode():
            return [_plain(item) for item in node.items]
        case MapNode():
            return {key: _plain(item) for key, item in node.entries.items()}
        case ScalarNode(kind=Kind.NULL):
            return None
        case ScalarNode(kind=Kind.BOOLEAN):
            return is_true(node)
        case ScalarNode(kind=Kind.INTEGER | Kind.FLOAT):
            return number_of(node.text)
        case _:
            return node.text
