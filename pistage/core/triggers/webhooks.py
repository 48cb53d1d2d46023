"""Webhooks: which deliveries make a run, and which values of the payload become its inputs.

A value of the payload is a value of an input and nothing else: it is never rendered, and never a name of anything.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

from pistage.core import limits
from pistage.core.definition.findings import Page, Report, StopError
from pistage.core.definition.inputs.checking import came_of
from pistage.core.definition.nodes import Path, Place, shortened
from pistage.core.triggers.expressions import ExpressionError, find, parse_expression
from pistage.core.triggers.settings import WINDOW_DEFAULT_MS, Webhook, problem_of_kept

#: What a sender asks only to see whether somebody is there.
PING: Final = "ping"
_WINDOW_MIN_MS: Final = 60_000
_WINDOW_MAX_MS: Final = 7 * 24 * 3_600_000


def parse_webhook(
    *,
    inputs: Mapping[str, str],
    parameters: Mapping[str, Any],
    when: Mapping[str, Any],
    events: Sequence[str],
    window_s: float | None,
) -> Webhook:
    """A webhook as it is set; PistageError `invalid` carries everything that is wrong."""
    report = Report()
    page = report.page()
    try:
        _check_size(page, inputs, parameters, when, events)
        for name, text in inputs.items():
            _check_expression(page, ("inputs", name), text)
            if name in parameters:
                message = f"the input '{shortened(name)}' is both in 'inputs' and in 'with'"
                page.error(_at("inputs", name), "same-name", message, "take it out of one of them")
        wanted = {path: _wanted(page, path, said) for path, said in when.items()}
        window_ms = WINDOW_DEFAULT_MS if window_s is None else round(window_s * 1000)
        if not _WINDOW_MIN_MS <= window_ms <= _WINDOW_MAX_MS:
            span = f"{_WINDOW_MIN_MS // 1000} to {_WINDOW_MAX_MS // 1000} s"
            page.error(_at("window_s"), "bad-window", f"window_s must be {span}, not {window_s:g}", "such as 3600")
    except StopError:
        raise report.refusal() from None
    if report.errors:
        raise report.refusal()
    return Webhook(
        inputs=dict(inputs), parameters=dict(parameters), when=wanted, events=tuple(events), window_ms=window_ms
    )


def reason_to_skip(webhook: Webhook, payload: Mapping[str, Any], event: str | None) -> str | None:
    """Why a delivery makes no run, or None: it makes one."""
    if webhook.events and event not in webhook.events:
        came = "no event" if event is None else f"the event {shortened(event, 40)!r}"
        return f"{came} is none of {', '.join(webhook.events)}"
    for path, wanted in webhook.when.items():
        value = find(parse_expression(path), payload).value
        if not any(_is_same(value, one) for one in wanted):
            return f"{path} is {came_of(value)}, which this webhook does not wait for"
    return None


def values_in(webhook: Webhook, payload: Mapping[str, Any]) -> dict[str, Any]:
    """What a run of it is given; PistageError `invalid` names every path that leads to no value."""
    report = Report()
    page = report.page()
    values = dict(webhook.parameters)
    for name, text in webhook.inputs.items():
        found = find(parse_expression(text), payload)
        label = f"the input '{shortened(name)}'"
        if found.is_absent:
            message = f"the payload has no {shortened(text, 80)}, which {label} is made of"
            page.error(_at("inputs", name), "missing-in-payload", message, f"give a default: {text} ?? null")
        elif not _is_plain(found.value):
            message = f"{shortened(text, 80)}, which {label} is made of, is {came_of(found.value)}"
            page.error(_at("inputs", name), "no-value", message, "name a single value in it, or a list of such")
        elif found.value is not None:
            values[name] = found.value
    if report.errors:
        raise report.refusal()
    return values


def _check_size(
    page: Page, inputs: Mapping[str, str], parameters: Mapping[str, Any], when: Mapping[str, Any], events: Sequence[str]
) -> None:
    for label, count in (("inputs", len(inputs)), ("with", len(parameters)), ("when", len(when))):
        if count > limits.INPUTS_MAX:
            page.error(_at(label), "too-many", f"'{label}' has {count} names; at most {limits.INPUTS_MAX} are taken")
    if len(events) > limits.WEBHOOK_EVENTS_MAX or any(not 0 < len(event) <= 100 for event in events):
        message = f"'events' is at most {limits.WEBHOOK_EVENTS_MAX} names of 1 to 100 characters"
        page.error(_at("events"), "bad-events", message)
    if (problem := problem_of_kept([parameters, when])) is not None:
        page.error(Place(), "bad-number", f"in 'with' or 'when', {problem}", "put it in quotes")
    said = json.dumps([dict(inputs), dict(parameters), dict(when)])
    if len(said) > limits.WEBHOOK_CHARS_MAX:
        message = (
            f"'inputs', 'with' and 'when' have {len(said)} characters together; at most {limits.WEBHOOK_CHARS_MAX}"
        )
        page.error(Place(), "too-large", message, "keep data in files")


def _check_expression(page: Page, at: tuple[str, ...], text: str) -> bool:
    try:
        parse_expression(text)
    except ExpressionError as error:
        page.error(_at(*at), "bad-expression", f"the expression '{shortened(text)}' {error.message}", error.hint)
        return False
    return True


def _wanted(page: Page, path: str, said: Any) -> tuple[Any, ...]:
    _check_expression(page, ("when", path), path)
    wanted = tuple(said) if isinstance(said, list) else (said,)
    if not wanted or len(wanted) > limits.INPUT_OPTIONS_MAX or not all(_is_scalar(one) for one in wanted):
        message = f"what '{shortened(path)}' must be is a text, a number, a boolean or null, or a list of such"
        page.error(_at("when", path), "bad-when", message, 'write for example {"ref": "refs/heads/main"}')
    return wanted


def _is_scalar(value: object) -> bool:
    return value is None or isinstance(value, str | int | float | bool)


def _is_plain(value: object) -> bool:
    """A single value, or a list of such: what inputs take. A mapping would be a document."""
    return _is_scalar(value) or (isinstance(value, list) and all(_is_scalar(one) for one in value))


def _is_same(value: object, wanted: object) -> bool:
    """As in JSON, where true is not 1."""
    return isinstance(value, bool) is isinstance(wanted, bool) and value == wanted


def _at(*parts: str) -> Place:
    path = Path()
    for part in parts:
        path /= part
    return Place(path=path)
