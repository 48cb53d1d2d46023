"""`notify` of a definition, in both dialects: every form of it, and every fault with its place."""

import pytest

from pistage.core import limits
from pistage.core.definition import lint, make_plan
from pistage.core.notices import End, Notify
from pistage.core.plan import redacted
from pistage.errors import PistageError

YAML = "name: a\nimage: i\nrun: x\n"
JSON = """
{"name": "a", "pipelineTasks": [{"name": "t", "steps": [{"name": "s", "image": "i"}]}], "notify": %s}
"""


def notify_of(text: str) -> tuple[Notify, ...]:
    planned = make_plan(text, actions=lambda name: None)
    assert planned.findings == ()
    return planned.plan.notify


def faults(notify: str) -> list[tuple[str, str]]:
    found = lint(f"{YAML}notify: {notify}\n", actions=None).errors
    return [(finding.code, finding.path) for finding in found]


def test_it_is_a_name_a_url_a_mapping_or_a_list_of_them() -> None:
    text = f"""{YAML}
notify:
  - ops
  - https://example.org/hook
  - {{to: chat, on: [failed, succeeded], body: "{{{{ run.name }}}}"}}
  - {{url: "http://10.0.0.1/", on: always}}
"""
    assert notify_of(text) == (
        Notify(to="ops"),
        Notify(url="https://example.org/hook"),
        Notify(to="chat", on=(End.SUCCEEDED, End.FAILED), body="{{ run.name }}"),
        Notify(url="http://10.0.0.1/", on=tuple(End)),
    )
    assert notify_of(f"{YAML}notify: ops") == (Notify(to="ops"),)
    assert notify_of(f"{YAML}notify: {{to: ops, on: lost}}") == (Notify(to="ops", on=(End.LOST,)),)
    assert notify_of(f"{YAML}notify:") == notify_of(YAML) == ()


def test_a_pipeline_json_has_it_too() -> None:
    assert notify_of(JSON % '["ops", {"url": "https://example.org", "on": "cancelled"}]') == (
        Notify(to="ops"),
        Notify(url="https://example.org", on=(End.CANCELLED,)),
    )
    assert notify_of(JSON % "null") == ()


def test_nothing_in_it_is_rendered_with_the_parameters() -> None:
    text = f"{YAML}with: {{name: b}}\nnotify: {{to: '{{{{ .name }}}}', body: '{{{{ run.name }}}} {{{{ .run.id }}}}'}}\n"
    assert notify_of(text) == (Notify(to="{{ .name }}", body="{{ run.name }} {{ .run.id }}"),)


@pytest.mark.parametrize(
    ("notify", "expected"),
    [
        ("7", [("wrong-kind", "notify")]),
        ("[[ops]]", [("wrong-kind", "notify[0]")]),
        ("''", [("empty", "notify")]),
        ("' ops'", [("bad-name", "notify")]),
        ("{on: failed}", [("no-receiver", "notify")]),
        ("{to: a, url: 'https://a'}", [("no-receiver", "notify")]),
        ("{to: a, on: []}", [("empty", "notify.on")]),
        ("{to: a, on: [failed, never, 1]}", [("wrong-kind", "notify.on[1]"), ("wrong-kind", "notify.on[2]")]),
        ("{to: a, body: 7}", [("wrong-kind", "notify.body")]),
        ("{to: a, body: '{{ with.x }}'}", [("bad-body", "notify.body")]),
        ("{to: a, body: '{{ .repo }}'}", [("bad-body", "notify.body")]),
        ("{to: a, secret: abcdefgh}", [("not-in-a-document", "notify.secret")]),
        ("{to: a, headers: {A: b}}", [("not-in-a-document", "notify.headers")]),
        ("[a, a]", [("same-receiver", "notify[1]")]),
        ("[ftp://a, 'http://u:p@a', 'http://127.1/']", [("bad-url", f"notify[{n}]") for n in range(3)]),
        (str([f"r{n}" for n in range(limits.NOTICES_OF_DEFINITION_MAX + 1)]), [("too-many-notices", "notify")]),
    ],
)
def test_every_fault_is_told_at_once_with_its_place(notify: str, expected: list[tuple[str, str]]) -> None:
    assert faults(notify) == expected


def test_a_key_that_means_nothing_is_a_warning_and_notify_of_a_group_an_error() -> None:
    (warning,) = lint(f"{YAML}notify: {{to: a, onn: failed}}\n", actions=None).findings
    assert (warning.severity, warning.code, warning.hint) == ("warning", "unknown-key", "did you mean 'on'?")
    with pytest.raises(PistageError, match="'notify' has no effect in a group"):
        make_plan("name: a\nuses: {m: {steps: [{image: i, run: x}], notify: ops}}\n", actions=lambda name: None)


def test_of_its_url_a_plan_shows_only_where_it_leads() -> None:
    plan = make_plan(f"{YAML}notify: [ops, 'https://example.org/token']\n", actions=lambda name: None).plan
    assert redacted(plan).notify == (Notify(to="ops"), Notify(url="https://example.org/…"))
