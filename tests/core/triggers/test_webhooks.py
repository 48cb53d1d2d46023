"""What a webhook makes of a payload: the values of its inputs, or why there is no run."""

import random
from typing import Any

import pytest

from pistage.core.triggers.settings import Webhook
from pistage.core.triggers.webhooks import parse_webhook, reason_to_skip, values_in
from pistage.errors import Code, PistageError


@pytest.mark.parametrize(
    ("wanted", "payload", "is_run"),
    [
        (1, {"a": 1}, True),
        (1, {"a": 1.0}, True),
        (1, {"a": True}, False),
        (True, {"a": 1}, False),
        (True, {"a": True}, True),
        (1, {"a": "1"}, False),
        (None, {}, True),
        (None, {"a": None}, True),
        (None, {"a": 0}, False),
        ("x", {"a": ["x"]}, False),
        ("x", {"a": {"x": 1}}, False),
    ],
)
def test_a_condition_holds_as_json_has_it(wanted: Any, payload: dict[str, Any], is_run: bool) -> None:
    webhook = Webhook(when={"a": (wanted,)})
    assert (reason_to_skip(webhook, payload, None) is None) is is_run


def test_all_conditions_must_hold_each_by_one_of_its_values() -> None:
    webhook = Webhook(when={"a": (1, 2), "b": ("x",)})
    assert reason_to_skip(webhook, {"a": 2, "b": "x"}, None) is None
    assert reason_to_skip(webhook, {"a": 2, "b": "y"}, None) == (
        "b is the text 'y', which this webhook does not wait for"
    )  # fmt: skip
    assert reason_to_skip(webhook, {"b": "x"}, None) == "a is nothing, which this webhook does not wait for"


def test_values_come_from_the_payload_and_from_nowhere_else() -> None:
    webhook = Webhook(inputs={"a": "x.y", "b": 'z ?? "{{ x }}"', "c": "no ?? null", "l": "l"}, parameters={"d": 1})
    assert values_in(webhook, {"x": {"y": False}, "l": ["{{ a }}", 2, None], "d": 2}) == {
        "a": False, "b": "{{ x }}", "l": ["{{ a }}", 2, None], "d": 1,
    }  # fmt: skip


def test_everything_that_is_wrong_with_a_webhook_is_told_at_once() -> None:
    with pytest.raises(PistageError) as refused:
        parse_webhook(
            inputs={"a": "", "b": "c"}, parameters={"b": 1}, when={"d e": [[]], "f": []}, events=["x" * 101],
            window_s=1e7,
        )  # fmt: skip
    findings: Any = refused.value.details["findings"]
    assert [one["code"] for one in findings] == [
        "bad-events", "bad-expression", "same-name", "bad-expression", "bad-when", "bad-when", "bad-window",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("said", "code"),
    [
        ({"inputs": {f"i{n}": "a" for n in range(101)}}, "too-many"),
        ({"events": ["push"] * 101}, "bad-events"),
        ({"parameters": {"a": "x" * 70_000}}, "too-large"),
        ({"parameters": {"a": float("nan")}}, "bad-number"),
        ({"when": {"a": list(range(201))}}, "bad-when"),
    ],
)
def test_a_webhook_has_bounds(said: dict[str, Any], code: str) -> None:
    given: dict[str, Any] = {"inputs": {}, "parameters": {}, "when": {}, "events": [], "window_s": None}
    with pytest.raises(PistageError) as refused:
        parse_webhook(**(given | said))
    findings: Any = refused.value.details["findings"]
    assert code in {one["code"] for one in findings}


@pytest.mark.parametrize("seed", range(300))
def test_no_payload_does_more_than_give_values_or_be_refused(seed: int) -> None:
    rng = random.Random(seed)

    def made(depth: int) -> Any:
        if depth > 4 or rng.random() < 0.3:
            return rng.choice([None, True, 0, 1e308, -1, "", "x" * 100, "\ud800", "{{ a }}", 10**100])
        if rng.random() < 0.5:
            return [made(depth + 1) for _ in range(rng.randrange(3))]
        return {rng.choice("abc"): made(depth + 1) for _ in range(3)}

    webhook = Webhook(
        inputs={"one": "a.b[0]", "two": "a", "three": "b.c ?? 1"}, when={"c": (None, 0)}, events=("push",)
    )
    payload = {key: made(0) for key in "abc"}
    reason_to_skip(webhook, payload, rng.choice(["push", None, "\udcff"]))
    try:
        values = values_in(webhook, payload)
    except PistageError as refusal:
        assert refusal.code is Code.INVALID
    else:
        assert set(values) <= {"one", "two", "three"}
        assert not any(isinstance(value, dict) for value in values.values())
